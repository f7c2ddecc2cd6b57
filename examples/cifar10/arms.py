"""The ways to teach a student that are compared, and one run of one of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from examples.cifar10.config import ArmName, EvidenceConfig
from examples.cifar10.data import Shards
from examples.cifar10.stores import Stores
from pipeline.files.local import replace
from pipeline.identity import MixConfig
from pipeline.records import ViewMix
from pipeline.store.provenance import processor, versions
from pipeline.views.pairing import draw_mix
from student.batches import stored_signal
from student.config import TrainConfig
from student.engine import Outcome, Trainer
from student.inputs import Inputs, open_inputs
from student.losses import TeacherSignal
from student.metrics import METRICS
from student.replay import StudentBatch

__all__ = [
    "ARMS",
    "Arm",
    "ArmResult",
    "BatchMixingTrainer",
    "FirstClassesTrainer",
    "batch_mixing",
    "first_classes",
    "read_results",
    "run",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to teach a student."""

    about: str  # for the report
    store: str
    distillation: Literal["hard", "soft", "none"] = "hard"
    teacher_in_loop: bool = False
    batch_mixing: bool = False  # as DeiT mixes; else in the store's pairs
    first_classes: int | None = None  # of the probabilities in the store; None: all of them
    sure: bool = False  # only labels of which the teacher is sure


ARMS: Mapping[ArmName, Arm] = {
    "none": Arm(
        about="no teacher; scored by its class head",
        store="hard",
        distillation="none",
    ),
    "hard-store": Arm(about="hard labels from the store", store="hard"),
    "hard-loop": Arm(
        about="the same views, hard labels by the teacher in the loop",
        store="hard",
        teacher_in_loop=True,
    ),
    "static": Arm(
        about="the same views, each with the teacher's label of its own plain image, "
        "whatever it was mixed with",
        store="static",
    ),
    "soft-store": Arm(
        about="probabilities from the store, of all classes that it keeps",
        store="soft",
        distillation="soft",
    ),
    "soft-top-5": Arm(
        about="the same, but of the 5 likeliest classes, the rest spread evenly",
        store="soft",
        distillation="soft",
        first_classes=5,
    ),
    "soft-top-2": Arm(
        about="of the 2 likeliest", store="soft", distillation="soft", first_classes=2
    ),
    "soft-top-1": Arm(
        about="of the likeliest alone", store="soft", distillation="soft", first_classes=1
    ),
    "hard-sure": Arm(
        about="hard labels from the store, only where the teacher is sure (min_confidence)",
        store="soft",
        sure=True,
    ),
    "vote-majority": Arm(
        about="hard labels that most of several teachers give, each from its own store",
        store="majority",
    ),
    "vote-mean": Arm(
        about="hard labels by the mean of these teachers' probabilities", store="mean"
    ),
    "loop-deit-mixing": Arm(
        about="the same views before mixing, then mixed as DeiT does (one share or box a batch, "
        "partner from the flipped batch), hard labels by the teacher in the loop",
        store="hard",
        teacher_in_loop=True,
        batch_mixing=True,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """What one run came to."""

    arm: ArmName
    seed: int
    weights: str  # SHA-256 of the student's state
    steps: int
    audited: int  # views whose digest was compared
    evaluation: Mapping[str, Any]  # ``Evaluation.to_json``, after the last epoch
    epochs: Sequence[Mapping[str, Any]]  # lines of metrics.jsonl, one an epoch
    threads: int
    workers: int
    processor: str
    versions: Mapping[str, str]


def run(
    config: EvidenceConfig, stores: Stores, shards: Shards, name: ArmName, seed: int
) -> ArmResult:
    """Return the result of an arm with a seed, after training it if that was not done yet.

    A run that was interrupted goes on from its last checkpoint.
    """
    path = _result_path(config.out, name, seed)
    if path.exists():
        return _read_result(path)
    arm = ARMS[name]
    output = config.out / "runs" / f"{name}-{seed}"
    print(f"evidence: training {output}", flush=True)
    settings = _train_config(config, stores, shards, arm, output, seed)
    outcome = _train(settings, arm)
    if outcome.evaluation is None:
        raise RuntimeError(f"{output} was not evaluated")
    lines = map(json.loads, (output / METRICS).read_text().splitlines())
    result = ArmResult(
        arm=name,
        seed=seed,
        weights=outcome.weights,
        steps=outcome.steps,
        audited=outcome.audited,
        evaluation=outcome.evaluation.to_json(),
        epochs=[line for line in lines if line["kind"] == "epoch"],
        threads=config.used_threads,
        workers=config.workers,
        processor=processor(),
        versions=versions(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps(asdict(result), indent=1).encode() + b"\n")
    return _read_result(path)


def _train_config(
    config: EvidenceConfig, stores: Stores, shards: Shards, arm: Arm, output: Path, seed: int
) -> TrainConfig:
    return TrainConfig.of_settings(
        labels=str(stores.path(arm.store)),
        shards=shards.training,
        val_shards=shards.validation,
        val_labels=str(stores.path("val")),
        output=output,
        model=config.model,
        model_args=config.model_args,
        student_size=config.student_size,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        drop_path=0.0,
        seed=seed,
        resume="auto",
        distillation=arm.distillation,
        min_confidence=config.min_confidence if arm.sure else 0.0,
        teacher_in_loop=arm.teacher_in_loop,
        teacher_checkpoint=config.teacher_checkpoint if arm.teacher_in_loop else None,
        device="cpu",
        threads=config.used_threads,
        workers=config.workers,
        eval_fraction=1.0,
        eval_epochs=config.eval_epochs,
        log_every=1000,
    )


def _train(settings: TrainConfig, arm: Arm) -> Outcome:
    """Train to the end; unlike ``student.engine.train`` it draws no page about the run."""
    inputs = open_inputs(settings)
    if arm.batch_mixing:
        return BatchMixingTrainer(settings, inputs).run()
    if arm.first_classes is not None:
        return FirstClassesTrainer(settings, inputs, arm.first_classes).run()
    return Trainer(settings, inputs).run()


class FirstClassesTrainer(Trainer):
    """Gives the loss what a store of fewer classes would have kept of the teacher."""

    def __init__(self, config: TrainConfig, inputs: Inputs, classes: int) -> None:
        super().__init__(config, inputs)
        self._teacher_labels = lambda batch, images: first_classes(
            stored_signal(batch, images), classes
        )


def first_classes(signal: TeacherSignal, count: int) -> TeacherSignal:
    """Return a signal with the likeliest classes, and with all others together.

    Stores with all classes and with ``count`` differ by this alone, but for half a step of 1/64 in
    the logarithm of the others' sum.
    """
    label, log, rest = signal.topk_label, signal.topk_logprob, signal.topk_rest
    assert label is not None  # the soft loss asks for these columns
    assert log is not None
    assert rest is not None
    others = torch.cat([log[:, count:], rest[:, None]], dim=1).logsumexp(dim=1)
    return dataclasses.replace(
        signal, topk_label=label[:, :count], topk_logprob=log[:, :count], topk_rest=others
    )


class BatchMixingTrainer(Trainer):
    """Mixes each batch of views as DeiT does, not as the store does, for the live teacher.

    What was drawn of a batch depends on its mates, so no store could hold these labels: it is
    here to show what mixing in pairs costs.
    """

    def _add_gradients(self, batch: StudentBatch, piece: int) -> None:
        mix = batch_mixing(len(batch.keys), self.config.plan.seed, self.step, self._side)
        partners = batch.target[torch.from_numpy(mix.partner)]
        mixed = dataclasses.replace(batch, mix=mix, partner_target=partners)
        super()._add_gradients(mixed, piece)

    @property
    def _side(self) -> int:
        return self.identity.augment.image_size


def batch_mixing(rows: int, seed: int, step: int, side: int) -> ViewMix:
    """Return DeiT's mixing of a batch: one share or box for all, partners by flipping it.

    That is ``timm.data.Mixup`` in its mode "batch" with DeiT's settings, but drawn from
    (seed, step). ``side`` is that of the views, in pixels.
    """
    # draw_mix names what it draws for by a shard, a view and a pair: here by the batch.
    params = draw_mix(seed, "batch", step, (0, 0), side, MixConfig())
    mix = ViewMix.unmixed(rows)
    for row, partner in enumerate(np.arange(rows)[::-1].tolist()):
        mix.set_row(row, partner, params)
    return mix


def _result_path(out: Path, name: str, seed: int) -> Path:
    return out / "results" / f"{name}-{seed}.json"


def _read_result(path: Path) -> ArmResult:
    return ArmResult(**json.loads(path.read_bytes()))


def read_results(out: Path) -> Iterator[ArmResult]:
    """Yield the results that are there, arm by arm, by seed."""
    for name in ARMS:
        found = [_read_result(path) for path in (out / "results").glob(f"{name}-[0-9]*.json")]
        yield from sorted(found, key=lambda result: result.seed)
