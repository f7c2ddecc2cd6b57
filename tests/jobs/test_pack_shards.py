"""Packing on Ray: the bytes of the command, whatever dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.shards.packing import PackConfig, pack_shards
from tests.jobs.processes import (
    PATIENCE_SECONDS,
    RAY_ENVIRONMENT,
    ROOT,
    RayHead,
    kill,
    named,
    wait_for,
)

SIDE, IMAGES, PER_SHARD = 1200, 60, 10


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images that take a while to encode; all are links to one file."""
    root = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(1).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    first = root / "cat" / "0.png"
    first.parent.mkdir()
    Image.fromarray(pixels).save(first, compress_level=1)
    (root / "dog").mkdir()
    for number in range(1, IMAGES):
        os.link(first, root / ("cat", "dog")[number % 2] / f"{number}.png")
    return root


def start(images: Path, out: Path, log: Path, head: RayHead | None) -> subprocess.Popen[bytes]:
    variables = {**os.environ} if head is None else {**os.environ, **RAY_ENVIRONMENT}
    variables |= {} if head is None else {"RAY_ADDRESS": head.address}
    flags = ["--per-shard", str(PER_SHARD), "--quality", "80"]
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "jobs/pack_shards.py", "--images", images, "--out", out, *flags],
            cwd=ROOT,
            env=variables,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_have_the_bytes_of_the_command_and_those_of_killed_workers_are_written_again(
    head: RayHead, images: Path, tmp_path: Path
) -> None:
    plain, out, log = tmp_path / "plain", tmp_path / "on-ray", tmp_path / "log"
    config = PackConfig(images=images, out=str(plain), per_shard=PER_SHARD, quality=80)
    report = pack_shards(config)
    process = start(images, out, log, head)
    victims: list[int] = []

    def writing() -> bool:
        victims[:] = named(head.pid, "ray::write_shard")
        torn = out.is_dir() and any(path.name.startswith(".") for path in out.iterdir())
        return process.poll() is not None or bool(victims and torn)

    wait_for(writing, "a worker", log=log)
    assert process.poll() is None, log.read_text()
    kill(victims[0])
    assert process.wait(PATIENCE_SECONDS) == 0, log.read_text()
    assert files_of(out) == files_of(plain)
    assert len(report.shards) == IMAGES // PER_SHARD
    assert f"{IMAGES} files read = {IMAGES} packed + 0 passed over; 2 classes" in log.read_text()


def test_what_cannot_be_packed_is_said_in_one_line(
    head: RayHead, images: Path, tmp_path: Path
) -> None:
    bad, out, log = tmp_path / "bad", tmp_path / "out", tmp_path / "log"
    (bad / "cat").mkdir(parents=True)
    for number in range(3):
        (bad / "cat" / f"{number}.png").write_bytes((images / "cat" / "0.png").read_bytes()[:9999])
    process = start(bad, out, log, head)
    assert process.wait(PATIENCE_SECONDS) == 1
    text = log.read_text()
    assert "pack-shards: error: " in text
    assert "of its 3 images 0 decode" in text
    assert "Traceback" not in text
    assert not any(out.iterdir()) if out.is_dir() else True
