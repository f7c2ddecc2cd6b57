"""The label job in one process, without Ray: the reference that others are compared with."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence

from jobs.draining import Drain
from jobs.metrics import Flow
from pipeline.files.cache import ShardFile
from pipeline.labelling.agreement import Preflight
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.estimate import Capacity
from pipeline.labelling.job import DescribedTeacher, IndexedShards, JobPlan, PartOrder
from pipeline.labelling.part import run_task
from pipeline.labelling.worker import TeacherWorker
from pipeline.records import AugmentedGroup
from pipeline.shards.index import ShardSummary, summarize_here
from pipeline.store import Committed

__all__ = ["SerialTeacher"]


class SerialTeacher:
    """One teacher in this process; the same doors as ``jobs.cluster.Cluster``."""

    def __init__(self, config: LabelConfig, drain: Drain) -> None:
        self._drain = drain
        self._labels = 0  # of the part under way
        self._worker = TeacherWorker(config, config.threads)

    def close(self) -> None:
        """Do nothing: the teacher goes with the process."""

    def check_paths(self, paths: Sequence[ShardFile]) -> None:
        """Do nothing: there is no other machine."""

    def summarize(self, shards: Sequence[tuple[int, ShardFile]]) -> Iterator[ShardSummary]:
        """Open shards here."""
        return summarize_here(shards)

    def describe(self) -> DescribedTeacher:
        """Return who the teacher is."""
        return DescribedTeacher(
            identity=self._worker.identity,
            fingerprints=self._worker.fingerprints,
            software=self._worker.software,
        )

    def preflight(self, shards: IndexedShards) -> Preflight:
        """Try the teacher out."""
        return self._worker.preflight(shards)

    def capacity(self) -> Capacity:
        """Return who labels: one teacher, and the core that it shares."""
        return Capacity(teachers=1, cores=1, shared=True)

    def flow(self) -> Flow:
        """Return what the teacher has told."""
        return Flow(teachers=1, busy_seconds=self._worker.busy_seconds, labels=self._labels)

    def export(self, values: dict[str, float]) -> None:
        """Do nothing: there is no Ray to take metrics."""

    def label(self, plan: JobPlan) -> Generator[Committed, None, None]:
        """Label the job's missing parts one after the other, and yield each once committed."""
        for part in plan.missing:
            if self._drain.deadline() is not None:
                return
            order = plan.order(part)
            try:
                committed = self._worker.label_part(order, self._augmented(order))
            except _OutOfTimeError:
                return
            self._labels = 0
            yield committed

    def _augmented(self, order: PartOrder) -> Iterator[AugmentedGroup]:
        for task in order.tasks():
            deadline = self._drain.deadline()
            if deadline is not None and time.monotonic() > deadline:
                raise _OutOfTimeError
            group = run_task(task)
            yield group
            self._labels += int(group.valid.sum())


class _OutOfTimeError(Exception):
    """The time to finish parts under way is over."""
