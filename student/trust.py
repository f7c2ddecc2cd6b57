"""What a file may not choose alone: code that runs, a host that is asked, a path that is read.

Checkpoints and run files name models. They may come from other people, so a name that could do
more than build one of timm's untrained models counts only if the user gives it too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pipeline.errors import ConfigError
from student.config import parse_model_args

__all__ = ["require_named_arguments", "require_named_model", "require_named_size"]

_LARGEST_SIDE = 1024
"""In pixels; above it a few images may take gigabytes, whatever the weights are."""

_REACHING = (
    *("pretrained", "checkpoint", "cache", "cfg", "config", "feature", "pruned", "weights"),
    *("file", "path", "dir", "url", "uri", "host", "hub", "repo", "source", "module"),
)
"""Parts of the names of arguments with which timm fetches or reads files, and of like ones."""

_HARMLESS = frozenset({"drop_path", "drop_path_rate"})


def require_named_model(source: str, model: str, named: str | None) -> None:
    """Raise ``ConfigError`` if a file's model is code that the user did not name too.

    ``source`` is the file for messages, ``named`` the model that the user gives, if any; then
    it must be the file's.
    """
    if named is not None and named != model:
        raise ConfigError(
            f"{source} names model {model!r}, not {named!r}; give the file's, or none"
        )
    if named is None and not re.fullmatch(r"[\w.-]+", model):
        raise ConfigError(
            f"{source} names model {model!r}, which is code to run or a source to fetch from, and "
            f"a file alone does not choose that: if you trust it, give `model` {model!r} yourself"
        )


def require_named_arguments(source: str, arguments: Sequence[str], named: Sequence[str]) -> None:
    """Raise ``ConfigError`` if a file's model arguments may fetch or read what the user did not
    name too.

    What the user names must be as the file has it.
    """
    ours, theirs = parse_model_args(tuple(named)), parse_model_args(tuple(arguments))
    for name, value in ours.items():
        if name not in theirs or repr(theirs[name]) != repr(value):
            raise ConfigError(
                f"{source} has model_args {list(arguments)}, not {name}={value!r}; give them as "
                "the file does, or not at all"
            )
    reaching = [one for one in theirs if one not in ours and _reaches(one, theirs[one])]
    if reaching:
        texts = [one for one in arguments if one.partition("=")[0] in reaching]
        raise ConfigError(
            f"{source} has model_args {texts}, which may fetch or read something, and a file "
            f"alone does not choose that: if you trust it, give `model_args` {texts} yourself"
        )


def require_named_size(source: str, size: int, named: int | None) -> None:
    """Raise ``ConfigError`` if a file's images are larger than it may choose alone.

    ``named`` is the side that the user gives, in pixels; then it must be the file's.
    """
    if named is not None and named != size:
        raise ConfigError(
            f"{source} is of a student of {size} pixels, not {named}; leave `image_size` out"
        )
    if named is None and size > _LARGEST_SIDE:
        raise ConfigError(
            f"{source} asks for images of {size} pixels, and a file alone does not choose more "
            f"than {_LARGEST_SIDE}, which take gigabytes: if you trust it, give `image_size` {size}"
        )


def _reaches(name: str, value: Any) -> bool:
    """Return whether an argument may lead to a file, a host or code."""
    named = name not in _HARMLESS and any(part in name.lower() for part in _REACHING)
    return named or not _is_plain(value)


def _is_plain(value: Any) -> bool:
    """Return whether a value is a number, a truth value, a simple word, or a list of such."""
    if isinstance(value, str):
        return re.fullmatch(r"[\w-]*", value) is not None
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float)
