"""Disturbs label jobs on a Ray cluster at random, for as long as it is told.

``make chaos`` runs it. A job on a cluster of three nodes is disturbed and run again until it is
done; then its bytes are compared with those of a run that nobody disturbed, and the next job
begins. How long each kind of fault took until another part was committed goes into a report.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from moto.s3.models import s3_backends

from tests.factories import digit_samples, write_shard
from tests.jobs.processes import (
    BIN,
    RAY_ENVIRONMENT,
    ROOT,
    Process,
    alive,
    command_of,
    descendants,
    kill,
    named,
    part_hashes,
    part_paths,
    start_job,
)
from tests.labelling import digit_shard, write_teacher
from tests.object_storage import Request, S3Server, s3_serving, storage_environment

NODES = 3
HANG_SECONDS = 8  # given to jobs: a teacher that shows no progress for so long, at least
LONGEST_SECONDS = 600  # without another part: then the job hangs

STORAGE_SECONDS = 10.0  # for which object storage fails, or a process has another time

# Loaded by the driver and by Ray's workers. A file with a process's number gives it a fault; and
# an image with this comment ends whatever decodes it.
_INJECTED = """
import errno, os, signal, sys, time

FOLDER = os.environ["CHAOS_FOLDER"]

def said(fault):
    try:
        with open(f"{FOLDER}/{fault}-{os.getpid()}") as file:
            return file.read()
    except OSError:
        return None

def fsync(handle, real=os.fsync):
    if said("full") is not None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real(handle)

def jumped(real=time.time):
    return real() + float(said("clock") or 0)

if "label-teacher" in " ".join(sys.orig_argv):
    time.time = jumped
worker = any(one.endswith("default_worker.py") for one in sys.orig_argv)
if worker:
    os.fsync, time.time = fsync, jumped
if worker or "pipeline.labelling.probe" in sys.orig_argv:  # which decodes for a worker
    import simplejpeg

    def poisoned(data, *arguments, of=simplejpeg.decode_jpeg_header, **more):
        if b"POISON" in bytes(data):
            os.kill(os.getpid(), signal.SIGSEGV)
        return of(data, *arguments, **more)

    simplejpeg.decode_jpeg_header = poisoned
"""

# Ray's control store is kept on the disk, so that it can be started again without a Redis.
_CLUSTER = """
import sys
from ray.cluster_utils import Cluster

if len(sys.argv) > 2:
    from tests.jobs.ray_workers import fork_workers

    fork_workers(sys.argv[2])
cluster = Cluster()

def add():
    cluster.add_node(
        num_cpus=1, node_ip_address="127.0.0.1", object_store_memory=100_000_000,
        include_dashboard=False,
    )

for _ in range(int(sys.argv[1])):
    add()
print(cluster.address, flush=True)
for order in sys.stdin:
    if order.strip() == "node":
        add()
    else:
        cluster.head_node.kill_gcs_server(check_alive=False)
        cluster.head_node.start_gcs_server()
    print("done", flush=True)
"""


class RayCluster:
    """A cluster of several nodes on loopback, which can be given more."""

    def __init__(self, environment: Mapping[str, str], *, forked: bool = False) -> None:
        """Start it. Workers that are ``forked`` have loaded all before, and take no fault."""
        self._state = tempfile.TemporaryDirectory(prefix="gcs-")
        kept = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": self._state.name}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CLUSTER, str(NODES), *[self._state.name] * forked],
            cwd=ROOT,
            env={**os.environ, **RAY_ENVIRONMENT, **kept, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._read()
        assert self.address, "Ray did not start in the time that it gives itself"

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def having(self, part: str) -> list[int]:
        """Return its processes with a text in their command line."""
        return [pid for pid in alive(descendants(self.pid)) if part in command_of(pid)]

    def order(self, what: str) -> None:
        """Have a "node" added, or the "head" started again, and wait until it is."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._read() == "done"

    def close(self) -> None:
        family = [self.pid, *descendants(self.pid)]
        self._process.kill()
        for pid in family:
            kill(pid)
        self._process.wait()
        self._state.cleanup()


class Target(ABC):
    """Where a job's store is, as whoever disturbs the job sees it."""

    def __init__(self, out: str) -> None:
        self.out = out

    @abstractmethod
    def paths(self) -> list[str]:
        """Return its files."""

    @abstractmethod
    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every part, and of the manifest."""

    def remove(self) -> None:
        """Remove the store, if it takes room."""
        return

    @property
    def parts(self) -> int:
        """Parts that are committed."""
        return sum(path.startswith("shard=") for path in self.paths())

    @property
    def is_whole(self) -> bool:
        return "_manifest.json" in self.paths()


class LocalTarget(Target):
    """A directory."""

    def paths(self) -> list[str]:
        root = Path(self.out)
        files = [*part_paths(root), *root.glob("_manifest.json")]
        return [path.relative_to(root).as_posix() for path in files]

    def hashes(self) -> dict[str, str]:
        return part_hashes(Path(self.out))

    def remove(self) -> None:
        shutil.rmtree(self.out)


class StoredTarget(Target):
    """A prefix in object storage; looked at behind the server's back, which may be failing."""

    def __init__(self, out: str, server: S3Server) -> None:
        super().__init__(out)
        self._server = server

    def paths(self) -> list[str]:
        bucket, _, prefix = self.out.removeprefix("s3://").partition("/")
        keys = list(s3_backends["123456789012"]["aws"].buckets[bucket].keys)
        inside = [key for key in keys if key.startswith(f"{prefix}/")]
        return [key.removeprefix(f"{prefix}/") for key in inside]

    def hashes(self) -> dict[str, str]:
        files = self._server.objects(self.out).items()
        return {
            path: hashlib.sha256(data).hexdigest()
            for path, data in files
            if path.startswith("shard=") or path == "_manifest.json"
        }


@dataclass
class Job:
    """A label job that is run again until it is done."""

    arguments: list[str]
    target: Target
    logs: Path  # what the paths of its logs begin with
    environment: Mapping[str, str]
    start: Callable[..., Process] = start_job
    starts: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    process: Process | None = None

    def run_on(self, cluster: RayCluster) -> None:
        """Start the driver if none runs and the job is not done."""
        if self.process is not None and self.process.poll() is None:
            return
        if self.process is not None:
            self._note(self.process.returncode)
        if not self.is_done:
            self.starts += 1
            self.log.unlink(missing_ok=True)
            self.process = self.start(
                [*self.arguments, "--out", self.target.out],
                address=cluster.address,
                log=self.log,
                environment=self.environment,
            )

    def _note(self, status: int) -> None:
        self.statuses[status] += 1
        self.process = None

    @property
    def log(self) -> Path:
        """The output of the driver that was started last."""
        return self.logs.with_name(f"{self.logs.name}-{self.starts}.log")

    @property
    def has_planned(self) -> bool:
        """Whether that driver has come so far as to list what is missing."""
        return " parts are there already, " in self.log.read_text()

    @property
    def is_done(self) -> bool:
        return self.target.is_whole and (self.process is None or self.process.poll() == 0)


@dataclass(frozen=True)
class Fault:
    """One that was made, and how long it took until another part was committed."""

    kind: str
    teachers: int
    seconds: float


@dataclass
class Report:
    """What became of the jobs."""

    faults: list[Fault] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)  # by the name of their work
    same: int = 0  # jobs with the bytes of a run that nobody disturbed
    other: int = 0
    labels: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)  # of drivers that ended with status 1


def _one(random_: random.Random, pids: Sequence[int]) -> int | None:
    return random_.choice(pids) if pids else None


class Chaos:
    """Faults of all kinds, upon a cluster and the job on it."""

    def __init__(
        self, folder: Path, seed: int, report: Report, server: S3Server, *, forked: bool
    ) -> None:
        self._folder, self._forked = folder, forked
        self._random = random.Random(seed)
        self._server = server
        self.report = report
        self.environment = injected(folder) | storage_environment(server)
        del self.environment["AWS_MAX_ATTEMPTS"]  # as many as jobs make by default
        self.cluster = self._new_cluster()

    def _new_cluster(self) -> RayCluster:
        with suppress(AssertionError):  # on a machine that is busy it takes more than one try
            return RayCluster(self.environment, forked=self._forked)
        return RayCluster(self.environment, forked=self._forked)

    def close(self) -> None:
        self.cluster.close()

    # Each returns whether there was somebody to disturb.

    def teacher_killed(self, job: Job) -> bool:
        return self._kill(named(self.cluster.pid, "ray::TeacherActor"))

    def teacher_hung(self, job: Job) -> bool:
        return self._kill(named(self.cluster.pid, "ray::TeacherActor.label"), signal.SIGSTOP)

    def augmenter_killed(self, job: Job) -> bool:
        return self._kill(named(self.cluster.pid, "ray::augment_remotely"))

    def augmenter_hung(self, job: Job) -> bool:
        return self._kill(named(self.cluster.pid, "ray::augment_remotely"), signal.SIGSTOP)

    def node_lost(self, job: Job) -> bool:
        """A raylet dies, perhaps the driver's own; another node comes a little later."""
        if not self._kill(self.cluster.having("/raylet/raylet")):
            return False
        time.sleep(self._random.uniform(0, 5))
        if len(self.cluster.having("/raylet/raylet")) < NODES:
            self.cluster.order("node")
        return True

    def node_added(self, job: Job) -> bool:
        self.cluster.order("node")
        return True

    def disk_full(self, job: Job) -> bool:
        """A teacher's node has no room until the job has ended over it."""
        pid = _one(self._random, named(self.cluster.pid, "ray::TeacherActor.label"))
        if pid is None or job.process is None:
            return False
        fault = self._folder / f"full-{pid}"
        fault.touch()
        with suppress(subprocess.TimeoutExpired):  # it may lose this teacher before it writes
            job.process.wait(30)
        fault.unlink()
        return True

    def clock_jumped(self, job: Job) -> bool:
        """The driver or a teacher has another time for the rest of its life."""
        drivers = [] if job.process is None else [job.process.pid]
        pid = _one(self._random, [*drivers, *named(self.cluster.pid, "ray::TeacherActor")])
        if pid is None:
            return False
        seconds = self._random.choice((-1, 1)) * self._random.uniform(60, 100_000)
        (self._folder / f"clock-{pid}").write_text(str(seconds))
        return True

    def storage_fails(self, job: Job) -> bool:
        """Of all requests some are answered with an error."""
        return self._store(lambda _: "500" if self._random.random() < 0.3 else None)

    def storage_slow(self, job: Job) -> bool:
        return self._store(lambda _: "slow")

    def storage_resets(self, job: Job) -> bool:
        """Connections break, before the answer or in its midst."""
        ways = ("reset", "torn", None, None, None)
        return self._store(lambda _: self._random.choice(ways))

    def storage_loses_answers(self, job: Job) -> bool:
        """Some objects are written, and whoever wrote them is told that they are not."""
        return self._store(
            lambda one: "lost" if one.method == "PUT" and self._random.random() < 0.5 else None
        )

    def _store(self, fault: Callable[[Request], str | None]) -> bool:
        end = time.monotonic() + STORAGE_SECONDS
        self._server.fault = lambda one: fault(one) if time.monotonic() < end else None
        return True

    def head_restarted(self, job: Job) -> bool:
        """The cluster's control store dies, and is started again from what it kept."""
        if not self._kill(self.cluster.having("gcs_server")):
            return False
        time.sleep(self._random.uniform(0, 5))
        self.cluster.order("head")
        return True

    def driver_killed(self, job: Job) -> bool:
        if job.process is None:
            return False
        job.process.kill()
        job.process.wait()
        return True

    def driver_terminated(self, job: Job) -> bool:
        if job.process is None:
            return False
        job.process.send_signal(signal.SIGTERM)
        job.process.wait(LONGEST_SECONDS)
        return True

    def head_lost(self, job: Job) -> bool:
        """The cluster's control store dies; when the driver has ended, there is a new cluster."""
        if not self._kill(self.cluster.having("gcs_server")):
            return False
        assert job.process is not None
        job.process.wait(LONGEST_SECONDS)
        self.cluster.close()
        self.cluster = self._new_cluster()
        return True

    def _kill(self, pids: Sequence[int], how: int = signal.SIGKILL) -> bool:
        pid = _one(self._random, pids)
        if pid is None:
            return False
        try:
            os.kill(pid, how)
        except ProcessLookupError:
            return False
        return True

    def fault(self, job: Job, kind: str, teachers: int) -> bool:
        """Make a fault, and wait until another part is committed or the job is done."""
        began, parts = time.monotonic(), job.target.parts
        planned = job.starts if job.has_planned else 0
        if not getattr(self, kind)(job):
            return False
        while not job.is_done:
            job.run_on(self.cluster)
            if job.has_planned and planned != job.starts:
                # Until now orphans of the last driver may have committed some.
                parts, planned = job.target.parts, job.starts
            if planned == job.starts and job.target.parts > parts:
                break
            seconds = time.monotonic() - began
            assert seconds < LONGEST_SECONDS, f"{kind}: no part in {seconds:.0f} s"
            time.sleep(0.05)
        self.report.faults.append(Fault(kind, teachers, time.monotonic() - began))
        return True


WEIGHTS = {
    "teacher_killed": 26,
    "augmenter_killed": 20,
    "driver_killed": 18,
    "node_lost": 14,
    "driver_terminated": 8,
    "augmenter_hung": 6,
    "teacher_hung": 5,
    "disk_full": 6,
    "clock_jumped": 6,
    "node_added": 4,
    "head_restarted": 6,
    "head_lost": 1,
    "storage_fails": 12,
    "storage_slow": 12,
    "storage_resets": 12,
    "storage_loses_answers": 12,
}


def kinds_at_random(seed: int) -> Iterator[str]:
    random_ = random.Random(seed)
    while True:
        yield random_.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]


def start_anew(
    arguments: list[str], *, address: str, log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start ``label-teacher`` as a user does: it loads all, and the faults' code, by itself."""
    variables = {**os.environ, **RAY_ENVIRONMENT, "RAY_ADDRESS": address, **environment}
    with log.open("ab") as out:
        return subprocess.Popen(
            [str(BIN / "label-teacher"), *arguments],
            env=variables,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def applies(kind: str, job: Job) -> bool:
    """Whether a fault can disturb a job at all."""
    return not kind.startswith("storage_") or isinstance(job.target, StoredTarget)


def injected(folder: Path) -> dict[str, str]:
    """Return the environment of processes that take faults from files in a folder."""
    code = folder / "code"
    code.mkdir(exist_ok=True)
    (code / "sitecustomize.py").write_text(_INJECTED)
    path = os.pathsep.join([str(code), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "CHAOS_FOLDER": str(folder)}


@dataclass(frozen=True)
class Work:
    """What jobs label, and the bytes that come of it."""

    name: str
    arguments: list[str]
    hashes: dict[str, str]
    labels: int
    server: S3Server | None = None  # where stores go, if not into a directory

    def target(self, folder: Path, number: int) -> Target:
        if self.server is None:
            return LocalTarget(str(folder / f"{number}.parquet"))
        return StoredTarget(f"{self.server.make_bucket()}/{number}.parquet", self.server)


def make_work(folder: Path, *, samples: int, views: int) -> Work:
    """Make three shards and a teacher, and label without Ray."""
    for number in range(3):
        path = folder / f"d-{number}.tar"
        digit_shard(path, samples, first=number * samples, broken=(7,) if number == 1 else ())
    teacher = write_teacher(folder / "teacher.safetensors")
    arguments = [
        *("--shards", str(folder / "d-{0..2}.tar")),
        *("--teacher", "regnety_002", "--teacher-checkpoint", str(teacher)),
        *("--image-size", "32", "--views", str(views), "--views-per-part", "15"),
        *("--max-rejected", "0.05", "--allow-low-agreement", "--precision", "fp32"),
        *("--threads", "1"),
    ]
    out = folder / "serial.parquet"
    log = folder / "serial.log"
    process = start_job([*arguments, "--out", str(out), "--serial"], address=None, log=log)
    assert process.wait(LONGEST_SECONDS) == 0, log.read_text()
    return Work("files", arguments, part_hashes(out), (3 * samples - 1) * views)


def in_storage(work: Work, folder: Path, server: S3Server) -> Work:
    """Return the same work on shards in object storage, whose labels go there too."""
    bucket = server.make_bucket()
    for number in range(3):
        server.put(f"{bucket}/d-{number}.tar", (folder / f"d-{number}.tar").read_bytes())
    arguments = [
        *("--shards", f"{bucket}/d-{{0..2}}.tar", *work.arguments[2:]),
        *("--cache-dir", str(folder / "cache"), "--cache-gb", "0.1"),
    ]
    return replace(work, name="object storage", arguments=arguments, server=server)


# A serial job that knows which image it may not decode.
_KNOWING = """
import sys
from dataclasses import replace
from jobs.label_teacher import main
from pipeline.labelling import job

def tasks(*arguments, of=job.group_tasks):
    for task in of(*arguments):
        yield replace(task, crashing=frozenset({int(sys.argv[1])}).intersection(task.members))

job.group_tasks = tasks
main(sys.argv[2:])
"""


def poisoned(work: Work, folder: Path, *, samples: int, views: int) -> Work:
    """Return work with an image that ends whatever decodes it."""
    images, index = digit_samples(samples, 500), 7
    key, image, target = images[index]
    images[index] = (key, image[:2] + b"\xff\xfe\x00\x08POISON" + image[2:], target)
    shard = write_shard(folder / "poisoned.tar", images)
    arguments = ["--shards", str(shard), *work.arguments[2:]]
    out = folder / "poisoned.parquet"
    done = subprocess.run(
        [sys.executable, "-c", _KNOWING, str(index), *arguments, "--out", str(out), "--serial"],
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
    )
    assert f"rejected: {key}: whatever process decodes it crashes" in done.stdout, done.stderr
    return Work("a poisoned image", arguments, part_hashes(out), (samples - 1) * views)


def disturb(
    folder: Path,
    works: Sequence[Work],
    kinds: Iterator[str],
    report: Report,
    *,
    server: S3Server,
    seed: int,
    start: Callable[..., Process] = start_job,
    forked: bool = False,
    over: Callable[[], bool],
    pause: float,
) -> None:
    """Disturb jobs, one after the other, until ``over``; the last one is run to its end.

    Ray's workers that are ``forked`` begin sooner, and take no faults of disks, clocks and images.
    """
    random_ = random.Random(seed)
    chaos = Chaos(folder, seed, report, server, forked=forked)
    began, number = time.monotonic(), 0
    try:
        while not over():
            number += 1
            # Each work is done by one teacher and by two.
            work, teachers = works[number // 2 % len(works)], 1 + number % 2
            flags = ["--teachers", str(teachers), "--hang-seconds", str(HANG_SECONDS)]
            job = Job(
                [*work.arguments, *flags],
                work.target(folder, number),
                folder / f"job-{number}",
                chaos.environment,
                start,
            )
            job.run_on(chaos.cluster)
            kind = next((one for one in kinds if applies(one, job)), None)
            due = time.monotonic() + random_.uniform(0, pause)
            last, seen = time.monotonic(), 0
            while not job.is_done:
                job.run_on(chaos.cluster)
                parts = job.target.parts
                if parts != seen:
                    last, seen = time.monotonic(), parts
                waited = time.monotonic() - last
                assert waited < LONGEST_SECONDS, f"no part in {waited:.0f} s: {_end_of(job.log)}"
                if (
                    kind
                    and time.monotonic() > due
                    and not over()
                    and chaos.fault(job, kind, teachers)
                ):
                    kind = next((one for one in kinds if applies(one, job)), None)
                    due = time.monotonic() + random_.uniform(0, pause)
                time.sleep(0.02)
            job.run_on(chaos.cluster)
            report.statuses.update(job.statuses)
            for log in folder.glob(f"{job.logs.name}-*.log"):
                lines = log.read_text().splitlines()
                report.errors += [line for line in lines if "label-teacher: error" in line]
            server.fault = None
            report.jobs[work.name] += 1
            if job.target.hashes() == work.hashes:
                report.same += 1
                job.target.remove()
            else:
                report.other += 1  # and the store is kept
            report.labels += work.labels
            report.seconds = time.monotonic() - began
    finally:
        chaos.close()


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text().splitlines()[-5:])


_HEAD = """\
# Label jobs that are disturbed at random

Written by `make chaos` (`tests/crash/chaos.py`). Label jobs on a Ray cluster of three nodes on one
machine are disturbed and run again until they are done, and then their bytes are compared with
those of a run that nobody disturbed. After each fault it takes some time until another part is
committed: that is the recovery. With two teachers the other one goes on meanwhile. With one it
holds all that has to happen: the loss is noticed, a process is started, PyTorch and the teacher are
loaded, a part is labelled. Where the driver ended too, it holds Ray's start of another, the job's
plan and its trial of the teacher; parts that orphans commit before they are gone do not count.
"""


def markdown_of(report: Report, seed: int) -> str:
    """Return the report as a page."""
    lines = [
        *_HEAD.splitlines(),
        "",
        "| | |",
        "|---|---|",
        f"| date | {datetime.now(UTC):%Y-%m-%d}, seed {seed} |",
        f"| machine | {os.cpu_count()} cores, {platform.machine()}, shared with other work |",
        f"| time | {report.seconds / 60:.1f} min |",
        f"| faults | {len(report.faults)} |",
        f"| jobs | {report.same + report.other}, of {report.labels} labels in all ("
        + ", ".join(f"{name}: {count}" for name, count in report.jobs.items())
        + ") |",
        f"| jobs with the bytes of a run that nobody disturbed | {report.same} |",
        f"| jobs with other bytes | {report.other} |",
        "| drivers by exit status | "
        + ", ".join(f"{status}: {count}" for status, count in sorted(report.statuses.items()))
        + " |",
        "",
        "Seconds until another part was committed, with one teacher and with two:",
        "",
        "| fault | times | median | longest | times | median | longest |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in WEIGHTS:
        cells = []
        for teachers in (1, 2):
            times = [f.seconds for f in report.faults if (f.kind, f.teachers) == (kind, teachers)]
            cells += (
                [str(len(times)), f"{statistics.median(times):.1f}", f"{max(times):.1f}"]
                if times
                else ["0", "", ""]
            )
        lines.append(f"| {kind.replace('_', ' ')} | " + " | ".join(cells) + " |")
    if report.errors:
        lines += ["", "What drivers ended with, beside being killed:", ""]
        counts = Counter(_without_names(line) for line in report.errors)
        lines += [f"- {count} x `{line}`" for line, count in counts.most_common()]
    return "\n".join(lines) + "\n"


def _without_names(line: str) -> str:
    """Return an error without what differs from time to time."""
    words = line.removeprefix("label-teacher: error: ").split()
    return " ".join("..." if "/" in word else word for word in words)[:160]


@contextmanager
def folder_for(path: Path | None) -> Iterator[Path]:
    if path is not None:
        path.mkdir(parents=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--pause", type=float, default=12.0, help="longest time between faults")
    parser.add_argument("--report", type=Path, default=Path("chaos-report.md"))
    parser.add_argument("--samples", type=int, default=60, help="images of a shard")
    parser.add_argument("--views", type=int, default=300, help="of each image")
    parser.add_argument("--kinds", nargs="*", choices=WEIGHTS, help="these, in their order")
    parser.add_argument("--folder", type=Path, help="keep what is written here")
    given = parser.parse_args()
    report = Report()
    with folder_for(given.folder) as folder, s3_serving() as server:
        size = {"samples": given.samples, "views": given.views}
        work = make_work(folder, **size)
        works = [
            work,
            in_storage(work, folder, server),
            poisoned(work, folder, **size),
        ]
        end = time.monotonic() + 60 * given.minutes
        kinds = iter(given.kinds) if given.kinds else kinds_at_random(given.seed)
        try:
            disturb(
                folder,
                works,
                kinds,
                report,
                server=server,
                seed=given.seed,
                start=start_anew,
                over=lambda: time.monotonic() > end,
                pause=given.pause,
            )
        finally:
            given.report.write_text(markdown_of(report, given.seed))
            print(given.report.read_text())
    sys.exit(report.other > 0)


if __name__ == "__main__":
    main()
