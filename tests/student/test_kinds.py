"""Kinds of distillation and of students, each trained from the store and in the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import ConfigError, StoreError
from pipeline.identity import ColumnConfig, MixConfig
from pipeline.labelling.teacher import TeacherSpec, load_teacher
from student.config import EvaluateConfig
from student.engine import Outcome, Trainer, train
from student.evaluation.report import evaluate_checkpoint
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
    """A store with the top five of a real teacher."""
    root = tmp_path_factory.mktemp("world")
    spec = write_digit_teacher(root / "teacher.safetensors")
    columns = ColumnConfig(topk=5)
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


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("hard", {"alpha": 0.3}),
        ("hard", {"smoothing": 0.3}),
        ("soft", {"soft_lambda": 0.3}),
        ("soft", {"tau": 1.5}),
        ("soft", {"smoothing": 0.3}),
        ("none", {"smoothing": 0.3}),
    ],
)
def test_every_flag_of_a_loss_reaches_it(world, tmp_path, kind, changes) -> None:
    config = world.config(tmp_path / "run", distillation=kind, **changes)
    plain = world.config(tmp_path / "plain", distillation=kind)
    first, second = (train(one, open_inputs(one), stop_after=1) for one in (config, plain))
    assert first.weights != second.weights


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
    with pytest.raises(StoreError, match=r"holds no topk.* and keep topk=10.*another loss"):
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


def test_data_that_share_nothing_with_imagenet_train_and_evaluate_as_they_are(tmp_path) -> None:
    """13 classes, 48 pixels, other means, images of 8 pixels: from the store and in the loop."""
    augment = replace(SMALL_VIEWS, image_size=48, mean=(0.3, 0.4, 0.5), std=(0.5, 0.6, 0.7))
    spec = TeacherSpec(architecture="test_resnet", random_weights=3, num_classes=13)
    teacher = load_teacher(spec, augment, MixConfig(), torch.device("cpu"))
    identity = replace(make_identity(augment=augment), teacher=teacher.identity)
    paths = write_digit_shards(tmp_path, [14, 11])
    make_store(tmp_path / "labels.parquet", paths, identity=identity, teacher=teacher, views=3)
    write_digit_shards(tmp_path / "validation", [9])
    shards = {"val_shards": (str(tmp_path / "validation" / "*.tar"),)}
    world = World(tmp_path)
    offline = run(world, tmp_path / "offline", **shards)
    online = run(world, tmp_path / "online", teacher_in_loop=True, teacher_random_weights=3)
    assert offline.weights == online.weights
    saved = torch.load(tmp_path / "offline" / "last.pt", weights_only=True)
    assert saved["model"]["head.weight"].shape[0] == 13
    views = saved["student"]["views"]
    assert (views["image_size"], views["mean"], views["std"]) == (
        48,
        list(augment.mean),
        list(augment.std),
    )
    alone = EvaluateConfig(
        checkpoint=tmp_path / "offline" / "last.pt", **shards, workers=0, threads=1, device="cpu"
    )
    found = evaluate_checkpoint(alone).evaluations["raw"]
    assert offline.evaluation is not None
    assert found.mean_of_logits == offline.evaluation.mean_of_logits
