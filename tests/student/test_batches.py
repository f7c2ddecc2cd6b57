"""What the loss is told of a mixed image is what is in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.records import MixKind
from student.batches import mixed_images, mixed_target
from student.order import PlanConfig, TrainingPlan
from student.replay import ReplayDataset, StudentBatch
from tests.student.factories import SMALL_VIEWS, make_store, write_digit_shards

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[StudentBatch]:
    root: Path = tmp_path_factory.mktemp("batches")
    paths = write_digit_shards(root, (17, 12))
    store = make_store(root / "labels.parquet", paths, views=6)
    plan = TrainingPlan(store.manifest, PlanConfig(batch_size=12, epochs=6))
    dataset = ReplayDataset(store, dict(enumerate(paths)), plan)
    return [dataset[step] for step in range(len(dataset))]


def test_the_true_classes_of_a_mixed_image_have_the_shares_of_their_pixels(batches) -> None:
    """Images of which each pixel is the number of the class: then their mean is the truth's."""
    plain = replace(SMALL_VIEWS, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)
    kinds = set()
    for batch in batches:
        pixels = batch.target.to(torch.uint8)[:, None, None, None].expand(batch.pixels.shape)
        batch = replace(batch, pixels=pixels.contiguous())
        truth = mixed_target(batch, CPU, smoothing=0.1)
        told = truth.lam * truth.target + (1 - truth.lam) * truth.partner_target
        seen = mixed_images(batch, plain, CPU).mean(dim=(1, 2, 3))
        # Shares are stored in steps of 2**-16, of classes up to 9.
        torch.testing.assert_close(told, seen, rtol=0, atol=9 * 2**-16 + 1e-5)
        told_apart = truth.target != truth.partner_target
        assert ((truth.lam - 0.5).abs() > 0.01)[told_apart].any()  # else the order is nothing
        kinds |= set(batch.mix.kind[told_apart.numpy()].tolist())
    assert {MixKind.MIXUP.code, MixKind.CUTMIX.code} <= kinds
    assert truth.smoothing == 0.1
