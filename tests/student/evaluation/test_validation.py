from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from timm.data import create_transform

from pipeline.errors import ShardError
from student.engine import train
from student.evaluation.validation import (
    ValidationDataset,
    center_views,
    require_decodable,
    validation_view,
)
from student.inputs import open_inputs
from student.loading import LoaderOptions
from tests.factories import photographs
from tests.labelling import SMALL, digit_shard
from tests.student.worlds import make_world

SHAPES = (
    (427, 640),
    (640, 427),
    (333, 333),
    (75, 500),
    (500, 75),
    (31, 40),
    (224, 256),
    (256, 224),
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "fraction"), [(224, 0.875), (224, 1.0), (96, 0.9), (65, 0.95)])
def test_the_view_that_is_evaluated_is_timms(
    shape: tuple[int, int], size: int, fraction: float
) -> None:
    height, width = shape
    theirs = create_transform(
        (3, size, size),
        is_training=False,
        interpolation="bicubic",
        crop_pct=fraction,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    views = center_views(replace(SMALL, image_size=size), fraction)
    for photograph in photographs():
        image = np.ascontiguousarray(
            Image.fromarray(photograph).resize((width, height), Image.Resampling.LANCZOS)
        )
        expected = theirs(Image.fromarray(image)).permute(1, 2, 0).numpy()
        ours = validation_view(image, views)
        assert ours.shape == (size, size, 3)
        assert_array_equal(ours, np.rint(expected * 255).astype(np.uint8))


def test_every_image_that_does_not_decode_is_named_before_the_first_step(tmp_path: Path) -> None:
    world = make_world(tmp_path, (14, 10))
    broken = (3, 4, 11, 12, 13, 17, 19)
    path = digit_shard(tmp_path / "val.tar", 20, broken=broken)
    config = world.config(tmp_path / "run", val_shards=(str(path),), eval_epochs=3)
    with pytest.raises(ShardError, match="7 validation images do not decode") as caught:
        train(config, open_inputs(config))
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 5 + 1
    for index, line in zip(broken[:5], lines[1:6], strict=True):
        assert f"validation image 'digit_{index:04d}' does not decode" in line
    assert lines[-1] == "  and 2 more"
    assert not list((tmp_path / "run").glob("*.pt"))


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_all_decode_are_good(tmp_path: Path, workers: int) -> None:
    path = digit_shard(tmp_path / "val.tar", 20)
    dataset = ValidationDataset([path], center_views(SMALL, 1.0), classes=10, batch_size=8)
    require_decodable(dataset, LoaderOptions(workers=workers))
