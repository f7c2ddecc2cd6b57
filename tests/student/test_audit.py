"""The audit before training: digests of all shards, whatever the plan would meet first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ReplayError
from pipeline.store import ParquetStore
from student import audit
from student.audit import audit_store
from student.config import TrainConfig
from student.distributed import Ranks
from student.engine import train
from student.inputs import open_inputs
from student.loading import LoaderOptions
from student.replay import ReplayDataset
from tests.student.worlds import World, make_world

SIZES = (34, 7, 16)
VIEWS = 15
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), SIZES, views=VIEWS)


def data(world: World, tmp_path: Path) -> ReplayDataset:
    inputs = open_inputs(world.config(tmp_path / "run"))
    return ReplayDataset(inputs.store, inputs.shards, inputs.plan)


def drifted(dataset: ReplayDataset, shard: int) -> ReplayDataset:
    """Let every digest of one shard be another."""
    original = dataset.store.read_view

    class Drifted(ParquetStore):
        def read_view(self, number: int, view: int) -> Any:
            stored = original(number, view)
            return replace(stored, digest=stored.digest ^ np.uint32(number == shard))

    dataset.store = Drifted(dataset.store.root, dataset.store.manifest)
    return dataset


def test_stored_digests_of_every_shard_are_redrawn(world, tmp_path, monkeypatch) -> None:
    dataset = data(world, tmp_path)
    seen: set[int] = set()
    original = dataset.replay

    def replay(rows: Any, step: int = 0) -> Any:
        seen.update(rows.shard.tolist())
        return original(rows, step)

    monkeypatch.setattr(dataset, "replay", replay)
    assert audit_store(dataset, LoaderOptions(), Ranks(), CPU) >= len(SIZES)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("shard", [0, 1, 2])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_digest_that_differs_in_any_shard_is_found(world, tmp_path, shard, workers) -> None:
    dataset = drifted(data(world, tmp_path), shard)
    with pytest.raises(ReplayError, match=r"has digest.*verify the store with its shards"):
        audit_store(dataset, LoaderOptions(workers=workers), Ranks(), CPU)


def test_ranks_share_the_audit(world, tmp_path) -> None:
    whole = audit_store(data(world, tmp_path), LoaderOptions(), Ranks(), CPU)
    shares = [
        audit_store(data(world, tmp_path), LoaderOptions(), Ranks(rank=rank, ranks=2), CPU)
        for rank in range(2)
    ]
    assert sum(shares) == whole


def test_of_many_shards_a_spread_is_looked_at(world, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(audit, "DIGESTS", 2)
    with pytest.raises(ReplayError):
        audit_store(drifted(data(world, tmp_path), 2), LoaderOptions(), Ranks(), CPU)
    audit_store(drifted(data(world, tmp_path), 1), LoaderOptions(), Ranks(), CPU)


def test_of_shards_that_would_be_fetched_fewer_are_looked_at(world, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(audit, "_FETCHED_SHARDS", 2)
    monkeypatch.setattr(audit, "RemoteShard", Path)
    with pytest.raises(ReplayError):
        audit_store(drifted(data(world, tmp_path), 2), LoaderOptions(), Ranks(), CPU)
    audit_store(drifted(data(world, tmp_path), 1), LoaderOptions(), Ranks(), CPU)


def test_a_run_of_one_step_finds_what_only_late_epochs_would_meet(
    world, tmp_path, monkeypatch
) -> None:
    config: TrainConfig = world.config(tmp_path / "run", epochs=VIEWS)
    inputs = open_inputs(config)
    original = type(inputs.store).read_view

    def read_view(self: Any, shard: int, view: int) -> Any:
        stored = original(self, shard, view)
        return replace(stored, digest=stored.digest ^ np.uint32(view >= 10))

    monkeypatch.setattr(type(inputs.store), "read_view", read_view)
    with pytest.raises(ReplayError, match=r"view 1[0-4] of"):
        train(config, inputs, stop_after=1)
    assert not (tmp_path / "run" / "last.pt").exists()
    unaudited = world.config(tmp_path / "unaudited", epochs=VIEWS, audit=False)
    assert train(unaudited, inputs, stop_after=1).audited == 0
