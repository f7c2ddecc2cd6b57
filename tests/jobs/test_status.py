"""How far a job is, what it will take, and how its store is finished without it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from pipeline.tools import store_status
from tests.jobs.conftest import PARTS, Job
from tests.jobs.processes import BIN, part_hashes, part_paths, run_job, start_job, wait_for


def label_store(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BIN / "label-store"), *words], capture_output=True, text=True)


def test_a_jobs_status_is_seen_from_outside_and_its_store_finished_by_hand(
    job: Job, tmp_path: Path
) -> None:
    out, log = tmp_path / "labels.parquet", tmp_path / "log"
    process = start_job(job.to(out, "--serial"), address=None, log=log)
    wait_for(lambda: process.poll() is not None or part_paths(out), "a part", log=log)
    status = store_status(str(out))
    process.kill()
    process.wait()
    assert status.state == "labelling"
    assert [one.process for one in status.workers] == [process.pid]
    assert 1 <= status.parts < status.parts_wanted == PARTS
    shards = ("--shards", str(job.shard.parent / "d-{0..2}.tar"), "--max-rejected", "0.05")

    found = json.loads(label_store("status", str(out), "--json").stdout)
    assert (found["state"], found["parts_wanted"], found["workers"]) == ("unfinished", PARTS, [])
    early = label_store("finalize", str(out), *shards)
    assert early.returncode == 1
    assert "label-store: error: " in early.stderr
    assert "of the parts that were planned: shard" in early.stderr
    assert not (out / "_manifest.json").exists()

    run_job(job.to(out, "--serial"), address=None, log=log)
    (out / "_manifest.json").unlink()
    done = label_store("finalize", str(out), *shards)
    assert done.returncode == 0, done.stderr
    assert (
        f"{PARTS} parts, 5820 labels of 98 samples, 1 rejected; the store is whole" in done.stdout
    )
    assert part_hashes(out) == job.hashes
    assert store_status(str(out)).state == "finished"


def test_an_estimate_says_what_a_job_will_take_and_writes_nothing(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "labels.parquet"
    arguments = job.to(out, "--serial", "--estimate", "--hour-price", "2.5")
    text = run_job(arguments, address=None, log=tmp_path / "log")
    assert "measured: a teacher labels " in text
    assert "with 1 teacher and 1 core " in text
    assert "hours of teachers, which cost " in text
    assert "students of 60 epochs with their teacher in the loop; number " in text
    assert text.count("gain") == 1  # two estimates could differ
    assert not out.exists()
