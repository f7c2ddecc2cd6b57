"""The command ``train-student``: parses, calls, prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import tyro

from pipeline.errors import PipelineError
from student.config import TrainConfig

if TYPE_CHECKING:
    from student.engine import Outcome
    from student.inputs import Inputs

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``train-student``."""
    # Read when PyTorch loads: threads that spin while they wait slow a shared machine down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        config = tyro.cli(
            TrainConfig, prog="train-student", args=arguments, config=(tyro.conf.OmitArgPrefixes,)
        )
        _run(config)
    except PipelineError as error:
        print(f"train-student: error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print("train-student: interrupted; continue with --resume auto", file=sys.stderr)
        sys.exit(130)


def _run(config: TrainConfig) -> None:
    # Imported here, so that --help does not wait for PyTorch.
    from student.engine import train
    from student.inputs import open_inputs

    inputs = open_inputs(config)
    _announce(config, inputs)
    _summarise(config, train(config, inputs))


def _say(text: str) -> None:
    print(f"train-student: {text}", file=sys.stderr, flush=True)


def _announce(config: TrainConfig, inputs: Inputs) -> None:
    """Say what is about to be trained, and warn of what is missing."""
    plan, identity = inputs.plan, inputs.store.identity
    size = identity.augment.image_size
    labels = "the teacher in the loop" if config.teacher_in_loop else f"labels of {config.labels}"
    _say(
        f"{config.model} on {plan.rows_per_epoch} samples at {size}x{size} pixels, "
        f"{identity.teacher.classes} classes, {labels} ({identity.teacher.architecture})"
    )
    _say(
        f"{config.epochs} epochs of views {plan.first_view}.., {plan.steps} steps of "
        f"{config.batch_size} rows; {plan.dropped_rows} rows at the end fill no batch"
    )
    if not config.val_shards:
        _say("warning: no --val-shards, so nothing is evaluated and there is no best.pt")
    if not config.audit:
        _say(
            "warning: --no-audit: nothing shows any more that the labels belong to the pixels "
            "that the student sees"
        )


def _summarise(config: TrainConfig, outcome: Outcome) -> None:
    """Print the final table on stdout."""
    evaluation = outcome.evaluation
    if evaluation is not None:
        print(f"{'prediction from':20} {'top-1':>8} {'top-5':>8}")
        for label, accuracy in (
            ("class head", evaluation.class_head),
            ("distillation head", evaluation.distillation_head),
            ("mean of logits", evaluation.mean_of_logits),
            ("sum of softmaxes", evaluation.sum_of_softmaxes),
        ):
            print(f"{label:20} {accuracy.top1:8.2%} {accuracy.top5:8.2%}")
        print(f"{'images':20} {evaluation.samples:8}")
    if outcome.epoch_seconds:
        total = sum(seconds["total"] for seconds in outcome.epoch_seconds)
        spent = sum(seconds.get("evaluation", 0.0) for seconds in outcome.epoch_seconds)
        epochs = len(outcome.epoch_seconds)
        print(f"seconds per epoch    {(total - spent) / epochs:8.2f} (evaluation not included)")
    print(f"views audited        {outcome.audited:8}")
    print(f"steps                {outcome.steps:8}")
    print(f"weights {config.output / 'last.pt'} sha256 {outcome.weights}")
