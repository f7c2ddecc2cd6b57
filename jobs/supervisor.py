"""Knows each teacher's state and what it may take, and decides what to do next.

It starts nothing, waits for nothing and reads no clock: events come in with their times, and
decisions go out as values. So everything that can fail can be tried out without a cluster.
"""

from __future__ import annotations

import enum
import statistics
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = [
    "PARTS_IN_FLIGHT",
    "Ask",
    "Death",
    "Decision",
    "End",
    "GiveUp",
    "HandOut",
    "Patience",
    "Question",
    "Resource",
    "Say",
    "State",
    "Supervisor",
    "Work",
]

Work: TypeAlias = Hashable
"""A part to label, or a question that any one teacher answers."""


@dataclass(frozen=True, slots=True)
class Question:
    """A work that is no part: how long it takes says nothing about parts, nor they about it."""

    text: str

    def __str__(self) -> str:
        return self.text


PARTS_IN_FLIGHT = 2  # of a teacher: one's first groups are augmented beside the other
_TIMES = 64  # of the latest groups or parts, from which the usual time of one is taken
_LONGEST_PAUSE = 60.0  # between teachers that die while they load
_FIRST = 4.0  # times ``hang_seconds``, for what nobody knows the usual time of
_TIMES_LOADING = 4.0  # a first part in times of its teacher's loading: the same disks and network


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long each thing may take. Times are in seconds."""

    hang_seconds: float = 60.0  # without progress, at least
    hang_factor: float = 20.0  # times the usual time of a group, or of a part around its groups
    loading_seconds: float = 1800.0  # also for the trial
    wait_seconds: float = 600.0  # for the cluster to have room
    say_seconds: float = 10.0  # between two words about it
    in_flight: int = PARTS_IN_FLIGHT
    deaths: int = 4  # of teachers, on one part or while they load; then it is no accident

    @property
    def first_seconds(self) -> float:
        """For a first group, and for a teacher to answer anything at all."""
        return _FIRST * self.hang_seconds

    @staticmethod
    def of(hang_seconds: float, wait_seconds: float) -> Patience:
        """Return what follows from the two times that users set."""
        return Patience(
            hang_seconds=hang_seconds,
            loading_seconds=30 * hang_seconds,
            wait_seconds=wait_seconds,
        )


class State(enum.Enum):
    """What is known of a teacher."""

    ASKED = "asked for"  # no machine has taken it yet
    LOADING = "loading"
    IDLE = "idle"
    LABELLING = "labelling"
    LOST = "lost"  # dead, or presumed hung and ended


class Death(enum.Enum):
    """How a teacher was lost."""

    PROCESS = "died"
    MEMORY = "was ended for want of memory"
    HUNG = "made no progress"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """How much of something the cluster has, and how much of that nobody uses."""

    total: float
    free: float


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the cluster for this teacher."""

    teacher: int


@dataclass(frozen=True, slots=True)
class HandOut:
    """Give this work to this teacher. With ``lean`` > 0, it shall use less memory for it."""

    teacher: int
    work: Work
    lean: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """End what may be left of this teacher."""

    teacher: int


@dataclass(frozen=True, slots=True)
class Say:
    """Tell the user."""

    text: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the job. ``again`` says whether the same command may do better later."""

    text: str
    again: bool


Decision: TypeAlias = Ask | HandOut | End | Say | GiveUp


@dataclass(slots=True)
class _Pace:
    """What usual times are taken from."""

    parts: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES))
    groups: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES))

    def usual(self, *, closing: bool) -> float | None:
        """Return the usual time to the next progress: a group, or before and after all of them."""
        known = [self.parts] if closing else [self.parts, self.groups]
        return min((statistics.median(times) for times in known if times), default=None)


@dataclass(slots=True)
class _Teacher:
    state: State
    since: float  # in this state, or since it last showed progress
    work: dict[Work, float] = field(default_factory=dict)  # with the time it was handed out
    pace: _Pace = field(default_factory=_Pace)
    last_part: float = 0.0
    groups: int = 0
    grew: float | None = None  # when it last told of more groups
    replaces: float | None = None  # when one that was lost had last shown progress
    starved: bool = False  # waits for augmentation
    closing: bool = False  # has labelled all groups of what it has
    heard: float = 0.0  # when it last answered
    loading: float = 0.0  # seconds that it took

    @property
    def is_up(self) -> bool:
        return self.state in (State.IDLE, State.LABELLING)


class Supervisor:
    """The job's teachers and its work.

    Each work is handed out until one teacher finishes it, and ``finished`` is true once for it,
    whatever dies. Teachers have numbers, which are never used again.
    """

    def __init__(
        self, wanted: int, needs: str | None, patience: Patience, share: float = 1.0
    ) -> None:
        """Begin with no work. A teacher takes a ``share`` of one of ``needs``, such as GPU."""
        self._wanted = wanted
        self._needs, self._share = needs, share
        self._patience = patience
        self._teachers: dict[int, _Teacher] = {}
        self._queue: deque[Work] = deque()
        self._under_way = 0
        self._deaths: Counter[Work] = Counter()
        self._failed_loads = 0
        self._pause_until = 0.0
        self._last_death = (Death.PROCESS, "")
        self._pace = _Pace()  # of all teachers
        self._resources: Mapping[str, Resource] = {}
        self._said: dict[str, float] = {}
        self._gaps: deque[float] = deque()  # of teachers lost at work: their last progress
        self._news: deque[Say] = deque()
        self._taken_back = 0
        self._verdict: GiveUp | None = None
        self._draining = False
        self._group_seconds = 0.0  # that a teacher takes for a group, by the trial

    def begin(self, works: Iterable[Work]) -> None:
        """Add work."""
        self._queue.extend(works)

    def want(self, teachers: int) -> None:
        """Say how many teachers the job may have from now on."""
        self._wanted = teachers

    def tried(self, group_seconds: float) -> None:
        """Note how long a teacher took for a group, before any pace is known."""
        self._group_seconds = group_seconds

    def drain(self) -> None:
        """Hand out nothing more, and ask for nobody."""
        self._draining = True

    @property
    def under_way(self) -> int:
        """Works that teachers have."""
        return self._under_way

    @property
    def taken_back(self) -> int:
        """Parts that teachers had when they were lost: what was done of them is done again."""
        return self._taken_back

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do, or nothing more may be begun."""
        return not self.under_way and (self._draining or not self._queue)

    @property
    def states(self) -> Mapping[int, State]:
        """What is known of each teacher that was ever asked for."""
        return {number: one.state for number, one in self._teachers.items()}

    # Events

    def saw(self, resources: Mapping[str, Resource]) -> None:
        """Note what the cluster has."""
        self._resources = resources

    def placed(self, teacher: int, now: float) -> None:
        """Note that a teacher's process runs, and loads."""
        one = self._teachers[teacher]
        if one.state is State.ASKED:
            one.state, one.since, one.heard = State.LOADING, now, now

    def loaded(self, teacher: int, now: float) -> None:
        """Note that a teacher can label."""
        one = self._teachers[teacher]
        if one.state in (State.ASKED, State.LOADING):
            one.loading = now - one.since
            one.state, one.since = State.IDLE, now
            self._failed_loads = 0

    def progressed(
        self, teacher: int, groups: int, *, starved: bool, now: float, closing: bool = False
    ) -> None:
        """Note how many groups a teacher has labelled in all, and if it waits for more.

        Or if it is ``closing``: no group is left of what it has, which it reads for or writes.
        """
        one = self._teachers[teacher]
        if groups > one.groups:
            # Not since a part was done: what is told a moment after that was labelled before.
            before = one.since if one.grew is None else one.grew
            for pace in (one.pace, self._pace):
                pace.groups.append((now - before) / (groups - one.groups))
            one.since, one.grew, one.groups = now, now, groups
            self._note_replaced(one, now)
        one.starved, one.closing, one.heard = starved, closing, now

    def finished(self, teacher: int, work: Work, now: float) -> bool:
        """Note that a teacher has done a work; return False if it is no longer this one's."""
        one = self._teachers[teacher]
        if work not in one.work:
            return False
        seconds = now - max(one.work.pop(work), one.last_part)
        self._under_way -= 1
        if not isinstance(work, Question):
            one.pace.parts.append(seconds)
            self._pace.parts.append(seconds)
        one.since = one.last_part = one.heard = now
        self._note_replaced(one, now)
        if not one.work:
            one.state = State.IDLE
        return True

    def _note_replaced(self, one: _Teacher, now: float) -> None:
        if one.replaces is not None:
            self._news.append(
                Say(
                    f"a teacher labels in the place of a lost one, {now - one.replaces:.1f} s "
                    "after the last progress of that"
                )
            )
            one.replaces = None

    def died(self, teacher: int, how: Death, why: str, now: float) -> int:
        """Note that a teacher is gone, and take its works back; return how many."""
        one = self._teachers[teacher]
        if one.state is State.LOST:
            return 0
        works = list(one.work)
        at_work = one.since if one.state is State.LABELLING else None
        gap = at_work if one.replaces is None else one.replaces
        if gap is not None:
            self._gaps.append(gap)
        if not one.is_up:
            self._failed_loads += 1
            if self._failed_loads > 1:  # one may be chance; a row of them must not spin
                self._pause_until = now + min(_LONGEST_PAUSE, 2.0 ** (self._failed_loads - 2))
        self._deaths.update(works)
        self._taken_back += sum(not isinstance(work, Question) for work in works)
        self._queue.extendleft(reversed(works))
        self._under_way -= len(works)
        one.work.clear()
        one.state, one.since = State.LOST, now
        self._last_death = (how, why)
        self._verdict = self._verdict or self._judge(works)
        return len(works)

    def _judge(self, works: list[Work]) -> GiveUp | None:
        how, why = self._last_death
        cure = f": {why}" if why else ""
        if how is Death.MEMORY:
            cure += (
                "; memory is short there, also with one part under way: use fewer `teachers`, a "
                "smaller `views_per_part`, or machines with more"
            )
        worst = max(works, key=lambda work: self._deaths[work], default=None)
        if worst is not None and self._deaths[worst] >= self._patience.deaths:
            return GiveUp(
                f"teachers were lost {self._deaths[worst]} times while they worked on {worst}, "
                f"the last one {how.value}{cure}",
                again=False,
            )
        nobody = not any(one.is_up for one in self._teachers.values())
        if nobody and self._failed_loads >= max(self._patience.deaths, self._wanted):
            return GiveUp(
                f"{self._failed_loads} teachers in a row were lost while they loaded, the last "
                f"one {how.value}{cure}",
                again=False,
            )
        return None

    # Decisions

    def decide(self, now: float) -> list[Decision]:
        """Return what to do now. Ends once with ``GiveUp`` if the job cannot go on."""
        decisions: list[Decision] = [*self._news, *self._presumed_hung(now)]
        self._news.clear()
        if self._verdict is None:
            decisions += self._waited_for(now)
        if self._verdict is not None:
            return [*decisions, self._verdict]
        if not self._draining:
            decisions += self._asked_for(now)
            decisions += self._handed_out(now)
        return decisions

    def _presumed_hung(self, now: float) -> Iterable[Decision]:
        slow: list[tuple[float, float, str]] = []  # that nobody knows the pace of
        least = min(self._patience.hang_seconds, self._patience.loading_seconds) / 2
        for number, one in self._teachers.items():
            # With a thousand teachers, what is usual for each is worked out for few of them.
            if now - one.since <= least or one.state not in (State.LOADING, State.LABELLING):
                continue
            quiet, limit = self._quiet_of(one, now)
            if quiet > limit:
                doing = "loading" if one.state is State.LOADING else "labelling"
                yield Say(
                    f"a teacher made no progress in {quiet:.1f} s of {doing}, of the "
                    f"{limit:.1f} s that it has; it is presumed hung, and another one takes its "
                    "place"
                )
                self.died(number, Death.HUNG, f"for {limit:.0f} s", now)
                yield End(number)
            elif quiet > least and (what := self._first_of(one)):
                slow.append((quiet, limit, f"{what} of teacher {number}"))
        if slow and now - self._said.get("first", -least) >= least:
            self._said["first"] = now
            quiet, limit, what = max(slow)
            others = f", and {len(slow) - 1} more" if len(slow) > 1 else ""
            yield Say(f"waiting for {what}{others}: {quiet:.0f} s of the {limit:.0f} s that it has")

    def _first_of(self, one: _Teacher) -> str:
        """Return what a teacher does of which nobody knows how long it takes, if it does."""
        if one.state is State.LOADING:
            return "the start"
        asked = next((work for work in one.work if isinstance(work, Question)), None)
        return str(asked or ("" if self._usual(one) else "the first part"))

    def _usual(self, one: _Teacher) -> float | None:
        """Return the usual time to a teacher's next progress, by its own pace or that of others."""
        own = one.pace.usual(closing=one.closing)
        return self._pace.usual(closing=one.closing) if own is None else own

    def _quiet_of(self, one: _Teacher, now: float) -> tuple[float, float]:
        """Return for how long a teacher made no progress, and how long it may."""
        patience, usual = self._patience, self._usual(one)
        # One that tells that it waits for augmentation is not hung: that is ended where it hangs,
        # and looked into where it crashes. For CPUs that others have see _waited_for; where some
        # are free, another teacher may have more luck in the end.
        stuck = now - one.since > patience.loading_seconds and self._free("CPU") >= 1
        quiet = now - (max(one.since, one.heard) if one.starved and not stuck else one.since)
        if one.state is State.LOADING or any(isinstance(work, Question) for work in one.work):
            limit = patience.loading_seconds
        elif usual is not None:
            limit = max(patience.hang_seconds, patience.hang_factor * usual)
        else:
            limit = max(
                patience.first_seconds,
                patience.hang_factor * self._group_seconds,
                _TIMES_LOADING * one.loading,
            )
        # Whatever it does, it answers. One that is stopped, or whose machine is, does not.
        unheard = now - one.heard, patience.first_seconds
        return max((quiet, limit), unheard, key=lambda pair: pair[0] / pair[1])

    def _waited_for(self, now: float) -> Iterable[Decision]:
        teachers = self._teachers.values()
        asked = [one.since for one in teachers if one.state is State.ASKED]
        working = [one for one in teachers if one.state is not State.LOST]
        if asked and self._needed():
            alone = len(asked) == len(working)
            what = "a teacher's process"
            if self._needs:
                what = f"{self._share:.3g} {self._needs} for a teacher"
            yield from self._wait(what, self._needs, min(asked), now, is_stuck=alone)
        starved = [one for one in teachers if one.state is State.LABELLING and one.starved]
        if starved and self._free("CPU") < 1:
            since = max(one.since for one in working)
            alone = len(starved) == sum(one.state is State.LABELLING for one in working)
            yield from self._wait("1 CPU to augment", "CPU", since, now, is_stuck=alone)

    def _wait(
        self, what: str, resource: str | None, since: float, now: float, *, is_stuck: bool
    ) -> Iterable[Decision]:
        waited = now - since
        if waited < self._patience.say_seconds:
            return
        there = self._resources.get(resource or "")
        has = ""
        if there is not None and resource is not None:
            taken = max(0.0, there.total - there.free)
            has = f": the cluster has {there.total:g}, {taken:g} are taken"
        if is_stuck and waited >= self._patience.wait_seconds:
            self._verdict = GiveUp(
                f"waited {waited:.0f} s for {what}{has}; free some, or raise `wait_seconds`, and "
                "run the same command again: committed parts stay",
                again=True,
            )
        # With others at work it is said once: they will do it.
        elif what not in self._said or (
            is_stuck and now - self._said[what] >= self._patience.say_seconds
        ):
            self._said[what] = now
            yield Say(f"waiting for {what}{has}")

    def _free(self, resource: str) -> float:
        there = self._resources.get(resource)
        return there.free if there else 0.0

    def _needed(self) -> int:
        """Return how many teachers there could be with the work that is left."""
        return 0 if self._draining else min(self._wanted, len(self._queue) + self.under_way)

    def _asked_for(self, now: float) -> Iterable[Decision]:
        there = sum(one.state is not State.LOST for one in self._teachers.values())
        if now < self._pause_until:
            return
        for _ in range(there, self._needed()):
            number = len(self._teachers)
            lost = self._gaps.popleft() if self._gaps else None
            self._teachers[number] = _Teacher(State.ASKED, now, replaces=lost)
            yield Ask(number)

    def _handed_out(self, now: float) -> Iterable[Decision]:
        if not self._queue:
            return
        most = self._patience.in_flight
        free = [
            (number, one)
            for number, one in self._teachers.items()
            if len(one.work) < most and one.is_up
        ]
        for _ in range(most):  # a round each, so that teachers share evenly
            for number, one in free:
                if self._queue and len(one.work) < most and self._may_take(one, self._queue[0]):
                    work = self._queue.popleft()
                    if one.state is State.IDLE:
                        one.state, one.since, one.heard = State.LABELLING, now, now
                    one.work[work] = now
                    self._under_way += 1
                    yield HandOut(number, work, self._deaths[work])

    def _may_take(self, one: _Teacher, work: Work) -> bool:
        """Whether a work goes with others. What killed one is done alone, to be known if it did."""
        return not one.work or not any(self._deaths[other] for other in (work, *one.work))
