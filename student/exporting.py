"""Hands a trained student to other programs: timm, Hugging Face's hub, ONNX."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, PipelineError
from pipeline.files.local import writing
from pipeline.labelling.weights import tensor_file
from student.checkpoint import SavedStudent
from student.config import ExportConfig, parse_model_args
from student.evaluation.report import load_saved
from student.model import heads_of, set_mode, two_headed
from student.output import checkpoint_of

__all__ = ["Exported", "export_student"]

_DISTILLED, _IMAGES = "_distilled", 2
_PREPARED = ("mean", "std", "crop_pct", "interpolation")  # what timm calls how images are made


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written, and how it is loaded."""

    source: str
    which: str  # of the checkpoint's weights: raw, or ema for averaged ones
    out: Path
    loading: str  # a line of Python


@dataclass(frozen=True, slots=True, kw_only=True)
class _Student:
    """A student as it is exported."""

    model: nn.Module
    saved: SavedStudent
    architecture: str  # timm's name, or that of the user's own code
    arguments: Mapping[str, Any]  # of ``timm.create_model``, beside classes


def export_student(config: ExportConfig) -> Exported:
    """Write a run's student for another program, which loads it without this package.

    What timm can load is loaded by it before the file gets its name, and must give the student's
    own logits. Raises ``ConfigError`` for what the format or the model cannot do, or if ``out`` is
    there, ``CheckpointError`` as ``load_student``.
    """
    source = checkpoint_of(config.run)
    if config.out.exists():
        raise ConfigError(f"`out` {config.out} is there already; give another path, or delete it")
    if str(config.out).encode(errors="replace").decode() != str(config.out):
        raise ConfigError(
            f"`out` {config.out}: the name is not UTF-8, which programs for weights want; give "
            "another path"
        )
    saved, model, which = load_saved(
        source, config.weights, config.model, config.model_args, config.image_size
    )
    student = _Student(
        model=model,
        saved=saved,
        architecture=saved.model,
        arguments=_arguments_of(saved),
    )
    if config.heads == "class" and config.to != "onnx" and _head_count(student) == 2:
        student = _with_the_class_head_alone(student)
    with _aside(config.out) as path:
        loading = _WRITERS[config.to](student, path, config)
    return Exported(source=source, which=which, out=config.out, loading=loading)


def _arguments_of(saved: SavedStudent) -> Mapping[str, Any]:
    """Return what timm builds the student with, beside its classes."""
    given = parse_model_args(saved.model_args)
    if not timm.is_model(saved.model):
        return given
    sized = {"img_size": saved.image_size, **given}
    try:
        timm.create_model(saved.model, num_classes=saved.classes, **sized)
    except TypeError as error:
        if "'img_size'" not in str(error):
            raise
        return given  # a model for images of any size
    return sized


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """Give a path of which the file or directory is renamed to ``out`` once it is whole."""
    aside = out.with_name(f".{out.stem}.{os.getpid()}{out.suffix}")
    try:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            aside.rename(out)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)


def _head_count(student: _Student) -> int:
    with torch.inference_mode(), two_headed(student.model):
        return len(heads_of(student.model(_images(student))))


def _images(student: _Student) -> Tensor:
    """Return images that are neither alike nor black, drawn from no generator."""
    side = student.saved.image_size
    count = _IMAGES * 3 * side * side
    return torch.linspace(-2, 2, count).cos().reshape(_IMAGES, 3, side, side)


def _with_the_class_head_alone(student: _Student) -> _Student:
    """Return the same predictions of the class head, by a model that has no other.

    The distillation token is one among the others until the last layer, so it stays, as what
    timm calls a register. Raises ``ConfigError`` for other models than timm's ``deit_*_distilled``.
    """
    name = student.architecture
    if not (name.startswith("deit_") and _DISTILLED in name):
        raise ConfigError(
            f"`heads` class: timm has no {name} with its class head alone; use `to` onnx, or "
            "`heads` fused"
        )
    arguments = {**student.arguments, "reg_tokens": 1, "global_pool": "token"}
    plain = name.replace(_DISTILLED, "")
    model = timm.create_model(plain, num_classes=student.saved.classes, **arguments).eval()
    state = {
        "reg_token" if name == "dist_token" else name: one
        for name, one in student.model.state_dict().items()
        if not name.startswith("head_dist.")
    }
    model.load_state_dict(state)
    return _Student(model=model, saved=student.saved, architecture=plain, arguments=arguments)


def _require_timms(student: _Student, to: str) -> None:
    if not timm.is_model(student.architecture):
        raise ConfigError(
            f"`to` {to}: {student.architecture} is code of your own, which timm does not have; use "
            "`to` safetensors or onnx"
        )


def _write_timm(student: _Student, path: Path, config: ExportConfig) -> str:
    """Write a .pth as timm's train.py does: weights below ``state_dict``, and the name."""
    _require_timms(student, config.to)
    values = {"state_dict": student.model.state_dict(), "arch": student.architecture}
    torch.save({**values, "model_args": dict(student.arguments), **_described(student)}, path)
    return _loaded_by_timm(student, path, config.out)


def _write_safetensors(student: _Student, path: Path, config: ExportConfig) -> str:
    """Write the weights alone, with how they are to be used in the header."""
    about = {"arch": student.architecture, "model_args": dict(student.arguments)}
    about |= _described(student)
    path.write_bytes(tensor_file(student.model.state_dict(), about))
    if timm.is_model(student.architecture):
        return _loaded_by_timm(student, path, config.out)
    return f"safetensors.torch.load_file({str(config.out)!r})"


def _write_hub_folder(student: _Student, path: Path, config: ExportConfig) -> str:
    """Write a directory as timm's models lie on Hugging Face's hub."""
    _require_timms(student, config.to)
    about = _described(student)
    side = student.saved.image_size
    settings = {name: about[name] for name in _PREPARED}
    timm.models.save_for_hf(
        student.model,
        str(path),
        model_config={
            "pretrained_cfg": {**settings, "input_size": [3, side, side]},
            **({"label_names": about["label_names"]} if "label_names" in about else {}),
        },
        model_args=dict(student.arguments),
        safe_serialization=True,
    )
    written = path / "config.json"
    values = json.loads(written.read_text())
    values.get("model_args", {}).pop("num_classes", None)  # transformers would give it twice
    written.write_text(json.dumps(values, indent=2))
    loaded = timm.create_model(f"local-dir:{path}", pretrained=True)
    _require_alike(student, loaded)
    return f"timm.create_model('local-dir:{config.out}', pretrained=True)"


def _write_onnx(student: _Student, path: Path, config: ExportConfig) -> str:
    """Write a graph from normalized (N, 3, S, S) images, for any N, to logits."""
    try:
        import onnx  # noqa: F401 - what the exporter needs
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"`to` onnx needs {error.name}; install the extra 'export'") from error
    predictor = _Predictor(student.model, config.heads).eval()
    names = ["logits"]
    if config.heads == "both" and _head_count(student) == 2:
        names = ["class_logits", "distillation_logits"]
    set_mode(student.model, training=False)
    program = torch.onnx.export(
        predictor,
        (_images(student),),
        input_names=["images"],
        output_names=names,
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise PipelineError(f"PyTorch gave no graph of {student.architecture}; use another `to`")
    about = {name: json.dumps(value) for name, value in _described(student).items()}
    program.model.metadata_props.update(about)
    program.save(str(path))
    return f"onnxruntime.InferenceSession({str(config.out)!r})"


_WRITERS: Mapping[str, Callable[[_Student, Path, ExportConfig], str]] = {
    "timm": _write_timm,
    "safetensors": _write_safetensors,
    "hub": _write_hub_folder,
    "onnx": _write_onnx,
}


class _Predictor(nn.Module):
    """The logits that are asked for of a student that gives those of both heads."""

    def __init__(self, model: nn.Module, heads: str) -> None:
        super().__init__()
        self.model, self._heads = model, heads

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        heads = heads_of(self.model(images))
        if len(heads) == 1 or self._heads == "class":
            return heads[0]
        return heads if self._heads == "both" else (heads[0] + heads[1]) / 2


def _described(student: _Student) -> dict[str, Any]:
    """Return how images are to be prepared, in timm's words, and what classes are called."""
    saved = student.saved
    about: dict[str, Any] = {
        "num_classes": saved.classes,
        "image_size": saved.image_size,
        "mean": list(saved.views.mean),
        "std": list(saved.views.std),
        "crop_pct": saved.views.center_fraction,
        "interpolation": "bicubic",
    }
    if saved.class_names is not None:
        about["label_names"] = list(saved.class_names)
    return about


def _loaded_by_timm(student: _Student, path: Path, out: Path) -> str:
    """Load a file by timm, compare its logits, and return the line that does it.

    A file of weights tells timm nothing of the images that they want, so the line does.
    """
    about, side = _described(student), student.saved.image_size
    prepared = {name: about[name] for name in _PREPARED}
    arguments = {
        "num_classes": student.saved.classes,
        **student.arguments,
        "pretrained_cfg_overlay": {"input_size": (3, side, side), **prepared},
    }
    loaded = timm.create_model(student.architecture, checkpoint_path=str(path), **arguments)
    _require_alike(student, loaded)
    texts = "".join(f", {name}={value!r}" for name, value in arguments.items())
    return f"timm.create_model({student.architecture!r}, checkpoint_path={str(out)!r}{texts})"


def _require_alike(student: _Student, loaded: nn.Module) -> None:
    images = _images(student)
    with torch.inference_mode():
        ours, theirs = student.model.eval()(images), loaded.eval()(images)
    if not torch.equal(ours, theirs):
        raise PipelineError(
            f"{student.architecture} gives other logits once timm {timm.__version__} has loaded "
            "it again; use `to` onnx"
        )
