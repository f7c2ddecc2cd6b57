"""Kills parts of label jobs on a Ray cluster at random, for as long as it is told.

``make chaos`` runs it. A job on a cluster of three nodes is disturbed and run again until it is
done; then its bytes are compared with those of a run without Ray, and the next job begins. How long
each kind of fault took until another part was committed goes into a report.
"""

from __future__ import annotations

import argparse
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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.jobs.processes import (
    RAY_ENVIRONMENT,
    Process,
    alive,
    command_of,
    descendants,
    kill,
    named,
    part_hashes,
    part_paths,
    run_job,
    start_job,
)
from tests.labelling import DIGIT_READER, digit_shard, write_digit_reader

NODES = 3
HANG_SECONDS = 4  # given to jobs: a teacher that shows no progress for so long, at least
LONGEST_SECONDS = 300  # without another part: then the job hangs

_CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster()

def add():
    cluster.add_node(
        num_cpus=1, node_ip_address="127.0.0.1", object_store_memory=100_000_000,
        include_dashboard=False,
    )

for _ in range(int(sys.argv[1])):
    add()
print(cluster.address, flush=True)
for _ in sys.stdin:
    add()
    print("added", flush=True)
"""


class RayCluster:
    """A cluster of several nodes on loopback, which can be given more."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CLUSTER, str(NODES)],
            env={**os.environ, **RAY_ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._read()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def having(self, part: str) -> list[int]:
        """Return its processes with a text in their command line."""
        return [pid for pid in alive(descendants(self.pid)) if part in command_of(pid)]

    def add_node(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("add\n")
        self._process.stdin.flush()
        assert self._read() == "added"

    def close(self) -> None:
        family = [self.pid, *descendants(self.pid)]
        self._process.kill()
        for pid in family:
            kill(pid)
        self._process.wait()


@dataclass
class Job:
    """A label job that is run again until it is done."""

    arguments: list[str]
    out: Path
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
            self.process = start_job(
                [*self.arguments, "--out", str(self.out)], address=cluster.address, log=self.log
            )

    def _note(self, status: int) -> None:
        self.statuses[status] += 1
        self.process = None

    @property
    def log(self) -> Path:
        """The output of the driver that was started last."""
        return self.out.with_name(f"{self.out.name}-{self.starts}.log")

    @property
    def has_planned(self) -> bool:
        """Whether that driver has come so far as to list what is missing."""
        return " parts are there already, " in self.log.read_text()

    @property
    def is_done(self) -> bool:
        return (self.out / "_manifest.json").exists() and (
            self.process is None or self.process.poll() == 0
        )


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
    same: int = 0  # jobs with the bytes of a run that nobody disturbed
    other: int = 0
    labels: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)  # of drivers that ended with status 1


def _one(random_: random.Random, pids: Sequence[int]) -> int | None:
    return random_.choice(pids) if pids else None


class Chaos:
    """Faults of all kinds, upon a cluster and the job on it."""

    def __init__(self, folder: Path, seed: int, report: Report) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self.report = report
        self.cluster = RayCluster()

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
        self.cluster.add_node()
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
        self.cluster = RayCluster()
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
        began, parts = time.monotonic(), len(part_paths(job.out))
        planned = job.starts if job.has_planned else 0
        if not getattr(self, kind)(job):
            return False
        while not job.is_done:
            job.run_on(self.cluster)
            if job.has_planned and planned != job.starts:
                # Until now orphans of the last driver may have committed some.
                parts, planned = len(part_paths(job.out)), job.starts
            if planned == job.starts and len(part_paths(job.out)) > parts:
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
    "head_lost": 1,
}


def kinds_at_random(seed: int) -> Iterator[str]:
    random_ = random.Random(seed)
    while True:
        yield random_.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]


@dataclass(frozen=True)
class Work:
    """What jobs label, and the bytes that come of it."""

    arguments: list[str]
    hashes: dict[str, str]
    labels: int


def make_work(folder: Path, *, samples: int, views: int) -> Work:
    """Make three shards and a teacher, and label without Ray."""
    for number in range(3):
        path = folder / f"d-{number}.tar"
        digit_shard(path, samples, first=number * samples, broken=(7,) if number == 1 else ())
    teacher = write_digit_reader(folder / "teacher.safetensors")
    arguments = [
        *("--shards", str(folder / "d-{0..2}.tar")),
        *("--teacher", DIGIT_READER, "--teacher-checkpoint", str(teacher)),
        *("--image-size", "32", "--views", str(views), "--views-per-part", "15"),
        *("--max-rejected", "0.05", "--allow-low-agreement", "--precision", "fp32"),
        *("--threads", "1"),
    ]
    out = folder / "serial.parquet"
    run_job([*arguments, "--out", str(out), "--serial"], address=None, log=folder / "serial.log")
    return Work(arguments, part_hashes(out), (3 * samples - 1) * views)


def disturb(
    folder: Path,
    work: Work,
    kinds: Iterator[str],
    report: Report,
    *,
    seed: int,
    over: Callable[[], bool],
    pause: float,
) -> None:
    """Disturb jobs, one after the other, until ``over``; the last one is run to its end."""
    random_ = random.Random(seed)
    chaos = Chaos(folder, seed, report)
    began, number = time.monotonic(), 0
    try:
        while not over():
            number += 1
            teachers = 1 + number % 2
            flags = ["--teachers", str(teachers), "--hang-seconds", str(HANG_SECONDS)]
            job = Job([*work.arguments, *flags], folder / f"{number}.parquet")
            job.run_on(chaos.cluster)
            kind = next(kinds, None)
            due = time.monotonic() + random_.uniform(0, pause)
            last, seen = time.monotonic(), 0
            while not job.is_done:
                job.run_on(chaos.cluster)
                parts = len(part_paths(job.out))
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
                    kind = next(kinds, None)
                    due = time.monotonic() + random_.uniform(0, pause)
                time.sleep(0.02)
            job.run_on(chaos.cluster)
            report.statuses.update(job.statuses)
            for log in folder.glob(f"{job.out.name}-*.log"):
                lines = log.read_text().splitlines()
                report.errors += [line for line in lines if "label-teacher: error" in line]
            if part_hashes(job.out) == work.hashes:
                report.same += 1
                shutil.rmtree(job.out)
            else:
                report.other += 1  # and the store is kept
            report.labels += work.labels
            report.seconds = time.monotonic() - began
    finally:
        chaos.close()


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text().splitlines()[-5:])


_HEAD = """\
# Label jobs that are killed at random

Written by `make chaos` (`tests/crash/chaos.py`). Label jobs on a Ray cluster of three nodes on one
machine are disturbed and run again until they are done, and then their bytes are compared with
those of a run without Ray. After each fault it takes some time until another part is committed:
that is the recovery. With two teachers the other one goes on meanwhile. With one it holds all that
has to happen: the loss is noticed, a process is started, PyTorch and the teacher are loaded, a part
is labelled. Where the driver ended too, it holds Ray's start of another, the job's plan and its
trial of the teacher; parts that orphans commit before they are gone do not count.
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
        f"| jobs | {report.same + report.other}, of {report.labels} labels in all |",
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
    parser.add_argument("--folder", type=Path, help="keep what is written here")
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    report = Report()
    with folder_for(given.folder) as folder:
        work = make_work(folder, samples=60, views=300)
        try:
            disturb(
                folder,
                work,
                kinds_at_random(given.seed),
                report,
                seed=given.seed,
                over=lambda: time.monotonic() > end,
                pause=given.pause,
            )
        finally:
            given.report.write_text(markdown_of(report, given.seed))
            print(given.report.read_text())
    sys.exit(report.other > 0)


if __name__ == "__main__":
    main()
