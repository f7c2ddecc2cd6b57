"""The supervisor alone, with a clock that the tests turn and events that they make up."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.supervisor import (
    Ask,
    Death,
    Decision,
    End,
    GiveUp,
    HandOut,
    Patience,
    Question,
    Resource,
    Say,
    State,
    Supervisor,
)

PATIENCE = Patience()
BUSY = {"GPU": Resource(total=8, free=0), "CPU": Resource(total=2, free=0)}


def handed_out(decisions: list[Decision]) -> list[tuple[int, object]]:
    return [(one.teacher, one.work) for one in decisions if isinstance(one, HandOut)]


def texts(decisions: list[Decision]) -> list[str]:
    return [one.text for one in decisions if isinstance(one, Say | GiveUp)]


def up(supervisor: Supervisor, count: int, now: float = 0.0) -> None:
    """Let the supervisor ask for teachers, which load at once."""
    asked = [one.teacher for one in supervisor.decide(now) if isinstance(one, Ask)]
    assert len(asked) == count
    for teacher in asked:
        supervisor.placed(teacher, now)
        supervisor.loaded(teacher, now)


def answer(
    supervisor: Supervisor, start: float, end: float, *, groups: int = 0, closing: bool = False
) -> list[str]:
    """Let a teacher answer every few seconds that it is as far as before; return what is said."""
    said: list[str] = []
    for now in [*range(int(start), int(end), 5), end]:
        supervisor.progressed(0, groups, starved=False, closing=closing, now=float(now))
        decisions = supervisor.decide(float(now))
        assert all(isinstance(one, Say | HandOut) for one in decisions), (now, decisions)
        said += texts(decisions)
    return said


def supervisor_of(parts: int, teachers: int, needs: str | None = None) -> Supervisor:
    supervisor = Supervisor(teachers, needs, PATIENCE)
    supervisor.begin([f"part {number}" for number in range(parts)])
    return supervisor


def test_parts_go_round_by_round_to_teachers_that_are_loaded() -> None:
    supervisor = supervisor_of(9, 2)
    asked = supervisor.decide(0.0)
    assert asked == [Ask(0), Ask(1)]
    assert supervisor.decide(1.0) == []  # both load
    supervisor.placed(0, 2.0)
    supervisor.loaded(0, 3.0)
    assert handed_out(supervisor.decide(3.0)) == [(0, "part 0"), (0, "part 1")]
    supervisor.loaded(1, 4.0)
    assert handed_out(supervisor.decide(4.0)) == [(1, "part 2"), (1, "part 3")]
    assert supervisor.finished(0, "part 1", 5.0)
    assert handed_out(supervisor.decide(5.0)) == [(0, "part 4")]
    assert set(supervisor.states.values()) == {State.LABELLING}


def test_no_more_teachers_are_asked_for_than_there_is_work() -> None:
    supervisor = supervisor_of(1, 8)
    up(supervisor, 1)
    assert handed_out(supervisor.decide(0.0)) == [(0, "part 0")]
    supervisor.begin(["part 1", "part 2"])
    assert [one for one in supervisor.decide(1.0) if isinstance(one, Ask)] == [Ask(1), Ask(2)]


def test_a_teacher_that_cannot_be_replaced_leaves_its_parts_to_the_others() -> None:
    supervisor = supervisor_of(4, 2, "GPU")
    up(supervisor, 2)
    assert len(handed_out(supervisor.decide(0.0))) == 4
    assert supervisor.died(1, Death.PROCESS, "its node is gone", 10.0) == 2
    done = Counter({"part 0": int(supervisor.finished(0, "part 0", 11.0))})
    supervisor.saw(BUSY)
    now, said = 11.0, []
    while not supervisor.is_over:
        decisions = supervisor.decide(now)
        said += texts(decisions)
        assert not [one for one in decisions if isinstance(one, GiveUp)]
        given_out = handed_out(decisions)
        assert all(teacher == 0 for teacher, _ in given_out)
        for work in [*(work for _, work in given_out), "part 2"][:1]:
            done[str(work)] += supervisor.finished(0, work, now)
        now += 400.0  # far beyond the time that it would wait alone
    assert done == {f"part {number}": 1 for number in range(4)}
    assert said == ["waiting for 1 GPU for a teacher: the cluster has 8, 8 are taken"]


def test_what_killed_a_teacher_is_done_alone_and_with_less_memory_each_time() -> None:
    supervisor = supervisor_of(5, 1)
    leans = []
    for death in range(4):
        up(supervisor, 1, 100.0 * death)
        now = 100.0 * death + 50
        taken = [one for one in supervisor.decide(now) if isinstance(one, HandOut)]
        leans.append([one.lean for one in taken])
        supervisor.died(taken[0].teacher, Death.MEMORY, "17 GB of 16 GB", now)
    (verdict,) = supervisor.decide(1000.0)
    assert leans == [[0, 0], [1], [2], [3]]
    assert isinstance(verdict, GiveUp)
    assert not verdict.again
    assert "lost 4 times while they worked on part 0" in verdict.text
    assert "memory is short" in verdict.text


def test_a_teacher_that_shows_no_progress_for_20_usual_times_is_replaced() -> None:
    supervisor = supervisor_of(9, 1)
    up(supervisor, 1)
    supervisor.decide(0.0)
    for part in range(4):  # 10 s each
        supervisor.finished(0, f"part {part}", 10.0 * (part + 1))
        supervisor.decide(10.0 * (part + 1))
    assert supervisor.decide(239.0) == []
    supervisor.progressed(0, 1, starved=False, now=239.0)  # a group: it lives
    assert supervisor.decide(438.0) == []
    supervisor.progressed(0, 1, starved=False, now=438.0)  # no more than before
    said, ended, asked = supervisor.decide(440.0)
    assert isinstance(said, Say)
    assert "no progress in 201.0 s of labelling, of the 200.0 s that it has" in said.text
    assert (ended, asked) == (End(0), Ask(1))
    assert not supervisor.finished(0, "part 4", 441.0)  # late, and another one's now
    supervisor.loaded(1, 450.0)
    assert handed_out(supervisor.decide(450.0)) == [(1, "part 4")]
    supervisor.progressed(1, 1, starved=False, now=460.0)
    replaced = "labels in the place of a lost one, 221.0 s after the last progress of that"
    assert texts(supervisor.decide(460.0)) == [f"a teacher {replaced}"]
    supervisor.finished(1, "part 4", 470.0)
    assert texts(supervisor.decide(470.0)) == []


@pytest.mark.parametrize(("closing", "seconds"), [(False, 80), (True, 240)])
def test_a_first_part_is_paced_by_its_groups_and_its_end_by_nothing_yet(
    closing: bool, seconds: int
) -> None:
    supervisor = supervisor_of(2, 1)
    up(supervisor, 1)
    supervisor.decide(0.0)
    for groups in range(1, 11):  # 4 s each
        supervisor.progressed(0, groups, starved=False, closing=closing, now=4.0 * groups)
    answer(supervisor, 40.0, 39.0 + seconds, groups=10, closing=closing)
    assert End(0) in supervisor.decide(41.0 + seconds)


def test_parts_of_one_group_each_are_as_slow_as_their_groups() -> None:
    """A teacher tells of a group a moment after the part was done."""
    supervisor = supervisor_of(20, 1)
    up(supervisor, 1)
    for part in range(8):
        supervisor.decide(100.0 * part)
        supervisor.finished(0, f"part {part}", 100.0 * (part + 1))
        supervisor.progressed(0, part + 1, starved=False, now=100.0 * (part + 1) + 1)
    answer(supervisor, 801.0, 2799.0, groups=8)
    assert End(0) in supervisor.decide(2802.0)


def test_a_replacement_that_is_lost_too_leaves_the_same_gap() -> None:
    supervisor = labelling()
    for loss in range(2):
        supervisor.died(loss, Death.PROCESS, "killed", 50.0 + loss)
        supervisor.decide(50.0 + loss)
        supervisor.placed(loss + 1, 50.0 + loss)
    supervisor.loaded(2, 60.0)
    (work,) = [work for _, work in handed_out(supervisor.decide(60.0))]
    supervisor.finished(2, work, 61.0)
    (said,) = texts(supervisor.decide(61.0))
    assert "21.0 s after the last progress" in said


@pytest.mark.parametrize(
    ("loading", "group_seconds", "limit"),
    [(1.0, 3.0, 240.0), (90.0, 3.0, 360.0), (1.0, 20.0, 400.0)],
)
def test_a_first_part_has_four_times_the_least_or_follows_from_loading_and_the_trial(
    loading: float, group_seconds: float, limit: float
) -> None:
    """A slow disk or network was slow as the teacher loaded, and a slow teacher in the trial."""
    supervisor = supervisor_of(9, 1)
    supervisor.decide(0.0)
    supervisor.placed(0, 0.0)
    supervisor.loaded(0, loading)
    supervisor.tried(group_seconds)
    supervisor.decide(loading)
    said = answer(supervisor, loading, loading + limit - 1)
    waiting = "waiting for the first part of teacher 0: "
    assert said[0].startswith(waiting)
    assert said[0].endswith(f" s of the {limit:.0f} s that it has")
    assert len(said) == pytest.approx((limit - 30) / 30, abs=2)
    assert End(0) in supervisor.decide(loading + limit + 1)


def test_short_parts_give_a_minute() -> None:
    supervisor = supervisor_of(9, 1)
    up(supervisor, 1)
    supervisor.decide(0.0)
    for part in range(4):
        supervisor.finished(0, f"part {part}", 20 + 0.5 * part)
        supervisor.decide(20 + 0.5 * part)
    assert supervisor.decide(81.0) == []
    assert End(0) in supervisor.decide(82.0)


@pytest.mark.parametrize("work", ["loading", "trial", "part"])
def test_a_teacher_that_answers_nothing_is_presumed_hung_whatever_it_does(work: str) -> None:
    """As one that is stopped, before anybody knows how long its work takes."""
    supervisor = supervisor_of(0, 1)
    supervisor.begin([Question("the trial")] if work == "trial" else ["a part"])
    supervisor.decide(0.0)
    supervisor.placed(0, 0.0)
    if work != "loading":
        supervisor.loaded(0, 0.0)
    supervisor.tried(1000.0)
    what = {"loading": "the start", "trial": "the trial", "part": "the first part"}[work]
    supervisor.decide(0.0)
    waiting = f"waiting for {what} of teacher 0: 31 s of the 240 s that it has"
    assert texts(supervisor.decide(31.0)) == [waiting]
    assert texts(supervisor.decide(60.0)) == []  # said a moment ago
    assert len(texts(supervisor.decide(239.0))) == 1
    said, ended, asked = supervisor.decide(241.0)
    assert "no progress in 241.0 s" in texts([said])[0]
    assert (ended, asked) == (End(0), Ask(1))


def test_of_many_teachers_the_one_that_is_waited_for_longest_is_named() -> None:
    supervisor = supervisor_of(99, 40)
    supervisor.decide(0.0)
    for teacher in range(40):
        supervisor.placed(teacher, 40.0 - teacher)
    assert texts(supervisor.decide(60.0)) == [
        "waiting for the start of teacher 39, and 28 more: 59 s of the 240 s that it has"
    ]


def test_a_teacher_that_hangs_or_dies_while_it_loads_is_replaced_with_growing_pauses() -> None:
    supervisor = supervisor_of(9, 1)
    supervisor.decide(0.0)
    supervisor.placed(0, 0.0)
    answer(supervisor, 1.0, 1800.0)
    assert supervisor.decide(1802.0)[1:] == [End(0), Ask(1)]
    asked, now = [1802.0], 1803.0
    while not texts(decisions := supervisor.decide(now)):
        for one in decisions:
            if isinstance(one, Ask):
                asked.append(now)
        if supervisor.states[len(supervisor.states) - 1] is not State.LOST:
            supervisor.died(len(supervisor.states) - 1, Death.PROCESS, "killed", now)
        now += 0.5
    assert asked == [1802.0, 1804.0, 1806.0]  # after the second one a second, then two
    assert "4 teachers in a row were lost while they loaded" in texts(decisions)[0]
    assert now < 1820


@pytest.mark.parametrize("needs", ["GPU", None])
def test_waiting_for_the_first_teacher_is_said_and_then_given_up(needs: str | None) -> None:
    supervisor = supervisor_of(2, 2, needs)
    supervisor.saw(BUSY)
    said = {}
    for now in range(0, 700):
        decisions = supervisor.decide(float(now))
        said |= dict.fromkeys([now] * bool(texts(decisions)), texts(decisions))
        if any(isinstance(one, GiveUp) for one in decisions):
            break
    assert list(said) == list(range(10, 601, 10))
    what = "1 GPU for a teacher: the cluster has 8, 8 are taken" if needs else "a teacher's process"
    assert said[10] == [f"waiting for {what}"]
    (verdict,) = decisions
    assert isinstance(verdict, GiveUp)
    assert verdict.again
    assert verdict.text.startswith(f"waited 600 s for {what}; free some")


def test_waiting_for_cpus_is_told_from_slow_work() -> None:
    supervisor = supervisor_of(2, 1)
    up(supervisor, 1)
    supervisor.decide(0.0)
    supervisor.saw({"CPU": Resource(total=2, free=2)})
    supervisor.progressed(0, 0, starved=True, now=11.0)
    assert supervisor.decide(11.0) == []  # something is free: it is coming
    supervisor.saw(BUSY)
    (said,) = texts(supervisor.decide(12.0))
    assert said == "waiting for 1 CPU to augment: the cluster has 2, 2 are taken"
    supervisor.progressed(0, 1, starved=False, now=13.0)
    assert supervisor.decide(100.0) == []
    for now in (101.0, 612.0):
        supervisor.progressed(0, 1, starved=True, now=now)
    assert isinstance(supervisor.decide(613.0)[-1], GiveUp)


def labelling(parts: int = 4) -> Supervisor:
    """Return a supervisor whose teacher takes 10 s a part, and is at work on two more."""
    supervisor = supervisor_of(parts + 4, 1)
    up(supervisor, 1)
    supervisor.decide(0.0)
    for part in range(parts):
        supervisor.finished(0, f"part {part}", 10.0 * (part + 1))
        supervisor.decide(10.0 * (part + 1))
    return supervisor


def test_a_teacher_that_waits_for_cpus_of_others_is_not_presumed_hung() -> None:
    supervisor = labelling()
    supervisor.saw(BUSY)
    said: list[str] = []
    for now in range(42, 639, 2):
        supervisor.progressed(0, 0, starved=True, now=float(now))
        decisions = supervisor.decide(float(now))
        assert all(isinstance(one, Say) for one in decisions), now
        said += texts(decisions)
    assert set(said) == {"waiting for 1 CPU to augment: the cluster has 2, 2 are taken"}
    (verdict,) = supervisor.decide(641.0)
    assert isinstance(verdict, GiveUp)
    assert verdict.again


def test_a_teacher_that_waited_and_then_says_nothing_is_presumed_hung() -> None:
    supervisor = labelling()
    supervisor.saw(BUSY)
    supervisor.progressed(0, 0, starved=True, now=100.0)
    assert End(0) not in supervisor.decide(299.0)
    assert End(0) in supervisor.decide(301.0)


def test_draining_hands_out_nothing_more() -> None:
    supervisor = supervisor_of(5, 2)
    up(supervisor, 2)
    supervisor.decide(0.0)
    supervisor.drain()
    supervisor.died(1, Death.PROCESS, "", 1.0)
    supervisor.finished(0, "part 0", 1.0)
    assert supervisor.decide(1.0) == []
    supervisor.finished(0, "part 2", 2.0)
    assert supervisor.is_over


@dataclass
class Cluster:
    """A made-up cluster in which anything may happen to any teacher at any time."""

    chance: random.Random
    supervisor: Supervisor
    room: int
    now: float = 0.0
    work: dict[int, list[object]] = field(default_factory=dict)  # of teachers that run
    waiting: list[int] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)
    done: Counter[object] = field(default_factory=Counter)
    late: list[tuple[int, object]] = field(default_factory=list)

    def follow(self, decisions: list[Decision]) -> GiveUp | None:
        for one in decisions:
            match one:
                case Ask(teacher):
                    self.waiting.append(teacher)
                case HandOut(teacher, work):
                    state = self.supervisor.states[teacher]
                    assert state is State.LABELLING, "a part for a teacher that is not up"
                    assert teacher in self.work
                    self.work[teacher].append(work)
                    assert len(self.work[teacher]) <= PATIENCE.in_flight
                case End(teacher):
                    self.end(teacher)
                case GiveUp():
                    return one
        return None

    def end(self, teacher: int) -> None:
        self.late += [(teacher, work) for work in self.work.pop(teacher, [])]
        self.frozen.discard(teacher)
        self.waiting = [one for one in self.waiting if one != teacher]

    def happen(self) -> None:
        """Let one thing happen."""
        chance = self.chance
        self.now += chance.choice([0.01, 0.3, 5.0, 40.0])
        if self.waiting and len(self.work) < self.room and chance.random() < 0.6:
            teacher = self.waiting.pop(0)
            self.work[teacher] = []
            self.supervisor.placed(teacher, self.now)
        for teacher in list(self.work):
            event = chance.random()
            if event < 0.05:
                how = chance.choice([Death.PROCESS, Death.MEMORY])
                self.end(teacher)
                self.supervisor.died(teacher, how, "chaos", self.now)
            elif event < 0.08:
                self.frozen.add(teacher)
            elif event < 0.1 and self.room > 1:
                self.room -= 1
            elif teacher not in self.frozen:
                self.live(teacher)
        if self.late and chance.random() < 0.3:
            teacher, work = self.late.pop()
            assert not self.supervisor.finished(teacher, work, self.now)

    def live(self, teacher: int) -> None:
        state = self.supervisor.states[teacher]
        if state is State.LOADING:
            self.supervisor.loaded(teacher, self.now)
        elif self.work[teacher]:
            works = self.work[teacher]
            work = works.pop(self.chance.randrange(len(works)))
            self.done[work] += self.supervisor.finished(teacher, work, self.now)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    parts=st.integers(0, 30),
    teachers=st.integers(1, 5),
    room=st.integers(0, 5),
)
def test_whatever_dies_every_part_is_done_once_or_the_job_ends_with_an_error(
    seed: int, parts: int, teachers: int, room: int
) -> None:
    supervisor = supervisor_of(parts, teachers, "GPU")
    supervisor.saw(BUSY)
    cluster = Cluster(random.Random(seed), supervisor, room)
    verdict = None
    for _ in range(20_000):
        if supervisor.is_over or verdict is not None:
            break
        verdict = cluster.follow(supervisor.decide(cluster.now))
        cluster.happen()
    assert supervisor.is_over or verdict is not None, "it hangs"
    assert all(count == 1 for count in cluster.done.values())
    lost = sum(state is State.LOST for state in supervisor.states.values())
    assert supervisor.taken_back <= 2 * lost
    if verdict is None:
        assert sorted(map(str, cluster.done)) == sorted(f"part {n}" for n in range(parts))


def test_a_question_says_nothing_of_the_pace_of_parts_and_has_the_time_of_loading() -> None:
    supervisor = supervisor_of(0, 1)
    supervisor.begin([Question("the trial")])
    up(supervisor, 1)
    assert supervisor.decide(0.0) == [HandOut(0, Question("the trial"))]
    late = PATIENCE.loading_seconds - 1
    answer(supervisor, 0.0, late)
    supervisor.finished(0, Question("the trial"), late)
    supervisor.begin(["a part"])
    supervisor.decide(late)
    answer(supervisor, late, late + 239)  # it is the first


def test_a_teacher_that_waits_for_augmentation_beside_free_cpus_is_given_the_time_of_loading() -> (
    None
):
    supervisor, late = labelling(), PATIENCE.loading_seconds + 40
    supervisor.saw({"CPU": Resource(total=2, free=1)})
    for now in range(42, int(late), 2):
        supervisor.progressed(0, 0, starved=True, now=float(now))
        assert supervisor.decide(float(now)) == []
    assert End(0) in supervisor.decide(late + 1)
