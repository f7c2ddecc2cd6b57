"""What a machine fetches of shards in object storage, and what it opens to learn what is where."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.files.cache import CacheConfig
from pipeline.files.local import expand_shards
from pipeline.shards import index
from pipeline.shards.index import index_bytes, match_shards
from student.evaluation.validation import ValidationDataset, center_views
from student.order import PlanConfig, TrainingPlan
from student.replay import ReplayDataset
from tests.object_storage import S3Server
from tests.student.factories import SMALL_VIEWS, make_store, write_digit_shards

SHARDS = 24
VIEWS = center_views(SMALL_VIEWS, 0.875)


def test_batches_are_made_by_the_indices_beside_shards(tmp_path: Path, monkeypatch) -> None:
    """Nothing looks through a shard for what is where, and the batches are the same."""
    paths = write_digit_shards(tmp_path, (8, 8))
    store = make_store(tmp_path / "labels.parquet", paths, views=2)
    plan = TrainingPlan(store.manifest, PlanConfig(seed=0, batch_size=8, epochs=1))
    shards = match_shards(store.manifest.shards, paths)
    validation = {"classes": 10, "batch_size": 8}
    plain = [
        ReplayDataset(store, shards, plan)[0],
        ValidationDataset(paths, VIEWS, **validation)[1],
    ]
    for path in paths:
        with path.open("rb") as file:
            Path(f"{path}.idx").write_bytes(index_bytes(file, path.name))
    monkeypatch.delattr(index, "regular_members")
    batch = ReplayDataset(store, shards, plan)[0]
    assert batch.keys == plain[0].keys
    assert torch.equal(batch.pixels, plain[0].pixels)
    shown = ValidationDataset(paths, VIEWS, **validation)[1]
    assert torch.equal(shown.pixels, plain[1].pixels)
    assert torch.equal(shown.target, plain[1].target)


def fetched(s3: S3Server) -> list[str]:
    """Return the shards that were fetched since this was asked last, once for each time."""
    names = [one.path.rpartition("/")[2] for one in s3.requests if one.method == "GET"]
    s3.requests.clear()
    return [name for name in names if name.endswith(".tar")]


def test_each_of_two_machines_fetches_about_half_of_the_bytes(s3: S3Server, tmp_path: Path) -> None:
    paths = write_digit_shards(tmp_path, (8,) * SHARDS)
    store = make_store(tmp_path / "labels.parquet", paths, views=2)
    bucket = s3.make_bucket()
    sizes = {path.name: path.stat().st_size for path in paths}
    for path in paths:
        s3.put(f"{bucket}/{path.name}", path.read_bytes())
    settings = PlanConfig(seed=0, batch_size=16, epochs=2, window_shards=2, read_shares=2)
    plan, shares = TrainingPlan(store.manifest, settings), []
    seen: set[str] = set()
    for node in range(2):
        cache = CacheConfig(directory=tmp_path / f"cache-{node}")
        given = expand_shards((f"{bucket}/digits-*.tar",), cache)
        data = ReplayDataset(
            store, match_shards(store.manifest.shards, given), plan, rank=node, ranks=2
        )
        fetched(s3)
        for epoch in range(2):
            for step in range(plan.epoch_start(epoch), plan.epoch_start(epoch + 1)):
                assert len(data[step].keys) == 8
            names = fetched(s3)
            assert len(names) == len(set(names))  # each once: the next epoch finds it in the cache
            seen |= set(names)
            shares.append(sum(sizes[name] for name in names) / sum(sizes.values()))
    assert seen == sizes.keys()
    assert max(shares) <= 1.2 / 2
    assert shares[1] == shares[3] == 0
