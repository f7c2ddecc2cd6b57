"""Where a run leaves its files: a directory, or object storage by way of a directory here."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from pipeline.errors import ConfigError
from pipeline.files.objects import ObjectFolder, ObjectUrl, is_url
from student.checkpoint import (
    BEST,
    CONFIG,
    LAST,
    PREVIOUS,
    TORN,
    claim_output,
    epoch_name,
    keep_epoch,
    older_epochs,
    set_aside,
)
from student.metrics import METRICS
from student.trackers import TRACKER

__all__ = ["RunOutput", "open_output"]

_OWNER = ".owner"
"""Who writes to an output in object storage: whoever began last. A lost machine tells nobody."""


class RunOutput:
    """A run's directory, which rank 0 alone reads and writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def at(self, path: Path) -> str:
        """Return a path in the directory as messages have it."""
        return str(path)

    def fetch(self, resume: str | None) -> str | None:
        """Bring to the directory what a run begins with; return ``resume`` as a path here."""
        return resume

    def claim(self) -> IO[bytes]:
        """Keep others from writing to the output while the returned file is open.

        Raises ``ConfigError`` if another process of this machine does.
        """
        return claim_output(self.directory)

    def set_aside(self) -> None:
        """Rename a torn last.pt."""
        set_aside(self.directory / LAST)

    def keep_epoch(self, epoch: int, kept: int) -> None:
        """Keep last.pt as that of an epoch, and of these the latest ``kept``."""
        keep_epoch(self.directory / LAST, epoch, kept)

    def publish(self) -> None:
        """See to it that what is in the directory is in the output."""


class _RemoteOutput(RunOutput):
    """Object storage that is made like a directory of this process, file by file.

    An object is replaced in one step. last.pt comes after all others, so the log beside it reaches
    as far as it does.
    """

    def __init__(self, url: str) -> None:
        self._scratch = TemporaryDirectory(prefix="train-student-")
        found = ObjectUrl.parse(url)
        super().__init__(Path(self._scratch.name) / (found.key.rpartition("/")[2] or found.bucket))
        self.directory.mkdir()
        self._folder = ObjectFolder(found)
        self._words = f"{socket.gethostname()} {os.getpid()} {os.urandom(8).hex()}".encode()
        self._sent: dict[str, tuple[int, int]] = {}  # times of change, and bytes
        self._last_there = False

    def at(self, path: Path) -> str:
        if not path.is_relative_to(self.directory):
            return str(path)
        return self._folder.at(path.relative_to(self.directory).as_posix())

    def fetch(self, resume: str | None) -> str | None:
        there = self._folder.sizes()
        self._last_there = LAST in there
        names = [CONFIG]
        if resume == "auto":
            names += [METRICS, TRACKER, LAST, PREVIOUS]
            names += [] if there.keys() & {LAST, PREVIOUS} else [BEST]
        elif resume is not None and is_url(resume):
            folder, _, name = resume.rpartition("/")
            own = folder == str(self._folder)
            names += [METRICS, TRACKER, name] if own else []
            resume = str(self.directory / name if own else Path(self._scratch.name) / name)
            if not own:
                ObjectFolder(ObjectUrl.parse(folder)).fetch(name, Path(resume))
        for name in (name for name in names if name in there):
            self._folder.fetch(name, self.directory / name)
            self._sent[name] = _state(self.directory / name)
        return resume

    def claim(self) -> IO[bytes]:
        self._folder.replace(_OWNER, self._words)
        return super().claim()

    def set_aside(self) -> None:
        super().set_aside()
        if self._last_there:
            self._folder.copy(LAST, TORN)
            self._folder.remove(LAST)
            self._last_there = False

    def keep_epoch(self, epoch: int, kept: int) -> None:
        if kept:
            self._require_owned()
            self._folder.copy(LAST, epoch_name(epoch))
            for name in older_epochs(self._folder.list("epoch-"), kept):
                self._folder.remove(name)

    def publish(self) -> None:
        files = {
            path.relative_to(self.directory).as_posix(): path
            for path in self.directory.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }
        changed = [
            name
            for name, path in files.items()
            if name not in (PREVIOUS, TORN) and self._sent.get(name) != _state(path)
        ]
        if changed:
            self._require_owned()
        for name in sorted(changed, key=lambda name: (name == LAST, name)):
            state = _state(files[name])
            if name == LAST and self._last_there:
                self._folder.copy(LAST, PREVIOUS)
            self._folder.send(name, files[name])
            self._sent[name] = state
            self._last_there = self._last_there or name == LAST

    def _require_owned(self) -> None:
        if self._folder.read_bytes(_OWNER) != self._words:
            raise ConfigError(
                f"`output` {self._folder}: another process began to train there, so this one stops "
                "and leaves its files as they are; give each run an `output` of its own"
            )


def open_output(location: str) -> RunOutput:
    """Return the output of a run; nothing is read or written yet.

    Raises ``ConfigError`` for a URL that is malformed or carries credentials.
    """
    return _RemoteOutput(location) if is_url(location) else RunOutput(Path(location))


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
