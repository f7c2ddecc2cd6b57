"""Evaluates a checkpoint alone: builds its student again and shows it validation shards."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import Tensor, nn

from pipeline.classes import ClassNames, agreed_names, names_beside
from pipeline.errors import CheckpointError, ConfigError
from pipeline.files.local import expand_shards, open_folder
from pipeline.identity import AugmentConfig
from pipeline.labelling.devices import choose_device, set_threads
from pipeline.labelling.weights import WeightsError, Which, read_state
from student.adaptation import parameter_count
from student.checkpoint import TORN, Checkpoint, ForeignError, SavedStudent, open_checkpoint
from student.config import EvaluateConfig, parse_model_args
from student.evaluation.analysis import Analysis, analyze
from student.evaluation.evaluate import Evaluation, evaluate_all
from student.evaluation.validation import ValidationDataset, center_views, read_teacher_labels
from student.loading import LoaderOptions
from student.metrics import peak_memory
from student.model import StudentSpec, create_student_of
from student.optimization import autocast
from student.output import WEIGHTS, file_here
from student.trust import require_named_arguments, require_named_model, require_named_size

__all__ = [
    "CheckpointReport",
    "Throughput",
    "evaluate_checkpoint",
    "evaluate_directory",
    "load_saved",
    "load_student",
]

_WARM, _TIMED = 10, 40
"""Steps that timm's benchmark.py takes before it measures, and those that it measures."""
_SECONDS_OF_SPEED = 10.0
"""For either; a CPU may have done fewer of them by then, one at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """How fast a student labels images, measured as timm's benchmark.py measures inference."""

    images_per_second: float
    step_seconds: float  # of a batch
    steps: int  # measured
    rows: int  # of a batch
    image_size: int  # in pixels

    def to_json(self, parameters: int) -> dict[str, Any]:
        """Return plain JSON values by timm's names and in its units."""
        return {
            "samples_per_sec": round(self.images_per_second, 2),
            "step_time": round(1000 * self.step_seconds, 3),
            "batch_size": self.rows,
            "img_size": self.image_size,
            "param_count": round(parameters / 1e6, 2),
            "steps": self.steps,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReport:
    """What an evaluation of a checkpoint found, by ``raw`` and, if averaged, ``ema``."""

    step: int | None  # None for weights of another program
    parameters: int
    classes: int
    taught: bool  # by a teacher; else a distillation head is as it was drawn
    precision: str  # in which the student ran
    evaluations: Mapping[str, Evaluation]
    analysis: Analysis | None  # of the raw weights
    throughput: Throughput  # of one student
    peak_memory_bytes: int  # on the GPU, or of this process, before the throughput was measured
    names: tuple[str, ...] | None  # of classes
    unnamed: tuple[str, ...]  # which of checkpoint and validation shards have none

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "step": self.step,
            "parameters": self.parameters,
            "taught": self.taught,
            "precision": self.precision,
            "evaluations": {name: one.to_json() for name, one in self.evaluations.items()},
            "analysis": None if self.analysis is None else self.analysis.to_json(),
            "benchmark": self.throughput.to_json(self.parameters),
            "peak_memory_bytes": self.peak_memory_bytes,
            "class_names": None if self.names is None else list(self.names),
        }


def evaluate_checkpoint(config: EvaluateConfig) -> CheckpointReport:
    """Evaluate the raw and averaged weights of a checkpoint, or of a file of timm's or DeiT's.

    Raises ``CheckpointError`` for a checkpoint that is torn or does not fit its model,
    ``ConfigError`` if its model is code or may fetch something and the settings do not name
    it too, or if it is another program's and they name none, ``ShardError`` for validation shards
    with other classes, ``ClassesError`` if they have other names.
    """
    set_threads(config.threads)
    device = choose_device(config.device)
    found = _find(config)
    student, states = found.student, found.states
    models: dict[str, nn.Module] = {
        which: _build(config.checkpoint, student, state).to(device)
        for which, state in states.items()
    }
    first = next(iter(models.values()))
    views = student.views
    if config.eval_fraction is not None:
        views = center_views(views, config.eval_fraction)
    paths = expand_shards(config.val_shards, config.cache, "val_shards")
    sides = {
        "the checkpoint": ClassNames.of(student.class_names, config.checkpoint),
        "the validation shards": names_beside(paths),
    }
    names = agreed_names(*sides.values())
    labels = config.val_labels
    dataset = ValidationDataset(
        paths,
        views,
        classes=student.classes,
        batch_size=config.eval_batch_size,
        labels=None if labels is None else read_teacher_labels(labels, paths, names),
        names=names,
    )
    options = LoaderOptions(workers=config.workers, pin=device.type == "cuda")
    number_format = config.precision or student.precision
    precision = partial(autocast, device, number_format)
    evaluations = evaluate_all(models, dataset, options, precision)
    analysis = None
    if config.analysis:
        analysis = analyze(first, dataset, options, precision, student.headline)
    peak = peak_memory(device)
    return CheckpointReport(
        step=found.step,
        parameters=parameter_count(first),
        classes=student.classes,
        taught=student.headline != "class_head",
        precision=number_format,
        evaluations=evaluations,
        analysis=analysis,
        throughput=_throughput(first, views.image_size, config.eval_batch_size, precision),
        peak_memory_bytes=peak,
        names=None if names is None else names.names,
        unnamed=tuple(side for side, one in sides.items() if one is None),
    )


def evaluate_directory(config: EvaluateConfig) -> dict[str, CheckpointReport]:
    """Evaluate all files of weights in a directory, by name; a run's torn.pt is none.

    Raises as ``evaluate_checkpoint``, and ``ConfigError`` if there are none.
    """
    folder = open_folder(config.checkpoint)
    names = [one for one in folder.list() if one.endswith(WEIGHTS) and "/" not in one]
    if TORN in names:
        names.remove(TORN)
    if not names:
        raise ConfigError(
            f"`checkpoint` {config.checkpoint} holds no {', '.join(WEIGHTS)} file to evaluate"
        )
    return {one: evaluate_checkpoint(replace(config, checkpoint=folder.at(one))) for one in names}


def load_student(
    checkpoint: str | Path,
    weights: Which | None = None,
    *,
    model: str | None = None,
    model_args: Sequence[str] = (),
    image_size: int | None = None,
) -> nn.Module:
    """Return the student of a checkpoint, at a path or URL, in evaluation mode.

    ``weights`` are the raw or the averaged (``ema``) ones; by default those that won the last
    evaluation, or the raw ones where there was none.
    A model that is code, a ``package.module:function``, arguments that may fetch or read
    something, and images of more than 1,024 pixels are used only if ``model``, ``model_args`` and
    ``image_size`` name them too. Raises ``ConfigError`` if they do not, ``CheckpointError`` if the
    file cannot be read, holds no averaged weights, or does not fit its model.
    """
    return load_saved(checkpoint, weights, model, model_args, image_size)[1]


def load_saved(
    checkpoint: str | Path,
    weights: Which | None,
    model: str | None,
    model_args: Sequence[str],
    image_size: int | None,
) -> tuple[SavedStudent, nn.Module, Which]:
    """Return what a checkpoint says of its student, the student, and which weights it has.

    Takes and raises what ``load_student`` does.
    """
    with file_here(checkpoint) as file:
        values = open_checkpoint(file)
    student = _student_of(checkpoint, values, model, model_args, image_size)
    which: Which = "ema" if (weights or values.winner) == "ema" else "raw"
    state = values.ema if which == "ema" else values.model
    if state is None:
        raise CheckpointError(f"{checkpoint} holds no averaged weights; use the raw ones")
    return student, _build(checkpoint, student, state), which


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Weights in a file, and the student that they are of."""

    student: SavedStudent
    states: Mapping[Which, Mapping[str, Tensor]]
    step: int | None


def _find(config: EvaluateConfig) -> _Found:
    with file_here(config.checkpoint) as file:
        if file.suffix == ".safetensors":
            return _foreign(config, file)
        try:
            return _own(config, file)
        except ForeignError:
            return _foreign(config, file)


def _own(config: EvaluateConfig, file: Path) -> _Found:
    checkpoint = open_checkpoint(file)
    states: dict[Which, Mapping[str, Tensor]] = {"raw": checkpoint.model}
    if checkpoint.ema is not None:
        states["ema"] = checkpoint.ema
    return _Found(
        student=_student_of(
            config.checkpoint, checkpoint, config.model, config.model_args, config.image_size
        ),
        states=states,
        step=checkpoint.step,
    )


def _foreign(config: EvaluateConfig, path: Path) -> _Found:
    """Return the weights in a file of timm's or DeiT's, whose model the settings name."""
    name = config.model
    if name is None:
        raise ConfigError(
            f"{path} is no checkpoint of a run here: give `model`, timm's name of what it is "
            "the weights of"
        )
    try:
        found = read_state(path, None, "checkpoint")
        states: dict[Which, Mapping[str, Tensor]] = {found.which: found.state}
        if found.has_both:
            states["ema"] = read_state(path, "ema", "checkpoint").state
    except WeightsError as error:
        raise CheckpointError(f"{path} {error}") from error
    shown = get_pretrained_cfg(name, allow_unregistered=True) or PretrainedCfg()
    size = config.image_size or shown.input_size[-1]
    augment = AugmentConfig(image_size=size, mean=shown.mean, std=shown.std)
    student = SavedStudent(
        model=name,
        model_args=config.model_args,
        classes=_classes_of(path, found.state, shown.classifier),
        image_size=size,
        heads=None,
        headline="mean_of_logits",
        precision="fp32",
        views=center_views(augment, shown.crop_pct),
    )
    return _Found(student=student, states=states, step=None)


def _classes_of(path: Path, state: Mapping[str, Tensor], classifier: Any) -> int:
    """Return how many classes weights tell apart, by the rows of their classifier."""
    named = classifier if isinstance(classifier, tuple | list) else (classifier,)
    for name in (*named, "head", "fc", "classifier"):
        weight = state.get(f"{name}.weight")
        if weight is not None:
            return len(weight)
    raise CheckpointError(
        f"{path} has no weights of a classifier ({', '.join(map(str, named))}), so its classes "
        "cannot be counted; give another `model`"
    )


def _student_of(
    path: str | Path,
    checkpoint: Checkpoint,
    model: str | None,
    model_args: Sequence[str],
    image_size: int | None,
) -> SavedStudent:
    """Return which student a checkpoint holds, if the user names what it may not choose."""
    student = checkpoint.student
    require_named_model(str(path), student.model, model)
    require_named_arguments(str(path), student.model_args, model_args)
    require_named_size(str(path), student.image_size, image_size)
    return student


def _build(checkpoint: str | Path, student: SavedStudent, state: Mapping[str, Tensor]) -> nn.Module:
    spec = StudentSpec(
        name=student.model,
        classes=student.classes,
        image_size=student.image_size,
        heads=student.heads,
        model_args=parse_model_args(student.model_args),
    )
    try:
        model = create_student_of(spec, state)
    except (ConfigError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint} does not fit its model {spec.name}: {error}; use the version of timm, "
            "or of your own module, that it was trained with"
        ) from error
    return model.eval()


def _throughput(
    model: nn.Module, side: int, rows: int, precision: Callable[[], AbstractContextManager[Any]]
) -> Throughput:
    """Measure a student in evaluation mode, where two heads are joined, as timm measures it.

    The images are noise, on the device already, in PyTorch's own layout.
    """
    device = next(model.parameters()).device
    images = torch.randn(rows, 3, side, side, device=device)

    def step() -> float:
        started = time.perf_counter()
        with precision():
            model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    def steps(most: int) -> list[float]:
        taken = [step()]
        while len(taken) < most and sum(taken) < _SECONDS_OF_SPEED:
            taken.append(step())
        return taken

    model.eval()
    with torch.inference_mode():
        steps(_WARM)
        started, taken = time.perf_counter(), steps(_TIMED)
        elapsed = time.perf_counter() - started
    return Throughput(
        images_per_second=rows * len(taken) / elapsed,
        step_seconds=sum(taken) / len(taken),
        steps=len(taken),
        rows=rows,
        image_size=side,
    )
