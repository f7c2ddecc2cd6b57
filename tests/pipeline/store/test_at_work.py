from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.store.at_work import GONE_SECONDS, WORK_PATH, Worker, at_work

ME = Worker(machine="elsewhere", process=7, seen=0.0)


def told(root: Path) -> dict[str, object]:
    path = root / WORK_PATH
    return dict(json.loads(path.read_bytes())) if path.exists() else {}


def tell(root: Path, worker: Worker) -> None:
    (root / WORK_PATH).parent.mkdir(parents=True, exist_ok=True)
    (root / WORK_PATH).write_text(json.dumps(dataclasses.asdict(worker)))


def test_the_second_job_is_told_of_the_first_until_that_ends(tmp_path: Path) -> None:
    with at_work(tmp_path) as nobody:
        assert nobody is None
        end = time.monotonic() + 30
        while not told(tmp_path) and time.monotonic() < end:
            time.sleep(0.01)
        with at_work(tmp_path) as first:
            assert first is not None
            assert str(first).startswith(f"process {os.getpid()} on ")
        assert told(tmp_path)["process"] == os.getpid()  # the second one's end changes nothing
    assert told(tmp_path) == {}


@pytest.mark.parametrize(("age", "there"), [(0.0, True), (-5.0, True), (GONE_SECONDS + 9, False)])
def test_a_job_on_another_machine_is_there_while_it_tells_so(
    tmp_path: Path, age: float, there: bool
) -> None:
    tell(tmp_path, dataclasses.replace(ME, seen=time.time() - age))
    with at_work(tmp_path) as other:
        assert (other is not None) == there


def test_a_killed_job_on_this_machine_is_no_longer_there(tmp_path: Path) -> None:
    script = "import os, platform, time; print(platform.node(), os.getpid(), time.time())"
    gone = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    machine, process, seen = gone.stdout.split()
    tell(tmp_path, Worker(machine=machine, process=int(process), seen=float(seen)))
    with at_work(tmp_path) as other:
        assert other is None


def test_a_word_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    for text in ("", "[]", '{"machine": 1}', '{"machine": "x", "process": -1, "seen": "now"}'):
        (tmp_path / WORK_PATH).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / WORK_PATH).write_text(text)
        with at_work(tmp_path) as other:
            assert other is None
