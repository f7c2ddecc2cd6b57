"""What a store needs of where it is, whether a directory or object storage."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import BinaryIO

from pipeline.errors import PipelineError

__all__ = ["MAX_FILE_BYTES", "Folder", "UnlistableError", "check_path", "check_size"]

_log = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 32
"""A file that is read whole has no more; a part of the most rows is smaller."""


def check_path(path: str, location: str) -> str:
    """Return a path that leads to a file in the folder ``location``, whatever it is made of.

    Raises ``PipelineError`` for one that may lead out, or that a terminal would act upon.
    """
    plain = path.isprintable() and "\\" not in path
    if not plain or any(name in ("", ".", "..") for name in path.split("/")):
        raise PipelineError(
            f"{location}: {path!r} is no path of a file in it; use names with / between them, "
            "without empty ones, '.', '..', backslashes and control characters"
        )
    return path


def check_size(name: str, size: int, at_most: int) -> None:
    """Raise ``PipelineError`` for a file that is larger than any of its kind."""
    if size > at_most:
        raise PipelineError(
            f"{name} has {size} bytes, and such a file has at most {at_most}; restore it, or get "
            "the store anew from where it came from"
        )


class UnlistableError(PipelineError):
    """Whoever asks may not list what is there, though they may read a file that they can name."""


@cache
def _tell_unlistable(name: str) -> None:
    _log.warning(
        "%s may be read here but not listed, so files beside the labels are not seen: records of "
        "runs, what people put there, and what is none of a store's",
        name,
    )


class Folder(ABC):
    """A folder of whole files; none is ever seen half-written.

    Paths are relative, with ``/`` between names, and are refused if they may lead out of the
    folder, by themselves or by links to directories in it. A file may be a link to be read, as in
    the caches of Hugging Face, DVC and git-annex. A folder may be pickled to other processes.
    Methods raise ``PipelineError`` where the disk, the network or permissions fail, with the
    place and the cure.
    """

    def __init__(self, name: str) -> None:
        self.name = name  # for messages: a path or URL, without credentials

    def __str__(self) -> str:
        return self.name

    def at(self, path: str) -> str:
        """Return a file's name for messages."""
        return f"{self.name}/{path}"

    def is_a_file(self) -> bool:
        """Return whether a file is where the folder would be."""
        return False

    def require_writable(self) -> None:
        """Raise ``PipelineError`` if files are never written in a folder of this kind."""
        return

    @abstractmethod
    def read_bytes(self, path: str, at_most: int = MAX_FILE_BYTES) -> bytes:
        """Return a file's bytes; raises ``FileNotFoundError`` if there is none.

        A file of more than ``at_most`` bytes is refused unread.
        """

    def read_unwatched(self, path: str, at_most: int = MAX_FILE_BYTES) -> bytes:
        """Return the bytes of a file that no checksum vouches for; see ``read_bytes``.

        A link that leads out of the folder is refused: a store that came from others could name
        any file of its reader's so, and a copy of the store would publish it.
        """
        return self.read_bytes(path, at_most)

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """Return ``size`` bytes of a file from ``offset`` on, fewer where it ends before.

        Raises ``FileNotFoundError`` if there is none. Not every folder reads less than a file.
        """
        return self.read_bytes(path)[offset : offset + size]

    def size(self, path: str) -> int:
        """Return a file's bytes; raises ``FileNotFoundError`` if there is none."""
        return len(self.read_bytes(path))

    @abstractmethod
    def exists(self, path: str = "") -> bool:
        """Return whether this file exists; without a path, whether the folder does."""

    @abstractmethod
    def sizes(self, prefix: str = "") -> Mapping[str, int]:
        """Return the paths of all files that begin with ``prefix``, in any order, with their bytes.

        Files and directories whose names begin with a dot are left out, commits under way,
        unless they are those of ``prefix`` itself.
        """

    def list(self, prefix: str = "") -> list[str]:
        """Return the paths of all files that begin with ``prefix``, sorted; see ``sizes``."""
        return sorted(self.sizes(prefix))

    def list_if_allowed(self, prefix: str = "") -> Sequence[str]:
        """Return what ``list`` does, or nothing, with a warning, where files may only be read.

        For files that a store can be read without: what it needs is named in its manifest.
        """
        try:
            return self.list(prefix)
        except UnlistableError:
            _tell_unlistable(self.name)
            return []

    @abstractmethod
    def commit_new(self, path: str, data: bytes) -> bool:
        """Write a file that appears whole or not at all; return False if it exists already.

        Of two writers one wins, and the other's bytes vanish.
        """

    @abstractmethod
    def write_file(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Give a binary file to write and read, which appears whole when the block ends well.

        It replaces the one that may be there, and takes no memory of its size.
        """

    @abstractmethod
    def replace(self, path: str, data: bytes) -> None:
        """Write a file in one step over the one that may be there."""

    def remove(self, path: str) -> None:
        """Remove a file that is there."""
        raise PipelineError(f"{self.at(path)}: nothing is removed in a folder of this kind")
