"""What the label job runs in Ray's processes: teachers, and the augmentation that feeds them."""

from __future__ import annotations

import math
import os
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.sizing import Share
from jobs.supervisor import PARTS_IN_FLIGHT, Patience
from pipeline.errors import PipelineError, TryAgainError
from pipeline.files.cache import ShardFile
from pipeline.files.sharing import SharedPaths, unseen_path
from pipeline.labelling.agreement import Preflight
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.job import DescribedTeacher, IndexedShards, PartOrder
from pipeline.labelling.part import GroupTask, probe_task, run_task
from pipeline.labelling.probe import Fate
from pipeline.records import AugmentedGroup
from pipeline.shards.index import ShardContents, ShardSummary, summarize_here
from pipeline.store import Committed

if TYPE_CHECKING:
    from pipeline.labelling.worker import TeacherWorker

__all__ = [
    "ActorSettings",
    "Labelled",
    "MakeWorker",
    "Progress",
    "TeacherActor",
    "augment_remotely",
    "load_worker",
    "look_remotely",
    "summarize_remotely",
]

CRASHES_PER_TASK = 3  # that may be chance; then its images are looked at
PROBES_PER_TASK = 3
READS = 3  # of a shard for one part
FETCHES = 3  # of one group from the node that made it, each made anew
TIMES = 64  # of the latest augmentations, from which the usual time of one is taken
STARVED_SECONDS = 10.0  # at most; less where a teacher is soon presumed hung

UNREACHED = (GetTimeoutError, NodeDiedError, ObjectLostError)
"""What is raised where something was made, or may be, and does not reach who waits for it."""

Crashing: TypeAlias = dict[str, frozenset[int]]
"""By the hash of a shard's keys: its images that end whatever decodes them, as far as is known."""

MakeWorker: TypeAlias = "Callable[[LabelConfig, int], TeacherWorker]"
"""Loads a teacher, with so many threads, in the process that will run it."""


def load_worker(config: LabelConfig, threads: int) -> TeacherWorker:
    """Load the teacher of the settings."""
    from pipeline.labelling.worker import TeacherWorker  # the driver needs no PyTorch

    return TeacherWorker(config, threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorSettings:
    """What a teacher's process is told when it starts."""

    config: LabelConfig
    patience: Patience
    make_worker: MakeWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a teacher's process is."""

    groups: int  # labelled in all
    starved: bool  # it has waited long for augmentation
    busy_seconds: float  # in which it ran its network
    window: int  # groups under way
    again: int  # groups that were augmented again
    labels: int  # of the parts under way
    closing: bool  # what is under way has no group left to label: it is read for, or written
    said: tuple[str, ...]  # since it told last: for the user


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A part that is done, and what its teacher has to tell by then: it may be asked no more."""

    committed: Committed
    progress: Progress


@ray.remote(num_cpus=0, max_retries=CRASHES_PER_TASK)
def look_remotely(paths: SharedPaths, node: str) -> str | None:
    """Return what a node does not see as the driver does."""
    return unseen_path(paths, node)


@ray.remote(num_cpus=1, max_retries=CRASHES_PER_TASK)
def summarize_remotely(shards: Sequence[tuple[int, ShardFile]]) -> list[ShardSummary]:
    """Summarize shards, given with their numbers."""
    return list(summarize_here(shards))


@ray.remote(num_cpus=1, max_retries=CRASHES_PER_TASK)
def augment_remotely(task: GroupTask) -> AugmentedGroup:
    """Make a group's views wherever a CPU is free."""
    return run_task(task)


@ray.remote(num_cpus=1, max_retries=CRASHES_PER_TASK)
def read_remotely(order: PartOrder) -> ShardContents:
    """Read what a part keeps of its shard."""
    return order.contents()


@ray.remote(num_cpus=1, max_retries=CRASHES_PER_TASK)
def probe_remotely(task: GroupTask) -> dict[int, Fate]:
    """Find the images of a group that end whatever decodes them."""
    return probe_task(task)


# Ray counts CPUs to place work, not to limit it. A teacher takes none, or a replacement
# could find them all taken by the augmentation that waits for it.
@ray.remote(num_cpus=0, concurrency_groups={"work": PARTS_IN_FLIGHT, "word": 1})  # type: ignore[call-overload]
class TeacherActor:
    """A teacher's process. It answers while it loads and works."""

    def __init__(self, settings: ActorSettings) -> None:
        self._settings = settings
        self._loaded: TeacherWorker | None = None
        self._share = Share(threads=1, window=1, local=0)
        self._groups = 0
        self._counting = threading.Lock()
        self._crashing: Crashing = {}
        self._times: deque[float] = deque(maxlen=TIMES)  # of augmentations, of all parts
        self._flows: list[_Augmentation] = []  # of the parts under way
        self._again = 0  # of those that are done
        self._hungry: dict[int, float] = {}  # by thread: since when it waits for augmentation
        self._words: deque[str] = deque()  # that the driver has not asked for

    @ray.method(concurrency_group="word")
    def node(self) -> str:
        """Return the machine that this runs on."""
        return str(ray.get_runtime_context().get_node_id())

    @ray.method(concurrency_group="word")
    def progress(self) -> Progress:
        """Return how far this is."""
        return self._progress()

    def _progress(self) -> Progress:
        now, longest = time.monotonic(), self._settings.patience.hang_seconds / 4
        with self._counting:
            waits = [now - since for since in self._hungry.values()]
            return Progress(
                groups=self._groups,
                starved=any(one > min(STARVED_SECONDS, longest) for one in waits),
                busy_seconds=0.0 if self._loaded is None else self._loaded.busy_seconds,
                window=sum(one.window for one in self._flows),
                again=self._again + sum(one.again for one in self._flows),
                labels=sum(one.labels for one in self._flows),
                closing=not self._flows,
                said=tuple(self._words.popleft() for _ in range(len(self._words))),
            )

    @ray.method(concurrency_group="work")
    def load(self, share: Share) -> None:
        """Load the teacher, once."""
        self._share = share
        # A machine may say that it has more CPUs than it has.
        threads = min(share.threads, len(os.sched_getaffinity(0)))
        config = self._settings.config
        self._loaded = self._settings.make_worker(config, config.threads or threads)

    @ray.method(concurrency_group="work")
    def describe(self) -> DescribedTeacher:
        """Return who the teacher is."""
        return DescribedTeacher(
            identity=self._worker.identity,
            fingerprints=self._worker.fingerprints,
            software=self._worker.software,
        )

    @ray.method(concurrency_group="work")
    def preflight(self, shards: IndexedShards) -> Preflight:
        """Try the teacher out on the job's shards."""
        return self._worker.preflight(shards, self._augment_one)

    @ray.method(concurrency_group="work")
    def label(self, order: PartOrder, lean: int) -> Labelled:
        """Label and commit one part; each step of ``lean`` halves what is augmented at a time."""
        # Elsewhere, for here Python's lock would be held beside the teacher.
        ref = read_remotely.remote(order)
        groups = self._augmented(order.tasks(), lean)
        committed = self._worker.label_part(order, groups, partial(self._contents, order, ref))
        return Labelled(committed=committed, progress=self._progress())

    def _contents(self, order: PartOrder, ref: Any) -> ShardContents:
        """Return what was read; where nothing comes for too long, have it read elsewhere."""
        why = ""
        with self._waiting():
            for time_more in range(READS):
                limit = self._settings.patience.first_seconds * 2**time_more
                try:
                    found: ShardContents = ray.get(ref, timeout=limit)
                except UNREACHED as error:
                    why = _one_line(error)
                    self._words.append(f"{order.shard.name} was not read in {limit:.0f} s: {why}")
                    ray.cancel(ref, force=True)
                    ref = read_remotely.remote(order)
                except RayTaskError as error:
                    raise _as_raised(error) from error
                else:
                    return found
        ray.cancel(ref, force=True)
        raise TryAgainError(
            f"{order.shard.name} was not read, {READS} times ({why}); do all nodes reach it, are "
            "CPUs free, and do the nodes reach one another? Run the same command again"
        )

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Note that this thread waits for a CPU to do something for it."""
        me = threading.get_ident()
        with self._counting:
            self._hungry[me] = time.monotonic()
        try:
            yield
        finally:
            with self._counting:
                del self._hungry[me]

    def _augment_one(self, task: GroupTask) -> AugmentedGroup:
        return next(self._augmented(iter([task]), 0))

    def _augmented(self, tasks: Iterator[GroupTask], lean: int) -> Iterator[AugmentedGroup]:
        share = replace(self._share, window=max(1, self._share.window >> lean))
        patience = self._settings.patience
        flow = _Augmentation(tasks, share, patience, self._crashing, self._times, self._words)
        return self._counted(flow)

    @property
    def _worker(self) -> TeacherWorker:
        assert self._loaded is not None, "a teacher is asked before it is loaded"
        return self._loaded

    def _counted(self, flow: _Augmentation) -> Iterator[AugmentedGroup]:
        """Pass groups through, and note when one is waited for and when it is labelled."""
        groups = flow.groups()
        with self._counting:
            self._flows.append(flow)
        try:
            while True:
                with self._waiting():
                    group = next(groups, None)
                if group is None:
                    return
                yield group
                with self._counting:
                    self._groups += 1
                    flow.labels += int(group.valid.sum())
        finally:
            groups.close()
            with self._counting:
                self._flows.remove(flow)
                self._again += flow.again


class _Augmentation:
    """Groups that are augmented elsewhere, a bounded number at a time."""

    def __init__(
        self,
        tasks: Iterator[GroupTask],
        share: Share,
        patience: Patience,
        crashing: Crashing,
        times: deque[float],
        words: deque[str],
    ) -> None:
        self._tasks = tasks
        self._share = share
        self._here: set[Any] = set()  # of those under way, the ones that this machine was given
        self._at_home = augment_remotely.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=True
            )
        )
        self._crashing = crashing  # of all parts
        self._probed: Counter[tuple[int, int]] = Counter()  # by group and first view
        self._unreached: Counter[tuple[int, int]] = Counter()
        self._patience = patience
        self._under_way: dict[Any, GroupTask] = {}  # by the call's reference
        self._submitted: dict[Any, float] = {}
        self._overtaken: Counter[Any] = Counter()  # by how many that were submitted later
        self._last = -math.inf  # when one was taken
        self._hung: dict[tuple[int, int], float] = {}  # since when; by group and first view
        self._times = times
        self.words = words  # for the user
        self._limit_factor = 1.0
        self.again = 0  # groups that were submitted once more
        self.labels = 0  # that the teacher has given

    @property
    def window(self) -> int:
        """Groups that are made, or wait to be taken."""
        return len(self._under_way)

    def groups(self) -> Generator[AugmentedGroup, None, None]:
        """Yield the groups as they get ready."""
        try:
            while True:
                while len(self._under_way) < self._share.window:
                    task = next(self._tasks, None)
                    if task is None:
                        break
                    self._submit(task)
                if not self._under_way:
                    return
                group = self._next()
                if group is not None:
                    yield group
        finally:
            self._cancel(self._under_way)

    def _submit(self, task: GroupTask) -> None:
        known = self._crashing.get(task.shard.key_hash, frozenset())
        task = replace(task, crashing=known.intersection(task.members))
        # Pixels need not cross the network while this machine's own cores have time for them.
        here = len(self._here) < self._share.local
        ref = (self._at_home if here else augment_remotely).remote(task)
        if here:
            self._here.add(ref)
        self._under_way[ref] = task
        self._submitted[ref] = time.monotonic()

    def _submit_again(self, task: GroupTask) -> None:
        self.again += 1
        self._submit(task)

    def _next(self) -> AugmentedGroup | None:
        """Return a group that is ready; None if there is none yet, or it must be done again."""
        ready, _ = ray.wait(list(self._under_way), num_returns=1, timeout=1.0)
        now = time.monotonic()
        self._end_hung(now, any_ready=bool(ready))
        if not ready or ready[0] not in self._under_way:
            return None
        ref = ready[0]
        for other in self._under_way:
            if other is ref:
                break
            self._overtaken[other] += 1
        task, submitted = self._under_way[ref], self._submitted[ref]
        self._forget(ref)
        try:
            group: AugmentedGroup = ray.get(ref, timeout=self._patience.hang_seconds)
        except TaskCancelledError:
            self._submit_again(task)
            return None
        except UNREACHED as error:
            self._note_unreached(task, error)
            self._submit_again(task)
            return None
        except WorkerCrashedError as error:
            self._find_crashing(task, error)
            self._submit_again(task)
            return None
        except RayTaskError as error:
            raise _as_raised(error) from error
        # Those that wait for a CPU wait for one another.
        self._times.append(now - max(submitted, self._last))
        self._last = now
        since = self._hung.pop((task.group, task.first_view), None)
        if since is not None:
            self.words.append(f"what hung was augmented elsewhere, {now - since:.1f} s after that")
        return group

    def _note_unreached(self, task: GroupTask, error: Exception) -> None:
        """Tell of a group that was made and is not here; raise if that is no accident."""
        self._unreached[task.group, task.first_view] += 1
        times = self._unreached[task.group, task.first_view]
        name = f"{task.path}, group {task.group}"
        if times >= FETCHES:
            raise TryAgainError(
                f"{name}: its views were made {times} times and did not come to the teacher's node "
                f"({_one_line(error)}); do the nodes reach one another at all ports of Ray, and is "
                "shared memory free? Run the same command again"
            ) from error
        self.words.append(
            f"{name}: its views did not come from the node that made them, and are made again: "
            f"{_one_line(error)}"
        )

    def _find_crashing(self, task: GroupTask, error: Exception) -> None:
        """Note the images that crash their decoder; raise ``PipelineError`` for another cause."""
        self._probed[task.group, task.first_view] += 1
        self.words.append(
            f"{task.path}, group {task.group}: its augmentation crashed {CRASHES_PER_TASK + 1} "
            "times; its images are decoded one by one, to find which one it is"
        )
        ref = probe_remotely.remote(task)
        try:
            found: dict[int, Fate] = ray.get(ref, timeout=self._patience.loading_seconds)
        except GetTimeoutError:
            ray.cancel(ref, force=True)
            found = {}
        crashing = frozenset(index for index, fate in found.items() if fate.is_crash)
        name = f"{task.path}, sample {min(found)}" if found else f"{task.path}, group {task.group}"
        if found.keys() - crashing:
            raise PipelineError(
                f"{name}: whatever decodes this image is killed or hangs, so it takes more memory "
                "or time than there is; take it out of the shard and give another `out`, or set a "
                "lower `max_pixels`"
            ) from error
        if not crashing and self._probed[task.group, task.first_view] >= PROBES_PER_TASK:
            raise PipelineError(
                f"{name}: its augmentation crashed {PROBES_PER_TASK * (CRASHES_PER_TASK + 1)} "
                "times, and decodes well by itself; is memory short on the nodes?"
            ) from error
        known = self._crashing.get(task.shard.key_hash, frozenset())
        self._crashing[task.shard.key_hash] = known | crashing

    def _limit(self) -> float:
        """Return after how long without any group those under way are presumed hung."""
        patience = self._patience
        times = list(self._times)  # other threads add to it
        if not times:
            return patience.first_seconds * self._limit_factor
        usual = statistics.median(times)
        return max(patience.hang_seconds, patience.hang_factor * usual) * self._limit_factor

    def _end_hung(self, now: float, *, any_ready: bool) -> None:
        """End processes that augment and are presumed hung, and have their groups done again.

        All of them, if none has given anything for too long: one that is ready may have waited for
        a slow teacher. Or one by one, if as many groups as are under way at a time were asked for
        later and are there.
        """
        limit, newest = self._limit(), max(self._submitted.values())
        since = dict.fromkeys(self._under_way, max(newest, self._last))
        if any_ready or now - max(newest, self._last) <= limit:
            since = {
                ref: submitted
                for ref, submitted in self._submitted.items()
                if now - submitted > limit and self._overtaken[ref] >= self._share.window
            }
        if not since:
            return
        self.words.append(
            f"an augmentation gave nothing in {now - min(since.values()):.1f} s, of the "
            f"{limit:.1f} s that it has; it is presumed hung, and done again"
        )
        self._limit_factor *= 2  # where they only wait for a CPU, ending them helps nobody
        tasks = [self._under_way[ref] for ref in since]
        self._hung |= {
            (task.group, task.first_view): one
            for task, one in zip(tasks, since.values(), strict=True)
        }
        self._cancel(since)
        for task in tasks:
            self._submit_again(task)

    def _forget(self, ref: Any) -> None:
        del self._under_way[ref], self._submitted[ref]
        self._overtaken.pop(ref, None)
        self._here.discard(ref)

    def _cancel(self, refs: Iterable[Any]) -> None:
        for ref in list(refs):
            ray.cancel(ref, force=True)
            self._forget(ref)


def _one_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _as_raised(error: RayTaskError) -> BaseException:
    """Return a fault of ours as it was raised, so that the driver sees no more than that."""
    cause = error.cause
    return cause if isinstance(cause, PipelineError) else error
