"""Machines that join are used, and each teacher's share is that of its own machine."""

from __future__ import annotations

import signal
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import actors
from jobs.actors import _Augmentation
from jobs.run import EXIT_DRAINED
from jobs.sizing import Share
from jobs.supervisor import Patience
from pipeline.labelling.part import GroupTask
from tests.jobs.conftest import Job
from tests.jobs.processes import (
    PATIENCE_SECONDS,
    Node,
    named,
    part_paths,
    ray_nodes,
    start_job,
    wait_for,
)


def test_a_machine_that_joins_while_the_job_runs_gets_a_teacher(job: Job, tmp_path: Path) -> None:
    out, log = tmp_path / "x.parquet", tmp_path / "log"
    node = Node(tmp_path, cpus=1)
    with ray_nodes(Node(tmp_path, cpus=1), node) as cluster:
        process = start_job(job.to(out, "--views", "600"), address=cluster.address, log=log)

        def teachers() -> list[int]:
            assert process.poll() is None, log.read_text()
            return named(cluster.pid, "ray::TeacherActor")

        wait_for(lambda: len(part_paths(out)) >= 1 and teachers(), "a part", log=log)
        assert len(teachers()) == 1
        cluster.add(node)
        wait_for(lambda: len(teachers()) == 2, "the second teacher", log=log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == EXIT_DRAINED, log.read_text()
    assert "the cluster has no GPU now, so the teacher runs on CPUs" in log.read_text()


class Remote:
    """Stands for Ray's function, and notes where tasks were sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.where = "anywhere"

    def options(self, *, scheduling_strategy: Any) -> Remote:
        assert (scheduling_strategy.node_id, scheduling_strategy.soft) == ("ab" * 28, True)
        other = Remote()
        other.sent, other.where = self.sent, "home"
        return other

    def remote(self, task: GroupTask) -> int:
        self.sent.append(self.where)
        return len(self.sent)


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Remote:
    found = Remote()
    monkeypatch.setattr(actors, "augment_remotely", found)
    context = SimpleNamespace(get_node_id=lambda: "ab" * 28)
    monkeypatch.setattr(actors.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(actors.ray, "wait", lambda refs, num_returns, timeout: (refs[:1], refs[1:]))
    monkeypatch.setattr(actors.ray, "get", lambda ref, timeout: ref)
    monkeypatch.setattr(actors.ray, "cancel", lambda ref, force: None)
    monkeypatch.setattr(actors, "replace", lambda task, crashing: task)
    return found


@pytest.mark.parametrize(("local", "first"), [(0, []), (2, ["home"] * 2), (5, ["home"] * 4)])
def test_a_machines_own_cores_take_groups_before_others_do(
    remote: Remote, local: int, first: list[str]
) -> None:
    task: Any = SimpleNamespace(shard=SimpleNamespace(key_hash="k"), members=())
    share = Share(threads=1, window=4, local=local)
    groups = _Augmentation(iter([task] * 8), share, Patience(), {}, deque()).groups()
    next(groups)
    sent = first + ["anywhere"] * (4 - len(first))
    assert remote.sent == sent
    for _ in groups:
        pass
    assert remote.sent == sent * 2  # answers come in the order of the calls here
