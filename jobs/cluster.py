"""The label job on Ray: teachers pull parts, augmentation feeds teachers. No logic here.

The driver hands out parts and nothing finer, at most two at a time to a teacher. A
teacher's actor submits augmentation tasks in a bounded window and takes what is ready
first; what it writes does not depend on that order. A teacher that dies is replaced and its
parts are handed out again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import ConfigError, PipelineError
from pipeline.files.objects import is_url
from pipeline.files.sharing import SharedPaths, offered_paths, require_shared, unseen_path
from pipeline.identity import TeacherIdentity
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.job import IndexedShards, JobPlan, PartOrder, Preflight
from pipeline.labelling.part import GroupTask, run_task
from pipeline.records import AugmentedGroup, PartKey
from pipeline.store import Committed, parts_root

if TYPE_CHECKING:
    from pipeline.labelling.worker import TeacherWorker

__all__ = ["Cluster"]

_log = logging.getLogger(__name__)

PARTS_IN_FLIGHT = 2  # a teacher: one is labelled while the other's first groups are augmented
DEATHS_PER_PART = 4  # then the part itself is the likely cause
CRASHES_PER_TASK = 8
ANSWER_SECONDS = 120.0  # of a node that is asked what it sees; it may have to start Python


MakeWorker: TypeAlias = "Callable[[LabelConfig, int], TeacherWorker]"
"""Loads a teacher, with so many threads, in the process that will run it."""


def load_worker(config: LabelConfig, threads: int) -> TeacherWorker:
    """Load the teacher of the settings."""
    from pipeline.labelling.worker import TeacherWorker  # the driver needs no PyTorch

    return TeacherWorker(config, threads)


def connect() -> bool:
    """Join the cluster of ``RAY_ADDRESS`` and return True, or start a local one.

    ``jobs.label_teacher.prepare_environment`` keeps a local one on 127.0.0.1.
    """
    local = None if os.environ.get("RAY_ADDRESS") else "local"
    ray.init(address=local, include_dashboard=None if local is None else False, log_to_driver=False)
    return local is None


@ray.remote(num_cpus=0, max_retries=CRASHES_PER_TASK)
def look_remotely(paths: SharedPaths, node: str) -> str | None:
    """Return what a node does not see as the driver does."""
    return unseen_path(paths, node)


@ray.remote(num_cpus=1, max_retries=CRASHES_PER_TASK)
def augment_remotely(task: GroupTask) -> AugmentedGroup:
    """Make a group's views wherever a CPU is free."""
    return run_task(task)


# Ray counts CPUs to place work, not to limit it. A teacher takes none, or a replacement
# could find them all taken by the augmentation that waits for it.
@ray.remote(num_cpus=0)
class TeacherActor:
    """A teacher's process. It loads at the first call, whose caller then sees the errors."""

    def __init__(
        self, config: LabelConfig, threads: int, window: int, make_worker: MakeWorker
    ) -> None:
        self._config = config
        self._make_worker = make_worker
        self._threads = threads
        self._window = window
        self._loading = threading.Lock()
        self._loaded: TeacherWorker | None = None

    def identity(self) -> TeacherIdentity:
        """Return the teacher's identity."""
        return self._worker().identity

    def fingerprints(self) -> Mapping[str, int]:
        """Return what normalizing and mixing give on the teacher's device."""
        return self._worker().fingerprints

    def preflight(self, shards: IndexedShards) -> Preflight:
        """Try the teacher out on the job's shards."""
        return self._worker().preflight(shards)

    def _worker(self) -> TeacherWorker:
        with self._loading:
            if self._loaded is None:
                self._loaded = self._make_worker(self._config, self._threads)
            return self._loaded

    def label(self, order: PartOrder) -> Committed:
        """Label and commit one part."""
        return self._worker().label_part(order, self._augmented(order))

    def _augmented(self, order: PartOrder) -> Iterator[AugmentedGroup]:
        """Yield a part's groups as they get ready, with a bounded number under way."""
        tasks = order.tasks()
        under_way: list[Any] = []
        while True:
            while len(under_way) < self._window:
                task = next(tasks, None)
                if task is None:
                    break
                under_way.append(augment_remotely.remote(task))
            if not under_way:
                return
            ready, under_way = ray.wait(under_way, num_returns=1)
            yield ray.get(ready[0])


@dataclass(slots=True)
class _TeacherHandle:
    """One teacher: its actor now, and the parts it was given."""

    actor: Any
    parts: dict[Any, PartKey] = field(default_factory=dict)  # by the call's reference


class Cluster:
    """The job's teachers on a Ray cluster."""

    def __init__(self, config: LabelConfig, make_worker: MakeWorker = load_worker) -> None:
        self._joined = connect()
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus, cpus = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))
        on_gpu = config.device == "cuda" or (config.device == "auto" and gpus > 0)
        teachers = config.teachers or (gpus if on_gpu else 1)
        if on_gpu and teachers > gpus:
            raise PipelineError(
                f"{teachers} teachers need as many GPUs, the cluster has {gpus}; use --teachers "
                f"{gpus} or --device cpu"
            )
        self._config = config
        self._make_worker = make_worker
        self._options = {"num_gpus": 1 if on_gpu else 0}
        self._threads = config.threads or max(1, cpus // teachers)
        self._window = max(2, 2 * cpus // teachers)
        self._teachers = [_TeacherHandle(self._start_teacher()) for _ in range(teachers)]

    def check_paths(self, shards: IndexedShards) -> None:
        """Raise ``ConfigError`` naming a node that does not see the job's local paths as they are.

        Parts and teachers may come to any node, also to one without CPUs.
        """
        if not self._joined:
            return
        out, checkpoint = self._config.out, self._config.teacher_checkpoint
        _refuse_temporary(out)
        files = [
            (path, info.bytes)
            for path, info in zip(shards.paths, shards.infos, strict=True)
            if isinstance(path, Path)
        ]
        if checkpoint is not None:
            files.append((checkpoint, checkpoint.stat().st_size))
        every: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = {node["NodeID"]: _name_of(node) for node in every if node["Alive"]}
        with offered_paths(parts_root(out), files) as paths:
            calls = {node: _on_node(node).remote(paths, node) for node in nodes}
            for node, ref in calls.items():
                require_shared(paths, node, nodes[node], _answer_of(nodes[node], ref))

    def identity(self) -> TeacherIdentity:
        """Return the teacher's identity, once the first one is loaded."""
        identity: TeacherIdentity = _get(self._teachers[0].actor.identity.remote())
        return identity

    def fingerprints(self) -> Mapping[str, int]:
        """Return what normalizing and mixing give on the first teacher's device.

        Each of the others compares its own when it labels.
        """
        prints: Mapping[str, int] = _get(self._teachers[0].actor.fingerprints.remote())
        return prints

    def preflight(self, shards: IndexedShards) -> Preflight:
        """Try the teacher out."""
        report: Preflight = _get(self._teachers[0].actor.preflight.remote(shards))
        return report

    def label(
        self, plan: JobPlan, stop_at: Callable[[], float | None]
    ) -> Generator[Committed, None, None]:
        """Label the job's missing parts, and yield each once committed.

        ``stop_at`` returns None, or the ``time.monotonic()`` until which parts under way
        may finish; no new ones are handed out then.
        """
        waiting = deque(plan.missing)
        deaths: Counter[PartKey] = Counter()
        while waiting or any(teacher.parts for teacher in self._teachers):
            deadline = stop_at()
            if deadline is None:
                self._hand_out(plan, waiting)
            elif time.monotonic() > deadline or not any(
                teacher.parts for teacher in self._teachers
            ):
                return
            calls = {ref: teacher for teacher in self._teachers for ref in teacher.parts}
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=0.5)
            for ref in ready:
                teacher = calls[ref]
                part = teacher.parts.get(ref)
                if part is None:
                    continue  # its teacher died a moment ago
                try:
                    committed: Committed = _get(ref)
                except RayActorError as error:
                    self._replace(teacher, waiting, deaths, error)
                    continue
                del teacher.parts[ref]
                yield committed

    def close(self) -> None:
        """End the teachers, and leave Ray."""
        for teacher in self._teachers:
            ray.kill(teacher.actor)
        ray.shutdown()

    def _start_teacher(self) -> Any:
        return TeacherActor.options(  # type: ignore[attr-defined]
            **self._options,
            max_concurrency=PARTS_IN_FLIGHT,
            runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
        ).remote(self._config, self._threads, self._window, self._make_worker)

    def _hand_out(self, plan: JobPlan, waiting: deque[PartKey]) -> None:
        for _ in range(PARTS_IN_FLIGHT):  # one round each, so that teachers share evenly
            for teacher in self._teachers:
                if waiting and len(teacher.parts) < PARTS_IN_FLIGHT:
                    part = waiting.popleft()
                    teacher.parts[teacher.actor.label.remote(plan.order(part))] = part

    def _replace(
        self,
        teacher: _TeacherHandle,
        waiting: deque[PartKey],
        deaths: Counter[PartKey],
        error: RayActorError,
    ) -> None:
        lost = sorted(teacher.parts.values())
        deaths.update(lost)
        worst = max(lost, key=lambda part: deaths[part])
        if deaths[worst] >= DEATHS_PER_PART:
            raise PipelineError(
                f"the teacher's process died {deaths[worst]} times while it labelled "
                f"{worst.path}: {error}; is there enough memory for --teachers "
                f"{len(self._teachers)}?"
            ) from error
        _log.warning("a teacher's process died; %d parts are handed out again", len(lost))
        waiting.extendleft(reversed(lost))
        teacher.parts.clear()
        teacher.actor = self._start_teacher()


def _refuse_temporary(out: str) -> None:
    """Raise ``ConfigError`` for a store in the copy of a directory that a submitted job runs in."""
    unpacked = ray.get_runtime_context().runtime_env.get("working_dir")
    if unpacked and not is_url(out) and Path(out).is_relative_to(Path.cwd()):
        raise ConfigError(
            f"{out} is in the working directory that Ray made for this job, and deletes; give the "
            "store an absolute path outside of it, or one in object storage"
        )


def _name_of(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def _on_node(node: str) -> Any:
    return look_remotely.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    )


def _answer_of(name: str, ref: Any) -> str | None:
    try:
        unseen: str | None = ray.get(ref, timeout=ANSWER_SECONDS)
    except RayError as error:
        why = error.cause if isinstance(error, RayTaskError) else error
        raise PipelineError(
            f"node {name} could not be asked which files it sees ({why!r}); take it out of the "
            "cluster, or see that it runs this project's release and is not overloaded"
        ) from error
    return unseen


def _get(ref: Any) -> Any:
    """Return a call's result; errors of ours come out as they were raised."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        cause: BaseException | None = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, PipelineError):
            raise cause from None
        if isinstance(cause, WorkerCrashedError):
            raise PipelineError(
                f"an augmentation process crashed {CRASHES_PER_TASK + 1} times on one group: "
                f"{cause}; an image may crash the decoder, or memory is short"
            ) from error
        raise
