"""The driver's side of a job on Ray, with made-up teachers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from benchmarks.driver import Actor, config_of, made_up_cluster, made_up_shards, plan_of
from jobs import cluster, joining
from jobs.draining import Drain

START = cluster.Cluster._start_teacher  # which a made-up cluster replaces


def test_what_a_teacher_says_with_its_last_part_is_heard_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of three has one part here, and is not asked once that is done."""
    monkeypatch.setattr(Actor, "said", ("a word",))
    heard: list[str] = []
    config = config_of(tmp_path / "l.parquet")
    plan = plan_of(config, made_up_shards(1))
    with made_up_cluster(1):
        monkeypatch.setattr(cluster._log, "warning", heard.append)
        job = cluster.Cluster(config, Drain(20.0))
        parts = list(job.label(plan))
    assert len(parts) == len(plan.missing) == 3
    assert heard == ["a word"] * 3
    assert job.flow().again == 3
    assert job.flow().teachers  # that labelled until now


@pytest.mark.parametrize("joined", [True, False])
def test_teachers_on_a_ray_of_our_own_share_processes_with_what_they_ask_for(
    tmp_path: Path, joined: bool
) -> None:
    """Ray gives those of another environment to nobody else: they would only take memory."""
    asked: list[dict[str, Any]] = []

    def options(**given: Any) -> Any:
        asked.append(given)
        return SimpleNamespace(remote=lambda settings: None)

    with made_up_cluster(1), patch.object(cluster.TeacherActor, "options", options):
        connection: Any = joining.RayConnection.open()
        connection.joined = joined
        job = cluster.Cluster(config_of(tmp_path / "l.parquet"), Drain(20.0))
        with patch.object(cluster.Cluster, "_start_teacher", START):
            job._start_teacher(None)
    (given,) = asked
    environment = {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}}
    assert given["runtime_env"] == (environment if joined else None)
