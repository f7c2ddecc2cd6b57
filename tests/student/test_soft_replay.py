"""The top classes reach the student's batches, row by row, as the teacher gave them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.columns import LOG_STEPS
from pipeline.identity import ColumnConfig, StoreIdentity
from pipeline.store import ParquetStore
from student.loading import LoaderOptions
from student.order import PlanConfig, TrainingPlan
from student.replay import ReplayDataset, replay_loader
from tests.labelling import digit_shard, hash_identity, write_hash_store
from tests.student.factories import assert_fits

VIEWS = 4


def make_dataset(folder: Path, identity: StoreIdentity) -> tuple[ParquetStore, ReplayDataset]:
    shard = digit_shard(folder / "a.tar", 21, broken=(6,))
    store = write_hash_store(
        folder / "s.parquet", [shard], views=VIEWS, per_part=3, identity=identity
    )
    plan = TrainingPlan(store.manifest, PlanConfig(seed=1, batch_size=10, epochs=VIEWS))
    return store, ReplayDataset(store, {0: shard}, plan)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_the_stored_top_classes_of_each_row(tmp_path: Path, workers: int) -> None:
    identity = hash_identity(columns=ColumnConfig(topk=3))
    store, dataset = make_dataset(tmp_path, identity)
    seen = 0
    for batch in replay_loader(dataset, 0, len(dataset), LoaderOptions(workers=workers)):
        assert batch.topk_label is not None
        assert batch.topk_logprob is not None
        assert batch.topk_rest is not None
        assert batch.topk_label.dtype == torch.int64
        assert batch.topk_logprob.dtype == batch.topk_rest.dtype == torch.float32
        assert_fits(batch, dataset.item_bytes)
        for row in range(10):
            stored = store.read_view(0, int(batch.view[row]))
            position = batch.sample[row]
            assert batch.topk_label[row].tolist() == stored.columns["topk_label"][position].tolist()
            assert (
                batch.topk_logprob[row].mul(-LOG_STEPS).tolist()
                == stored.columns["topk_logprob"][position].tolist()
            )
            rest = stored.columns["topk_rest"][position]
            assert float(batch.topk_rest[row]) == -float(rest) / LOG_STEPS
            seen += 1
        assert torch.equal(batch.topk_label[:, 0], batch.label)
    assert seen == 20 * VIEWS


def test_batches_of_a_store_without_them_have_none(tmp_path: Path) -> None:
    _, dataset = make_dataset(tmp_path, hash_identity(columns=ColumnConfig(confidence=True)))
    batch = dataset[0]
    assert batch.topk_label is None
    assert batch.topk_logprob is None
    assert batch.topk_rest is None
    stored = [
        dataset.store.read_view(0, int(view)).columns["confidence"][sample]
        for view, sample in zip(batch.view, batch.sample, strict=True)
    ]
    assert batch.confidence is not None
    assert batch.confidence.mul(255).round().int().tolist() == stored
    (tmp_path / "plain").mkdir()
    _, plain = make_dataset(tmp_path / "plain", hash_identity())
    assert plain[0].confidence is None
    assert np.unique(batch.label).size > 1
