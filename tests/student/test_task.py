"""Library use: the task's loss is the trainer's and timm's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm.data.mixup import one_hot
from timm.loss import SoftTargetCrossEntropy
from timm.task import TokenDistillationTask
from torch.utils.data import DataLoader

from pipeline.identity import MixConfig
from pipeline.labelling.teacher import load_teacher
from student import HardLoss, PlanConfig, StoredLabelTask, open_replay
from student.batches import mixed_images, mixed_target
from student.config import parse_model_args
from student.distributed import Ranks
from student.engine import Trainer
from student.inputs import open_inputs
from tests.student.factories import (
    SMALL_VIEWS,
    TINY,
    make_identity,
    make_store,
    write_digit_shards,
    write_digit_teacher,
)
from tests.student.worlds import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    spec = write_digit_teacher(root / "teacher.safetensors")
    teacher = load_teacher(spec, SMALL_VIEWS, MixConfig(), torch.device("cpu"))
    identity = replace(make_identity(), teacher=teacher.identity)
    paths = write_digit_shards(root, [14, 11])
    make_store(root / "labels.parquet", paths, identity=identity, teacher=teacher, views=3)
    return World(root)


def tiny_model() -> torch.nn.Module:
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        num_classes=10,
        img_size=32,
        **parse_model_args(TINY),
    )
    assert isinstance(model, torch.nn.Module)
    return model


def batches(world: World) -> DataLoader:  # type: ignore[type-arg]
    plan = PlanConfig(seed=0, batch_size=12, epochs=3)
    shards = [str(world.root / "digits-*.tar")]
    return DataLoader(open_replay(world.root / "labels.parquet", shards, plan), batch_size=None)


def test_the_tasks_loss_is_that_of_timms_task_with_the_teacher_itself(world: World) -> None:
    model = tiny_model().eval()
    for module in model.modules():
        if hasattr(module, "distilled_training"):
            module.training = True  # both heads, no noise
    spec = write_digit_teacher(world.root / "again.safetensors")
    teacher = timm.create_model(spec.architecture, num_classes=10)
    teacher.load_state_dict(load_teacher_state(world.root / "teacher.safetensors"))
    ours = StoredLabelTask(model, SMALL_VIEWS, HardLoss(alpha=0.4), smoothing=0.0)
    theirs = TokenDistillationTask(
        student_model=model,
        teacher_model=teacher,
        criterion=SoftTargetCrossEntropy(),
        distill_type="hard",
        task_loss_weight=0.6,
        verbose=False,
    )
    theirs.student_mean, theirs.student_std = theirs.teacher.mean_kd, theirs.teacher.std_kd
    for batch in batches(world):
        device = torch.device("cpu")
        truth = mixed_target(batch, device)
        dense = truth.lam[:, None] * one_hot(truth.target, 10)
        dense = dense + (1 - truth.lam[:, None]) * one_hot(truth.partner_target, 10)
        with torch.no_grad():
            found = ours(batch)
            expected = theirs(mixed_images(batch, SMALL_VIEWS, device), dense)
        for name in ("loss", "task_loss", "distill_loss"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def load_teacher_state(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_the_tasks_loss_and_gradient_are_the_trainers(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path / "run", drop_path=0.0)
    trainer = Trainer(config, open_inputs(config), Ranks())
    model = tiny_model()
    model.load_state_dict(trainer.model.state_dict())
    StoredLabelTask(model, SMALL_VIEWS)(next(iter(batches(world))))["loss"].backward()
    trainer.run(stop_after=1)
    for one, other in zip(model.parameters(), trainer.model.parameters(), strict=True):
        assert one.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_a_batch_moves_as_a_whole_for_loops_that_move_batches(world: World) -> None:
    batch = next(iter(batches(world)))
    moved = batch.to("meta")
    assert moved.pixels.device.type == moved.label.device.type == "meta"
    assert moved.keys == batch.keys
    assert moved.topk_label is None


def test_a_compiled_task_keeps_the_students_names(world: World) -> None:
    model = tiny_model()
    names = set(model.state_dict())
    task = StoredLabelTask(model, SMALL_VIEWS)
    task.compile(backend="eager")
    assert task(next(iter(batches(world))))["loss"].isfinite()
    assert set(task.get_checkpoint_state()["state_dict"]) == names


def test_the_task_works_where_the_student_was_moved(world: World) -> None:
    model = tiny_model()
    task = StoredLabelTask(model, SMALL_VIEWS)
    model.to("meta")  # without telling the task
    seen: list[str] = []
    model.register_forward_pre_hook(lambda _, images: seen.append(images[0].device.type))
    task(next(iter(batches(world))))
    assert seen == ["meta"]
