"""How records grow: fields that later releases add, and files of any release that stay readable.

A store or a run is bound to the JSON of its settings, and outlives the release that wrote it.
So a field that is added later has a *founding value*, the value that says what releases before
the field did. The canonical form leaves a field at its founding value out: a store made
yesterday and a store made by a release with ten more fields have one digest.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import types
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from pipeline.errors import ConfigError, StoreError

__all__ = [
    "RELEASE",
    "convert",
    "founding_values",
    "from_plain",
    "grown",
    "install",
    "many_from_plain",
    "needed_release",
    "one_line",
    "plain_value",
    "require",
    "settle",
    "to_plain",
]

RELEASE = "0.1.0"
"""This release of teacher-labels."""

Record = TypeVar("Record")

_IS_RELEASE = re.compile(r"\d{1,4}(\.\d{1,4}){1,3}")  # a stranger wrote what it is asked of

_FOUNDING, _SINCE = "founding", "since"
_NOTHING = object()  # the founding value of a field that was always there


def grown(*, founding: Any, since: str, **default: Any) -> Any:
    """Return a dataclass field that release ``since`` added to a record that is stored.

    ``founding`` is what older releases did without the field. It never changes, even where the
    default, which is the same unless one is given, does::

        antialias: bool = grown(founding=True, since="0.2.0")
    """
    if not default:
        default = {"default": founding}
    return dataclasses.field(**default, metadata={_FOUNDING: founding, _SINCE: since})


def settle(record: Any) -> None:
    """Check each field of a frozen record against its type, and make whole numbers floats.

    For ``__post_init__``. A list becomes a tuple where the type says so, a path a text, and 1
    becomes 1.0, so that equal settings have one canonical form. Raises ``ConfigError`` naming the
    field.
    """
    hints = _hints(cast(Hashable, type(record)))
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if type(value).__module__.startswith("tyro."):
            continue  # tyro's mark of what a command line is still to give
        settled = convert(value, hints[field.name], f"`{field.name}`")
        if settled is not value:
            object.__setattr__(record, field.name, settled)


def require(record: Any, name: str, fits: bool, cure: str) -> None:
    """Raise ``ConfigError`` for a field of a record unless its value fits."""
    if not fits:
        raise ConfigError(f"`{name}` is {getattr(record, name)}; {cure}")


def convert(value: Any, hint: Any, name: str) -> Any:
    """Return a value as a type has it; raises ``ConfigError`` naming what is another's."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        raise ConfigError(f"{name} is {_shown(value)}; give {hint.__name__}(...)")
    if not _is_storable(value):
        raise ConfigError(f"{name} is {_shown(value)}; use finite numbers of at most 39 digits")
    try:
        return msgspec.convert(_texts(value), hint, dec_hook=_from_text)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name} is {_shown(value)}; use {_in_words(hint)}") from error


def to_plain(record: Any) -> dict[str, Any]:
    """Return a record's canonical form: plain JSON values, fields at founding values left out.

    A record all of whose fields are left out is left out too, if its own field has grown.
    """
    plain = {}
    for name, founding in _stored_fields(cast(Hashable, type(record))):
        value = getattr(record, name)
        if founding is _NOTHING or value != founding:
            plain[name] = value if type(value) in (str, int) else plain_value(value)
    return plain


@cache
def _stored_fields(kind: Any) -> Sequence[tuple[str, Any]]:
    """Return the names of a record's fields, with their founding values."""
    fields = dataclasses.fields(kind)
    return [(field.name, field.metadata.get(_FOUNDING, _NOTHING)) for field in fields]


def founding_values(kind: Any) -> dict[str, Any]:
    """Return the founding values of the fields of a record, and of records in it, that have one.

    They are plain JSON values.
    """
    found = {}
    for field in dataclasses.fields(kind):
        hint = _hints(kind)[field.name]
        if _FOUNDING in field.metadata:
            found[field.name] = plain_value(field.metadata[_FOUNDING])
        elif dataclasses.is_dataclass(hint):
            found.update(founding_values(hint))
    return found


def from_plain(kind: type[Record], values: Any, where: str, needs: str = "") -> Record:
    """Return the record of which ``to_plain`` gave ``values``; ``where`` is for messages.

    ``needs`` is the release that a file says it needs. Raises ``StoreError`` for a field or a
    value that this release does not know, and says which release does.
    """
    if not isinstance(values, Mapping):
        raise StoreError(f"{where} is {values!r}, not a record of settings")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(values.keys() - fields, key=str)
    if unknown:
        raise StoreError(
            f"{where}.{one_line(unknown[0])} is not known to teacher-labels {RELEASE}; "
            + install(needs)
        )
    hints = _hints(cast(Hashable, kind))
    found = {}
    for name, field in fields.items():
        if name in values:
            found[name] = _read(values[name], hints[name], f"{where}.{name}", needs)
        elif _FOUNDING in field.metadata:
            found[name] = field.metadata[_FOUNDING]
        else:
            raise StoreError(f"{where}.{name} is missing, so the file is damaged or forged")
    try:
        record: Record = kind(**found)
    except ConfigError as error:
        raise StoreError(f"{where}.{error}; the file is damaged or forged") from error
    return record


def many_from_plain(
    kind: type[Record], values: Any, where: str, needs: str = ""
) -> tuple[Record, ...]:
    """Return the records of a list of what ``to_plain`` gave; see ``from_plain``.

    In a tenth of its time where all have all fields, and no others.
    """
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if isinstance(values, list) and all(
        type(one) is dict and one.keys() == names for one in values
    ):
        with suppress(msgspec.ValidationError):
            return msgspec.convert(values, tuple[kind, ...])  # type: ignore[valid-type]
    return tuple(from_plain(kind, one, where, needs) for one in values)


def _read(value: Any, hint: Any, where: str, needs: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_plain(cast(type, hint), value, where, needs)
    kind, *more = get_args(hint) if get_origin(hint) is tuple else (None,)
    if more == [Ellipsis] and dataclasses.is_dataclass(kind):
        return tuple(
            _read(one, kind, f"{where}[{index}]", needs)
            for index, one in enumerate(_converted(value, list[Any], where, needs))
        )
    return _converted(value, hint, where, needs)


def _converted(value: Any, hint: Any, where: str, needs: str) -> Any:
    try:
        return convert(value, hint, where)
    except ConfigError as error:
        known = f"a newer release may know it: {install(needs)}"
        cure = known if get_origin(hint) is Literal else "the file is damaged or forged"
        raise StoreError(f"{error}; {cure}") from error


def one_line(name: Any) -> str:
    """Return a field's name for a message, which a forged file must not break in two."""
    text = str(name)
    return text if text.isprintable() else repr(text)


def install(needs: str) -> str:
    """Return the cure for what this release does not know."""
    if _IS_RELEASE.fullmatch(needs) and _numbers(needs) > _numbers(RELEASE):
        return f"install teacher-labels {needs} or newer"
    return "install the release that wrote it (a store's _meta/runs name it), or a newer one"


def needed_release(*records: Any) -> str:
    """Return the oldest release that knows all fields which records' canonical forms have."""
    return max((one for record in records for one in _needed(record)), key=_numbers)


def _needed(record: Any) -> Iterator[str]:
    yield "0.1.0"
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if _FOUNDING in field.metadata and value == field.metadata[_FOUNDING]:
            continue
        yield field.metadata.get(_SINCE, "0.1.0")
        if dataclasses.is_dataclass(value):
            yield from _needed(value)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in release.split(".") if number.isdecimal())


def plain_value(value: Any) -> Any:
    """Return a field's value as JSON has it; mappings stay as they are."""
    if dataclasses.is_dataclass(value):
        return to_plain(value)
    if isinstance(value, tuple | list):
        return [plain_value(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _is_storable(value: Any) -> bool:
    """Return whether JSON holds a value's numbers, and ``read_json`` takes them back."""
    if isinstance(value, tuple | list):
        return all(map(_is_storable, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -(10**39) < value < 10**40


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python spells out no number of more than 4300 digits
        return "too large"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _texts(value: Any) -> Any:
    """Return paths as texts, of which each type takes what it is made of."""
    if isinstance(value, tuple | list):
        return [_texts(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _from_text(kind: type, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    if kind is Path and isinstance(value, str):
        return Path(os.path.expanduser(value))  # noqa: PTH111 - pathlib fails without a home
    raise TypeError


@cache
def _hints(kind: Hashable) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _in_words(hint: Any) -> str:
    """Return what a type takes, in words."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_in_words(one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(repr(one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            return f"a list, each of its values {_in_words(kinds[0])}"
        return f"a list of {len(kinds)} values, each {_in_words(kinds[0])}"
    if get_origin(hint) is dict:
        return "an object of names and values"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        Path: "a path",
        type(None): "nothing",
    }
    return words.get(hint, str(hint))
