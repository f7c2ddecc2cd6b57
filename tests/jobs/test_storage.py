"""The commands on object storage: killed and run again, with the secret in no output."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.jobs.processes import BIN, PATIENCE_SECONDS, run_job, start_job, wait_for
from tests.labelling import DIGIT_READER, digit_shard, write_digit_reader
from tests.object_storage import KEY, SECRET, S3Server


def parts_of(objects: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in objects.items() if name.startswith("shard=")}


def test_a_killed_job_in_object_storage_resumes_to_the_local_bytes_and_trains_a_student(
    s3: S3Server, tmp_path: Path
) -> None:
    bucket = s3.make_bucket()
    for number, name in enumerate(("d-0.tar", "d-1.tar")):
        path = digit_shard(tmp_path / name, 12, first=12 * number)
        s3.put(f"{bucket}/data/{name}", path.read_bytes())
    cache = ["--cache-dir", str(tmp_path / "cache"), "--cache-gb", "0.01"]
    settings = [
        *("--teacher", DIGIT_READER, "--image-size", "32", "--threads", "1", "--serial"),
        *("--precision", "fp32"),
        *("--teacher-checkpoint", str(write_digit_reader(tmp_path / "teacher.safetensors"))),
        *("--views", "15", "--views-per-part", "3", "--allow-low-agreement"),
    ]
    out, log = f"{bucket}/labels.parquet", tmp_path / "log"
    arguments = ["--shards", f"{bucket}/data/d-{{0..1}}.tar", "--out", out, *settings, *cache]

    process = start_job(arguments, address=None, log=log)
    over = lambda: process.poll() is not None or len(parts_of(s3.objects(out))) >= 2  # noqa: E731
    wait_for(over, "two parts", log=log)
    process.kill()
    process.wait()
    before = parts_of(s3.objects(out))
    assert 2 <= len(before) < 10, log.read_text()
    assert "_manifest.json" not in s3.objects(out)
    text = run_job(arguments, address=None, log=log)
    assert f"{len(before)} of 10 parts are there already, {10 - len(before)} are to do" in text

    local = tmp_path / "local.parquet"
    shards = str(tmp_path / "d-{0..1}.tar")
    run_job(
        ["--shards", shards, "--out", str(local), *settings],
        address=None,
        log=tmp_path / "local.log",
    )
    theirs = s3.objects(out)
    ours = {path.relative_to(local).as_posix(): path for path in local.rglob("*.*")}
    names = [name for name in theirs if not name.startswith(("_meta/runs/", "_meta/.jobs/"))]
    assert len(names) == 10 + 3
    for name in names:
        assert theirs[name] == ours[name].read_bytes(), name

    model = ["patch_size=8", "embed_dim=48", "depth=1", "num_heads=3"]
    training = subprocess.run(
        [
            *(str(BIN / "train-student"), "--labels", out, "--output", str(tmp_path / "run")),
            *("--shards", f"{bucket}/data/d-*.tar", "--val-shards", f"{bucket}/data/d-1.tar"),
            *("--model-args", *model, "--epochs", "2", "--batch-size", "8", "--workers", "1"),
            *("--threads", "1", *cache),
        ],
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        env={**os.environ},
    )
    assert training.returncode == 0, training.stderr.decode()

    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for data in (*written, *theirs.values(), training.stdout, training.stderr):
        assert SECRET.encode() not in data
        assert KEY.encode() not in data


def test_a_job_without_access_fails_before_it_loads_a_teacher(s3: S3Server, tmp_path: Path) -> None:
    arguments = ["--shards", "s3://not-there/a.tar", "--out", "s3://not-there/labels.parquet"]
    process = start_job([*arguments, "--serial"], address=None, log=tmp_path / "log")
    assert process.wait(PATIENCE_SECONDS) == 1
    text = (tmp_path / "log").read_text()
    assert "label-teacher: error: s3://not-there/labels.parquet: there is no bucket" in text
    assert "Traceback" not in text
    assert SECRET not in text
