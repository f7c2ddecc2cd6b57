"""The driver's side of a job on Ray, with made-up teachers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.driver import Actor, config_of, made_up_cluster, made_up_shards, plan_of
from jobs import cluster
from jobs.draining import Drain


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
