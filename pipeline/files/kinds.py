"""What was given instead of a file of data: said in the error, so that nobody looks for damage."""

from __future__ import annotations

import os
import re
import select
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

__all__ = [
    "HEAD_BYTES",
    "at_home",
    "read_list",
    "read_toml",
    "what_it_is_instead",
    "why_no_data",
    "without_waiting",
]

HEAD_BYTES = 512  # that show what a file is instead

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
"""First bytes of what programs of these names write."""


def at_home(path: str) -> str:
    """Return a path with the home directory for a leading ``~``, as a shell has it.

    >>> at_home("x~y"), at_home("s3://bucket/~")
    ('x~y', 's3://bucket/~')
    """
    return os.path.expanduser(path)  # noqa: PTH111 - pathlib fails where there is no home


def why_no_data(path: Path) -> str | None:
    """Return why a path can hold no data, with the cure, in words that follow its name.

    None for a file that may hold some. Nothing else is opened: a pipe would be waited for.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            return "is a link to a file that is not there (git-annex and DVC keep such); fetch it"
        return "does not exist; check the path, or give another"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if stat.S_ISDIR(mode):
        return "is a directory; give the file in it"
    if not stat.S_ISREG(mode):
        return "is a pipe, a socket or a device; give a file"
    try:
        with path.open("rb") as file:
            return what_it_is_instead(file.read(HEAD_BYTES))
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def what_it_is_instead(head: bytes) -> str | None:
    """Return what a file's first bytes show that is certainly no data, with the cure, or None."""
    if not head:
        return "is empty; fetch or write it again"
    if head.startswith(b"version https://git-lfs.github.com/"):
        return "is a pointer of Git LFS, not the file itself; run git lfs pull"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "is a web page, not the file that it may link to; download the file itself"
    if start.startswith(b"<?xml"):
        return "is an XML page, as storage answers instead of a file; download it again"
    for mark, program in _COMPRESSED.items():
        if head.startswith(mark):
            return f"is compressed by {program}; unpack it"
    return None


_SETTINGS_BYTES = 1 << 20
_SETTINGS_DOTS = 500
"""Outside of texts and comments; a key of n parts takes the parser n**3 steps."""

_TEXTS = re.compile(
    r"""\#[^\n]*
    | \"{3}(?:[^\\]|\\.)*?(?:\"{3,5}|\Z) | '{3}.*?(?:'{3,5}|\Z)
    | "(?:[^"\\\n]|\\.)*+"? | '[^'\n]*+'?""",
    re.DOTALL | re.VERBOSE,
)
"""Comments and texts of TOML, in which dots divide no key.

One without an end goes to the end of its line: to look for the next within it takes the square.
"""


def read_toml(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file; raises ``ConfigError`` if it cannot be read."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise OSError(0, "it is a directory, a pipe or a device")
        if path.exists() and path.stat().st_size > _SETTINGS_BYTES:
            raise ValueError(f"it has more than {_SETTINGS_BYTES} bytes")
        text = path.read_text(encoding="utf-8-sig")  # with or without a mark of its encoding
        if _TEXTS.sub("", text).count(".") > _SETTINGS_DOTS:
            raise ValueError(f"its keys and numbers have more than {_SETTINGS_DOTS} dots")
        values = tomllib.loads(text)
        if any("\0" in one for one in _texts_in(values)):  # no path has one
            raise ValueError("a text in it has a zero byte")
        return values
    except (OSError, ValueError, RecursionError) as error:  # the last of lists in lists
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"`config` {path} cannot be read ({why}); give the path of a TOML file of settings"
        ) from error


def _texts_in(value: Any) -> Iterator[str]:
    """Yield the texts among values, however deep."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _texts_in(one)
    elif isinstance(value, str):
        yield value


_LIST_BYTES = 64 << 20  # two million keys
_SILENT_SECONDS = 600  # a query behind a pipe may take long


def read_list(path: Path) -> list[str]:
    """Return the lines of a text file, or of a pipe that a program writes and ends.

    Raises ``ValueError`` for what is no text, has more than 64 MiB, or is a pipe that gives
    nothing for ten minutes, ``OSError`` for what cannot be read: a directory, a device.
    """
    data = bytearray()
    with open(path, "rb", buffering=0, opener=without_waiting) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise OSError(0, "it is a directory or a device")
        while chunk := _read_some(file.fileno()):
            data += chunk
            if b"\0" in chunk:
                raise ValueError("it is no text")
            if len(data) > _LIST_BYTES:
                raise ValueError(f"it has more than {_LIST_BYTES} bytes")
    return data.decode("utf-8-sig").split("\n")


def without_waiting(path: str, flags: int) -> int:
    """Open a file, as ``open`` has it done; a pipe that nobody writes to would be waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read_some(file: int) -> bytes:
    """Return the next bytes of a file or pipe, none at its end."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    if not poll.poll(1000 * _SILENT_SECONDS):
        raise ValueError(f"a pipe that gave nothing for {_SILENT_SECONDS} seconds")
    return os.read(file, 1 << 20)
