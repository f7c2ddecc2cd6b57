"""Fine-tuning: weights at another resolution, with other classes, or refused."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from pipeline.errors import CheckpointError
from pipeline.labelling.weights import FoundWeights
from student.config import parse_model_args
from student.engine import Trainer, train
from student.finetune import load_weights, read_weights, resize_position_embedding
from student.inputs import open_inputs
from student.model import StudentSpec, create_student
from student.recipes import recipe
from tests.student.factories import SMALL_VIEWS, TINY, make_identity, make_store
from tests.student.worlds import World, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), (13,))


def student(**changes: Any) -> torch.nn.Module:
    values = {
        "name": "deit_tiny_distilled_patch16_224",
        "classes": 10,
        "image_size": 32,
        "model_args": parse_model_args(TINY),
        "seed": 1,
    }
    return create_student(StudentSpec(**{**values, **changes}))


def weights(model: torch.nn.Module) -> FoundWeights:
    return FoundWeights(state=model.state_dict(), which="raw", has_both=False)


def positions(side: int, prefix: int = 2) -> torch.Tensor:
    torch.manual_seed(side)
    return torch.randn(1, prefix + side * side, 48)


@pytest.mark.parametrize(("old", "new"), [(14, 24), (24, 14), (8, 14)])
def test_position_embeddings_are_resized_as_by_deits_main(old: int, new: int) -> None:
    found = resize_position_embedding(positions(old), (new, new), 2)
    expected = resample_abs_pos_embed(
        positions(old), [new, new], num_prefix_tokens=2, interpolation="bicubic", antialias=False
    )
    assert torch.equal(found, expected)
    # The kernel that DeiT's call has: its coefficient is -.75 (with antialias -.5).
    at = (torch.arange(new) + 0.5) * old / new - 0.5
    field = positions(old)[0, 2:, 0].reshape(old, old)
    weights = cubic_weights(at, old)
    torch.testing.assert_close(
        found[0, 2:, 0].reshape(new, new), weights @ field @ weights.T, rtol=1e-4, atol=1e-5
    )


def cubic_weights(at: torch.Tensor, side: int) -> torch.Tensor:
    """Return (len(at), side) weights of Keys' cubic with a = -.75, edges repeated."""
    weights = torch.zeros(len(at), side)
    for row, position in enumerate(at.tolist()):
        for neighbor in range(math.floor(position) - 1, math.floor(position) + 3):
            x = abs(position - neighbor)
            if x <= 1:
                value = 1.25 * x**3 - 2.25 * x**2 + 1
            else:
                value = -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3
            weights[row, min(max(neighbor, 0), side - 1)] += value
    return weights


def test_tokens_keep_their_positions_and_a_smooth_field_its_shape() -> None:
    ramp = torch.linspace(1, 2, 16)[None, :, None].expand(1, 16, 48)
    field = torch.cat([positions(1, 1)[:, :2], ramp], dim=1)
    resized = resize_position_embedding(field, (8, 8), 2)
    assert torch.equal(resized[:, :2], field[:, :2])
    grid = resized[0, 2:, 0].reshape(8, 8)
    assert (grid[1:] > grid[:-1]).all()


def test_weights_of_one_size_and_classes_are_taken_over_bit_for_bit() -> None:
    source, target = student(seed=3), student()
    loaded = load_weights(target, weights(source), "x")
    assert (loaded.resized, loaded.new) == ((), ())
    for name, weight in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], weight)


def test_as_many_classes_with_other_names_begin_with_new_heads() -> None:
    names = tuple("abcdefghij")
    found = replace(weights(student(seed=3)), class_names=names)
    heads = {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    for own, new in ((names, set()), (None, set()), (names[::-1], heads), (names[:9], heads)):
        target = student()
        before = target.state_dict()["head.weight"].clone()
        loaded = load_weights(target, found, "x", own)
        assert set(loaded.new) == new
        assert torch.equal(before, target.state_dict()["head.weight"]) == bool(new)
    assert load_weights(student(), weights(student(seed=3)), "x", names).new == ()


def test_other_classes_begin_with_new_heads_and_other_sizes_with_resized_positions() -> None:
    source, target = student(seed=3), student(classes=7, image_size=48)
    before = target.state_dict()["head.weight"].clone()
    loaded = load_weights(target, weights(source), "x")
    assert loaded.resized == ("pos_embed",)
    assert set(loaded.new) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert torch.equal(target.state_dict()["head.weight"], before)
    assert target.state_dict()["pos_embed"].shape == (1, 2 + 36, 48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_args": {**parse_model_args(TINY), "depth": 3}}, "blocks.2.* no weight"),
        ({"model_args": {**parse_model_args(TINY), "depth": 1}}, "blocks.1.* is missing"),
        ({"model_args": {**parse_model_args(TINY), "embed_dim": 24}}, "has shape"),
    ],
)
def test_weights_of_another_student_are_refused(changes, message) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_weights(student(), weights(student(**changes)), "x")


@pytest.mark.parametrize("distilled", ["student", "checkpoint"])
def test_a_token_that_one_side_lacks_is_named(distilled: str) -> None:
    both, one = student(), student(name="deit_tiny_patch16_224", heads=1)
    target, source = (both, one) if distilled == "student" else (one, both)
    lacking = "checkpoint" if distilled == "student" else "student"
    with pytest.raises(CheckpointError, match=f"the {lacking} has no distillation token"):
        load_weights(target, weights(source), "x")


def test_a_run_fine_tunes_a_checkpoint_at_another_size(world, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO, "student")
    first = world.config(tmp_path / "first", ema_decay=0.5)
    train(first, open_inputs(first))
    for which in ("raw", "ema"):
        config = world.config(
            tmp_path / which,
            finetune=tmp_path / "first" / "last.pt",
            finetune_weights=which,
            student_size=48,
            seed=5,
        )
        trainer = Trainer(config, open_inputs(config))
        saved = torch.load(tmp_path / "first" / "last.pt", weights_only=True)
        source = saved["model" if which == "raw" else "ema"]
        name = "blocks.0.attn.qkv.weight"
        assert torch.equal(trainer.model.state_dict()[name], source[name])
        assert trainer.run().steps == 3
        assert "last.pt; resized: pos_embed; new: none" in caplog.text
        caplog.clear()


def test_the_recipe_fine_tunes_on_a_store_that_was_labelled_larger(world, tmp_path, capsys) -> None:
    first = world.config(tmp_path / "first")
    train(first, open_inputs(first))
    larger = replace(SMALL_VIEWS, image_size=48)
    shards = sorted(world.root.glob("digits-*.tar"))
    store = tmp_path / "larger.parquet"
    make_store(store, shards, identity=make_identity(augment=larger), views=3)
    changes = {**recipe("deit-384"), "epochs": 3, "batch_size": 12, "warmup_epochs": 1.0}
    config = world.config(
        tmp_path / "second",
        **{**changes, "labels": str(store), "image_size": 48},
        finetune=tmp_path / "first" / "last.pt",
    )
    trainer = Trainer(config, open_inputs(config))
    assert trainer.loaded is not None
    assert (trainer.loaded.resized, trainer.loaded.new) == (("pos_embed",), ())
    seen: set[torch.Size] = set()
    trainer.model.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].shape))
    assert trainer.run().steps == 3
    assert seen == {torch.Size((12, 3, 48, 48))}
    rates = [group["lr"] for group in trainer.optimization.optimizer.param_groups]
    assert rates == [5e-6] * len(rates)


def test_a_fine_tuned_run_resumes_from_its_own_weights(world: World, tmp_path: Path) -> None:
    first = world.config(tmp_path / "first")
    train(first, open_inputs(first))
    changes = {"finetune": tmp_path / "first" / "last.pt", "seed": 5}
    straight = world.config(tmp_path / "straight", **changes)
    expected = train(straight, open_inputs(straight)).weights
    stopped = world.config(tmp_path / "stopped", **changes)
    train(stopped, open_inputs(stopped), stop_after=1)
    resumed = world.config(tmp_path / "stopped", resume="auto", **changes)
    assert train(resumed, open_inputs(resumed)).weights == expected


def test_weights_are_read_from_files_of_three_kinds(tmp_path: Path) -> None:
    state = student().state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(
        {"model": {f"module.{name}": one for name, one in state.items()}}, tmp_path / "w.pth"
    )
    torch.save({"model": {}, "ema": state}, tmp_path / "w.pt")
    for name, which in (("w.safetensors", "raw"), ("w.pth", "raw"), ("w.pt", "ema")):
        assert set(read_weights(tmp_path / name, which).state) == set(state)
    with pytest.raises(CheckpointError, match="no averaged weights"):
        read_weights(tmp_path / "w.safetensors", "ema")
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    for name, message in (("bad.pt", "cannot be read"), ("none.pt", "does not exist")):
        with pytest.raises(CheckpointError, match=message):
            read_weights(tmp_path / name)


@pytest.mark.parametrize("train_mode", [True, False])
def test_a_student_in_evaluation_mode_trains_without_drop_path(world, tmp_path, train_mode) -> None:
    config = world.config(
        tmp_path / "run", train_mode=train_mode, drop_path=0.9, val_shards=config_shards(world)
    )
    trainer = Trainer(config, open_inputs(config))
    outputs: list[torch.Tensor] = []

    def again(model: torch.nn.Module, images: Any, output: Any) -> None:
        if torch.is_grad_enabled() and len(outputs) < 2 * trainer.step + 1:
            outputs.append(output[0].detach())
            outputs.append(model(*images)[0].detach())

    trainer.model.register_forward_hook(again)
    before = {name: one.clone() for name, one in trainer.model.named_parameters()}
    trainer.run()
    alike = [torch.equal(*outputs[at : at + 2]) for at in range(0, len(outputs), 2)]
    assert len(alike) == trainer.step  # evaluations in between left the mode alone
    assert all(alike) if not train_mode else not any(alike)
    after = dict(trainer.model.named_parameters())
    heads = ("head.weight", "head_dist.weight", "blocks.0.attn.qkv.weight")
    assert all(not torch.equal(before[name], after[name]) for name in heads)


def config_shards(world: World) -> tuple[str, ...]:
    return (str(world.root / "digits-0.tar"),)
