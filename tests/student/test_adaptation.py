"""What is done to a student before it trains: weights that rest, activations, batch norm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils import distribute_bn

from pipeline.errors import ConfigError
from student.adaptation import adapt, head_modules, parameter_count
from student.checkpoint import open_checkpoint
from student.config import StudentConfig
from student.engine import Outcome, Trainer, train
from student.evaluation.report import load_student
from student.inputs import open_inputs
from student.model import StudentSpec, create_student
from tests.student.worlds import World, make_world, run_ranks

RESNET = {"model": "test_resnet", "model_args": (), "distillation_kind": "classical"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), (14, 10))


def run(world: World, output: Path, stop_after: int | None = None, **changes: Any) -> Outcome:
    config = world.config(output, batch_size=8, **changes)
    return train(config, open_inputs(config), stop_after=stop_after)


def test_attention_heads_and_positions_alone_are_trained(world, tmp_path) -> None:
    config = world.config(tmp_path / "run", attn_only=True, weight_decay=0.5, ema_decay=0.9)
    trainer = Trainer(config, open_inputs(config))
    before = {name: one.clone() for name, one in trainer.model.state_dict().items()}
    trainer.run(stop_after=2)
    moved = {
        name for name, one in trainer.model.state_dict().items() if not one.equal(before[name])
    }
    # main.py of DeiT: attention of all blocks, the head, the position embedding.
    expected = {name for name in before if ".attn." in name or name.startswith("head")}
    assert moved == {*expected, "pos_embed"}
    assert 0 < parameter_count(trainer.model, trained=True) < parameter_count(trainer.model)


def test_a_run_says_how_large_its_student_is_and_what_memory_it_took(world, tmp_path) -> None:
    outcome = run(world, tmp_path / "run", stop_after=4, attn_only=True)
    run(world, tmp_path / "run", resume="auto", attn_only=True)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    model = load_student(tmp_path / "run" / "last.pt")
    (line,) = (one for one in lines if one["kind"] == "student")
    assert line["step"] == 0
    assert line["parameters"] == sum(one.numel() for one in model.parameters())
    assert 0 < line["trained"] < line["parameters"]
    epochs = [one["peak_memory_bytes"] for one in lines if one["kind"] == "epoch"]
    assert len(epochs) == 3
    # PyTorch alone is more than this, and no machine has as much.
    assert all(1e8 < one < 1e13 for one in (*epochs, outcome.peak_memory_bytes))


def test_a_student_without_attention_refuses_to_train_it_alone(world, tmp_path) -> None:
    with pytest.raises(ConfigError, match="`attn_only`: `model` test_resnet has no weights"):
        run(world, tmp_path / "run", attn_only=True, **RESNET)


def test_two_ranks_train_attention_alone_too(world, tmp_path) -> None:
    reports = run_ranks(world.config(tmp_path / "run", attn_only=True), 2, stop_after=2)
    assert len({one.outcome.weights for one in reports}) == 1


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}])
def test_computing_activations_again_changes_no_weight(world, tmp_path, changes) -> None:
    """Drop path included: its random numbers are drawn again."""
    validated = {"val_shards": (str(world.root / "digits-1.tar"),), "drop_path": 0.3, **changes}
    kept = run(world, tmp_path / "kept", **validated)
    config = world.config(tmp_path / "again", batch_size=8, grad_checkpointing=True, **validated)
    trainer = Trainer(config, open_inputs(config))
    passes: list[int] = []
    trainer.model.blocks[0].register_forward_pre_hook(lambda *_: passes.append(1))
    again = trainer.run()
    assert again.weights == kept.weights
    assert again.evaluation.class_head == kept.evaluation.class_head
    evaluations = 3 * 1
    # Forward once, and once more on the way back.
    assert len(passes) == 2 * again.steps + evaluations


def test_a_model_that_keeps_all_activations_is_named(world, tmp_path) -> None:
    with pytest.raises(ConfigError, match="`grad_checkpointing`: `model` tests"):
        run(
            world,
            tmp_path / "run",
            grad_checkpointing=True,
            model="tests.student.test_adaptation:plain",
            model_args=(),
            distillation_kind="classical",
        )


def plain(num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, num_classes))


def test_synchronized_batch_norm_has_the_same_weights_under_the_same_names() -> None:
    spec = StudentSpec(name="test_resnet", classes=10, image_size=32, heads=1)
    model = create_student(spec)
    state, weights = model.state_dict(), list(model.parameters())
    config = StudentConfig(model="test_resnet", sync_bn=True)
    with pytest.raises(ConfigError, match="`sync_bn` is of PyTorch's for GPUs"):
        adapt(model, config, torch.device("cpu"))
    found = adapt(model, config, torch.device("cuda"))  # nothing is moved there
    assert any(isinstance(one, torch.nn.SyncBatchNorm) for one in found.modules())
    assert list(found.state_dict()) == list(state)
    assert all(one is other for one, other in zip(found.parameters(), weights, strict=True))


def means(path: Path) -> torch.Tensor:
    return open_checkpoint(path).model["bn1.running_mean"]


def test_ranks_average_their_running_means_after_each_epoch_if_asked_to(world, tmp_path) -> None:
    first = world.config(tmp_path / "first", **RESNET, batch_size=8)
    run_ranks(first, 2)
    config = world.config(tmp_path / "mean", **RESNET, batch_size=8, dist_bn="reduce")
    run_ranks(config, 2)
    assert not torch.equal(means(tmp_path / "first" / "last.pt"), means(tmp_path / "mean/last.pt"))
    # Within an epoch they are rank 0's in either case, so a run that stops there goes on.
    run_ranks(world.config(tmp_path / "stopped", **RESNET, batch_size=8, dist_bn="reduce"), 2,
              stop_after=5)  # fmt: skip
    run_ranks(
        world.config(tmp_path / "stopped", **RESNET, batch_size=8, dist_bn="reduce", resume="auto"),
        2,
    )
    again = open_checkpoint(tmp_path / "stopped" / "last.pt").model
    for name, one in open_checkpoint(tmp_path / "mean" / "last.pt").model.items():
        assert torch.equal(one, again[name]), name


def test_the_average_of_the_means_is_timms(world, tmp_path, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr("student.distributed.dist.all_reduce", lambda *_, **__: None)

    def watched(*arguments: Any, **options: Any) -> None:
        calls.append(options)
        distribute_bn(*arguments, **options)

    monkeypatch.setattr("timm.utils.distribute_bn", watched)
    from student.distributed import Ranks

    model = torch.nn.BatchNorm2d(2)
    model.running_mean.fill_(4.0)
    Ranks(ranks=2).average_means(model)
    Ranks().average_means(model)
    assert calls == [{"reduce": True}]
    assert model.running_mean.tolist() == [2.0, 2.0]


def test_heads_are_found_by_timms_names_or_by_usual_ones() -> None:
    model = create_student(StudentSpec(name="test_resnet", classes=10, image_size=32, heads=1))
    assert [type(one).__name__ for one in head_modules(model)] == ["Linear"]
    assert list(head_modules(torch.nn.ReLU())) == []


@pytest.mark.parametrize("training", [True, False])
def test_each_step_is_in_its_mode_whatever_was_evaluated_before_it(
    world, tmp_path, training
) -> None:
    validated = {"val_shards": (str(world.root / "digits-1.tar"),), "ema_decay": 0.9}
    config = world.config(tmp_path / "run", batch_size=8, train_mode=training, **validated)
    trainer = Trainer(config, open_inputs(config))
    seen: list[set[bool]] = []

    def look(model: torch.nn.Module, _inputs: Any) -> None:
        if torch.is_grad_enabled():
            # The model's own flag decides whether both heads are given; drop path is below it.
            seen.append({one.training for one in model.modules() if one is not model})

    trainer.model.register_forward_pre_hook(look)
    trainer.run()
    assert seen == [{training}] * trainer.plan.steps
