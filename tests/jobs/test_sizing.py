"""What a teacher may use of its machine and of the cluster, in numbers."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.sizing import (
    LABELLED,
    STORE_SHARE,
    Machine,
    ShareRule,
    auto_teachers,
    machine_for_cpu_teacher,
)
from pipeline.labelling.forward import UNDER_WAY

GROUP = 16 * 15 * 224 * 224 * 3  # DeiT's: 36 MB
RULE = ShareRule(group_bytes=GROUP, window_bytes=1e9)


def machine(cpus: int, gpus: int = 0, *, store: float = 100e9, head: bool = False) -> Machine:
    return Machine(cpus=cpus, gpus=gpus, store_bytes=store, is_head=head)


def test_one_gpu_with_16_cpus_has_a_gigabyte_of_groups_in_all() -> None:
    share = RULE.share({"a": machine(16, 1)}, "a", 1, 1)
    assert share.window == 11
    assert 0.9e9 < 2 * (share.window + LABELLED) * GROUP <= 1e9
    assert (share.threads, share.local) == (16, 0)


def test_a_thousand_cpus_do_not_make_a_window_larger() -> None:
    machines = {"gpu": machine(16, 1), **{f"cpu-{n}": machine(64) for n in range(16)}}
    share = RULE.share(machines, "gpu", 1, 1)
    assert 2 * (share.window + LABELLED) * GROUP <= 1e9
    assert share.threads == 16
    assert share.local == 10  # of each of two parts: 20 tasks for 16 cores


def test_a_laptop_holds_what_its_cores_need() -> None:
    share = RULE.share({"a": machine(2)}, "a", 1, 1)
    assert (share.threads, share.window) == (2, 4)


def test_threads_are_those_of_the_teachers_own_machine() -> None:
    machines = {f"{n}": machine(16) for n in range(10)}
    assert RULE.share(machines, "3", 1, 1).threads == 16  # not 160
    assert RULE.share(machines, "3", 4, 40).threads == 4
    machines["small"] = machine(2)
    assert RULE.share(machines, "small", 1, 11).threads == 2
    assert RULE.share(machines, "small", 4, 11).threads == 1
    assert RULE.share(machines, "gone", 1, 11).threads == 1


def test_teachers_of_one_machine_share_half_of_its_object_store() -> None:
    eight = {"a": machine(128, 8, store=4e9)}
    share = RULE.share(eight, "a", 8, 8)
    assert 8 * 2 * (share.window + LABELLED) * GROUP <= 4e9 * STORE_SHARE


@given(
    cpus=st.integers(1, 256),
    here=st.integers(1, 8),
    others=st.integers(0, 20),
    side=st.integers(16, 512),
)
def test_the_store_that_is_said_to_fit_is_the_least_that_makes_no_window_smaller(
    cpus: int, here: int, others: int, side: int
) -> None:
    rule = ShareRule(group_bytes=16 * 15 * side * side * 3, window_bytes=1e9)

    def window(store: float) -> int:
        machines = {"a": machine(cpus, store=store), **{f"{n}": machine(64) for n in range(others)}}
        return rule.share(machines, "a", here, here).window

    wanted = rule.store_bytes(
        {"a": machine(cpus), **{f"{n}": machine(64) for n in range(others)}}, "a", here, here
    )
    assert window(wanted + 1) == window(math.inf)
    assert window(wanted * 0.99) < window(math.inf) or window(math.inf) == 1


@given(
    cpus=st.integers(0, 256),
    here=st.integers(1, 16),
    others=st.integers(0, 50),
    store=st.floats(1e8, 1e12),
    side=st.integers(16, 512),
)
def test_windows_never_exceed_their_bytes_and_are_never_empty(
    cpus: int, here: int, others: int, store: float, side: int
) -> None:
    rule = ShareRule(group_bytes=16 * 15 * side * side * 3, window_bytes=1e9)
    machines = {"a": machine(cpus, here, store=store)}
    machines |= {f"b{n}": machine(64) for n in range(others)}
    share = rule.share(machines, "a", here, here)
    assert share.threads >= 1
    assert share.window >= 1
    assert 0 <= share.local <= share.window
    if share.window > 1:
        used = (share.window + LABELLED) * rule.parts * rule.group_bytes
        assert used <= 1e9
        assert used * here <= store * STORE_SHARE


def test_a_teacher_has_as_many_groups_of_a_part_as_are_counted() -> None:
    assert LABELLED == UNDER_WAY


def test_as_many_teachers_as_gpus_or_machines_with_cpus_and_the_head_last() -> None:
    head = machine(4, head=True)
    assert auto_teachers({"h": head}, on_gpu=False) == 1
    assert auto_teachers({"h": head, "a": machine(8), "b": machine(8)}, on_gpu=False) == 2
    assert auto_teachers({"h": head, "a": machine(0, 2)}, on_gpu=False) == 1
    assert auto_teachers({"h": machine(4, 1, head=True), "a": machine(8, 4)}, on_gpu=True) == 5
    assert auto_teachers({"h": head}, on_gpu=True) == 0
    assert auto_teachers({"a": machine(8, 4), "b": machine(8, 2)}, on_gpu=True, per_gpu=3) == 18


def test_cpu_teachers_go_where_most_cpus_are_left_for_them() -> None:
    machines = {"h": machine(64, head=True), "a": machine(16), "b": machine(8)}
    there: Counter[str] = Counter()
    for _ in range(6):
        name = machine_for_cpu_teacher(machines, there)
        assert name is not None
        there[name] += 1
    assert there == {"a": 4, "b": 2}


@pytest.mark.parametrize("machines", [{}, {"h": machine(4, head=True)}])
def test_a_machine_that_is_alone_is_not_asked_for(machines: dict[str, Machine]) -> None:
    assert machine_for_cpu_teacher(machines, {}) is None


def test_a_head_labels_if_no_other_machine_has_cpus() -> None:
    machines = {"h": machine(4, head=True), "a": machine(0, 1)}
    assert machine_for_cpu_teacher(machines, {}) == "h"
    assert math.isfinite(RULE.share(machines, "a", 1, 1).window)
