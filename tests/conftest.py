"""Fixtures that all tests share, and how hypothesis runs here."""

from __future__ import annotations

import atexit
import gc
import os

# Before PyTorch loads: waiting threads that spin make shared cores many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Until all is loaded there is no garbage, and to look for it takes a third of loading.
gc.disable()

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from pipeline.store import ParquetStore
from tests.factories import write_shard
from tests.object_storage import s3, s3_server  # noqa: F401 - fixtures

# Derandomised, so that a test that passes here passes everywhere.
settings.register_profile("laws", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("laws")

Samples = Iterable[tuple[str, bytes, int]]

JOBS = "tests/jobs/"
FAULTS = "tests/jobs/test_faults.py"
LATER = "tests/jobs/test_m"  # metrics and all that follow: as long as those before them
FIRST = (JOBS, "tests/test_", "tests/crash/", "tests/golden/", "tests/student/")
"""What takes longest begins first, so that the last minute is one of short files."""


class ByFile(LoadFileScheduling):
    """Gives a process all tests of a file, with its fixtures; and two of them most label jobs.

    These share Ray's head and what a job without Ray gives; those in which something fails have a
    head of their own. Together they take as long as half of the suite, so they begin at once.
    """

    def _split_scope(self, nodeid: str) -> str:
        if not nodeid.startswith(JOBS) or nodeid.startswith(FAULTS):
            return super()._split_scope(nodeid)
        return JOBS if nodeid < LATER else LATER


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((n for n, one in enumerate(FIRST) if item.nodeid.startswith(one)), len(FIRST))

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Leave what was loaded out of all searches for garbage."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # modules that count what they leave behind would complain
    gc.enable()


@pytest.fixture
def make_shard(tmp_path: Path) -> Callable[[str, Samples], Path]:
    """Return a function that writes (key, JPEG bytes, target) to a shard of this name."""

    def make(name: str, samples: Samples) -> Path:
        return write_shard(tmp_path / name, samples)

    return make


@pytest.fixture(scope="session")
def hash_store(tmp_path_factory: pytest.TempPathFactory) -> ParquetStore:
    """Return a store of two shards of digits, 6 views in two parts, labelled by hashes."""
    from tests.labelling import digit_shard, write_hash_store

    folder = tmp_path_factory.mktemp("hash-store")
    paths = [
        digit_shard(folder / f"digits-{number}.tar", 17 + number, first=100 * number)
        for number in range(2)
    ]
    return write_hash_store(folder / "labels.parquet", paths, views=6, per_part=3)
