"""Students in other programs: timm, transformers and onnxruntime give their logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file
from torch import Tensor
from transformers import AutoModelForImageClassification

from pipeline.errors import CheckpointError, ConfigError
from pipeline.labelling.weights import tensor_file
from student.cli import export_main
from student.config import ExportConfig
from student.engine import train
from student.evaluation.report import load_saved, load_student
from student.exporting import export_student
from student.inputs import open_inputs
from student.model import heads_of, two_headed
from tests.student.worlds import World, make_world

DISTILLED = "deit_tiny_distilled_patch16_224"

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))

RUNS = {
    "two": {"ema_decay": 0.5},
    "one": {"model": "deit_tiny_patch16_224", "distillation_kind": "classical"},
    "resnet": {"model": "test_resnet", "model_args": (), "distillation_kind": "classical"},
    "own": {"model": "tests.student.test_adaptation:plain", "model_args": (),
            "distillation_kind": "classical"},
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("world"), (14,), views=1)
    for name, changes in RUNS.items():
        given = {"epochs": 1, "batch_size": 4, "lr": 0.05, **changes}
        config = world.config(world.root / name, **given)
        train(config, open_inputs(config))
    return world


def export(world: World, run: str, out: Path, to: str, **changes: Any) -> str:
    return export_student(ExportConfig(run=world.root / run, to=to, out=out, **changes)).loading


def heads(world: World, run: str, weights: Any = None) -> tuple[Tensor, ...]:
    named = RUNS[run].get("model") if run == "own" else None
    model = load_student(world.root / run / "last.pt", weights, model=named)
    with torch.no_grad(), two_headed(model):
        return heads_of(model(IMAGES))


def wanted(found: tuple[Tensor, ...], kind: str) -> Tensor:
    return found[0] if kind == "class" or len(found) == 1 else (found[0] + found[1]) / 2


def loaded(line: str) -> Any:
    """Run the line that an export gives."""
    return eval(line, {"timm": timm, "onnxruntime": onnxruntime})


@pytest.mark.parametrize("to", ["timm", "safetensors", "hub"])
@pytest.mark.parametrize(
    ("run", "kind"), [("two", "both"), ("two", "class"), ("one", "both"), ("resnet", "fused")]
)
def test_timm_loads_a_student_and_gives_its_logits(world, tmp_path, to, run, kind) -> None:
    out = tmp_path / {"timm": "x.pth", "safetensors": "x.safetensors"}.get(to, "x")
    model = loaded(export(world, run, out, to, heads=kind)).eval()
    with torch.no_grad():
        found = model(IMAGES)
    expected = wanted(heads(world, run), kind)
    assert expected.std() > 0.1  # it has learned to differ
    # Of another number of rows than the export compared: sums in another order.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert list(tmp_path.iterdir()) == [out]
    saved = load_saved(world.root / run / "last.pt", None, None, (), None)[0]
    prepared = timm.data.resolve_data_config({}, model=model)
    assert tuple(prepared["input_size"]) == (3, saved.image_size, saved.image_size)
    assert tuple(prepared["mean"]) == saved.views.mean
    assert tuple(prepared["std"]) == saved.views.std
    assert prepared["crop_pct"] == saved.views.center_fraction
    assert prepared["interpolation"] == "bicubic"


def test_the_averaged_weights_are_exported_if_asked_for(world, tmp_path) -> None:
    line = export(world, "two", tmp_path / "ema.pth", "timm", weights="ema")
    with torch.no_grad():
        found = loaded(line).eval()(IMAGES)
    for which, alike in (("ema", True), ("raw", False)):
        assert torch.allclose(found, wanted(heads(world, "two", which), "both"), 1e-5) == alike
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        export(world, "one", tmp_path / "no.pth", "timm", weights="ema")


@pytest.mark.parametrize(
    ("run", "kind"),
    [("two", "both"), ("two", "fused"), ("two", "class"), ("one", "both"), ("own", "both")],
)
def test_onnxruntime_gives_the_logits_of_any_number_of_images(world, tmp_path, run, kind) -> None:
    named = {"model": RUNS[run]["model"]} if run == "own" else {}
    out = tmp_path / "x.onnx"
    session = loaded(export(world, run, out, "onnx", heads=kind, **named))
    names = [one.name for one in session.get_outputs()]
    found = session.run(None, {"images": IMAGES.numpy()})
    expected = heads(world, run)
    if len(expected) == 2 and kind == "both":
        assert names == ["class_logits", "distillation_logits"]
    else:
        assert names == ["logits"]
        expected = (wanted(expected, kind),)
    for one, other in zip(found, expected, strict=True):
        # Another library's float32 sums.
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-3, atol=1e-4)
    (alone,) = session.run(names[:1], {"images": IMAGES[:1].numpy()})
    torch.testing.assert_close(torch.from_numpy(alone), expected[0][:1], rtol=1e-3, atol=1e-4)
    about = {one.key: json.loads(one.value) for one in onnx.load(out).metadata_props}
    assert (about["image_size"], about["mean"][0], about["crop_pct"]) == (32, 0.485, 0.875)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(("run", "name"), [("resnet", "test_resnet"), ("two", DISTILLED)])
def test_a_hub_folder_says_how_images_are_prepared_and_transformers_loads_it(
    world, tmp_path, run, name
) -> None:
    export(world, run, tmp_path / "hub", "hub")
    values = json.loads((tmp_path / "hub" / "config.json").read_text())
    shown = values["pretrained_cfg"]
    assert (values["architecture"], values["num_classes"]) == (name, 10)
    assert (shown["input_size"], shown["crop_pct"]) == ([3, 32, 32], 0.875)
    assert shown["mean"] == [0.485, 0.456, 0.406]
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "hub").eval()
    with torch.no_grad():
        found = model(IMAGES).logits
    torch.testing.assert_close(found, wanted(heads(world, run), "fused"), rtol=1e-5, atol=1e-5)


def test_safetensors_hold_the_weights_and_say_of_what(world, tmp_path) -> None:
    named = {"model": RUNS["own"]["model"]}
    export(world, "own", tmp_path / "own.safetensors", "safetensors", **named)
    state = load_student(world.root / "own" / "last.pt", **named).state_dict()
    found = load_file(tmp_path / "own.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in found)
    with safe_open(tmp_path / "own.safetensors", "pt") as file:
        about = {name: json.loads(text) for name, text in file.metadata().items()}
    assert (about["arch"], about["num_classes"]) == (RUNS["own"]["model"], 10)


def test_the_same_tensors_give_the_same_file() -> None:
    """Of safetensors alone the order of the header is another each time."""
    about = {"a": 1, "caf\xe9": [0.5, "\x07"], "b": {"c": None}, "d": "", "e": True}
    tensors = {"x": torch.arange(6).view(2, 3).T, "y": torch.ones(5, dtype=torch.bfloat16)}
    files = {tensor_file(tensors, about) for _ in range(9)}
    assert len(files) == 1
    found = load(files.pop())
    assert {name: one.tolist() for name, one in found.items()} == {
        name: one.tolist() for name, one in tensors.items()
    }


@pytest.mark.parametrize(
    ("run", "to", "changes", "message"),
    [
        ("own", "timm", {}, "is code to run"),
        ("own", "hub", {"model": RUNS["own"]["model"]}, "which timm does not have"),
        ("nothing", "timm", {}, "nothing"),
    ],
)
def test_what_cannot_be_exported_is_one_error_and_leaves_nothing(
    world, tmp_path, run, to, changes, message
) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=message):
        export(world, run, tmp_path / "x", to, **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "name", "message"),
    [
        ("timm", "x.safetensors", "not end in .safetensors, by which timm knows that format"),
        ("hub", "x.safetensors", "let it not end in .safetensors"),
        ("safetensors", "x.pth", "let it end in .safetensors"),
        ("safetensors", "x", "let it end in .safetensors"),
    ],
)
def test_a_name_that_says_another_format_is_refused_before_anything_is_read(
    tmp_path, to, name, message
) -> None:
    """timm reads a file by its name's end."""
    with pytest.raises(ConfigError, match=rf"`out` is .*{name}; .*{message}"):
        ExportConfig(run=str(tmp_path / "none"), to=to, out=tmp_path / name)


def test_the_command_exports_the_best_weights_and_writes_over_nothing(
    world, tmp_path, capsys
) -> None:
    out = tmp_path / "x.pth"
    export_main([str(world.root / "two"), "--to", "timm", "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    source = world.root / "two" / "last.pt"
    assert lines[0] == f"{out} is written, of {source}, raw weights; to load it:"
    assert isinstance(loaded(lines[1]), torch.nn.Module)
    with pytest.raises(SystemExit):
        export_main([str(world.root / "two"), "--to", "timm", "--out", str(out)])
    assert f"error: --out {out} is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "reason"),
    [("caf\udce9.safetensors", "is not UTF-8"), ("s3://bucket/x.safetensors", "is a URL")],
)
def test_where_nothing_can_be_written_is_said_in_a_line(
    world, tmp_path, capsys, monkeypatch, name, reason
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        export_main([str(world.root / "two"), "--to", "safetensors", "--out", name])
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
