"""Kinds of distillation and of students, each trained from the store and in the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import ColumnConfig, MixConfig
from pipeline.errors import ConfigError, StoreError
from pipeline.teacher import load_teacher
from student.engine import Outcome, Trainer, train
from student.inputs import open_inputs
from tests.student.factories import (
    SMALL_VIEWS,
    make_identity,
    make_store,
    write_digit_shards,
    write_digit_teacher,
)
from tests.student.worlds import World, make_world, run_ranks

ONE_HEAD = {"model": "deit_tiny_patch16_224", "distillation_kind": "classical"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A store with the top three of a real teacher."""
    root = tmp_path_factory.mktemp("world")
    spec = write_digit_teacher(root / "teacher.safetensors")
    columns = ColumnConfig(topk=3)
    spec = replace(spec, columns=columns)
    teacher = load_teacher(spec, SMALL_VIEWS, MixConfig(), torch.device("cpu"))
    identity = replace(make_identity(), teacher=teacher.identity, columns=columns)
    paths = write_digit_shards(root, [14, 11])
    make_store(root / "labels.parquet", paths, identity=identity, teacher=teacher, views=3)
    return World(root)


def run(world: World, output: Path, **changes: Any) -> Outcome:
    config = world.config(output, batch_size=8, **changes)
    return train(config, open_inputs(config))


@pytest.mark.parametrize(
    "changes",
    [
        {"distillation": "soft"},
        {"distillation": "soft", **ONE_HEAD},
        ONE_HEAD,
        {"model": "resnet10t", "model_args": (), "distillation_kind": "classical"},
        {"student_size": 48},
        {"accumulate": 2, "ema_decay": 0.9},
    ],
)
def test_each_kind_from_the_store_equals_that_with_the_teacher_in_the_loop(
    world: World, tmp_path: Path, changes: dict[str, Any]
) -> None:
    changes = {"drop_path": 0.0, **changes}
    offline = run(world, tmp_path / "offline", **changes)
    loop = {"teacher_in_loop": True, "teacher_checkpoint": world.root / "teacher.safetensors"}
    online = run(world, tmp_path / "online", **changes, **loop)
    assert offline.weights == online.weights


def test_two_ranks_from_the_store_equal_two_ranks_with_the_teacher_in_the_loop(
    world: World, tmp_path: Path
) -> None:
    changes = {"batch_size": 8, "accumulate": 2}
    loop = {"teacher_in_loop": True, "teacher_checkpoint": world.root / "teacher.safetensors"}
    offline = run_ranks(world.config(tmp_path / "offline", **changes), 2)
    online = run_ranks(world.config(tmp_path / "online", **changes, **loop), 2)
    assert {one.outcome.weights for one in (*offline, *online)} == {offline[0].outcome.weights}


def test_kinds_give_different_weights(world: World, tmp_path: Path) -> None:
    kinds = ("hard", "soft", "none")
    weights = {run(world, tmp_path / kind, distillation=kind).weights for kind in kinds}
    assert len(weights) == 3


def test_without_distillation_the_distillation_head_stays_as_it_was_drawn(world, tmp_path) -> None:
    config = world.config(tmp_path / "run", distillation="none")
    trainer = Trainer(config, open_inputs(config))
    before = trainer.model.head_dist.weight.clone()
    trainer.run()
    assert torch.equal(trainer.model.head_dist.weight, before)


def test_soft_labels_are_refused_before_anything_is_written_where_the_store_has_none(
    tmp_path: Path,
) -> None:
    plain = make_world(tmp_path, (13,))
    with pytest.raises(StoreError, match=r"no top-k.*--store topk=10.*--distillation hard"):
        run(plain, tmp_path / "run", distillation="soft")
    assert not (tmp_path / "run").exists()


def test_a_student_of_another_size_sees_the_teachers_views_resized(world, tmp_path) -> None:
    config = world.config(tmp_path / "run", student_size=48)
    trainer = Trainer(config, open_inputs(config))
    seen = []
    trainer.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    trainer.run(stop_after=1)
    assert seen == [(12, 3, 48, 48)]
    with pytest.raises(ConfigError, match="built for images of 40"):
        run(world, tmp_path / "odd", student_size=40, model_args=("patch_size=16",))
