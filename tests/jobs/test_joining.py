"""What waits for a cluster says so and has an end, with a made-up cluster and clock."""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import joining, train_student
from jobs.joining import Waiting, within
from jobs.supervisor import Resource
from jobs.train_student import RayTrainConfig
from pipeline.errors import ConfigError, TryAgainError


class MadeUp:
    """Stands for a connection, its cluster and the clock."""

    def __init__(self, free: float, *, joined: bool = True) -> None:
        self.now, self.free, self.joined = 100.0, free, joined
        self.looks = 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def state(self) -> Any:
        total = {"CPU": Resource(total=4, free=self.free), "GPU": Resource(total=0, free=0)}
        return SimpleNamespace(resources=total)

    def require_raylet(self) -> None:
        self.looks += 1


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(joining._log, "warning", found.append)
    return found


def made_up(monkeypatch: pytest.MonkeyPatch, free: float, *, joined: bool = True) -> Any:
    cluster = MadeUp(free, joined=joined)
    monkeypatch.setattr(joining, "time", cluster)
    monkeypatch.setattr(train_student, "time", cluster)
    monkeypatch.setattr(joining, "state_now", cluster.state)
    return cluster


@pytest.mark.parametrize("free", [0, 2])
def test_what_waits_for_a_cpu_says_so_every_ten_seconds_and_ends(
    monkeypatch: pytest.MonkeyPatch, said: list[str], free: float
) -> None:
    """Where CPUs are free it is at work, and only slow."""
    cluster = made_up(monkeypatch, free)
    waiting = Waiting(cluster, "opening shards", 35.0)

    def wait() -> None:
        while True:
            waiting.look()
            cluster.sleep(1.0)

    with pytest.raises(TryAgainError, match="opening shards took more than 35 s: 1 CPU, of 4 in"):
        wait()
    assert cluster.now == 136.0
    has = ": 1 CPU, of 4 in the cluster 0 free"
    words = [f"opening shards has to wait, for {n} s by now{has}" for n in (10, 20, 30)]
    assert said == ([] if free else words)
    waiting.begin()
    waiting.look()  # it has as long again
    assert cluster.looks == 38


def test_ranks_wait_for_room_and_say_so(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    cluster = made_up(monkeypatch, 1)
    with pytest.raises(TryAgainError, match="start of the ranks took more than 600 s: 3 CPU, of 4"):
        train_student._wait_for_room(cluster, RayTrainConfig(ranks=3), gpus=False)
    assert said[0] == (
        "the start of the ranks has to wait, for 10 s by now: 3 CPU, of 4 in the cluster 1 free"
    )
    train_student._wait_for_room(cluster, RayTrainConfig(ranks=1), gpus=False)
    alone = made_up(monkeypatch, 4, joined=False)
    with pytest.raises(ConfigError, match="which take 5 CPU in all, and this machine has 4; use"):
        train_student._wait_for_room(alone, RayTrainConfig(ranks=5), gpus=False)


def test_what_ends_a_wait_for_a_call_is_heard_while_it_lasts() -> None:
    def look() -> None:
        raise TryAgainError("this machine's part of Ray is gone")

    with pytest.raises(TryAgainError, match="is gone"):
        within(math.inf, "training", threading.Event().wait, look=look)
