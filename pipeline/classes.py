"""Names of classes: where they are read, what they may hold, and whether two lists agree.

A class's index in the list is the number that shards, labels and students have for it.
Names are no part of what a store or a run is bound to, so a store may get them later. But where
two lists meet, another order means that one number stands for two classes: that is refused.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipeline.errors import ClassesError, ConfigError, PipelineError
from pipeline.files.cache import RemoteShard, ShardFile
from pipeline.files.kinds import at_home
from pipeline.files.local import Folder, LocalFolder, open_folder
from pipeline.files.objects import is_url
from pipeline.identity import read_json

__all__ = [
    "CLASSES_FILE",
    "MAX_CLASSES",
    "ClassNames",
    "agreed_names",
    "check_names",
    "class_in_words",
    "class_number",
    "class_text",
    "names_beside",
    "read_names",
    "require_known",
]

CLASSES_FILE = "classes.json"
"""The names of a packing's classes in the order of their index, a JSON list beside its shards."""

MAX_CLASSES = (1 << 16) - 1
"""Labels are uint16, and a store keeps 65535 for "missing"."""

_LONGEST = 1024  # characters of a name
_LARGEST_FILE = 1 << 25  # bytes
_SHOWN = 40  # characters of a name in a table or message
_UNFIT = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What no name may hold: control characters, line ends, and bytes that are not UTF-8."""
_SYNSET = re.compile(r"(n\d{8})(\s.*)?")  # a WordNet ID, as ImageNet's folders are called

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassNames:
    """Names in the order of their classes' indices, and who has them in this order."""

    names: tuple[str, ...]
    source: str  # for messages

    @staticmethod
    def of(names: Sequence[str] | None, source: object) -> ClassNames | None:
        """Return names and their source; None where there are none."""
        return None if names is None else ClassNames(names=tuple(names), source=str(source))


def check_names(values: Any, source: str) -> tuple[str, ...]:
    """Return a list of names that strangers may have made.

    Raises ``ClassesError`` unless it is one of 1 to 65,535 names, each one line of text.
    """
    if not isinstance(values, list | tuple) or not all(isinstance(one, str) for one in values):
        raise ClassesError(
            f"{source} is no list of names of classes, in the order of their indices; make it one, "
            "or give it another name"
        )
    if not 1 <= len(values) <= MAX_CLASSES:
        raise ClassesError(f"{source} names {len(values)} classes; give 1 to {MAX_CLASSES}")
    for number, name in enumerate(values):
        if not name or len(name) > _LONGEST or _UNFIT.search(name):
            raise ClassesError(
                f"{source} names class {number} {_cut(name)!r}; a name has 1 to {_LONGEST} "
                "characters, and no control characters and line ends"
            )
    return tuple(values)


def read_names(location: str | Path) -> ClassNames:
    """Return the names that a user gives by a file or directory, or their URL.

    A ``.json`` holds a list; any other file a name a line, or on each line ImageNet's WordNet ID
    with words behind it. A directory is one of packed shards, whose ``classes.json`` counts, or
    one with a directory of images for each class. Raises ``ConfigError`` if there is nothing,
    ``ClassesError`` for what is no list of names.
    """
    location = at_home(str(location))
    path = Path(location)
    if not is_url(location) and path.is_dir() and not (path / CLASSES_FILE).exists():
        return ClassNames(names=_folder_names(path), source=location)
    folder, name = _list_at(location)
    try:
        data = folder.read_bytes(name, _LARGEST_FILE)
    except FileNotFoundError as error:
        raise ConfigError(
            f"`classes` {location}: no such file or directory; check the path"
        ) from error
    parse = _names_of_json if name.endswith(".json") else _names_of_text
    source = folder.at(name)
    return ClassNames(names=parse(data, source), source=source)


def _list_at(location: str | Path) -> tuple[Folder, str]:
    """Return in which folder a list of names lies, and the name of its file."""
    if is_url(str(location)):
        above, _, name = str(location).rstrip("/").rpartition("/")
        return (
            (open_folder(above), name)
            if "." in name
            else (open_folder(str(location)), CLASSES_FILE)
        )
    path = Path(location)
    return (
        (LocalFolder(path), CLASSES_FILE)
        if path.is_dir()
        else (LocalFolder(path.parent), path.name)
    )


def _folder_names(root: Path) -> tuple[str, ...]:
    names = sorted(one.name for one in root.iterdir() if one.is_dir() and one.name[0] != ".")
    if not names:
        raise ConfigError(
            f"`classes` {root} holds neither {CLASSES_FILE} nor directories of classes; give a "
            "list of names"
        )
    return check_names(names, str(root))


def names_beside(shards: Sequence[ShardFile]) -> ClassNames | None:
    """Return the names in the ``classes.json`` that lies beside shards, None without one.

    Raises ``ClassesError`` for one that is no list of names, and for two with other lists.
    """
    locations = dict.fromkeys(
        str(one).rpartition("/")[0] if isinstance(one, RemoteShard) else one.parent
        for one in shards
    )
    return agreed_names(*map(_names_in, locations))


def _names_in(location: str | Path) -> ClassNames | None:
    folder = open_folder(location)
    try:
        data = folder.read_bytes(CLASSES_FILE, _LARGEST_FILE)
    except FileNotFoundError:
        return None
    except PipelineError as error:
        if not isinstance(location, str):
            raise
        # Object storage says so of what is not there to whoever may not list it.
        _log.warning("%s: so classes have no names", error)
        return None
    source = folder.at(CLASSES_FILE)
    return ClassNames(names=_names_of_json(data, source), source=source)


def _names_of_json(data: bytes, source: str) -> tuple[str, ...]:
    try:
        values = read_json(data)
    except ValueError as error:  # of other encodings too
        raise ClassesError(f"{source} is no JSON ({error}); make it a list of names") from error
    return check_names(values, source)


def _names_of_text(data: bytes, source: str) -> tuple[str, ...]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ClassesError(f"{source} is no text in UTF-8 ({error}); give a name a line") from error
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line]
    synsets = [_SYNSET.fullmatch(line) for line in lines]
    if lines and all(synsets):
        lines = [found[1] for found in synsets if found]
    return check_names(lines, source)


def agreed_names(*lists: ClassNames | None) -> ClassNames | None:
    """Return the first of some lists that is there, after comparing each with it.

    Raises ``ClassesError`` naming both sides and the first class that they call otherwise.
    """
    known = [one for one in lists if one is not None]
    for other in known[1:]:
        if other.names != known[0].names:
            raise ClassesError(_difference(known[0], other))
    return known[0] if known else None


def _difference(ours: ClassNames, theirs: ClassNames) -> str:
    pairs = zip(ours.names, theirs.names, strict=False)
    shorter = min(len(ours.names), len(theirs.names))
    number = next((n for n, (one, other) in enumerate(pairs) if one != other), shorter)
    words = [
        repr(_cut(one.names[number])) if number < len(one.names) else "none"
        for one in (ours, theirs)
    ]
    return (
        f"{ours.source} and {theirs.source} have other classes: class {number} is {words[0]} in "
        f"the first, of {len(ours.names)} classes, and {words[1]} in the second, of "
        f"{len(theirs.names)}, so one number would mean two classes; pack the images of one of "
        "them again, by `pack-shards` with the other's list as its classes, or correct the list "
        "that is wrong"
    )


def require_known(names: Collection[str], known: ClassNames, images: object) -> None:
    """Raise ``ConfigError`` for folders of images that are not among the classes, or two alike."""
    twice = [name for name, count in Counter(known.names).items() if count > 1]
    if twice:
        raise ConfigError(
            f"`classes` {known.source} has the name {twice[0]!r} more than once, so it does not "
            "say which class a directory is; give names that differ, such as WordNet IDs"
        )
    strange = sorted(set(names) - set(known.names))
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise ConfigError(
            f"`images` {images} has the class {strange[0]!r}{more}, which `classes` "
            f"{known.source} does not list; give the list of all classes, or take the directory "
            "away"
        )


def class_number(text: str, names: Sequence[str] | None, source: object) -> int:
    """Return the index of a class that a user gives by its name or number; a name comes first.

    Raises ``ConfigError`` for one that is neither, and a name that several classes have.
    """
    found = [number for number, name in enumerate(names or ()) if name == text]
    if len(found) > 1:
        raise ConfigError(
            f"the class {text!r} is {' and '.join(map(str, found))} in {source}; give its number"
        )
    if not found and not re.fullmatch(r"\d{1,5}", text):
        close = get_close_matches(text, names or (), n=3)
        raise ConfigError(
            f"{source} has no class {text!r}"
            + (f", but {', '.join(map(repr, close))}" if close else "")
            + ("" if names else ": its classes have no names")
            + "; give a class's name or number, which its card lists"
        )
    return found[0] if found else int(text)


def class_text(number: int, names: Sequence[str] | None) -> str:
    """Return a class for a table: its number, and its name if there is one.

    >>> class_text(1, ("cat", "dog")), class_text(1, None)
    ('1 dog', '1')
    """
    known = names is not None and 0 <= number < len(names)
    return f"{number} {_cut(names[number])}" if known and names else str(number)


def class_in_words(number: int, names: Sequence[str] | None) -> str:
    """Return a class for a sentence: its number, and its name in brackets if there is one."""
    number_text, space, name = class_text(number, names).partition(" ")
    return f"{number_text} ({name!r})" if space else number_text


def _cut(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[: _SHOWN - 1]}…"
