"""Whatever dies, hangs or is not there: the job goes on, or ends with one line that says why."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RaySystemError,
    RayTaskError,
    WorkerCrashedError,
)

from jobs import joining
from jobs.joining import death_of, fault_of, why_not
from jobs.run import EXIT_AGAIN, EXIT_DRAINED
from jobs.supervisor import Death
from pipeline.errors import TeacherError, TryAgainError
from pipeline.store import open_store
from tests.factories import digit_samples, write_shard
from tests.jobs.conftest import Job
from tests.jobs.processes import (
    PATIENCE_SECONDS,
    RAY_ENVIRONMENT,
    Node,
    Process,
    RayHead,
    RayNodes,
    alive,
    command_of,
    cwd_of,
    descendants,
    kill,
    named,
    part_hashes,
    part_paths,
    ray_nodes,
    require_one_line,
    start_job,
    wait_for,
)

TEACHER, AUGMENTER = "ray::TeacherActor", "ray::augment_remotely"
HASTY = "tests.jobs.hasty:label_teacher"


def found(process: Process, above: int, title: str, log: Path) -> int:
    """Return a process of the job once there is one."""
    pids: list[int] = []

    def look() -> bool:
        pids[:] = named(above, title)
        return process.poll() is not None or bool(pids)

    wait_for(look, title, log=log)
    assert process.poll() is None, log.read_text()
    return pids[0]


def stop_at_work(process: Process, above: int, title: str, log: Path) -> None:
    """Stop a process of the job at its task; one that was over a moment before goes on."""
    while True:
        pid = found(process, above, title, log)
        os.kill(pid, signal.SIGSTOP)
        if command_of(pid).startswith(title):
            return
        os.kill(pid, signal.SIGCONT)


def reached(process: Process, condition: Callable[[], object], log: Path) -> None:
    wait_for(lambda: process.poll() is not None or condition(), "its progress", log=log)
    assert process.poll() is None, log.read_text()


TEACHER_HUNG = r"a teacher made no progress in (\S+) s of labelling, of the (\S+) s"
TEACHER_AGAIN = r"a teacher labels in the place of a lost one, (\S+) s after"
AUGMENTER_HUNG = r"an augmentation gave nothing in (\S+) s, of the (\S+) s"
AUGMENTER_AGAIN = r"what hung was augmented elsewhere, (\S+) s after"


def test_a_teacher_killed_as_it_loads_one_that_hangs_and_a_hung_augmenter_change_no_byte(
    head: RayHead, job: Job, tmp_path: Path
) -> None:
    """Labels of others are there within two of the deadlines that the job says."""
    out, log = tmp_path / "ray.parquet", tmp_path / "log"
    process = start_job(job.to(out, "--hang-seconds", "12"), address=head.address, log=log)
    kill(found(process, head.pid, TEACHER, log))
    # A teacher has two parts at a time, so the job has heard of one and knows the pace.
    reached(process, lambda: len(part_paths(out)) >= 3, log)
    os.kill(found(process, head.pid, f"{TEACHER}.label", log), signal.SIGSTOP)
    reached(process, lambda: re.search(TEACHER_AGAIN, log.read_text()), log)
    # Its teacher has other parts augmented meanwhile, and at last only waits for this one.
    stop_at_work(process, head.pid, AUGMENTER, log)
    assert process.wait(PATIENCE_SECONDS) == 0, log.read_text()
    text = log.read_text()
    assert "a teacher's process died; " in text  # and maybe it was not to load any more
    for hung, again in ((TEACHER_HUNG, TEACHER_AGAIN), (AUGMENTER_HUNG, AUGMENTER_AGAIN)):
        # An augmenter may be missed by both parts that its teacher has.
        missed, deadline = max((float(one), float(of)) for one, of in re.findall(hung, text))
        replaced = max(map(float, re.findall(again, text)))
        print(f"{deadline} s: missed after {missed} s, replaced after {replaced} s")
        assert replaced <= 2 * deadline, text
    (record,) = (out / "_meta" / "runs").iterdir()
    run = json.loads(record.read_bytes())
    # The one that was killed had no part yet.
    assert run["teachers_lost"] >= 2
    assert 1 <= run["parts_labelled_again"] <= 2 * (run["teachers_lost"] - 1)
    assert part_hashes(out) == job.hashes


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A head with two CPUs for augmentation, and two nodes with a made-up GPU each."""
    head, *others = (tmp_path_factory.mktemp("node") for _ in range(3))
    with ray_nodes(
        Node(head, cpus=2), *(Node(other, cpus=0, gpus=1) for other in others)
    ) as cluster:
        yield cluster


_HOLD = """
import sys, ray
ray.init(log_to_driver=False)
@ray.remote
class Holder:
    def ready(self): pass
kinds = dict(zip(sys.argv[1::2], map(float, sys.argv[2::2])))
holders = [
    Holder.options(**{"num_cpus": 0, kind: 1}).remote()
    for kind, count in kinds.items() for _ in range(int(count))
]
ray.get([one.ready.remote() for one in holders])
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(cluster: RayNodes, **kinds: int) -> Iterator[None]:
    """Let another job take resources of a cluster."""
    words = [word for kind, count in kinds.items() for word in (kind, str(count))]
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, *words],
        env={**os.environ, **RAY_ENVIRONMENT, "RAY_ADDRESS": cluster.address},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
    finally:
        process.kill()
        process.wait()


def test_waiting_for_gpus_is_said_and_sigterm_is_heard(
    gpus: RayNodes, job: Job, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with held(gpus, num_gpus=2):
        process = start_job(
            job.to(tmp_path / "l.parquet"), address=gpus.address, log=log, function=HASTY
        )
        waiting = "waiting for 1 GPU for a teacher: the cluster has 2, 2 are taken"
        reached(process, lambda: waiting in log.read_text(), log)
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        assert process.wait(PATIENCE_SECONDS) == EXIT_DRAINED, log.read_text()
    print(f"ended after {time.monotonic() - sent:.1f} s")
    assert "stopped by SIGTERM; run the same command again" in log.read_text()


def test_waiting_for_a_cpu_is_said_and_given_up(gpus: RayNodes, job: Job, tmp_path: Path) -> None:
    out, log = tmp_path / "l.parquet", tmp_path / "log"
    arguments = job.to(out, "--wait-seconds", "9", "--hang-seconds", "12")
    with held(gpus, num_cpus=2):
        process = start_job(arguments, address=gpus.address, log=log, function=HASTY)
        assert process.wait(PATIENCE_SECONDS) == EXIT_AGAIN, log.read_text()
    assert "waiting for 1 CPU to augment: the cluster has 2, 2 are taken" in log.read_text()
    require_one_line(log, "s for 1 CPU to augment: the cluster has 2, 2 are taken; free some, or")


def test_a_lost_node_leaves_its_parts_to_the_other_and_the_drivers_own_ends_the_job(
    gpus: RayNodes, job: Job, tmp_path: Path
) -> None:
    """The last test that uses these nodes."""
    out, log = tmp_path / "l.parquet", tmp_path / "log"
    process = start_job(job.to(out), address=gpus.address, log=log)
    teacher = found(process, gpus.pid, TEACHER, log)
    # Workers are forked elsewhere, but each is where its node is. To look for it takes a while.
    raylet = next(one for one in map(gpus.raylet, (1, 2)) if cwd_of(one) == cwd_of(teacher))
    reached(process, lambda: part_paths(out), log)
    kill(raylet)
    killed = time.monotonic()
    assert process.wait(PATIENCE_SECONDS) == 0, log.read_text()
    print(f"lost node: ended after {time.monotonic() - killed:.1f} s")
    assert "a teacher's process died" in log.read_text()
    assert "(raylet)" not in log.read_text()
    assert part_hashes(out) == job.hashes

    out, log = tmp_path / "again.parquet", tmp_path / "again"
    raylet = gpus.raylet(0)
    process = start_job(job.to(out), address=gpus.address, log=log)
    reached(process, lambda: len(part_paths(out)) >= 2, log)
    kill(raylet)
    killed = time.monotonic()
    assert process.wait(30) == EXIT_AGAIN, log.read_text()
    print(f"own node: ended after {time.monotonic() - killed:.1f} s")
    require_one_line(log, "this machine's part of Ray is gone")


def test_a_local_ray_that_loses_its_raylet_ends_in_one_line_and_leaves_nothing(
    job: Job, tmp_path: Path
) -> None:
    out, log = tmp_path / "l.parquet", tmp_path / "log"
    process = start_job(job.to(out), address=None, log=log)
    reached(process, lambda: len(part_paths(out)) >= 2, log)
    family = descendants(process.pid)
    (raylet,) = [one for one in family if "/raylet/raylet" in command_of(one)]
    kill(raylet)
    killed = time.monotonic()
    assert process.wait(30) == EXIT_AGAIN, log.read_text()
    print(f"ended after {time.monotonic() - killed:.1f} s")
    assert not alive(family)
    require_one_line(log, "this machine's part of Ray is gone")


@pytest.mark.parametrize(
    ("address", "status", "message"),
    [
        ("127.0.0.1:{port}", EXIT_AGAIN, "no Ray cluster answers at 127.0.0.1:"),
        ("http://127.0.0.1:8265", 1, "a label job joins the cluster itself, at HOST:PORT of its"),
        ("ray://127.0.0.1:10001", 1, "from elsewhere use `ray job submit`"),
        ("head", 1, "RAY_ADDRESS is head; give HOST:PORT"),
    ],
)
def test_an_address_where_no_cluster_is_ends_in_one_line(
    address: str, status: int, message: str, job: Job, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # and nobody listens any more
    started = time.monotonic()
    process = start_job(
        job.to(tmp_path / "l.parquet"),
        address=address.format(port=port),
        log=log,
        environment={"RAY_TMPDIR": str(tmp_path)},
    )
    assert process.wait(30) == status, log.read_text()
    print(f"ended after {time.monotonic() - started:.1f} s")
    require_one_line(log, message)


def test_no_ray_to_find_is_said_in_one_line() -> None:
    """The machine that runs the tests may have one, so Ray's answer is made up."""
    error = why_not("auto", ConnectionError("Could not find any running Ray instance."))
    assert isinstance(error, TryAgainError)
    assert str(error).startswith("RAY_ADDRESS is auto, and no Ray runs on this machine; start one")


def test_a_directory_too_long_for_sockets_ends_in_one_line(job: Job, tmp_path: Path) -> None:
    log, deep = tmp_path / "log", tmp_path / ("deep" * 30)
    deep.mkdir()
    arguments = job.to(tmp_path / "l.parquet")
    environment = {"TMPDIR": str(deep), "RAY_TMPDIR": str(deep)}
    process = start_job(arguments, address=None, log=log, environment=environment)
    assert process.wait(30) == 1, log.read_text()
    require_one_line(log, "has too long a name for Ray's sockets; set RAY_TMPDIR")


def as_task_error(cause: Exception) -> RayTaskError:
    """Return what a caller gets of an exception that a teacher's process raised."""
    return RayTaskError("label", "Traceback ...", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (ActorDiedError(), Death.PROCESS),
        (ActorUnavailableError("it does not answer", None), Death.PROCESS),
        (NodeDiedError("its node is gone"), Death.PROCESS),
        (LocalRayletDiedError(), Death.PROCESS),
        (RaySystemError("System error: Broken pipe"), Death.PROCESS),
        (WorkerCrashedError(), Death.PROCESS),
        (as_task_error(OSError(32, "Broken pipe")), Death.PROCESS),
        (
            as_task_error(torch.AcceleratorError("CUDA error: an illegal memory access")),
            Death.PROCESS,
        ),
        (OutOfMemoryError("Task was killed due to the node running low on memory"), Death.MEMORY),
        (as_task_error(OutOfMemoryError("killed for want of memory")), Death.MEMORY),
        (as_task_error(MemoryError()), Death.MEMORY),
        (as_task_error(torch.OutOfMemoryError("CUDA out of memory")), Death.MEMORY),
        (as_task_error(TeacherError("there is no such teacher")), None),
        (as_task_error(ModuleNotFoundError("No module named 'timm'")), None),
        (as_task_error(TypeError("a fault of ours")), None),
    ],
    ids=lambda one: type(one).__name__,
)
def test_every_way_in_which_a_teacher_can_die_counts(error: Exception, how: Death | None) -> None:
    assert death_of(error) == how


def test_a_fault_of_ours_comes_out_in_one_line() -> None:
    ours = TeacherError("there is no such teacher")
    assert fault_of(as_task_error(ours), "a teacher's process") is ours
    other = fault_of(as_task_error(TypeError("a fault\nof two lines")), "a teacher's process")
    assert str(other).startswith("a teacher's process failed: TypeError: a fault; this should not")
    text = "The remote function failed to import.\nTraceback ...\nModuleNotFoundError: No module"
    missing = fault_of(as_task_error(RuntimeError(f"{text} named 'numba'\n")), "node x")
    assert str(missing).startswith(
        "node x cannot run this project (ModuleNotFoundError: No module named 'numba'); install"
    )


# Of Ray 2.60, where a library on a node is broken, or is another than the project takes.
_DIED = """\x1b[36mray::TeacherActor.__init__()\x1b[39m (pid=20399, ip=10.0.0.7, actor_id=e8924d86)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
RuntimeError: The actor with name TeacherActor failed to import on the worker. This may be because \
needed library dependencies are not installed in the worker environment:

  File "/nodes/numpy/_core/multiarray.py", line 11, in <module>
    from . import _multiarray_umath, overrides
{first}

The above exception was the direct cause of the following exception:
ImportError:

IMPORTANT: PLEASE READ THIS FOR ADVICE ON HOW TO SOLVE THIS ISSUE!
Original error was: libopenblas.so: cannot open shared object file
"""


def as_it_began(text: str) -> ActorDiedError:
    """Return what a caller gets of a teacher whose process ended as it was made."""
    return ActorDiedError(RayTaskError("__init__", text, RuntimeError("")))


@pytest.mark.parametrize(
    "first",
    [
        "ImportError: libopenblas.so: cannot open shared object file",
        "ImportError: cannot import name 'list_models' from 'timm'",
        "ModuleNotFoundError: No module named 'numba'",
    ],
)
def test_a_node_on_which_the_project_does_not_load_is_named_and_ends_the_job(first: str) -> None:
    """Teachers that are killed are replaced: these would be as often as that is tried."""
    for error in (as_it_began(_DIED.format(first=first)), RuntimeError(_DIED.format(first=first))):
        assert death_of(error) is None
        assert str(fault_of(error, "a teacher's process")) == (
            f"a teacher's process on 10.0.0.7 cannot run this project ({first}); install its "
            "dependencies on all nodes, or take the node out of the cluster"
        )


def test_what_ends_a_process_as_it_begins_is_said_without_its_number() -> None:
    """Where it is no import, another process may have more luck."""
    error = as_it_began(_DIED.partition("RuntimeError")[0] + "OSError: the disk is gone\n")
    assert death_of(error) == Death.PROCESS
    assert joining.in_one_line(error) == "OSError: the disk is gone"


def test_two_jobs_on_one_store_share_its_parts(head: RayHead, job: Job, tmp_path: Path) -> None:
    out, logs = tmp_path / "l.parquet", [tmp_path / "first", tmp_path / "second"]
    first = start_job(job.to(out), address=head.address, log=logs[0])
    reached(first, lambda: (out / "_meta" / ".jobs" / "at-work.json").exists(), logs[0])
    os.kill(first.pid, signal.SIGSTOP)  # or it might be over before the second one has loaded
    second = start_job(job.to(out), address=head.address, log=logs[1])
    told = f"process {first.pid} on "
    reached(second, lambda: told in logs[1].read_text(), logs[1])
    os.kill(first.pid, signal.SIGCONT)
    for process, log in zip((first, second), logs, strict=True):
        assert process.wait(PATIENCE_SECONDS) == 0, log.read_text()
    assert "adds to" not in logs[0].read_text()
    assert part_hashes(out) == job.hashes


def cut(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size // 2)


@pytest.mark.parametrize("spoil", [Path.unlink, cut], ids=["deleted", "cut"])
def test_a_shard_deleted_or_cut_in_mid_run_ends_the_job_and_a_run_with_it_back_ends_well(
    spoil: Callable[[Path], None], head: RayHead, job: Job, tmp_path: Path
) -> None:
    out, log, shards = tmp_path / "l.parquet", tmp_path / "log", tmp_path / "shards"
    shutil.copytree(job.shard.parent, shards, ignore=lambda *_: ["serial.parquet"])
    shard, arguments = shards / "d-2.tar", job.to(out, "--shards", str(shards / "d-{0..2}.tar"))
    whole = shard.read_bytes()
    process = start_job(arguments, address=head.address, log=log)
    reached(process, lambda: part_paths(out), log)
    spoil(shard)  # of which nothing was read but its index
    assert process.wait(PATIENCE_SECONDS) == 1, log.read_text()
    require_one_line(log, str(shard))
    assert not (out / "_manifest.json").exists()
    assert not any(path.is_relative_to(out / "shard=2") for path in part_paths(out))
    shard.write_bytes(whole)
    again = start_job(arguments, address=head.address, log=log)
    assert again.wait(PATIENCE_SECONDS) == 0, log.read_text()
    assert part_hashes(out) == job.hashes


def test_an_image_that_crashes_its_decoder_is_rejected_with_a_code(
    head: RayHead, job: Job, tmp_path: Path
) -> None:
    """The decoder is made to crash by code that all of the head's processes load."""
    samples = digit_samples(18, first=200)
    key, image, target = samples[7]
    assert image[:2] == b"\xff\xd8"
    comment = b"\xff\xfe\x00\x08POISON"
    samples[7] = (key, image[:2] + comment + image[2:], target)
    shard = write_shard(tmp_path / "poisoned.tar", samples)
    out, log = tmp_path / "l.parquet", tmp_path / "log"
    arguments = ["--shards", str(shard), "--views", "6", "--views-per-part", "3"]
    process = start_job(
        job.to(out, *arguments, "--max-rejected", "0.1"), address=head.address, log=log
    )
    assert process.wait(PATIENCE_SECONDS) == 0, log.read_text()
    assert f"rejected: {key}: whatever process decodes it crashes" in log.read_text()
    ((rejection,),) = open_store(out).manifest.rejections.values()
    assert (rejection.key, rejection.reason) == (key, "crashes-decoder")


def test_a_head_that_stays_lost_ends_the_job_and_one_that_comes_back_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a cluster `make chaos` tries it, and waits as long as jobs do."""
    monkeypatch.setattr(joining, "RESOURCES_SECONDS", 0.01)
    monkeypatch.setattr(joining, "HEAD_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        watch = joining.HeadWatch(address)
        time.sleep(0.1)
        assert not watch.is_lost
    wait_for(lambda: watch.is_lost, "that the head is missed")
    watch.check()  # not yet
    time.sleep(0.3)
    with pytest.raises(TryAgainError, match=f"at {address}, has not answered for .* again"):
        watch.check()
    host, port = address.split(":")
    with socket.create_server((host, int(port))):
        wait_for(lambda: not watch.is_lost, "that the head is back")
        watch.check()
