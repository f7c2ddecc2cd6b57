"""One Ray head for all tests, and one small label job with its serial result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.jobs.processes import RayHead, part_hashes, ray_head, run_job
from tests.labelling import DIGIT_READER, digit_shard, write_digit_reader

PARTS = 12


@dataclass(frozen=True, slots=True)
class Job:
    """A label job's settings but for ``--out``, and what a serial run gives."""

    arguments: list[str]
    shard: Path  # the first
    hashes: dict[str, str]

    def to(self, out: Path, *more: str) -> list[str]:
        return [*self.arguments, "--out", str(out), *more]


@pytest.fixture(scope="session")
def head() -> Iterator[RayHead]:
    with ray_head() as running:
        yield running


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Three shards of 40, 41 and 17 digits, one broken, 60 views in 4 parts each."""
    folder = tmp_path_factory.mktemp("job")
    digit_shard(folder / "d-0.tar", 40)
    digit_shard(folder / "d-1.tar", 41, first=40, broken=(7,))
    digit_shard(folder / "d-2.tar", 17, first=100)
    arguments = [
        "--shards",
        str(folder / "d-{0..2}.tar"),
        "--teacher",
        DIGIT_READER,
        "--teacher-checkpoint",
        str(write_digit_reader(folder / "teacher.safetensors")),
        "--image-size",
        "32",
        "--views",
        "60",
        "--views-per-part",
        "15",
        "--max-rejected",
        "0.05",
        "--allow-low-agreement",
        # What these tests are about depends on neither, and small views are labelled faster so.
        "--precision",
        "fp32",
        "--threads",
        "1",
    ]
    out = folder / "serial.parquet"
    text = run_job(
        [*arguments, "--out", str(out), "--serial"], address=None, log=folder / "serial.log"
    )
    assert "read 98 samples = 97 labelled + 1 rejected" in text
    hashes = part_hashes(out)
    assert len(hashes) == PARTS + 1
    return Job(arguments, folder / "d-0.tar", hashes)
