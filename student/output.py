"""Where a run leaves its files: a directory, or object storage by way of a directory here."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from pipeline.errors import ConfigError, PipelineError
from pipeline.files.local import open_folder
from pipeline.files.objects import ObjectFolder, ObjectUrl, is_url
from student.checkpoint import (
    BEST,
    CONFIG,
    LAST,
    LOCK,
    PREVIOUS,
    TORN,
    claim_output,
    keep_epoch,
    older_epochs,
    set_aside,
)
from student.metrics import BOARD, METRICS
from student.trackers import TRACKER

__all__ = ["WEIGHTS", "RunOutput", "checkpoint_of", "file_here", "is_directory", "open_output"]

WEIGHTS = (".pt", ".pth", ".safetensors")

_OWNER = re.compile(r"owner-\d{6}")
"""Who writes to an output in object storage, by number: the last to begin. A lost machine tells
nobody, so whoever begins is let in; but of all that found the same owner only one is."""


class RunOutput:
    """A run's directory, which rank 0 alone reads and writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def at(self, path: Path) -> str:
        """Return a path in the directory as messages have it."""
        return str(path)

    def naming(self) -> AbstractContextManager[None]:
        """Return a context in which errors name files of the output as ``at`` does."""
        return nullcontext()

    def fetch(self, resume: str | None) -> str | None:
        """Bring to the directory what a run begins with; return ``resume`` as a path here."""
        return resume

    def claim(self) -> IO[bytes]:
        """Keep others from writing to the output while the returned file is open.

        Raises ``ConfigError`` if another process of this machine does, or if what is opened there,
        and not replaced, would lead out of the directory or never end.
        """
        for name in (LOCK, METRICS, TRACKER, BOARD):
            path = self.directory / name
            if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
                raise ConfigError(
                    f"`output` {self.directory}: {name} is a link, a pipe or a device, and a run "
                    "writes into its own directory alone; remove it, or give another `output`"
                )
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
    as far as it does. What a former owner sends late replaces nothing of a later one's: a write
    names the object that it replaces, and nothing that both may write is deleted. A copy that is
    late makes previous.pt or torn.pt of what is last.pt then.
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
        self._before: list[str] = []  # owners
        self._brought = {self.directory: url.rstrip("/")}

    def at(self, path: Path) -> str:
        return _named(str(path), self._brought)

    def naming(self) -> AbstractContextManager[None]:
        return _naming(self._brought)

    def fetch(self, resume: str | None) -> str | None:
        there = self._folder.sizes()
        self._last_there = LAST in there
        self._before = _owners(there)
        names = [CONFIG]
        if resume == "auto":
            names += [METRICS, TRACKER, LAST, PREVIOUS, BEST]
        elif resume is not None and is_url(resume):
            folder, _, name = resume.rpartition("/")
            own = folder == str(self._folder)
            names += [METRICS, TRACKER, name] if own else []
            resume = str(self.directory / name if own else Path(self._scratch.name) / name)
            if not own:
                self._brought[Path(resume)] = f"{folder}/{name}"
                ObjectFolder(ObjectUrl.parse(folder)).fetch(name, Path(resume))
        for name in (name for name in names if name in there):
            self._folder.fetch(name, self.directory / name)
            self._sent[name] = _state(self.directory / name)
        return resume

    def claim(self) -> IO[bytes]:
        self._folder.commit_new(self._owner, self._words)
        self._require_owned()  # a write may have been done although its answer was lost
        for name in self._before:
            self._folder.remove(name)
        return super().claim()

    @property
    def _owner(self) -> str:
        """The name of this process among owners."""
        last = int(self._before[-1].rpartition("-")[2]) if self._before else 0
        return f"owner-{last + 1:06}"

    def set_aside(self) -> None:
        super().set_aside()
        if self._last_there:
            self._folder.copy(LAST, TORN)
            self._last_there = False  # so it never takes the place of the one before

    def keep_epoch(self, epoch: int, kept: int) -> None:
        super().keep_epoch(epoch, kept)
        if kept:
            self.publish()
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
        for name in sorted(changed, key=lambda name: (name == LAST, name)):
            state = _state(files[name])
            if name == LAST and self._last_there:
                self._require_owned()
                self._folder.copy(LAST, PREVIOUS)
            self._folder.send(name, files[name], self._require_owned)
            self._sent[name] = state
            self._last_there = self._last_there or name == LAST

    def _require_owned(self) -> None:
        last = _owners(self._folder.list("owner-"))[-1:]
        if last != [self._owner] or self._folder.read_bytes(self._owner) != self._words:
            raise ConfigError(
                f"`output` {self._folder}: another process began to train there, so this one stops "
                "and leaves its files as they are; give each run an `output` of its own"
            )


def open_output(location: str) -> RunOutput:
    """Return the output of a run; nothing is read or written yet.

    Raises ``ConfigError`` for a URL that is malformed or carries credentials.
    """
    return _RemoteOutput(location) if is_url(location) else RunOutput(Path(location))


def is_directory(location: str) -> bool:
    """Return whether a path is a directory; a URL is one unless it ends as a file of weights."""
    return not location.endswith(WEIGHTS) if is_url(location) else Path(location).is_dir()


def checkpoint_of(location: str) -> str:
    """Return the checkpoint that a run's directory stands for: its best, or else its last."""
    if not is_directory(location):
        return location
    name = BEST if open_folder(location).exists(BEST) else LAST
    return f"{location.rstrip('/')}/{name}"


@contextmanager
def file_here(location: str | Path) -> Iterator[Path]:
    """Give a file at a path or URL as one of this machine, as long as the context lasts.

    One that is not there is left for whoever reads it. Errors inside name the URL.
    """
    if not is_url(str(location)):
        yield Path(location)
        return
    folder, _, name = str(location).rpartition("/")
    with TemporaryDirectory(prefix="train-student-") as scratch:
        path = Path(scratch) / name
        with suppress(FileNotFoundError):
            ObjectFolder(ObjectUrl.parse(folder)).fetch(name, path)
        with _naming({path: str(location)}):
            yield path


@contextmanager
def _naming(brought: Mapping[Path, str]) -> Iterator[None]:
    """Name in errors the URLs that files and directories here were brought from."""
    try:
        yield
    except PipelineError as error:
        raise type(error)(_named(str(error), brought)) from error


def _named(text: str, brought: Mapping[Path, str]) -> str:
    for path, url in brought.items():
        text = text.replace(str(path), url)
    return text


def _owners(names: Iterable[str]) -> list[str]:
    """Return which of the names are owners', in their order."""
    return sorted(name for name in names if _OWNER.fullmatch(name))


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
