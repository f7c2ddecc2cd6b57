"""The training loop. All it does follows from the settings, the store and a step number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from pipeline.config import StoreIdentity, canonical_json, different_fields
from pipeline.devices import choose_device, set_threads
from pipeline.errors import CheckpointError, ConfigError, TeacherError
from pipeline.files import replace
from pipeline.mixing import mix_images, normalise, to_device
from pipeline.records import FIXED_ONE
from pipeline.weights import state_digest
from student.checkpoint import BEST, LAST, Checkpoint, read_checkpoint, write_checkpoint
from student.config import TrainConfig, parse_model_args
from student.evaluate import Evaluation, ValidationDataset, centre_views, evaluate
from student.inputs import Inputs
from student.loading import LoaderOptions
from student.losses import MixedTarget, hard_distillation_loss
from student.metrics import Meter, MetricsLog, Stopwatch
from student.model import StudentSpec, create_student, reseed
from student.replay import ReplayDataset, StudentBatch, replay_loader
from student.schedule import Schedule

__all__ = ["Outcome", "Trainer", "train"]

CONFIG = "config.json"

TeacherLabels: TypeAlias = Callable[[StudentBatch, Tensor], Tensor]
"""Gives the (B,) int64 teacher labels of a batch and its (B, 3, S, S) mixed images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run, or the part of it that was run, came to."""

    steps: int  # done, of the whole run
    dropped_rows: int  # at the run's end, fewer than a batch
    audited: int  # views whose digest was compared, in this process
    weights: str  # SHA-256 of the student's state
    evaluation: Evaluation | None  # the last one
    epoch_seconds: tuple[dict[str, float], ...]  # of each epoch of this process


def train(config: TrainConfig, inputs: Inputs, *, stop_after: int | None = None) -> Outcome:
    """Train a student to the end, or to ``stop_after`` steps of the run, and checkpoint.

    Raises ``ConfigError`` if the output directory holds a run that is not to be resumed,
    ``PipelineError`` if the loss becomes infinite, and whatever replay and store raise.
    """
    return Trainer(config, inputs).run(stop_after)


class Trainer:
    """A student, its optimiser and its place in the plan."""

    def __init__(self, config: TrainConfig, inputs: Inputs) -> None:
        resume_from = _checkpoint_to_resume(config)
        set_threads(config.threads)
        self.config, self.inputs, self.plan = config, inputs, inputs.plan
        self.identity = inputs.store.identity
        self.device = choose_device(config.device)
        self._validation = _open_validation(config, inputs)
        self.model = create_student(
            StudentSpec(
                name=config.model,
                classes=self.identity.teacher.classes,
                image_size=self.identity.augment.image_size,
                drop_path=config.drop_path,
                seed=config.seed,
                model_args=parse_model_args(config.model_args),
            )
        ).to(self.device)
        self.optimizer = create_optimizer_v2(
            self.model, "adamw", lr=config.peak_lr, weight_decay=config.weight_decay
        )
        self.schedule = _schedule(config, self.plan.steps, self.plan.epoch_start(1))
        self._teacher_labels = (
            _teacher_in_loop(config, self.identity, self.device)
            if config.teacher_in_loop
            else _stored_labels
        )
        self._meter = Meter(self.device)
        self._watch = Stopwatch()
        self._evaluation: Evaluation | None = None
        self._best, self._audited, self.step = -1.0, 0, 0
        if resume_from is not None:
            self._resume(resume_from)
        self._write_config()

    def run(self, stop_after: int | None = None) -> Outcome:
        """Train from the current step on; see ``train``."""
        end = min(self.plan.steps, stop_after if stop_after is not None else self.plan.steps)
        seconds: list[dict[str, float]] = []
        with MetricsLog(self.config.output, start=self.step, steps=self.plan.steps) as log:
            for batch in self._batches(end):
                self._train_on(batch)
                log.advance()
                self._report(log, seconds)
            if self.step == self.plan.steps and self._evaluation is None:
                self._evaluate()  # a finished run that was resumed
        if self.step < self.plan.steps:
            self._save(LAST)
        return Outcome(
            steps=self.step,
            dropped_rows=self.plan.dropped_rows,
            audited=self._audited,
            weights=state_digest(self.model.state_dict()),
            evaluation=self._evaluation,
            epoch_seconds=tuple(seconds),
        )

    def _batches(self, end: int) -> Iterator[StudentBatch]:
        """Yield the batches from the current step on, counting the time spent waiting."""
        dataset = ReplayDataset(
            self.inputs.store, self.inputs.shards, self.plan, audit=self.config.audit
        )
        if self.step >= end:
            return
        loader = replay_loader(dataset, self.step, end, self._loader_options())
        while True:
            with self._watch.on("data"):
                batch = next(loader, None)
            if batch is None:
                return
            yield batch

    def _loader_options(self) -> LoaderOptions:
        return LoaderOptions(workers=self.config.workers, pin=self.device.type == "cuda")

    def _train_on(self, batch: StudentBatch) -> None:
        """Take one step."""
        augment = self.identity.augment
        with self._watch.on("student"):
            pixels = to_device(batch.pixels, self.device)
            images = mix_images(normalise(pixels, augment.mean, augment.std), batch.mix)
        with self._watch.on("teacher" if self.config.teacher_in_loop else "student"):
            label = self._teacher_labels(batch, images)
        with self._watch.on("student"):
            self._update(images, _mixed_target(batch, self.device), label)
        self._audited += batch.audited
        self.step += 1

    def _update(self, images: Tensor, truth: MixedTarget, label: Tensor) -> None:
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr(self.step)
        reseed("step", config.seed, self.step, 0)  # 0 is the rank
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            class_logits, distillation_logits = self.model(images)
        terms = hard_distillation_loss(
            class_logits,
            distillation_logits,
            truth,
            label,
            smoothing=config.smoothing,
            alpha=config.alpha,
        )
        agreeing = (distillation_logits.detach().argmax(-1) == label).sum()
        self._meter.add(self.step, terms, agreeing, len(label))
        if self.device.type == "cpu":  # elsewhere it would wait for the device
            self._meter.check()
        self.optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()  # type: ignore[no-untyped-call]
        if config.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self.optimizer.step()

    def _report(self, log: MetricsLog, seconds: list[dict[str, float]]) -> None:
        """Log, evaluate and checkpoint where the step just done calls for it."""
        config = self.config
        epoch = self.plan.epoch_of(self.step - 1)
        if self.step % config.log_every == 0:
            self._meter.check()
            means = {**self._meter.take(), "lr": self.schedule.lr(self.step - 1)}
            log.write("train", self.step, {"epoch": epoch, **means})
            log.say(
                f"epoch {epoch + 1}/{config.epochs} step {self.step}/{self.plan.steps} "
                f"loss {means['loss']:.4f} lr {means['lr']:.2e}"
            )
        if self.step == self.plan.epoch_start(epoch + 1):
            seconds.append(self._end_epoch(log, epoch))
        elif config.checkpoint_steps and self.step % config.checkpoint_steps == 0:
            self._save(LAST)

    def _end_epoch(self, log: MetricsLog, epoch: int) -> dict[str, float]:
        """Evaluate, log and checkpoint; return the epoch's seconds."""
        self._meter.check()
        means = self._meter.epoch()
        self._meter.clear()
        improved = self._evaluate()
        seconds = self._watch.take()
        seconds["total"] = sum(seconds.values())
        line: dict[str, Any] = {"epoch": epoch, **means, "seconds": seconds}
        text = f"epoch {epoch + 1}/{self.config.epochs} done, loss {means['loss']:.4f}"
        if self._evaluation is not None:
            line["evaluation"] = self._evaluation.to_json()
            text += f", top-1 {self._evaluation.mean_of_logits.top1:.2%}"
        log.write("epoch", self.step, line)
        parts = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
        log.say(f"{text} (seconds: {parts})")
        if improved:
            self._save(BEST)
        last = self.step == self.plan.steps
        if last or (epoch + 1) % self.config.checkpoint_epochs == 0:
            self._save(LAST)
        return seconds

    def _evaluate(self) -> bool:
        """Evaluate if there are validation shards; return whether this is the best so far."""
        if self._validation is None:
            return False
        with self._watch.on("evaluation"):
            self._evaluation = evaluate(
                self.model,
                self._validation,
                self.identity.augment,
                self._loader_options(),
                bf16=self.config.precision == "bf16",
            )
        top1 = self._evaluation.mean_of_logits.top1
        improved = top1 > self._best
        self._best = max(self._best, top1)
        return improved

    def _save(self, name: str) -> None:
        self._meter.check()
        write_checkpoint(
            self.config.output / name,
            Checkpoint(
                model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict(),
                step=self.step,
                run=self.inputs.run_identity(self.config),
                meter=self._meter.state(),
                metrics=self._evaluation.to_json() if self._evaluation is not None else {},
                best=self._best,
            ),
        )

    def _resume(self, path: Path) -> None:
        checkpoint = read_checkpoint(path, self.inputs.run_identity(self.config))
        try:
            self.model.load_state_dict(checkpoint.model)
            self.optimizer.load_state_dict(dict(checkpoint.optimizer))
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{path} does not fit {self.config.model}: {error}; resume with the versions of "
                "torch and timm that wrote it"
            ) from error
        self._meter.restore(checkpoint.meter)
        self._best, self.step = checkpoint.best, checkpoint.step

    def _write_config(self) -> None:
        run = self.inputs.run_identity(self.config)
        values = {
            "config": self.config.to_json(),
            "digest": run.config_digest,
            "store": run.store,
            "shards": run.shards,
        }
        replace(self.config.output / CONFIG, canonical_json(values) + b"\n")


def _checkpoint_to_resume(config: TrainConfig) -> Path | None:
    """Return the checkpoint to continue from, None to begin; never overwrites a run."""
    last = config.output / LAST
    if config.resume == "auto":
        return last if last.exists() else None
    path = Path(config.resume) if config.resume is not None else None
    if config.output.exists() and not config.output.is_dir():
        raise ConfigError(f"--output {config.output} is a file; give a directory")
    own = path is not None and path.resolve().parent == config.output.resolve()
    taken = [name for name in (LAST, BEST, CONFIG) if (config.output / name).exists()]
    if taken and not own:
        raise ConfigError(
            f"--output {config.output} holds a run ({', '.join(taken)}); continue it with "
            "--resume auto, or give another --output"
        )
    return path


def _open_validation(config: TrainConfig, inputs: Inputs) -> ValidationDataset | None:
    if not inputs.validation:
        return None
    identity = inputs.store.identity
    return ValidationDataset(
        inputs.validation,
        centre_views(identity.augment, config.eval_fraction),
        classes=identity.teacher.classes,
        batch_size=config.eval_batch_size,
    )


def _schedule(config: TrainConfig, steps: int, epoch_steps: int) -> Schedule:
    return Schedule(
        steps=steps,
        warmup_steps=min(steps, math.ceil(config.effective_warmup_epochs * epoch_steps)),
        peak=config.peak_lr,
        warmup_from=min(config.warmup_lr, config.peak_lr),
        end=config.min_lr,
    )


def _mixed_target(batch: StudentBatch, device: torch.device) -> MixedTarget:
    lam = torch.from_numpy(batch.mix.lam).float() / FIXED_ONE
    return MixedTarget(
        target=to_device(batch.target, device),
        partner_target=to_device(batch.target[torch.from_numpy(batch.mix.partner)], device),
        lam=lam.to(device),
    )


def _stored_labels(batch: StudentBatch, images: Tensor) -> Tensor:
    return to_device(batch.label, images.device)


def _teacher_in_loop(
    config: TrainConfig, identity: StoreIdentity, device: torch.device
) -> TeacherLabels:
    """Build the store's own teacher, to label the student's images instead of the store."""
    from pipeline.teacher import TeacherSpec, load_teacher  # nothing else needs a teacher

    stored = identity.teacher
    spec = TeacherSpec(
        architecture=stored.architecture,
        checkpoint=config.teacher_checkpoint,
        random_weights=config.teacher_random_weights,
        classes=stored.classes,
        precision=stored.precision,
        batch_views=stored.batch_views,
    )
    teacher = load_teacher(spec, identity.augment, identity.mix, device)
    different = different_fields(asdict(teacher.identity), asdict(stored))
    if different:
        raise TeacherError(
            "the teacher in the loop is not the one that labelled the store (ours / the "
            "store's):\n  " + "\n  ".join(different) + "\ngive --teacher-checkpoint the very "
            "weights that were used, or --teacher-random-weights the same seed"
        )

    def label(_batch: StudentBatch, images: Tensor) -> Tensor:
        labels = teacher.label_images(images.detach()).label.astype("int64")
        return to_device(torch.from_numpy(labels), device)

    return label
