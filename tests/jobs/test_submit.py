"""``ray job submit`` as people use it: from a clone with much beside it, or what is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.jobs.conftest import Job
from tests.jobs.processes import (
    BIN,
    PATIENCE_SECONDS,
    RAY_ENVIRONMENT,
    ROOT,
    RayHead,
    part_hashes,
    part_paths,
    wait_for,
)

BESIDE = (
    ".venv/lib/x.so", "demo-output/shards/x.tar", "shards/train/x.tar", "runs/tiny/last.pt",
    "teacher.parquet/shard=0/x.parquet", "notes.bin",
)  # fmt: skip
BYTES = 150_000_000  # of each; Ray takes 100 MB in all


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the project in which its commands have run."""
    root = tmp_path_factory.mktemp("clone")
    for name in (".gitignore", ".rayignore", "README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    for name in ("pipeline", "student", "jobs", "docs"):
        shutil.copytree(ROOT / name, root / name)
    for name in BESIDE:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as out:
            out.truncate(BYTES)  # takes no disk
    return root


def ray_job(head: RayHead, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "ray"), "job", words[0], "--address", head.dashboard, *words[1:]],
        env={**os.environ, **RAY_ENVIRONMENT},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


def submit(head: RayHead, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return ray_job(head, "submit", "--submission-id", f"job-{cwd.name}", *words, cwd=cwd)


def told_of(head: RayHead, cwd: Path, what: str = "") -> dict[str, str]:
    """Return what Ray's dashboard tells of a job, or of its ``/logs``."""
    request = urllib.request.Request(
        f"{head.dashboard}/api/jobs/job-{cwd.name}{what}",
        headers={"Authorization": f"Bearer {RAY_ENVIRONMENT['RAY_AUTH_TOKEN']}"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        found: dict[str, str] = json.load(answer)
    return found


def status_of(head: RayHead, cwd: Path) -> str:
    return told_of(head, cwd)["status"].lower()


def test_a_clone_sends_its_code_alone_and_writes_the_serial_bytes(
    head: RayHead, job: Job, clone: Path, tmp_path: Path
) -> None:
    out, entry = tmp_path / "submitted.parquet", ["python", "jobs/label_teacher.py"]
    finished = submit(head, tmp_path, "--working-dir", str(clone), "--", *entry, *job.to(out))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "97 labelled + 1 rejected" in finished.stdout
    assert part_hashes(out) == job.hashes
    assert status_of(head, tmp_path) == "succeeded"
    (packages,) = head.cwd.parent.rglob("working_dir_files")
    (package,) = [path for path in packages.iterdir() if path.is_dir()]
    assert {path.name for path in package.iterdir()} == {"pipeline", "student", "jobs"}
    # Compiled kernels are not kept in a directory that the next job does not have.
    assert not list(package.rglob("*.nb[ic]"))


def test_what_is_not_done_is_no_success_for_ray_either(
    head: RayHead, job: Job, clone: Path, tmp_path: Path
) -> None:
    """A store in the directory that Ray made for a job is refused. The file is a program too."""
    arguments = ["jobs/label_teacher.py", *job.to(Path("labels.parquet"))]
    finished = submit(head, tmp_path, "--working-dir", str(clone), "--", *arguments)
    text = finished.stdout + finished.stderr
    assert finished.returncode == 1, text
    assert status_of(head, tmp_path) == "failed"
    assert "labels.parquet is in the working directory that Ray made for this job" in text
    assert "Traceback" not in finished.stdout
    assert not list(head.cwd.parent.rglob("labels.parquet"))


@pytest.fixture(scope="module")
def installed(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, installed in a directory of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*wheel, str(clone)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(folder / "site")]
    subprocess.run([*install, str(path)], check=True, capture_output=True)
    return folder / "site"


def test_an_installed_wheel_labels_and_a_job_that_is_stopped_goes_on(
    head: RayHead, job: Job, installed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "submitted.parquet"
    variables = {
        "PYTHONPATH": str(installed),
        "PATH": f"{installed / 'bin'}:{RAY_ENVIRONMENT['PATH']}",
    }
    environment = ["--runtime-env-json", json.dumps({"env_vars": variables})]
    command = [*environment, "--", "label-teacher", *job.to(out, "--drain-seconds", "60")]
    started = submit(head, tmp_path, "--no-wait", *command)
    assert started.returncode == 0, started.stdout + started.stderr
    wait_for(lambda: part_paths(out), "a part")
    ray_job(head, "stop", f"job-{tmp_path.name}", cwd=tmp_path)
    logs = told_of(head, tmp_path, "/logs")["logs"]
    # It finishes what is under way, which may be all, or was done before it was told.
    finished = (out / "_manifest.json").exists()
    assert ("stopped by SIGTERM with" in logs) != finished
    assert status_of(head, tmp_path) in ("stopped", "succeeded")[: 1 + finished]

    again = ray_job(head, "submit", *command, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "are there already" in again.stdout
    assert part_hashes(out) == job.hashes
