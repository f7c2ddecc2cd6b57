"""The driver's side of a job on Ray, with made-up teachers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from benchmarks.driver import Actor, config_of, made_up_cluster, made_up_shards, plan_of
from jobs import cluster, joining
from jobs.draining import Drain
from jobs.sizing import STORE_SHARE, Machine

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


def test_a_node_that_will_have_a_teacher_is_told_from_one_that_only_augments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any teacher is placed: each of these machines will have one, and the head none."""
    said: list[str] = []
    config = replace(config_of(tmp_path / "l.parquet"), device="cpu")
    machines = {
        "head": Machine(cpus=1, gpus=0, store_bytes=80e6, is_head=True),
        "small": Machine(cpus=1, gpus=0, store_bytes=80e6),
        "large": Machine(cpus=1, gpus=0, store_bytes=9e9),
    }
    with made_up_cluster(1):
        state = joining.ClusterState(resources={}, machines=machines)
        monkeypatch.setattr(joining, "state_now", lambda: state)
        monkeypatch.setattr(cluster._log, "warning", said.append)
        cluster.Cluster(config, Drain(20.0))
    assert said[-1].startswith("Ray's shared memory on node small is 80 MB: there")


@pytest.mark.parametrize("store", [100e6, 300e9])
def test_shared_memory_that_is_too_small_is_said_once_with_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: float
) -> None:
    said: list[str] = []
    config = config_of(tmp_path / "l.parquet")
    plan = plan_of(config, made_up_shards(2))
    with made_up_cluster(16, store):
        monkeypatch.setattr(cluster._log, "warning", said.append)
        job = cluster.Cluster(config, Drain(20.0))
        assert len(list(job.label(plan))) == 6
    if store > 1e9:
        assert (said, job.flow().store_missing) == ([], 0)
        return
    (line,) = said
    assert line.startswith("Ray's shared memory on node 00000000 is 100 MB (1 more are too small)")
    wanted = 8 * 1e9 / STORE_SHARE  # a gigabyte of views for each of 8 teachers
    assert f" {wanted / 1e6:.0f} MB fit" in line or wanted * 0.9 < job.flow().store_missing < wanted


@pytest.mark.parametrize(("joined", "said"), [(False, 1), (True, 0)])
def test_a_ray_of_our_own_whose_views_do_not_fit_into_shared_memory_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: bool, said: int
) -> None:
    """A container has 64 MB unless it is given more. Of other machines' nobody here knows."""
    heard: list[str] = []
    config = config_of(tmp_path / "l.parquet")
    monkeypatch.setattr(joining, "shared_memory_bytes", lambda: 64e6)
    with made_up_cluster(8):
        monkeypatch.setattr(cluster._log, "warning", heard.append)
        connection: Any = joining.RayConnection.open()
        connection.joined = joined
        list(cluster.Cluster(config, Drain(20.0)).label(plan_of(config, made_up_shards(1))))
    assert len(heard) == said
    assert all(one.startswith("/dev/shm has 64 MB, so Ray keeps views in files") for one in heard)


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
