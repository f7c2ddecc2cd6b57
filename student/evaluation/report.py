"""Evaluates a checkpoint alone: builds its student again and shows it validation shards."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pipeline.errors import CheckpointError, ConfigError
from pipeline.files.local import expand_shards
from pipeline.identity import AugmentConfig
from pipeline.labelling.devices import choose_device, set_threads
from student.checkpoint import read_values
from student.config import EvaluateConfig, parse_model_args
from student.evaluation.analysis import Analysis, analyse
from student.evaluation.evaluate import Evaluation, evaluate_all
from student.evaluation.validation import ValidationDataset, centre_views, read_teacher_labels
from student.loading import LoaderOptions
from student.model import StudentSpec, create_student, two_headed
from student.optimization import autocast

__all__ = ["CheckpointReport", "evaluate_checkpoint", "load_student"]

_SECONDS_OF_SPEED = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReport:
    """What an evaluation of a checkpoint found, by ``raw`` and, if averaged, ``ema``."""

    step: int
    classes: int
    taught: bool  # by a teacher; else a distillation head is as it was drawn
    precision: str  # in which the student ran
    evaluations: Mapping[str, Evaluation]
    analysis: Analysis | None  # of the raw weights
    forward_images_per_second: float  # of one student, without reading images

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "step": self.step,
            "taught": self.taught,
            "precision": self.precision,
            "evaluations": {name: one.to_json() for name, one in self.evaluations.items()},
            "analysis": None if self.analysis is None else self.analysis.to_json(),
            "forward_images_per_second": self.forward_images_per_second,
        }


def evaluate_checkpoint(config: EvaluateConfig) -> CheckpointReport:
    """Evaluate the raw and averaged weights of a checkpoint.

    Raises ``CheckpointError`` for a checkpoint that is torn or of another kind,
    ``ShardError`` for validation shards with other classes.
    """
    set_threads(config.threads)
    device = choose_device(config.device)
    values = read_values(config.checkpoint)
    student = values["student"]
    models = {"raw": load_student(config.checkpoint, values=values).to(device)}
    if values["ema"] is not None:
        models["ema"] = load_student(config.checkpoint, "ema", values=values).to(device)
    views = AugmentConfig(**student["views"])
    if config.eval_fraction is not None:
        views = centre_views(views, config.eval_fraction)
    paths = expand_shards(config.val_shards, config.cache)
    labels = config.val_labels
    dataset = ValidationDataset(
        paths,
        views,
        classes=student["classes"],
        batch_size=config.eval_batch_size,
        labels=None if labels is None else read_teacher_labels(labels, paths),
    )
    options = LoaderOptions(workers=config.workers, pin=device.type == "cuda")
    number_format = config.precision or student["precision"]
    precision = partial(autocast, device, number_format)
    evaluations = evaluate_all(models, dataset, options, precision)
    return CheckpointReport(
        step=int(values["step"]),
        classes=student["classes"],
        taught=student["headline"] != "class_head",
        precision=number_format,
        evaluations=evaluations,
        analysis=analyse(models["raw"], dataset, options, precision) if config.analysis else None,
        forward_images_per_second=_speed(models["raw"], views, config.eval_batch_size, precision),
    )


def load_student(
    checkpoint: Path,
    weights: Literal["raw", "ema"] = "raw",
    *,
    values: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return the student of a checkpoint, in evaluation mode.

    ``values`` are the checkpoint's, if they were read already. Raises ``CheckpointError`` if
    it cannot be read, holds no averaged weights, or does not fit its model.
    """
    values = values or read_values(checkpoint)
    student = values["student"]
    state = values["model" if weights == "raw" else "ema"]
    if state is None:
        raise CheckpointError(f"{checkpoint} holds no averaged weights; use the raw ones")
    spec = StudentSpec(
        name=student["model"],
        classes=student["classes"],
        image_size=student["image_size"],
        heads=student["heads"],
        model_args=parse_model_args(tuple(student["model_args"])),
    )
    try:
        model = create_student(spec)
        model.load_state_dict(state)
    except (ConfigError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint} does not fit its model {spec.name}: {error}; use the version of timm, "
            "or of your own module, that it was trained with"
        ) from error
    return model.eval()


def _speed(
    model: nn.Module,
    views: AugmentConfig,
    rows: int,
    precision: Callable[[], AbstractContextManager[Any]],
) -> float:
    """Return how many images a second the student labels, of those already on the device."""
    device = next(model.parameters()).device
    images = torch.zeros(rows, 3, views.image_size, views.image_size, device=device)
    images = images.to(memory_format=torch.channels_last)
    with two_headed(model), torch.inference_mode(), precision():
        model(images)  # the first pass sets things up
        _finish(device)
        started, passes = time.perf_counter(), 0
        while passes < 1 or time.perf_counter() - started < _SECONDS_OF_SPEED:
            model(images)
            _finish(device)
            passes += 1
        return passes * rows / (time.perf_counter() - started)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
