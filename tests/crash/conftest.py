"""Where stores are written whose writers are killed: in memory, if there is room."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")
ROOM_BYTES = 30_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a directory on a file system in memory.

    Processes are killed, the machine is not: what reached the file system stays, on any of
    them, and here nobody waits for a disk.
    """
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ROOM_BYTES:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="crash-") as name:
        yield Path(name)


def in_a_small_process(function: Callable[..., None], *arguments: object) -> None:
    """Call the function in a new process, which loads no more than the function's module.

    What it forks begins and ends ten times as fast as a fork of the tests' own process, which
    holds PyTorch. A failed assertion is on stderr.
    """
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0
