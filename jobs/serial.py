"""The label job in one process, without Ray: the reference that others are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping

from pipeline.identity import TeacherIdentity
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.job import IndexedShards, JobPlan, PartOrder, Preflight
from pipeline.labelling.part import run_task
from pipeline.labelling.worker import TeacherWorker
from pipeline.records import AugmentedGroup
from pipeline.store import Committed

__all__ = ["SerialTeacher"]


class SerialTeacher:
    """One teacher in this process; the same doors as ``jobs.cluster.Cluster``."""

    def __init__(self, config: LabelConfig) -> None:
        self._worker = TeacherWorker(config, config.threads)

    def close(self) -> None:
        """Do nothing: the teacher goes with the process."""

    def check_paths(self, shards: IndexedShards) -> None:
        """Do nothing: there is no other machine."""

    def identity(self) -> TeacherIdentity:
        """Return the teacher's identity."""
        return self._worker.identity

    def fingerprints(self) -> Mapping[str, int]:
        """Return what normalizing and mixing give on the teacher's device."""
        return self._worker.fingerprints

    def preflight(self, shards: IndexedShards) -> Preflight:
        """Try the teacher out."""
        return self._worker.preflight(shards)

    def label(
        self, plan: JobPlan, stop_at: Callable[[], float | None]
    ) -> Generator[Committed, None, None]:
        """Label the job's missing parts one after the other, and yield each once committed.

        ``stop_at`` is as for ``Cluster.label``.
        """
        for part in plan.missing:
            if stop_at() is not None:
                return
            order = plan.order(part)
            try:
                yield self._worker.label_part(order, _augmented(order, stop_at))
            except _OutOfTimeError:
                return


class _OutOfTimeError(Exception):
    """The time to finish parts under way is over."""


def _augmented(order: PartOrder, stop_at: Callable[[], float | None]) -> Iterator[AugmentedGroup]:
    for task in order.tasks():
        deadline = stop_at()
        if deadline is not None and time.monotonic() > deadline:
            raise _OutOfTimeError
        yield run_task(task)
