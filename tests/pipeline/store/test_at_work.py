from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pipeline.files.local import Location
from pipeline.store.at_work import GONE_SECONDS, JobProgress, Worker, at_work, read_workers

PROGRESS = JobProgress(
    samples=98,
    rejected=1,
    parts=12,
    parts_to_do=8,
    labels_to_do=3920,
    parts_done=0,
    labels_done=0,
    seconds=0.0,
)
ME = Worker(machine="elsewhere", process=7, seen=0.0, over=False, progress=PROGRESS)
WORDS = "_meta/.jobs"


def tell(root: Path, worker: Worker, name: str = "at-work.json") -> None:
    (root / WORDS).mkdir(parents=True, exist_ok=True)
    (root / WORDS / name).write_text(json.dumps(dataclasses.asdict(worker)))


def wait_for_words(root: Location, count: int) -> None:
    end = time.monotonic() + 30
    while len(read_workers(root)) < count and time.monotonic() < end:
        time.sleep(0.01)


def test_each_job_tells_of_itself_to_those_that_come_later(tmp_path: Path) -> None:
    with at_work(tmp_path, PROGRESS) as first:
        assert first.others == ()
        wait_for_words(tmp_path, 1)
        with at_work(tmp_path, PROGRESS) as second:
            (other,) = second.others
            assert str(other).startswith(f"process {os.getpid()} on ")
            wait_for_words(tmp_path, 2)
            with at_work(tmp_path, PROGRESS) as third:
                assert len(third.others) == 2
    assert {path.name for path in (tmp_path / WORDS).iterdir()} == {
        "at-work.json",
        "at-work-1.json",
        "at-work-2.json",
    }
    assert not any(one.is_there for one in read_workers(tmp_path))
    with at_work(tmp_path, PROGRESS) as later:
        assert later.others == ()


def test_the_last_word_stays_when_a_job_has_ended(tmp_path: Path) -> None:
    later = dataclasses.replace(PROGRESS, parts_done=5, labels_done=2000, seconds=7.5)
    with at_work(tmp_path, PROGRESS) as me:
        me.tell(later)
    (word,) = read_workers(tmp_path)
    assert word.over
    assert word.progress == later


@pytest.mark.parametrize(("age", "there"), [(0.0, True), (-5.0, True), (GONE_SECONDS + 9, False)])
def test_a_job_on_another_machine_is_there_while_it_tells_so(
    tmp_path: Path, age: float, there: bool
) -> None:
    tell(tmp_path, dataclasses.replace(ME, seen=time.time() - age))
    with at_work(tmp_path, PROGRESS) as me:
        assert bool(me.others) == there


def test_a_killed_job_on_this_machine_is_no_longer_there(tmp_path: Path) -> None:
    script = "import os, platform, time; print(platform.node(), os.getpid(), time.time())"
    gone = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    machine, process, seen = gone.stdout.split()
    word = dataclasses.replace(ME, machine=machine, process=int(process), seen=float(seen))
    tell(tmp_path, word)
    with at_work(tmp_path, PROGRESS) as me:
        assert me.others == ()


@pytest.mark.parametrize(
    "change",
    [
        {"machine": "a\nat work: nobody"},
        {"machine": "\x1b[2J"},
        {"machine": ""},
        {"machine": "a" * 300},
        {"process": -1},
        {"seen": -1.0},
        {"progress": dataclasses.replace(PROGRESS, parts=-1)},
        {"progress": dataclasses.replace(PROGRESS, seconds=-0.5)},
    ],
)
def test_a_word_that_no_job_leaves_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    tell(tmp_path, ME)
    assert len(read_workers(tmp_path)) == 1
    tell(tmp_path, dataclasses.replace(ME, **change))
    assert read_workers(tmp_path) == ()


def test_a_word_has_a_size_at_most(tmp_path: Path) -> None:
    tell(tmp_path, ME)
    path = tmp_path / WORDS / "at-work.json"
    word = path.read_bytes()
    path.write_bytes(word.ljust(1 << 14))
    assert read_workers(tmp_path) == (ME,)
    path.write_bytes(word.ljust((1 << 14) + 1))
    assert read_workers(tmp_path) == ()


@pytest.mark.parametrize("beginning", [b"", b"["])
def test_a_word_of_terabytes_is_left_unread(tmp_path: Path, beginning: bytes) -> None:
    tell(tmp_path, ME)
    (tmp_path / WORDS / "at-work.json").write_bytes(beginning)
    os.truncate(tmp_path / WORDS / "at-work.json", 1 << 40)
    tell(tmp_path, ME, "at-work-1.json")
    tracemalloc.start()
    try:
        assert read_workers(tmp_path) == (ME,)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_word_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    for text in ("", "[]", '{"machine": 1}', '{"machine": "x", "process": -1, "seen": "now"}'):
        (tmp_path / WORDS).mkdir(parents=True, exist_ok=True)
        (tmp_path / WORDS / "at-work.json").write_text(text)
        assert read_workers(tmp_path) == ()
        with at_work(tmp_path, PROGRESS) as me:
            assert me.others == ()
