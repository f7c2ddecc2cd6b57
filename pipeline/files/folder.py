"""What a store needs of the place it is in, whether a directory or object storage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import BinaryIO

__all__ = ["Folder"]


class Folder(ABC):
    """A place for whole files; none is ever seen half-written.

    Paths are relative, with ``/`` between names. A folder may be pickled to other
    processes. Methods raise ``PipelineError`` where the disk, the network or permissions
    fail, with the place and the cure.
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

    @abstractmethod
    def read_bytes(self, path: str) -> bytes:
        """Return a file's bytes; raises ``FileNotFoundError`` if there is none."""

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
    def list(self, prefix: str = "") -> list[str]:
        """Return the paths of all files that begin with ``prefix``, sorted.

        Files and directories whose names begin with a dot are left out: commits under way.
        """

    @abstractmethod
    def commit_new(self, path: str, data: bytes) -> bool:
        """Write a file that appears whole or not at all; return False if it exists already.

        Of two writers one wins, and the other's bytes vanish.
        """

    @abstractmethod
    def write_file(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Give a binary file to write, which appears whole when the block ends well.

        It replaces the one that may be there, and takes no memory of its size.
        """

    @abstractmethod
    def replace(self, path: str, data: bytes) -> None:
        """Write a file in one step over the one that may be there."""
