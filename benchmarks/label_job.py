"""The label job on Ray: how busy the teacher is kept by augmentation on this machine's cores.

The teacher is a stand-in that needs no cores and takes a fixed time for a view, as a GPU
would: none at first, which gives the rate of augmentation, then as much as makes it ask for
80 % of that rate.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
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
from pipeline.labelling.job import begin_job, index_shards, plan_job
from pipeline.labelling.worker import TeacherWorker
from pipeline.records import AugmentedGroup, TeacherLabels
from pipeline.views.floats import float_fingerprints

DEMAND = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class JobBenchmark:
    """Measure how busy the label job keeps a teacher."""

    shards: tuple[str, ...]
    """Shards of photographs: files, brace patterns or globs, in quotes."""
    rounds: int = 3
    """Pairs of jobs: one that gives the rate, one at 80 % of it."""
    views: int = 150
    """Views of each sample."""
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


def run_job(config: JobBenchmark, directory: Path, seconds_per_view: float) -> Usage:
    """Label all shards on a Ray of our own."""
    from jobs.cluster import Cluster  # Ray reads the environment when it is imported
    from jobs.draining import Drain

    job = LabelConfig(shards=config.shards, out=str(directory / "job.parquet"), views=config.views)
    floats = float_fingerprints(job.augment, job.effective_mixing, "cpu")
    plan = plan_job(job, index_shards(job.shards), stand_in_identity(batch_views=15), floats)
    begin_job(plan)
    worker: Callable[[LabelConfig, int], StandInWorker]
    worker = partial(StandInWorker, seconds_per_view=seconds_per_view)
    with closing(Cluster(job, Drain(0.0), worker)) as cluster:
        parts = sum(1 for _ in cluster.label(plan))
    if parts != len(plan.missing):
        raise SystemExit(f"{parts} of {len(plan.missing)} parts were labelled")
    return Usage(*json.loads(account_of(job.out).read_text()))


def main() -> None:
    """Measure and write JSON if asked to."""
    config = tyro.cli(JobBenchmark, description=JobBenchmark.__doc__)
    prepare_environment()
    rates, shares = [], []
    for _ in range(config.rounds):
        with tempfile.TemporaryDirectory() as directory:
            free = run_job(config, Path(directory), 0.0)
        rate = free.views / free.seconds
        with tempfile.TemporaryDirectory() as directory:
            usage = run_job(config, Path(directory), 1 / (DEMAND * rate))
        rates.append(rate)
        shares.append(usage.busy_seconds / usage.seconds)
        print(f"{rate:.0f} views/s augmented; teacher at {DEMAND:.0%}: busy {shares[-1]:.1%}")
    context = {"views_per_second": rates, "busy": shares, "demand": DEMAND}
    report = Report(
        ratios={"teacher_busy": statistics.median(shares)},
        context={"machine": describe_machine(), "label_job": context},
    )
    report.show()
    report.write(config.json)


if __name__ == "__main__":
    main()
