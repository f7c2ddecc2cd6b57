"""Who adds to a store, and how far they are: told to other jobs and to people. No lock.

Labels do not depend on it: a part is committed once, whoever comes first. Each job has a hidden
file, which stays when the job ends, and tells what it knew last until another job takes it over.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass

from pipeline.errors import PipelineError
from pipeline.files.local import Folder, Location, open_folder
from pipeline.growth import from_plain
from pipeline.identity import canonical_json, read_json
from pipeline.store.manifest import META_PREFIX

__all__ = ["AtWork", "JobProgress", "Worker", "at_work", "read_workers"]

MAX_WORD_BYTES = 1 << 14
MAX_NAME = 255  # characters of a machine's name
SLOTS = 8  # more jobs on one store are not told of
TOLD_SECONDS = 20.0
GONE_SECONDS = 90.0  # without a word; clocks of machines may differ a little


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """How far a job is, and what the store will have when it has ended well."""

    samples: int
    rejected: int  # of them, as far as is known
    parts: int  # of the whole store
    parts_to_do: int  # when the job began to label
    labels_to_do: int
    parts_done: int  # by this job
    labels_done: int
    seconds: float  # since it began to label


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A job's process."""

    machine: str
    process: int
    seen: float  # seconds since 1970, by its own clock
    over: bool
    progress: JobProgress

    def __str__(self) -> str:
        return f"process {self.process} on {self.machine}"

    @property
    def is_there(self) -> bool:
        """Whether the job runs, as far as can be known from here."""
        if self.over:
            return False
        if self.machine == platform.node():
            try:
                os.kill(self.process, 0)
            except ProcessLookupError:
                return False
            except (OSError, OverflowError):
                return True
        return abs(time.time() - self.seen) <= GONE_SECONDS


class AtWork:
    """The word of this process about its job."""

    def __init__(self, others: tuple[Worker, ...], progress: JobProgress) -> None:
        self.others = others  # that were at work when this one began
        self._progress = progress

    def tell(self, progress: JobProgress) -> None:
        """Note how far the job is; others read it a little later."""
        self._progress = progress

    def word(self, *, over: bool) -> Worker:
        """Return what others shall read."""
        return Worker(
            machine=platform.node(),
            process=os.getpid(),
            seen=time.time(),
            over=over,
            progress=self._progress,
        )


@contextmanager
def at_work(root: Location, progress: JobProgress) -> Iterator[AtWork]:
    """Tell that this process adds to a store for as long as this context lasts.

    Gives who else does so already, as far as is known.
    """
    folder = open_folder(root)
    found = {slot: _read(folder, slot) for slot in range(SLOTS)}
    others = {slot: one for slot, one in found.items() if one is not None and one.is_there}
    me = AtWork(tuple(others.values()), progress)
    free = [slot for slot in range(SLOTS) if slot not in others]
    over = threading.Event()
    told = [
        threading.Thread(target=_tell, args=(folder, slot, me, over), daemon=True, name="at-work")
        for slot in free[:1]
    ]
    for thread in told:
        thread.start()
    try:
        yield me
    finally:
        over.set()
        for thread in told:
            thread.join(TOLD_SECONDS)


def read_workers(root: Location) -> tuple[Worker, ...]:
    """Return the jobs that added to a store, as far as they are known; the latest word first."""
    folder = open_folder(root)
    found = [one for slot in range(SLOTS) if (one := _read(folder, slot)) is not None]
    return tuple(sorted(found, key=lambda one: one.seen, reverse=True))


def _tell(folder: Folder, slot: int, me: AtWork, over: threading.Event) -> None:
    while True:
        ends = over.is_set()
        with suppress(PipelineError):  # the next time may be luckier, and nothing depends on it
            folder.replace(_path(slot), canonical_json(asdict(me.word(over=ends))) + b"\n")
        if ends:
            return
        over.wait(TOLD_SECONDS)


def _read(folder: Folder, slot: int) -> Worker | None:
    try:
        values = read_json(folder.read_bytes(_path(slot), MAX_WORD_BYTES))
        found = from_plain(Worker, values, "at-work", "")
    except (PipelineError, OSError, ValueError, TypeError, KeyError):
        return None  # nobody, or not to be read
    return found if _is_sound(found) else None


def _is_sound(word: Worker) -> bool:
    """Whether a job can have left this word: strangers write such files too, and it is printed."""
    numbers = (word.process, word.seen, *astuple(word.progress))
    return 0 < len(word.machine) <= MAX_NAME and word.machine.isprintable() and min(numbers) >= 0


def _path(slot: int) -> str:
    return f"{META_PREFIX}.jobs/at-work" + (f"-{slot}" if slot else "") + ".json"
