"""One Ray head for all tests, and one small label job with its serial result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.jobs.processes import RayHead, part_hashes, ray_head, run_job
from tests.labelling import DIGIT_READER, digit_shard, write_digit_reader
from tests.object_storage import S3Server, storage_environment

PARTS = 12


@dataclass(frozen=True, slots=True)
class Job:
    """A label job's settings but for ``--out``, and what a serial run gives."""

    arguments: list[str]
    shard: Path  # the first
    hashes: dict[str, str]

    def to(self, out: Path, *more: str) -> list[str]:
        return [*self.arguments, "--out", str(out), *more]


# In what workers are forked from, and what decodes for one of them: others need not load it.
_POISON = """
import os, signal, sys

if {"tests.jobs.ray_workers", "pipeline.labelling.probe"}.intersection(sys.orig_argv):
    import simplejpeg

    def poisoned(data, *arguments, of=simplejpeg.decode_jpeg_header, **more):
        if b"POISON" in bytes(data):
            os.kill(os.getpid(), signal.SIGSEGV)
        return of(data, *arguments, **more)

    simplejpeg.decode_jpeg_header = poisoned
"""


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[RayHead]:
    """A Ray whose processes have the credentials of object storage.

    And whatever decodes an image with the word POISON in it crashes there.
    """
    code = tmp_path_factory.mktemp("code")
    (code / "sitecustomize.py").write_text(_POISON)
    with ray_head({**storage_environment(s3_server), "PYTHONPATH": str(code)}) as running:
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
