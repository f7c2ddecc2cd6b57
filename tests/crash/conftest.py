"""Where stores are written whose writers are killed: in memory, if there is room."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
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
