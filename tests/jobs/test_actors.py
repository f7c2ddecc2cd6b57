"""Augmentation as a teacher asks for it, with made-up processes and a clock of their own."""

from __future__ import annotations

import gc
import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from ray.exceptions import GetTimeoutError, ObjectLostError

from jobs import actors
from jobs.actors import ActorSettings, _Augmentation
from jobs.sizing import Machine, Share, ShareRule
from jobs.supervisor import Patience
from pipeline.errors import TryAgainError
from pipeline.labelling.forward import ahead

PATIENCE = Patience(hang_seconds=10.0)
SECONDS = 0.25  # of an augmentation


class Processes:
    """Stands for Ray and its processes: each task has one for a time, or for as long as is said.

    A process that is hung keeps its task until it is ended. What is ready first is given first.
    """

    def __init__(self, number: int) -> None:
        self.now = 100.0
        self.sent: list[str] = []
        self.seconds: dict[int, list[float]] = {}  # by group, each time that it is asked for
        self.ended: list[int] = []  # of these groups
        self._number = number
        self._queue: deque[int] = deque()
        self._groups: dict[int, int] = {}
        self._busy: dict[int, float] = {}  # until when, by reference

    def remote(self, where: str, group: int) -> int:
        self.sent.append(where)
        ref = len(self.sent)
        self._groups[ref] = group
        self._queue.append(ref)
        return ref

    def wait(
        self, refs: Sequence[int], num_returns: int, timeout: float
    ) -> tuple[list[int], list[int]]:
        end = self.now + timeout
        while True:
            while self._queue and len(self._busy) < self._number:
                ref = self._queue.popleft()
                seconds = self.seconds.get(self._groups[ref], [])
                self._busy[ref] = self.now + (seconds.pop(0) if seconds else SECONDS)
            ready = [ref for ref in refs if self._busy.get(ref, math.inf) <= self.now]
            if ready or self.now >= end:
                for ref in ready[:1]:
                    del self._busy[ref]
                return ready[:1], [ref for ref in refs if ref not in ready[:1]]
            self.now += SECONDS

    def group_of(self, ref: int) -> int:
        return self._groups[ref]

    def cancel(self, ref: int, force: bool) -> None:
        if self._busy.pop(ref, None) is not None:
            self.ended.append(self._groups[ref])
        if ref in self._queue:
            self._queue.remove(ref)


class Remote:
    """Stands for Ray's function, and notes where tasks are sent."""

    def __init__(self, processes: Processes, where: str = "anywhere") -> None:
        self._processes, self._where = processes, where

    def options(self, *, scheduling_strategy: Any) -> Remote:
        assert (scheduling_strategy.node_id, scheduling_strategy.soft) == ("ab" * 28, True)
        return Remote(self._processes, "home")

    def remote(self, task: Any) -> int:
        return self._processes.remote(self._where, task.group)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    found = Processes(2)
    monkeypatch.setattr(actors, "augment_remotely", Remote(found))
    context = SimpleNamespace(get_node_id=lambda: "ab" * 28)
    monkeypatch.setattr(actors.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(actors.ray, "wait", found.wait)
    monkeypatch.setattr(actors.ray, "get", lambda ref, timeout: ref)
    monkeypatch.setattr(actors.ray, "cancel", found.cancel)
    monkeypatch.setattr(actors, "time", SimpleNamespace(monotonic=lambda: found.now))
    yield found
    gc.collect()  # generators of a test that failed cancel their tasks, which Ray would start for


@dataclass(frozen=True)
class Task:
    """As much of a task as is looked at."""

    group: int
    path: str = "s.tar"
    shard: Any = field(default_factory=lambda: SimpleNamespace(key_hash="k"))
    members: tuple[int, ...] = ()
    first_view: int = 0
    crashing: frozenset[int] = frozenset()


def tasks(number: int) -> Iterator[Any]:
    return map(Task, range(number))


def augmentation(number: int, *, window: int = 4, local: int = 0) -> _Augmentation:
    """Return that of so many groups."""
    share = Share(threads=1, window=window, local=local)
    return _Augmentation(tasks(number), share, PATIENCE, {}, deque([SECONDS]), deque())


@pytest.mark.parametrize(("local", "first"), [(0, []), (2, ["home"] * 2), (5, ["home"] * 4)])
def test_a_machines_own_cores_take_groups_before_others_do(
    processes: Processes, local: int, first: list[str]
) -> None:
    groups = augmentation(8, local=local).groups()
    next(groups)
    sent = first + ["anywhere"] * (4 - len(first))
    assert processes.sent == sent
    for _ in groups:
        pass
    assert processes.sent == sent * 2  # answers come in the order of the calls here


@pytest.mark.parametrize("others", [1, 30, 200])
def test_a_process_that_hangs_is_ended_after_its_deadline_however_much_others_give(
    processes: Processes, others: int
) -> None:
    """One in an empty window, at a part's end, and while another process does all the rest."""
    processes.seconds[0] = [math.inf]
    flow = augmentation(1 + others)
    groups, began = flow.groups(), processes.now
    found = 0
    while not processes.ended:
        found += next(groups) is not None
    assert processes.ended == [0]
    assert processes.now - began <= 1.5 * PATIENCE.hang_seconds
    assert found + len(list(groups)) == 1 + others
    said, again = flow.words
    assert "of the 10.0 s that it has; it is presumed hung" in said
    seconds = float(again.removesuffix(" s after that").rpartition(" ")[2])
    assert seconds <= 1.5 * PATIENCE.hang_seconds


def test_groups_that_only_wait_for_their_turn_are_not_ended(processes: Processes) -> None:
    flow = augmentation(60, window=50)
    assert len(list(flow.groups())) == 60
    assert (processes.ended, flow.again, list(flow.words)) == ([], 0, [])


def test_groups_that_wait_for_a_slow_teacher_are_not_ended(processes: Processes) -> None:
    flow = augmentation(2, window=2)
    found = 0
    for _ in flow.groups():
        processes.now += 3 * PATIENCE.hang_seconds
        found += 1
    assert (found, processes.ended, flow.again, list(flow.words)) == (2, [], 0, [])


def test_a_group_that_is_slow_by_itself_has_more_time_each_time(processes: Processes) -> None:
    processes.seconds[3] = [25.0] * 4
    flow = augmentation(200)
    assert len(list(flow.groups())) == 200
    assert processes.ended == [3, 3]  # after 10 s and after 20 s


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_group_that_is_made_and_cannot_be_fetched_is_made_again_and_not_for_ever(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """Ray waits for an object that is elsewhere as long as it is told to."""
    waited: list[float] = []

    def get(ref: int, timeout: float) -> int:
        if processes.group_of(ref) == 1 and len(waited) < failures:
            waited.append(timeout)
            raise (
                GetTimeoutError("it is elsewhere")
                if len(waited) != 2
                else ObjectLostError("2", None, "")
            )
        return ref

    monkeypatch.setattr(actors.ray, "get", get)
    flow = augmentation(4)
    if failures < 3:
        assert len(list(flow.groups())) == 4
    else:
        with pytest.raises(TryAgainError, match=r"s.tar, group 1: its views were made 3 times and"):
            list(flow.groups())
    assert max(waited) <= PATIENCE.hang_seconds
    words = [one for one in flow.words if "did not come from the node that made them" in one]
    assert len(words) == min(failures, 2)


@pytest.mark.parametrize("failures", [1, 3])
def test_a_shard_that_is_not_read_in_time_is_read_elsewhere_and_not_for_ever(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    waited: list[float] = []

    def get(ref: int, timeout: float) -> str:
        waited.append(timeout)
        if len(waited) <= failures:
            raise GetTimeoutError("nothing came")
        return "contents"

    monkeypatch.setattr(actors.ray, "get", get)
    monkeypatch.setattr(actors, "read_remotely", Remote(processes))
    process: Any = actors.TeacherActor.__ray_metadata__.modified_class
    settings: Any = SimpleNamespace(patience=PATIENCE)
    teacher = process(settings)
    order = SimpleNamespace(group=-1, shard=SimpleNamespace(name="s.tar"))
    if failures == 1:
        assert teacher._contents(order, 0) == "contents"
    else:
        with pytest.raises(TryAgainError, match=r"s.tar was not read, 3 times \(GetTimeoutError: "):
            teacher._contents(order, 0)
    assert waited == [40.0, 80.0, 160.0][: failures + 1]
    assert (
        teacher._progress().said[0] == "s.tar was not read in 40 s: GetTimeoutError: nothing came"
    )


class Group:
    """Stands for an augmented group, which is in shared memory while anybody has it."""

    valid = np.ones((1, 1), np.bool_)


class Labeller:
    """Stands for a teacher's process, which labels as the real one does."""

    busy_seconds = 0.0

    def label_part(self, order: Any, groups: Iterator[Any], contents: Callable[[], Any]) -> int:
        labelled = 0
        for group, labels in ahead(groups, lambda group: lambda: group.valid.sum()):
            labelled += int(labels) * len(group.valid)
        return labelled


@pytest.mark.parametrize("room", [3, 5, 12])
def test_a_part_never_has_more_groups_than_its_teachers_share_of_memory_holds(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Of two parts each may have half: those asked for, those that wait, and those labelled."""
    rule = ShareRule(group_bytes=10, window_bytes=2 * 10 * room)
    machines = {"a": Machine(cpus=64, gpus=0, store_bytes=math.inf)}
    share = rule.share(machines, "a", 1, 1)
    made: weakref.WeakSet[Group] = weakref.WeakSet()
    most = 0

    def get(ref: int, timeout: float) -> Group:
        group = Group()
        made.add(group)
        return group

    def wait(*arguments: Any, **more: Any) -> Any:
        nonlocal most
        most = max(most, len(made) + len(arguments[0]))
        return processes.wait(*arguments, **more)

    monkeypatch.setattr(actors.ray, "get", get)
    monkeypatch.setattr(actors.ray, "wait", wait)
    monkeypatch.setattr(actors, "read_remotely", Remote(processes))
    process: Any = actors.TeacherActor.__ray_metadata__.modified_class
    config: Any = SimpleNamespace(threads=1)
    teacher = process(
        ActorSettings(
            config=config, patience=PATIENCE, make_worker=lambda *_: cast("Any", Labeller())
        )
    )
    teacher.load(share)
    order = SimpleNamespace(group=-1, tasks=lambda: tasks(50))
    assert teacher.label(order, lean=0).committed == 50
    assert most == room
