from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from pipeline.shards.index import index_bytes
from pipeline.store import export_store, open_store, parts_root
from tests.factories import digit_samples, write_shard
from tests.jobs.conftest import PARTS, Job
from tests.jobs.processes import (
    PATIENCE_SECONDS,
    Node,
    RayHead,
    alive,
    descendants,
    kill,
    listening_addresses,
    named,
    part_hashes,
    part_paths,
    ray_nodes,
    require_one_line,
    run_job,
    start_job,
    wait_for,
)
from tests.labelling import digit_shard


@pytest.mark.parametrize("teachers", [1, 2])
def test_ray_writes_the_serial_bytes(
    head: RayHead, job: Job, tmp_path: Path, teachers: int
) -> None:
    out = tmp_path / "ray.parquet"
    arguments = job.to(out, "--teachers", str(teachers))
    run_job(arguments, address=head.address, log=tmp_path / "log")
    assert part_hashes(out) == job.hashes


@pytest.mark.parametrize("victim", ["ray::TeacherActor", "ray::augment_remotely"])
def test_killed_processes_are_replaced_and_change_no_byte(
    head: RayHead, job: Job, tmp_path: Path, victim: str
) -> None:
    out, log = tmp_path / "ray.parquet", tmp_path / "log"
    process = start_job(job.to(out, "--teachers", "2"), address=head.address, log=log)
    for killed in range(2):
        wait_for(
            lambda: process.poll() is not None or len(part_paths(out)) > 2 * killed,  # noqa: B023
            "a part",
            log=log,
        )
        pids: list[int] = []  # kept: a task may be over when one looks again

        def over_or_found(pids: list[int] = pids) -> bool:
            pids[:] = named(head.pid, victim)
            return process.poll() is not None or bool(pids)

        wait_for(over_or_found, victim, log=log)
        assert process.poll() is None, f"the job was over before a kill: {log.read_text()}"
        kill(pids[0])
    assert process.wait(PATIENCE_SECONDS) == 0, log.read_text()
    if victim == "ray::TeacherActor":
        assert "a teacher's process died" in log.read_text()
    assert part_hashes(out) == job.hashes


def test_a_zarr_job_that_is_killed_and_run_again_holds_the_serial_bytes(
    job: Job, tmp_path: Path
) -> None:
    out, log = tmp_path / "labels.zarr", tmp_path / "log"
    parts = Path(parts_root(out))
    process = start_job(job.to(out, "--serial"), address=None, log=log)
    wait_for(
        lambda: process.poll() is not None or len(part_paths(parts)) > 2, "three parts", log=log
    )
    process.kill()
    process.wait()
    assert not out.exists()
    text = run_job(job.to(out, "--serial"), address=None, log=log)
    assert f"{out}: " in text
    text = run_job(job.to(out, "--serial"), address=None, log=log)
    assert f"{PARTS} of {PARTS} parts are there already, 0 are to do" in text
    assert [path.name for path in tmp_path.iterdir() if path != log] == ["labels.zarr"]
    export_store(out, tmp_path / "back.parquet")
    assert part_hashes(tmp_path / "back.parquet") == job.hashes


@pytest.mark.parametrize("serial", [True, False], ids=["serial", "ray"])
def test_a_killed_job_that_runs_again_does_only_what_was_missing(
    head: RayHead, job: Job, tmp_path: Path, serial: bool
) -> None:
    out, log = tmp_path / "labels.parquet", tmp_path / "log"
    address = None if serial else head.address
    arguments = job.to(out, *(["--serial"] if serial else []))
    process = start_job(arguments, address=address, log=log)
    wait_for(lambda: process.poll() is not None or len(part_paths(out)) >= 2, "two parts", log=log)
    process.kill()
    process.wait()
    assert not (out / "_manifest.json").exists()
    # Parts under way on Ray may still be committed until the cluster notices.
    wait_for(lambda: not named(head.pid, "ray::TeacherActor"), "the teachers' end")
    before = {path: path.stat().st_ino for path in part_paths(out)}
    assert 2 <= len(before) < PARTS
    text = run_job(arguments, address=address, log=tmp_path / "again")
    assert (
        f"{len(before)} of {PARTS} parts are there already, {PARTS - len(before)} are to do" in text
    )
    assert {path: path.stat().st_ino for path in before} == before
    assert part_hashes(out) == job.hashes


@pytest.mark.parametrize("serial", [True, False], ids=["serial", "ray"])
def test_sigterm_finishes_parts_under_way_and_says_how_to_go_on(
    head: RayHead, job: Job, tmp_path: Path, serial: bool
) -> None:
    out, log = tmp_path / "labels.parquet", tmp_path / "log"
    address = None if serial else head.address
    arguments = job.to(out, "--drain-seconds", "60", *(["--serial"] if serial else []))
    process = start_job(arguments, address=address, log=log)
    wait_for(lambda: process.poll() is not None or part_paths(out), "a part", log=log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_SECONDS) == 143, log.read_text()
    done = len(part_paths(out))
    assert 1 <= done < PARTS
    assert f"stopped by SIGTERM with {done} of {PARTS} parts done; run the same" in log.read_text()
    run_job(arguments, address=address, log=log)
    assert part_hashes(out) == job.hashes


def test_a_drain_is_bounded(head: RayHead, job: Job, tmp_path: Path) -> None:
    out, log = tmp_path / "labels.parquet", tmp_path / "log"
    arguments = job.to(out, "--drain-seconds", "0", "--views-per-part", "60")
    process = start_job(arguments, address=head.address, log=log)
    wait_for(lambda: process.poll() is not None or (out / "_meta").exists(), "the claim", log=log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143, log.read_text()
    assert not (out / "_manifest.json").exists()
    assert not [path for path in out.rglob(".*") if path.is_file()]


@pytest.mark.parametrize("serial", [True, False], ids=["serial", "ray"])
def test_relative_paths_are_those_of_the_driver(
    head: RayHead, job: Job, tmp_path: Path, serial: bool
) -> None:
    relative = [os.path.relpath(one, tmp_path) if "/" in one else one for one in job.arguments]
    assert sum(one.startswith("..") for one in relative) == 2  # shards and checkpoint
    arguments = [*relative, "--out", "labels.parquet", *(["--serial"] if serial else [])]
    address = None if serial else head.address
    run_job(arguments, address=address, log=tmp_path / "log", cwd=tmp_path)
    assert part_hashes(tmp_path / "labels.parquet") == job.hashes
    assert not any(head.cwd.iterdir())
    assert not list(tmp_path.rglob(".probe*"))


def test_a_node_that_sees_other_files_is_refused_before_anything_is_labelled(
    job: Job, tmp_path: Path
) -> None:
    """/proc/self/cwd is an absolute path that is another directory in each process."""
    here, there, log = tmp_path / "here", tmp_path / "there", tmp_path / "log"
    here.mkdir()
    there.mkdir()
    shutil.copy(job.shard, here / "a.tar")
    with ray_nodes(Node(here), Node(there)) as cluster:
        address = cluster.address
        for change in (
            job.to(Path("/proc/self/cwd/labels.parquet")),
            [*job.to(tmp_path / "labels.parquet"), "--shards", "/proc/self/cwd/a.tar"],
        ):
            process = start_job(change, address=address, log=log, cwd=here)
            assert process.wait(PATIENCE_SECONDS) == 1, log.read_text()
        assert not (tmp_path / "labels.parquet").exists()
        shared = job.to(Path("../labels.parquet"), "--views", "3")
        run_job(shared, address=address, log=tmp_path / "good", cwd=here)
    assert open_store(tmp_path / "labels.parquet").manifest.rows == 97 * 3
    errors = [line for line in log.read_text().splitlines() if "label-teacher: error" in line]
    assert "does not see the job's files as this process does: /proc/self/cwd is an" in errors[0]
    assert "cwd/a.tar cannot be read there (No such file or directory); use paths of" in errors[1]
    assert [path.name for path in here.iterdir()] == ["a.tar"]
    assert not any(there.iterdir())


def test_more_views_extend_a_store(job: Job, tmp_path: Path) -> None:
    """Views 60..69 join the store; those that are there stay, byte for byte."""
    out = tmp_path / "labels.parquet"
    run_job(job.to(out, "--serial", "--views", "2"), address=None, log=tmp_path / "log")
    before = part_hashes(out)
    extended = job.to(out, "--serial", "--views", "3", "--first-view", "2")
    run_job(extended, address=None, log=tmp_path / "log")
    assert open_store(out).manifest.view_range == range(5)
    after = part_hashes(out)
    assert len(after) == 7
    assert all(after[name] == digest for name, digest in before.items() if "shard" in name)


def test_errors_are_one_line_without_a_traceback(head: RayHead, job: Job, tmp_path: Path) -> None:
    out, log = tmp_path / "labels.parquet", tmp_path / "log"
    key, image, _ = digit_samples(1)[0]
    foreign = write_shard(tmp_path / "foreign.tar", [(key, image, 10)])
    checkpoint = tmp_path / "none.pth"
    checkpoint.write_bytes(b"no weights at all")  # which only the teacher's process sees
    cases = [
        (head.address, ["--shards", str(foreign)], "class 10, but the teacher test_byobnet has 10"),
        (
            head.address,
            ["--teacher-checkpoint", str(checkpoint)],
            "cannot be read (ValueError)",
        ),
        (None, ["--shards", str(tmp_path / "none-{0..3}.tar")], "4 of 4 names match no file"),
        (None, ["--serial", "--num-classes", "7"], "have 10 classes, not 7; give --num-classes 10"),
    ]
    for address, change, message in cases:
        log.unlink(missing_ok=True)
        process = start_job(job.to(out, *change), address=address, log=log)
        assert process.wait(PATIENCE_SECONDS) == 1
        text = log.read_text()
        assert "label-teacher: error: " in text
        assert message in text
        assert "Traceback" not in text
        assert not out.exists()


def test_a_ray_of_our_own_listens_on_loopback_alone_and_ends_with_a_killed_job(
    job: Job, tmp_path: Path
) -> None:
    out, log = tmp_path / "labels.parquet", tmp_path / "log"
    process = start_job(job.to(out), address=None, log=log)
    try:
        wait_for(lambda: process.poll() is not None or part_paths(out), "a part", log=log)
        family = [process.pid, *descendants(process.pid)]
        listening = {address for pid in family for address in listening_addresses(pid)}
        (teacher,) = named(process.pid, "ray::TeacherActor")
        environment = Path(f"/proc/{teacher}/environ").read_bytes().split(b"\0")
        process.kill()
        killed = time.monotonic()
        wait_for(lambda: not alive(family[1:]), "the end of all that Ray started")
        assert time.monotonic() - killed < 10
    finally:
        for pid in family:
            kill(pid)
        process.wait()
    assert listening == {"127.0.0.1"}
    assert b"OMP_WAIT_POLICY=PASSIVE" in environment


def test_many_shards_are_indexed_on_the_cluster(head: RayHead, job: Job, tmp_path: Path) -> None:
    shards = [digit_shard(tmp_path / f"n-{n:02d}.tar", 4, first=4 * n) for n in range(18)]
    with shards[3].open("rb") as file:
        Path(f"{shards[3]}.idx").write_bytes(index_bytes(file, "n"))
    start = job.arguments.index("--shards")
    arguments = [*job.arguments[:start], *job.arguments[start + 2 :], "--views", "3"]
    arguments += ["--shards", str(tmp_path / "n-*.tar"), "--max-rejected", "0"]
    hashes = []
    for name, address, more in (("ray", head.address, []), ("serial", None, ["--serial"])):
        out = tmp_path / f"{name}.parquet"
        run_job([*arguments, *more, "--out", str(out)], address=address, log=tmp_path / name)
        hashes.append(part_hashes(out))
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 18 + 1
    Path(f"{shards[4]}.idx").write_text("no index")
    log = tmp_path / "refused"
    process = start_job([*arguments, "--out", str(out)], address=head.address, log=log)
    assert process.wait(PATIENCE_SECONDS) == 1
    require_one_line(log, "n-04.tar.idx is no index of a shard")
