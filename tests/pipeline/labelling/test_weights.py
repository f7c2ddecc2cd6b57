"""Weights as people have them: files of timm, torch.compile, DDP, torchvision, and what is none."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from torchvision.models import regnet_y_400mf

from pipeline.errors import TeacherError
from pipeline.identity import MixConfig
from pipeline.labelling.teacher import TeacherSpec, load_stored_teacher, load_teacher
from pipeline.labelling.weights import WeightsError, read_state, state_digest
from tests.labelling import SMALL, hash_identity, write_teacher

CPU = torch.device("cpu")
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    return load_file(write_teacher(tmp_path_factory.mktemp("teacher") / "small.safetensors"))


def teacher_of(path: Path, **changes: Any) -> Any:
    spec = TeacherSpec(**{"architecture": "regnety_002", "checkpoint": path, **changes})
    return load_teacher(spec, SMALL, MixConfig(), CPU)


def model_of(state: State) -> torch.nn.Module:
    model = timm.create_model("regnety_002", num_classes=10)
    model.load_state_dict(state)
    return model


def moved(state: State) -> State:
    return {name: one + 1 if one.is_floating_point() else one for name, one in state.items()}


def timm_checkpoint(state: State, folder: Path) -> Path:
    """Write what timm's train.py leaves: settings, optimizer, raw and averaged weights."""
    model = model_of(state)
    average = ModelEmaV3(model)
    average.module.load_state_dict(moved(state))
    args = argparse.Namespace(model="regnety_002", lr=0.1, betas=(0.9, 0.999), mixup=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    saver = CheckpointSaver(
        model, optimizer, args=args, model_ema=average, checkpoint_dir=str(folder)
    )
    saver.save_checkpoint(3, metric=71.5)
    return folder / "model_best.pth.tar"


def test_a_checkpoint_of_timms_training_gives_its_raw_or_its_averaged_weights(
    state: State, tmp_path: Path
) -> None:
    path = timm_checkpoint(state, tmp_path)
    raw, averaged = teacher_of(path), teacher_of(path, weights="ema")
    assert raw.identity.weights == state_digest(state)
    assert averaged.identity.weights == state_digest(moved(state))
    assert (raw.other_weights, averaged.other_weights) == ("ema", "raw")


@pytest.mark.parametrize("which", ["raw", "ema"])
def test_a_store_says_which_weights_of_a_checkpoint_labelled_it(
    state: State, tmp_path: Path, which: Any
) -> None:
    path = timm_checkpoint(state, tmp_path)
    identity = hash_identity(SMALL)
    identity = replace(identity, teacher=teacher_of(path, weights=which).identity)
    again = load_stored_teacher(identity, CPU, checkpoint=path, random_weights=None)
    assert again.identity == identity.teacher


def compiled(state: State) -> State:
    return dict(torch.compile(model_of(state)).state_dict())


def compiled_inside(state: State) -> State:
    model = model_of(state)
    model.s1.b1 = torch.compile(model.s1.b1)
    return dict(model.state_dict())


def averaged(state: State) -> State:
    return dict(torch.optim.swa_utils.AveragedModel(model_of(state)).state_dict())


def wrapped(*prefixes: str) -> Callable[[State], State]:
    return lambda state: {"".join(prefixes) + name: one for name, one in state.items()}


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize(
    "wrap",
    [
        compiled,
        compiled_inside,
        averaged,
        wrapped("module."),
        wrapped("module.", "_orig_mod."),
        wrapped("_orig_mod.", "module."),
        wrapped("module.", "module."),
    ],
)
def test_what_wrappers_put_into_names_is_dropped(
    state: State, tmp_path: Path, wrap: Callable[[State], State], ending: str
) -> None:
    path, names = tmp_path / f"w.{ending}", wrap(state)
    assert set(names) != set(state)
    save_file(names, path) if ending == "safetensors" else torch.save(names, path)
    assert teacher_of(path).identity.weights == state_digest(state)


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("model", "raw"),
        ("state_dict", "raw"),
        ("model_ema", "ema"),
        ("state_dict_ema", "ema"),
        ("ema", "ema"),
    ],
)
def test_weights_are_found_below_every_name_that_trainers_use(
    state: State, tmp_path: Path, name: str, which: Any
) -> None:
    torch.save({name: state, "epoch": 299, "args": argparse.Namespace(ema=1)}, tmp_path / "w.pth")
    assert teacher_of(tmp_path / "w.pth", weights=which).identity.weights == state_digest(state)
    other = {"raw": "ema", "ema": "raw"}[which]
    with pytest.raises(TeacherError, match=rf"holds no .* weights.*; use `weights` {which}"):
        teacher_of(tmp_path / "w.pth", weights=other)
    assert teacher_of(tmp_path / "w.pth", weights=None).other_weights is None


def test_torchvisions_regnets_are_translated_by_timms_own_filter(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = regnet_y_400mf(num_classes=12).eval()
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    teacher = teacher_of(tmp_path / "tv.pth", architecture="regnety_004")
    assert teacher.identity.classes == 12
    batch = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(batch)
    # Folding BatchNorm changes the order of roundings.
    torch.testing.assert_close(teacher.logits(batch), expected, rtol=1e-3, atol=1e-4)


def test_the_message_tells_a_prefix_from_another_architecture_and_from_other_classes(
    state: State, tmp_path: Path
) -> None:
    path = tmp_path / "w.pth"
    for content, changes, message in (
        (wrapped("net.backbone.")(state), {}, r"all its names begin with 'net\.backbone\.'"),
        (state, {"num_classes": 7}, "its weights have 10 classes, not 7; give `num_classes` 10"),
        (state, {"architecture": "regnety_004"}, "is of another architecture; .* `architecture`"),
        (state, {"architecture": "dla34"}, "is of another architecture; .* `architecture`"),
        (
            regnet_y_400mf(num_classes=10).state_dict(),
            {},
            "is of another architecture; .* `architecture`",
        ),
    ):
        torch.save(content, path)
        with pytest.raises(TeacherError, match=message) as caught:
            teacher_of(path, **changes)
        assert ("classes" in str(caught.value)) == ("classes" in message)


class Own:
    """A class of the user's own, whose code a file would run."""


def test_what_is_given_for_weights_and_is_none_is_called_what_it_is(
    state: State, tmp_path: Path
) -> None:
    save_file(state, tmp_path / "whole.safetensors")
    torch.save(state, tmp_path / "whole.pth")
    torch.save({"model": state, "args": Own()}, tmp_path / "object.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    torch.save({"module.a": torch.ones(1), "a": torch.ones(1)}, tmp_path / "twice.pth")
    for ending in ("safetensors", "pth"):
        whole = (tmp_path / f"whole.{ending}").read_bytes()
        (tmp_path / f"cut.{ending}").write_bytes(whole[: len(whole) // 2])
        (tmp_path / f"start.{ending}").write_bytes(whole[:20])
        (tmp_path / f"empty.{ending}").write_bytes(b"")
        (tmp_path / f"page.{ending}").write_bytes(b"<!doctype html><title>404</title>")
        lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
        (tmp_path / f"lfs.{ending}").write_bytes(lfs)
        (tmp_path / f"folder.{ending}").mkdir()
        for name, message in (
            ("cut", "is cut short"),
            ("start", "is cut short"),
            ("empty", "is empty"),
            ("page", "is a web page"),
            ("lfs", "is a pointer of Git LFS"),
            ("folder", "is a directory"),
        ):
            with pytest.raises(TeacherError, match=rf"{name}\.{ending} {message}"):
                teacher_of(tmp_path / f"{name}.{ending}")
    size = (tmp_path / "whole.safetensors").stat().st_size
    with pytest.raises(TeacherError, match=rf"is cut short: {size // 2} of {size} bytes"):
        teacher_of(tmp_path / "cut.safetensors")
    for name, message in (
        ("object", r"it holds .*test_weights\.Own, code that is not run"),
        ("list", "holds a list, no state dict"),
        ("none", "holds no state dict of tensors"),
        ("twice", "names differ by wrappers alone"),
    ):
        with pytest.raises(TeacherError, match=message):
            teacher_of(tmp_path / f"{name}.pth")


@pytest.mark.parametrize("join", [lambda one: [one, one], lambda one: {"a": one, "b": one}])
def test_a_small_file_that_unfolds_without_an_end_is_refused_at_once(
    tmp_path: Path, join: Callable[[object], object]
) -> None:
    values: object = torch.zeros(1)
    for _ in range(60):
        values = join(values)
    path = tmp_path / "weights.pth"
    torch.save({"model": {"weight": torch.zeros(2)}, "args": values}, path)
    assert path.stat().st_size < 4000
    with pytest.raises(WeightsError, match=r"cannot be read"):
        read_state(path, None, "teacher_weights")


def test_weights_of_another_model_are_refused_before_their_values_are_read(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file of a few bytes may say that it holds many gigabytes."""
    create = timm.create_model

    def built(name: str, **options: Any) -> torch.nn.Module:
        if "pretrained_cfg_overlay" in options:
            pytest.fail("timm copied all values")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", built)
    path = tmp_path / "w.safetensors"
    for content in ({"x": torch.zeros(9)}, {**state, "x": torch.zeros(9)}):
        save_file(content, path)
        with pytest.raises(TeacherError, match="is no regnety_002 as it would be built"):
            teacher_of(path)
