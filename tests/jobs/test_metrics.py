"""What is measured of a job: lines of JSON, and Ray's metrics."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import fields, replace
from pathlib import Path

import pytest

from jobs.metrics import HELP, Flow, Measured, Metrics, check_path, measuring
from pipeline.errors import ConfigError
from tests.jobs.conftest import PARTS, Job
from tests.jobs.processes import (
    ROOT,
    RayHead,
    part_hashes,
    run_job,
    start_job,
    wait_for,
)


def test_speeds_are_those_since_the_line_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, flow, done = [100.0], [Flow(teachers=2, busy_seconds=0.0)], [(0, 0, 0)]
    monkeypatch.setattr("jobs.metrics.time.monotonic", lambda: now[0])
    told: list[dict[str, float]] = []
    path = tmp_path / "m.jsonl"
    metrics = Metrics(lambda: done[0], 8, lambda: flow[0], told.append, path)
    now[0], done[0] = 110.0, (2, 500, 1)
    flow[0] = Flow(teachers=2, busy_seconds=15.0, window=7, again=2, lost=1, parts_again=2)
    flow[0] = replace(flow[0], store_missing=1e6)
    metrics.publish()
    now[0], done[0] = 120.0, (3, 600, 1)
    metrics.publish()
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["labels_per_second"], second["labels_per_second"]) == (50.0, 10.0)
    assert (first["teacher_busy_share"], second["teacher_busy_share"]) == (0.75, 0.0)
    assert (first["parts"], first["parts_to_do"], first["rejected"]) == (2, 8, 1)
    assert (first["window"], first["retries"]) == (7, 3)
    assert told[0] == {name: first[name] for name in HELP}
    assert metrics.summary() == {
        "teacher_busy_share": 0.375,
        "groups_augmented_again": 2,
        "teachers_lost": 1,
        "parts_labelled_again": 2,
        "shared_memory_bytes_missing": 1_000_000,
    }


def test_the_summary_of_a_job_that_was_too_short_for_a_line_holds_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("jobs.metrics.time.monotonic", lambda: now[0])
    flow = Flow(teachers=2, busy_seconds=3.0)
    metrics = Metrics(lambda: (1, 9, 0), 1, lambda: flow, lambda values: None, None)
    now[0] = 104.0
    assert metrics.summary()["teacher_busy_share"] == 0.375


def test_all_that_is_measured_is_explained_and_shown() -> None:
    assert {"time", *HELP} == {one.name for one in fields(Measured)}
    dashboard = json.loads((ROOT / "docker" / "grafana.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = [re.fullmatch(r'ray_teacher_labels_(\w+)\{store=~"\$store"\}', one) for one in shown]
    assert sorted(one[1] for one in names if one) == sorted(HELP)


def test_a_file_that_cannot_be_written_is_said_before_the_job(tmp_path: Path) -> None:
    check_path(None)
    with pytest.raises(ConfigError, match=r"`metrics_file` .* cannot be written"):
        check_path(tmp_path / "nowhere" / "m.jsonl")
    os.mkfifo(tmp_path / "pipe")  # that nobody reads: it would be waited for
    with pytest.raises(ConfigError, match=r"pipe cannot be written"):
        check_path(tmp_path / "pipe")


def test_a_full_disk_ends_no_job(tmp_path: Path) -> None:
    metrics = Metrics(lambda: (0, 0, 0), 1, Flow, lambda values: None, Path("/dev/full"))
    with measuring(metrics):
        pass


def offered(head: RayHead, pattern: str) -> dict[str, float]:
    """Return what the head offers to Prometheus, by what a pattern takes of its names."""
    try:
        with urllib.request.urlopen(f"http://{head.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except urllib.error.URLError:  # a head that has just begun does not offer any yet
        return {}
    found = re.finditer(rf"^{pattern} (\S+)$", text, re.MULTILINE)
    return {one[1]: float(one[2]) for one in found}


def shared(head: RayHead) -> dict[str, float]:
    """Return the bytes of the head's objects, by where they are."""
    return offered(head, r'ray_object_store_memory\{.*Location="(\w+)".*\}')


def test_a_job_on_ray_offers_its_metrics_writes_lines_and_a_summary_and_keeps_to_its_window(
    head: RayHead, job: Job, tmp_path: Path
) -> None:
    """Ray tells what it counts once in two seconds, so the job takes several.

    Of shared memory it may then count none: this sees spilling and gross excess. That a window is
    kept exactly is for test_sizing.py and test_actors.py. Other jobs on this Ray had no bound: what
    is left of them, or still told, has to go first.
    """
    out, log, lines = tmp_path / "ray.parquet", tmp_path / "log", tmp_path / "m.jsonl"
    teachers, window = 2, 5_000_000
    flags = ("--metrics-file", str(lines), "--teachers", str(teachers), "--views", "240")
    arguments = job.to(out, *flags, "--window-gb", str(window / 1e9))
    wait_for(lambda: shared(head).get("MMAP_SHM", 0.0) < window / 10, "free shared memory")
    process = start_job(arguments, address=head.address, log=log)
    scraped: dict[str, float] = {}
    most: dict[str, float] = {}

    def is_over() -> bool:
        scraped.update(offered(head, r'ray_teacher_labels_(\w+)\{.*store="ray\.parquet".*\}'))
        used = shared(head)
        most.update({one: max(used[one], most.get(one, 0.0)) for one in used})
        time.sleep(0.1)
        return process.poll() is not None

    wait_for(is_over, "the job's end", log=log)
    assert process.poll() == 0, log.read_text()
    assert set(scraped) == set(HELP)
    assert scraped["parts_to_do"] == 4 * PARTS
    assert most["MMAP_SHM"] <= teachers * window
    assert most["SPILLED"] == 0
    short = {one for one in job.hashes.items() if one[0].startswith("shard=")}
    assert len(short) == PARTS
    assert part_hashes(out).items() > short
    last = json.loads(lines.read_text().splitlines()[-1])
    assert (last["parts"], last["labels"], last["rejected"]) == (4 * PARTS, 97 * 240, 1)
    (record,) = (out / "_meta" / "runs").iterdir()
    run = json.loads(record.read_bytes())
    assert 0 <= run["teacher_busy_share"] <= 1
    assert run["teachers_lost"] == 0


def test_a_job_without_ray_writes_lines_too(job: Job, tmp_path: Path) -> None:
    out, lines = tmp_path / "serial.parquet", tmp_path / "m.jsonl"
    arguments = job.to(out, "--serial", "--metrics-file", str(lines), "--views", "15")
    run_job(arguments, address=None, log=tmp_path / "log")
    told = [json.loads(line) for line in lines.read_text().splitlines()]
    assert (told[-1]["parts"], told[-1]["teachers"], told[-1]["labels"]) == (3, 1, 97 * 15)
    assert 0 < max(one["teacher_busy_share"] for one in told) < 1
