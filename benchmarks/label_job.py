"""The label job on Ray: how busy the teacher is kept by augmentation on this machine's cores.

The teacher is a stand-in that needs no cores and takes a fixed time for a view, as a GPU
would: none at first, which gives the rate of augmentation, then as much as makes it ask for
80 % of that rate. What all the rest takes is told by the rate at which as many processes
make the same views for nobody.

With ``--cluster`` it runs real jobs, of a small teacher that was not trained, on clusters on this
machine: how soon a job begins, what hangs, its memory, and bytes between nodes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from benchmarks.report import Report, describe_machine
from benchmarks.stand_in import StandInTeacher, stand_in_identity
from jobs.label_teacher import prepare_environment
from pipeline.identity import TeacherIdentity
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.devices import choose_device
from pipeline.labelling.job import JobPlan, begin_job, index_shards, plan_job
from pipeline.labelling.part import GroupTask, run_task
from pipeline.labelling.worker import TeacherWorker
from pipeline.records import AugmentedGroup, TeacherLabels
from pipeline.views.floats import float_fingerprints
from tests.forking import BIN
from tests.jobs.processes import (
    RAY_ENVIRONMENT,
    Node,
    RayNodes,
    alive,
    command_of,
    descendants,
    named,
    part_paths,
    ray_nodes,
    wait_for,
)

DEMAND = 0.8
TEACHER, AUGMENTER = "ray::TeacherActor.label", "ray::augment_remotely"

RAYS_OWN = {
    "RAY_health_check_period_ms": "3000",
    "RAY_metrics_report_interval_ms": "10000",
    "RAY_free_objects_batch_size": "100",
    "RAY_num_workers_soft_limit": "-1",
}
"""What Ray does by itself; in tests it looks and tells more often, frees memory at once, and keeps
more processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobBenchmark:
    """Measure how busy the label job keeps a teacher."""

    shards: tuple[str, ...]
    """Shards of photographs: files, brace patterns or globs, in quotes."""
    rounds: int = 3
    """Pairs of jobs: one that gives the rate, one at 80 % of it."""
    views: int = 150
    """Views of each sample."""
    teacher: str = "regnety_002"
    """With ``--cluster``: timm's name of the teacher, whose weights are random."""
    cluster: bool = False
    """Measure real jobs on clusters of this machine, instead of how busy a teacher is kept."""
    hang_seconds: float = 15.0
    """With ``--cluster``: given to jobs in which a process is made to hang. They have to last
    for two of the deadlines that follow from it."""
    cpu_parts: int = 8
    """With ``--cluster``: parts over which CPU time is counted, on Ray and without it."""
    memory_seconds: float = 240.0
    """With ``--cluster``: in which a job's memory is looked at."""
    json: Path | None = None
    """File to write the ratios to."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a teacher did between its first view and its last."""

    views: int
    busy_seconds: float
    seconds: float


class StandInWorker(TeacherWorker):
    """A teacher's process with the stand-in; keeps account of it in a file."""

    def __init__(self, config: LabelConfig, threads: int, seconds_per_view: float) -> None:
        self._config, self._device = config, choose_device("cpu")
        self._stand_in = StandInTeacher(seconds_per_view)
        self._turn = threading.Lock()
        self._account = account_of(config.out)
        self._views, self._first, self._last = 0, 0.0, 0.0

    @property
    def identity(self) -> TeacherIdentity:
        """The stand-in's identity."""
        return stand_in_identity(batch_views=15)

    @property
    def busy_seconds(self) -> float:
        """How long the stand-in was at work."""
        return self._stand_in.busy_seconds

    def label_groups(
        self, groups: Iterable[AugmentedGroup]
    ) -> Iterator[tuple[AugmentedGroup, TeacherLabels]]:
        """Label each group when it is this thread's turn."""
        for group in groups:
            with self._turn:
                self._first = self._first or time.perf_counter()
                labels = self._stand_in.label_group(group)
                self._last = time.perf_counter()
                self._views += int(group.valid.sum())
                usage = (self._views, self.busy_seconds, self._last - self._first)
                self._account.write_text(json.dumps(usage))
            yield group, labels


def account_of(store: str) -> Path:
    """Return the file in which the stand-in keeps account."""
    return Path(store).with_suffix(".json")


def plan_of(config: JobBenchmark, directory: Path) -> JobPlan:
    """Plan a job of the stand-in."""
    job = LabelConfig(shards=config.shards, out=str(directory / "job.parquet"), views=config.views)
    floats = float_fingerprints(job.augment, job.effective_mixing, "cpu")
    return plan_job(job, index_shards(job.shards), stand_in_identity(batch_views=15), floats)


def count_views(task: GroupTask) -> int:
    """Make a group's views, and return how many there are."""
    return int(run_task(task).valid.sum())


def rate_alone(config: JobBenchmark) -> float:
    """Return how many views a second as many processes as there are cores make, without Ray."""
    with tempfile.TemporaryDirectory() as directory:
        plan = plan_of(config, Path(directory))
    tasks = [task for part in plan.missing for task in plan.order(part).tasks()]
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(count_views, tasks[: 4 * cores]):
            pass  # each has loaded its kernels then
        started = time.perf_counter()
        views = sum(pool.map(count_views, tasks))
    return views / (time.perf_counter() - started)


def run_job(config: JobBenchmark, directory: Path, seconds_per_view: float) -> Usage:
    """Label all shards on a Ray of our own."""
    from jobs.cluster import Cluster  # Ray reads the environment when it is imported
    from jobs.draining import Drain

    plan = plan_of(config, directory)
    job = plan.config
    begin_job(plan)
    worker: Callable[[LabelConfig, int], StandInWorker]
    worker = partial(StandInWorker, seconds_per_view=seconds_per_view)
    with closing(Cluster(job, Drain(0.0), worker)) as cluster:
        parts = sum(1 for _ in cluster.label(plan))
    if parts != len(plan.missing):
        raise SystemExit(f"{parts} of {len(plan.missing)} parts were labelled")
    return Usage(*json.loads(account_of(job.out).read_text()))


class RealJob:
    """A label job as people start it, on a cluster or on a Ray of its own."""

    def __init__(self, config: JobBenchmark, folder: Path, address: str | None, *more: str) -> None:
        self.out, self.log = folder / "real.parquet", folder / "log"
        variables = {**os.environ, **RAY_ENVIRONMENT, **RAYS_OWN, "RAY_ADDRESS": address or ""}
        arguments = [
            *("--shards", *config.shards, "--out", str(self.out), "--views", str(config.views)),
            *("--teacher", config.teacher, "--teacher-random-weights", "0", *more),
        ]
        self.started = time.monotonic()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(BIN / "label-teacher"), *arguments],
                env=variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid

    def wait_for(self, condition: Callable[[], object], what: str) -> float:
        """Wait, and return how long it took."""
        began = time.monotonic()
        wait_for(lambda: self._process.poll() is not None or condition(), what, log=self.log)
        if self._process.poll() is not None:
            raise SystemExit(f"the job ended: {self.log.read_text()}")
        return time.monotonic() - began

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


@contextmanager
def real_job(config: JobBenchmark, address: str | None, *more: str) -> Iterator[RealJob]:
    """Run a job for as long as this context lasts."""
    with (
        tempfile.TemporaryDirectory() as name,
        closing(RealJob(config, Path(name), address, *more)) as job,
    ):
        yield job


def first_task_seconds(config: JobBenchmark, cluster: RayNodes) -> float:
    """Return the time from a job's start to its first augmentation."""
    # A teacher outlives its killed driver for a moment, and lets views be made meanwhile.
    before = ("ray::TeacherActor", AUGMENTER)
    wait_for(
        lambda: not any(named(cluster.pid, one) for one in before), "the end of the job before"
    )
    with real_job(config, cluster.address, "--image-size", "64") as job:
        return job.wait_for(lambda: named(cluster.pid, AUGMENTER), "an augmentation")


def hang(config: JobBenchmark, cluster: RayNodes, title: str) -> dict[str, float]:
    """Stop a process of a job; return when it was gone and another part was there, in deadlines."""
    flags = ("--image-size", "64", "--views-per-part", "15", "--teachers", "1")
    seconds = ("--hang-seconds", str(config.hang_seconds))
    with real_job(config, cluster.address, *flags, *seconds) as job:
        job.wait_for(lambda: len(part_paths(job.out)) >= 4, "four parts")
        job.wait_for(lambda: named(cluster.pid, title), title)
        pid = named(cluster.pid, title)[0]
        os.kill(pid, signal.SIGSTOP)
        gone = job.wait_for(lambda: not alive([pid]), f"the end of {title}")
        # The second one was not under way elsewhere.
        enough = len(part_paths(job.out)) + (1 if title == TEACHER else 2)
        again = gone + job.wait_for(lambda: len(part_paths(job.out)) >= enough, "another part")
        said = re.search(r", of the (\S+) s that it has", job.log.read_text())
    # By its own pace a job may wait longer than it is told.
    deadline = float(said[1]) if said else config.hang_seconds
    name = "teacher" if title == TEACHER else "augmenter"
    return {
        f"hung_{name}_deadline_seconds": deadline,
        f"hung_{name}_ended_deadlines": gone / deadline,
        f"hung_{name}_replaced_deadlines": again / deadline,
    }


def proportional_bytes(pid: int) -> int:
    """Return a process's memory, of what it shares its share."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        if found := re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE):
            return 1024 * int(found[1])
    return 0


def peak_bytes(config: JobBenchmark) -> int:
    """Return the most memory that all processes of a job with a Ray of its own have together."""
    most = 0
    with real_job(config, None) as job:
        while not job.is_over and time.monotonic() - job.started < config.memory_seconds:
            family = [job.pid, *descendants(job.pid)]
            most = max(most, sum(map(proportional_bytes, family)))
            time.sleep(0.5)
    return most


def bytes_between_nodes(config: JobBenchmark, cluster: RayNodes) -> float:
    """Return what nodes have sent each other for a label, of two with a GPU, so to speak."""
    flags = ("--image-size", "64", "--views-per-part", "15")
    with real_job(config, cluster.address, *flags) as job:
        job.wait_for(lambda: len(part_paths(job.out)) >= 2, "two parts")
        before, first = sent_bytes(cluster), labels_in(job.out)
        job.wait_for(lambda: len(part_paths(job.out)) >= 8, "eight parts")
        time.sleep(5.0)  # nodes tell what they count at times
        return (sent_bytes(cluster) - before) / (labels_in(job.out) - first)


def labels_in(out: Path) -> int:
    """Return the labels of all parts that are there."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in part_paths(out))


def sent_bytes(cluster: RayNodes) -> float:
    """Return how many bytes of objects all nodes have sent to others."""
    total = 0.0
    for port in metric_ports(cluster):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        pattern = r'^ray_object_manager_bytes\{.*Type="PushedFromLocalPlasma".*\} (\S+)$'
        total += sum(map(float, re.findall(pattern, text, re.MULTILINE)))
    return total


def metric_ports(cluster: RayNodes) -> list[int]:
    """Return where nodes tell what they count."""
    code = (
        "import ray; ray.init(log_to_driver=False);"
        "print(*(one['MetricsExportPort'] for one in ray.nodes() if one['Alive']))"
    )
    done = subprocess.run(
        [str(BIN / "python"), "-c", code],
        env={**os.environ, **RAY_ENVIRONMENT, "RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(one) for one in done.stdout.split()]


def cpu_by_kind(family: Iterable[int], driver: int) -> dict[str, float]:
    """Return the CPU seconds of processes: augmenters, teachers, the driver, and Ray's own."""
    found = dict.fromkeys(("augmenters", "teacher", "driver", "ray"), 0.0)
    for pid in family:
        title = command_of(pid)
        kind = "driver" if pid == driver else "ray"
        for name in ("TeacherActor", "augment_remotely", "read_remotely", "IDLE"):
            if title.startswith(f"ray::{name}"):
                kind = "teacher" if name == "TeacherActor" else "augmenters"
        with suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[kind] += (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    return found


def cpu_a_label(config: JobBenchmark, parts: int, *more: str) -> dict[str, float]:
    """Return the CPU milliseconds of a label by kind of process, between two parts of a job.

    And how many labels there were in a second: what Ray and the driver do by the clock is spread
    over these.
    """
    flags = ("--views-per-part", "15", "--teachers", "1", "--threads", "1")
    with real_job(config, None, *flags, *more) as job:

        def used() -> tuple[dict[str, float], int]:
            family = {job.pid, *descendants(job.pid)}
            return cpu_by_kind(family, job.pid), labels_in(job.out)

        job.wait_for(lambda: len(part_paths(job.out)) >= 2, "two parts")
        (before, first), began = used(), time.monotonic()
        job.wait_for(lambda: len(part_paths(job.out)) >= 2 + parts, f"{parts} parts")
        (after, last), seconds = used(), time.monotonic() - began
    found = {kind: 1000 * (after[kind] - before[kind]) / (last - first) for kind in after}
    return {**found, "labels_per_second": (last - first) / seconds}


def orchestration(config: JobBenchmark, size: int) -> dict[str, float]:
    """Return the CPU time of a label on a Ray of its own, and the share of the driver and of Ray.

    Nodes of tests have too little shared memory for groups of such views: augmentation waits there.
    """
    flags = ("--image-size", str(size))
    on_ray = cpu_a_label(config, config.cpu_parts, *flags)
    alone = cpu_a_label(config, config.cpu_parts, *flags, "--serial")
    rates = on_ray.pop("labels_per_second"), alone.pop("labels_per_second")
    name = f"cpu_ms_a_label_{size}px"
    return {
        **{f"{name}_{kind}": value for kind, value in on_ray.items()},
        f"{name}_serial": sum(alone.values()),
        f"orchestration_cpu_share_{size}px": (on_ray["driver"] + on_ray["ray"])
        / sum(on_ray.values()),
        "labels_per_second_on_ray": rates[0],
        "labels_per_second_serial": rates[1],
    }


def on_clusters(config: JobBenchmark) -> dict[str, float]:
    """Measure real jobs."""
    here = Path.cwd()
    figures: dict[str, float] = {}

    def note(found: dict[str, float]) -> None:
        print(found, flush=True)  # what is measured is told, also where the rest fails
        figures.update(found)

    with ray_nodes(Node(here, cpus=2), environment=RAYS_OWN) as cluster:
        first_task_seconds(config, cluster)  # the first one finds no file in the system's cache
        note({"first_task_seconds": first_task_seconds(config, cluster)})
        note(hang(config, cluster, TEACHER))
        note(hang(config, cluster, AUGMENTER))
    note(orchestration(config, 224))
    note({"job_peak_gigabytes": peak_bytes(config) / 1e9})
    gpus = (Node(here, cpus=0), Node(here, gpus=1), Node(here, gpus=1))
    for name, nodes in (("gpus", gpus), ("gpus_and_a_cpu_node", (*gpus, Node(here)))):
        with ray_nodes(*nodes) as cluster:
            note({f"bytes_between_nodes_a_label_{name}": bytes_between_nodes(config, cluster)})
    return figures


def main() -> None:
    """Measure and write JSON if asked to."""
    config = tyro.cli(JobBenchmark, description=JobBenchmark.__doc__)
    if config.cluster:
        report = Report(ratios=on_clusters(config), context={"machine": describe_machine()})
    else:
        report = busy_teacher(config)
    report.show()
    report.write(config.json)


def busy_teacher(config: JobBenchmark) -> Report:
    """Measure how busy a teacher is kept, and what is neither augmented nor labelled meanwhile."""
    prepare_environment()
    rates, shares, others = [], [], []
    for _ in range(config.rounds):
        alone = rate_alone(config)
        with tempfile.TemporaryDirectory() as directory:
            free = run_job(config, Path(directory), 0.0)
        rate = free.views / free.seconds
        with tempfile.TemporaryDirectory() as directory:
            usage = run_job(config, Path(directory), 1 / (DEMAND * rate))
        rates.append(rate)
        others.append(1 - rate / alone)
        shares.append(usage.busy_seconds / usage.seconds)
        print(
            f"{rate:.0f} views/s augmented, {alone:.0f} without Ray; teacher at {DEMAND:.0%}: "
            f"busy {shares[-1]:.1%}"
        )
    context = {"views_per_second": rates, "busy": shares, "demand": DEMAND, "others": others}
    return Report(
        ratios={
            "teacher_busy": statistics.median(shares),
            "orchestration_share": statistics.median(others),
        },
        context={"machine": describe_machine(), "label_job": context},
    )


if __name__ == "__main__":
    main()
