"""Who adds to a store: told to other jobs, so that they begin at the other end. No lock.

Labels do not depend on it: a part is committed once, whoever comes first. The file is hidden, and
holds nothing once a job has ended; of one that was killed it tells until the next.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from pipeline.errors import PipelineError
from pipeline.files.local import Folder, Location, open_folder
from pipeline.growth import from_plain
from pipeline.identity import canonical_json, read_json
from pipeline.store.manifest import MAX_COMPANION_BYTES, META_PREFIX

__all__ = ["Worker", "at_work"]

WORK_PATH = META_PREFIX + ".jobs/at-work.json"
TOLD_SECONDS = 20.0
GONE_SECONDS = 90.0  # without a word; clocks of machines may differ a little


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A job's process."""

    machine: str
    process: int
    seen: float  # seconds since 1970, by its own clock

    def __str__(self) -> str:
        return f"process {self.process} on {self.machine}"


@contextmanager
def at_work(root: Location) -> Iterator[Worker | None]:
    """Tell that this process adds to a store for as long as this context lasts.

    Gives who else does so already, as far as is known.
    """
    folder = open_folder(root)
    other = _read(folder)
    over = threading.Event()
    told = threading.Thread(target=_tell, args=(folder, over), daemon=True, name="at-work")
    if other is None:  # a second one leaves the first one's word
        told.start()
    try:
        yield other
    finally:
        over.set()
        if other is None:
            told.join(TOLD_SECONDS)


def _tell(folder: Folder, over: threading.Event) -> None:
    while True:
        me = Worker(machine=platform.node(), process=os.getpid(), seen=time.time())
        with suppress(PipelineError):  # the next time may be luckier, and nothing depends on it
            folder.replace(WORK_PATH, canonical_json(asdict(me)) + b"\n")
        if over.wait(TOLD_SECONDS):
            with suppress(PipelineError):
                folder.replace(WORK_PATH, b"{}\n")
            return


def _read(folder: Folder) -> Worker | None:
    try:
        values = read_json(folder.read_bytes(WORK_PATH, MAX_COMPANION_BYTES))
        found = from_plain(Worker, values, "at-work", "")
    except (PipelineError, OSError, ValueError, TypeError, KeyError):
        return None  # nobody, or not to be read
    return None if _is_gone(found) else found


def _is_gone(one: Worker) -> bool:
    if one.machine == platform.node():
        try:
            os.kill(one.process, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False
    return abs(time.time() - one.seen) > GONE_SECONDS
