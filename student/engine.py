"""The training loop. All it does follows from the settings, the store and a step number."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import torch
from torch import Tensor

from pipeline.classes import ClassNames, agreed_names
from pipeline.errors import CheckpointError, PipelineError
from pipeline.files.local import replace as replace_file
from pipeline.growth import needed_release
from pipeline.identity import StoreIdentity, canonical_json
from pipeline.labelling.devices import allow_fast_floats, choose_device, set_threads
from pipeline.labelling.weights import WORDS, Which, state_digest
from pipeline.tools.verify import check_fingerprints
from student.adaptation import adapt, parameter_count
from student.audit import audit_store
from student.batches import (
    TeacherInLoop,
    mixed_images,
    mixed_target,
    resize_images,
    stored_signal,
)
from student.checkpoint import (
    BEST,
    CONFIG,
    LAST,
    PREVIOUS,
    Checkpoint,
    SavedStudent,
    Segment,
    find_checkpoint,
    write_checkpoint,
)
from student.config import TrainConfig, parse_model_args
from student.distributed import Ranks, StopAgreement
from student.evaluation.analysis import analyze
from student.evaluation.evaluate import Evaluation, evaluate_all
from student.evaluation.validation import (
    ValidationDataset,
    center_views,
    read_teacher_labels,
    require_decodable,
)
from student.finetune import Loaded, load_weights, read_weights
from student.inputs import Inputs
from student.loading import LoaderOptions
from student.losses import TeacherSignal
from student.metrics import Meter, MetricsLog, Stopwatch, peak_memory
from student.model import StudentSpec, create_student, reseed_step, set_mode, split_heads
from student.optimization import Optimization, schedule_of
from student.output import RunOutput, open_output
from student.recipes import to_toml
from student.replay import ReplayDataset, StudentBatch, replay_loader
from student.run_report import report_run
from student.trackers import Tracking, require_tracker

__all__ = ["Outcome", "Trainer", "checkpoint_to_resume", "train"]

RUN = "run.toml"

_log = logging.getLogger(__name__)

ShowProgress: TypeAlias = Callable[[int, int], None]
"""Called with the number of steps that are done, and of all."""

TeacherLabels: TypeAlias = Callable[[StudentBatch, Tensor], TeacherSignal]
"""Gives what the teacher says of a batch and its (B, 3, S, S) mixed images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run, or the part of it that was run, came to."""

    steps: int  # done, of the whole run
    dropped_rows: int  # at the run's end, fewer than a batch
    peak_memory_bytes: int  # on this rank's GPU, or in memory
    audited: int  # views whose digest was compared, by all ranks since the run began or went on
    weights: str  # SHA-256 of the student's state
    evaluation: Evaluation | None  # the last one
    ema_evaluation: Evaluation | None  # of the averaged weights
    epoch_seconds: tuple[dict[str, float], ...]  # of each whole epoch of this process
    stopped_by: int  # what ``stop`` said, the greatest of all ranks, if that ended it; or 0


def train(
    config: TrainConfig,
    inputs: Inputs,
    *,
    stop_after: int | None = None,
    stop: Callable[[], int] = lambda: 0,
    show: ShowProgress = lambda done, total: None,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> Outcome:
    """Train a student to the end, or to ``stop_after`` steps of the run, and checkpoint.

    ``stop`` is asked before each step; unless it says 0, the run checkpoints and returns.
    Raises ``ConfigError`` if the output directory holds a run that is not to be resumed,
    ``PipelineError`` if loss or weights become infinite, and whatever replay and store raise.
    """
    with ranks.joined(choose_device(config.run.device)), _room_on_disk(config.output):
        trainer = Trainer(config, inputs, ranks)
        outcome = trainer.run(stop_after, stop, show)
    if ranks.first and trainer.step == trainer.plan.steps:
        # After the ranks have parted: the others need not wait for it.
        with _room_on_disk(config.output):
            trainer.write_report()
    return outcome


class Trainer:
    """A student, its optimizer and its position in the plan, on one rank."""

    def __init__(
        self,
        config: TrainConfig,
        inputs: Inputs,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    ) -> None:
        config = inputs.pinned(config)
        require_tracker(config.run.tracker)
        self.output = open_output(config.output)
        resume_from = ranks.decide(lambda: checkpoint_to_resume(config, self.output))
        self.config, self.inputs, self.ranks, self.plan = config, inputs, ranks, inputs.plan
        set_threads(config.run.threads or _threads_of(ranks))
        if _is_fast(config):
            allow_fast_floats()
        self.identity, self._classes = inputs.store.identity, inputs.classes
        self.device = ranks.device(choose_device(config.run.device))
        self._same_floats = check_fingerprints(inputs.store, self.device)
        self._data = ReplayDataset(
            inputs.store,
            inputs.shards,
            inputs.plan,
            rank=ranks.rank,
            ranks=ranks.ranks,
            accumulate=config.run.accumulate,
            audit=config.run.audit,
        )
        self._loss = config.distillation.loss
        self._validation = ranks.decide(lambda: _open_validation(config, inputs))
        self.spec = _student_spec(config, self.identity)
        self.model = create_student(self.spec, lambda text: self._say(text, logging.WARNING))
        self.loaded: Loaded | None = None  # of ``finetune``
        if config.student.finetune is not None and resume_from is None:
            path, which = config.student.finetune, config.student.finetune_weights
            found = ranks.decide(lambda: read_weights(path, which))
            names = None if inputs.classes is None else inputs.classes.names
            self.loaded = load_weights(self.model, found, path, names)
        self.model = adapt(self.model.to(self.device), config.student, self.device)
        self.optimization = Optimization(self.model, config, self.device)
        self.schedule = schedule_of(config, self.plan)
        self._teacher_labels: TeacherLabels = (
            TeacherInLoop(config, self.identity, self.device)
            if config.teacher.teacher_in_loop
            else stored_signal
        )
        self._meter = Meter(ranks)
        self._watch = Stopwatch()
        self._evaluations: dict[str, Evaluation] = {}
        self._best, self._audited, self.step = -1.0, 0, 0
        self._timed_from = 0  # the step from which this process has measured time
        self._winner: Which | None = None  # of the last evaluation
        self._history: tuple[Segment, ...] = (_segment(config, ranks, self.device, 0),)
        self._changes: list[str] = []  # of how steps are computed, since the checkpoint
        self._notes: Mapping[str, Any] = {}
        self._fell_back, self._saved = False, -1  # the step of last.pt
        self._good: tuple[Path, int] | None = None  # the last sound checkpoint, and its step
        self._log: MetricsLog | None = None
        if resume_from is not None:
            self._resume(resume_from)
        if config.student.compile:
            self.model.compile()  # after copies of it were made
        self._parallel = ranks.averaging(self.model, unused=not self._loss.taught)
        ranks.wait()  # all have read what rank 0 now writes over
        self._claimed: list[IO[bytes]] = []  # until this trainer is gone
        ranks.decide(lambda: self._claimed.append(self.output.claim()))
        if self._fell_back and ranks.first:
            self.output.set_aside()
        self._write_config()

    def _require_finite_losses(self) -> None:
        """Raise ``PipelineError`` naming the first step whose loss was not finite."""
        step = self._meter.first_bad_step()
        if step is not None:
            raise self._diverged(f"the loss is not finite at step {step + 1}")

    def _require_finite_state(self) -> None:
        """Raise ``PipelineError`` if what a checkpoint would hold is infinite or undefined."""
        name = self.optimization.first_not_finite()
        if self.ranks.least(-int(name is not None)):
            raise self._diverged(f"{name or 'a weight'} is not finite after step {self.step}")

    def _diverged(self, what: str) -> PipelineError:
        there = "no checkpoint was written yet"
        if self._good is not None:
            path, step = self._good
            there = f"the last good checkpoint is {self.output.at(path)}, of step {step}"
        return PipelineError(
            f"{what}; {there}. Train anew with a lower `lr`, longer `warmup_epochs` or "
            "`clip_grad` 1; `finetune` begins with the weights of a checkpoint"
        )

    def _say(self, text: str, level: int = logging.INFO) -> None:
        if self.ranks.first:
            _log.log(level, text)

    def run(
        self,
        stop_after: int | None = None,
        stop: Callable[[], int] = lambda: 0,
        show: ShowProgress = lambda done, total: None,
    ) -> Outcome:
        """Train from the current step on; see ``train``."""
        end = min(self.plan.steps, stop_after if stop_after is not None else self.plan.steps)
        if self._validation is not None and self.step < end and self.ranks.first:
            require_decodable(self._validation, self._loader_options())
        if self.config.run.audit and self.step < end:
            device = self.device if self._same_floats else None
            self._audited += audit_store(self._data, self._loader_options(), self.ranks, device)
            if not self._audited_by_all():
                self._say(
                    "nothing was audited: no view that was looked at has a digest, so nothing "
                    "shows that the labels belong to the pixels that the student sees",
                    logging.WARNING,
                )
        seconds: list[dict[str, float]] = []
        self._timed_from = self.step
        agreement = StopAgreement(self.ranks, stop)
        stopped_by, begun = 0, self.step
        with (
            self._tracking() as tracking,
            MetricsLog(
                self.output.directory,
                start=self.step,
                silent=not self.ranks.first,
                tell=tracking.tell,
            ) as log,
            closing(self._batches(end)) as batches,
        ):
            self._log = log
            if not self._same_floats:
                self._say(
                    f"{self.device} normalizes and mixes images as the teacher's device did, but "
                    "for the last bits: the store's digests of them cannot be compared",
                    logging.WARNING,
                )
            if not self.step:
                counts = (parameter_count(self.model), parameter_count(self.model, trained=True))
                log.write("student", 0, {"parameters": counts[0], "trained": counts[1]})
                self._say(f"{counts[0]:,} parameters, of which {counts[1]:,} are trained")
            if self._good is not None:
                found = self._good[0]
                if self._fell_back:
                    last = self.output.at(found.with_name(LAST))
                    self._say(f"{last} was torn or missing", logging.WARNING)
                source = self.output.at(found)
                self._say(f"continues at step {self.step}/{self.plan.steps}, from {source}")
            if words := self.inputs.store.manifest.left_out(self.inputs.shards):
                self._say(f"trains on {words}", logging.WARNING)
            if self._changes:
                log.write("segment", self.step, asdict(self._history[-1]))
                self._say(
                    f"{', '.join(self._changes)} since the checkpoint: the weights will not be "
                    "those of an undisturbed run bit for bit",
                    logging.WARNING,
                )
            if any(one.startswith("epochs") for one in self._changes):
                self._say(
                    f"the learning rate follows the schedule of {self.config.plan.epochs} epochs "
                    f"from here on: the next step's is {self.schedule.lr(self.step):.2e}",
                    logging.WARNING,
                )
            if self.loaded is not None:
                self._say(
                    f"begins with the {WORDS[self.loaded.which]} weights of "
                    f"{self.config.student.finetune}; resized: "
                    f"{', '.join(self.loaded.resized) or 'none'}; new: "
                    f"{', '.join(self.loaded.new) or 'none'}"
                )
            while self.step < end and not stopped_by:
                stopped_by = agreement.reached()
                if not stopped_by:
                    self._update(batches)
                    show(self.step, self.plan.steps)
                    self._report(log, seconds)
            finished_before = begun == self.plan.steps
            if finished_before and self._evaluate():
                self._save(BEST)
        self._log = None
        if self.step != self._saved:
            self._save(LAST)
        if self.ranks.first:
            self.output.publish()
        return Outcome(
            steps=self.step,
            dropped_rows=self.plan.dropped_rows,
            peak_memory_bytes=peak_memory(self.device),
            audited=self._audited_by_all(),
            weights=state_digest(self.model.state_dict()),
            evaluation=self._evaluations.get("raw"),
            ema_evaluation=self._evaluations.get("ema"),
            epoch_seconds=tuple(seconds),
            stopped_by=stopped_by,
        )

    def _tracking(self) -> Tracking:
        run = self.config.run
        return Tracking(
            run.tracker if self.ranks.first else None,
            run.tracker_project,
            self.output.directory,
            self.config.to_json(),
        )

    def write_report(self) -> None:
        """Leave a page about the run in its directory; rank 0 alone calls this.

        With validation shards, the better of the raw and the averaged weights see them once more.
        """
        analysis = None
        if self._validation is not None:
            average = self.optimization.average
            model = average if self._winner == "ema" and average is not None else self.model
            self._say("looks once more at the validation images, for the run's report")
            analysis = analyze(
                model,
                self._validation,
                self._loader_options(),
                self.optimization.forward_precision,
                self._headline,
            )
        report_run(
            self.output.directory,
            analysis,
            self._validation,
            names=None if self._classes is None else self._classes.names,
            pictures=self.config.run.report_images,
        )
        self.output.publish()

    def _audited_by_all(self) -> int:
        return int(self.ranks.sum(torch.tensor(self._audited)))

    def _batches(self, end: int) -> Generator[StudentBatch]:
        """Yield the pieces of batches from the current step on, timing the wait for them."""
        if self.step >= end:
            return
        loader = replay_loader(self._data, self.step, end, self._loader_options())
        while True:
            with self._watch.on("data"):
                batch = next(loader, None)
            if batch is None:
                return
            yield batch

    def _loader_options(self) -> LoaderOptions:
        return LoaderOptions(workers=self.config.run.workers, pin=self.device.type == "cuda")

    def _update(self, batches: Iterator[StudentBatch]) -> None:
        """Take one step, on all pieces of this rank's slice of the batch."""
        self.optimization.begin(self.schedule.lr(self.step), self.step)
        training = self.config.student.train_mode
        if not (training and self.model.training):  # walking all modules takes its time
            set_mode(self.model, training=training)
        pieces = self.config.run.accumulate
        for piece in range(pieces - 1):
            with self.ranks.without_averaging(self._parallel):
                self._add_gradients(next(batches), piece)
        self._add_gradients(next(batches), pieces - 1)
        with self._watch.on("student"):
            self.optimization.finish()
        self.step += 1

    def _add_gradients(self, batch: StudentBatch, piece: int) -> None:
        """Add the gradients of one piece of a batch."""
        config, augment = self.config, self.identity.augment
        with self._watch.on("student"):
            # All that this step needs, there at once.
            batch = batch.to(self.device, non_blocking=True).with_rows()
            images = mixed_images(batch, augment, self.device)
        with self._watch.on("teacher" if config.teacher.teacher_in_loop else "student"):
            teacher = self._teacher_labels(batch, images)
        with self._watch.on("student"):
            images = resize_images(images, self.spec.image_size)
            truth = mixed_target(batch, self.device, **config.distillation.learned)
            reseed_step(config.plan.seed, self.step, self.ranks.rank, piece)
            with self.optimization.forward_precision():
                heads = split_heads(self._parallel(images))
            terms = self._loss(heads, truth, teacher)
            called = heads[self._loss.taught].detach().argmax(-1)
            classes = torch.stack([called, teacher.label, truth.target, truth.partner_target])
            self._meter.add(self.step, terms, classes)
            pieces = config.run.accumulate
            self.optimization.backward(terms.loss if pieces == 1 else terms.loss / pieces)
        self._audited += batch.audited

    def _report(self, log: MetricsLog, seconds: list[dict[str, float]]) -> None:
        """Log, evaluate and checkpoint where the step just done calls for it."""
        config = self.config
        epoch = self.plan.epoch_of(self.step - 1)
        if self.step % config.run.log_every == 0:
            self._require_finite_losses()
            means = {**self._meter.take(), "lr": self.schedule.lr(self.step - 1)}
            log.write("train", self.step, {"epoch": epoch, **means})
            self._say(
                f"epoch {epoch + 1}/{config.plan.epochs} step {self.step}/{self.plan.steps} "
                f"loss {means['loss']:.4f} lr {means['lr']:.2e}"
            )
        if self.step == self.plan.epoch_start(epoch + 1):
            spent = self._end_epoch(log, epoch)
            if self._timed_from <= self.plan.epoch_start(epoch):  # else it is a part of one
                seconds.append(spent)
        elif config.run.checkpoint_steps and self.step % config.run.checkpoint_steps == 0:
            self._save(LAST)

    def _end_epoch(self, log: MetricsLog, epoch: int) -> dict[str, float]:
        """Evaluate, log and checkpoint; return the epoch's seconds."""
        self._require_finite_losses()
        means = self._meter.epoch()
        self._meter.clear()
        if self.config.student.dist_bn == "reduce":
            self.ranks.average_means(self.model)
        config, last = self.config, self.step == self.plan.steps
        evaluating = last or (epoch + 1) % config.evaluation.eval_epochs == 0
        improved = evaluating and self._evaluate()
        seconds = self._watch.take()
        seconds["total"] = sum(seconds.values())
        begun = max(self._timed_from, self.plan.epoch_start(epoch))
        rows = (self.step - begun) * config.plan.batch_size
        spent = seconds["total"] - seconds.get("evaluation", 0.0)
        lr = self.schedule.lr(self.step - 1)
        line: dict[str, Any] = {"epoch": epoch, **means, "lr": lr, "seconds": seconds}
        if begun > self.plan.epoch_start(epoch):
            line["timed_from_step"] = begun  # the seconds are those of the steps since
        line["rows_per_second"] = rows / max(spent, 1e-9)
        line["peak_memory_bytes"] = peak_memory(self.device)
        text = f"epoch {epoch + 1}/{config.plan.epochs} done, loss {means['loss']:.4f}"
        if evaluating:
            for name, evaluation in self._evaluations.items():
                line["evaluation" if name == "raw" else "ema_evaluation"] = evaluation.to_json()
                top1 = evaluation.of(self._headline).top1
                text += f", {'' if name == 'raw' else 'EMA '}top-1 {top1:.2%}"
        log.write("epoch", self.step, line)
        parts = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
        self._say(f"{text} (seconds: {parts})")
        if improved:
            self._save(BEST)
        if last or (epoch + 1) % config.run.checkpoint_epochs == 0:
            self._save(LAST)
            if self.ranks.first:
                self.output.keep_epoch(epoch + 1, config.run.checkpoint_history)
        return seconds

    @property
    def _headline(self) -> Literal["class_head", "mean_of_logits"]:
        """What predictions are taken from to find the best weights."""
        return "mean_of_logits" if self._loss.taught else "class_head"

    def _evaluate(self) -> bool:
        """Evaluate if there are validation shards; return whether this is the best so far.

        The better of the raw and the averaged weights counts.
        """
        if self._validation is None:
            return False
        models = {"raw": self.model}
        with self._watch.on("evaluation"), self.optimization.average_on_device() as average:
            if average is not None:
                models["ema"] = average
            self._evaluations = evaluate_all(
                models,
                self._validation,
                self._loader_options(),
                self.optimization.forward_precision,
                self.ranks,
            )
        scores = {name: one.of(self._headline).top1 for name, one in self._evaluations.items()}
        top1 = max(scores.values())
        self._winner = "raw" if scores["raw"] == top1 else "ema"
        improved = top1 > self._best
        self._best = max(self._best, top1)
        return improved

    def _save(self, name: str) -> None:
        self._require_finite_losses()
        meter = self._meter.state()
        self._require_finite_state()
        path = self.output.directory / name
        if self.ranks.first:
            self._write(path, meter)
            if self._log is not None:
                self._log.flush()
            self.output.publish()
        self._good = (path, self.step)
        if name == LAST:
            self._saved = self.step

    def _write(self, path: Path, meter: Mapping[str, Mapping[str, float]]) -> None:
        write_checkpoint(
            path,
            Checkpoint(
                model=self.model.state_dict(),
                **self.optimization.state(),
                student=self._saved_student(),
                step=self.step,
                run=self.inputs.run_identity(self.config),
                history=self._history,
                meter=meter,
                metrics={name: one.to_json() for name, one in self._evaluations.items()},
                best=self._best,
                winner=self._winner,
                needs=needed_release(self.config, self.identity),
                notes=self._notes,
            ),
        )

    def _saved_student(self) -> SavedStudent:
        """Return how to build the student again, and the views it was trained on."""
        views = center_views(
            self.identity.augment, self.config.evaluation.eval_fraction, self.spec.image_size
        )
        return SavedStudent(
            model=self.spec.name,
            model_args=self.config.student.model_args,
            classes=self.spec.classes,
            image_size=self.spec.image_size,
            heads=self.spec.heads,
            headline=self._headline,
            precision=self.config.student.precision,
            views=views,
            class_names=None if self._classes is None else self._classes.names,
        )

    def _resume(self, path: Path) -> None:
        identity = self.inputs.run_identity(self.config)
        # Rank 0 reads for all: the others may be on machines that do not have the file.
        with self.output.naming():
            found = self.ranks.decide(
                lambda: find_checkpoint(path, identity, lengthen=self.config.lengthen)
            )
        checkpoint = found.checkpoint
        saved = ClassNames.of(checkpoint.student.class_names, found.path)
        self._classes = agreed_names(saved, self._classes)
        try:
            self.model.load_state_dict(checkpoint.model)
            self.optimization.restore(checkpoint.optimizer, checkpoint.scaler, checkpoint.ema)
            self._meter.restore(checkpoint.meter)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} does not fit {self.config.student.model}: {error}; resume with the "
                "versions of torch and timm that wrote it"
            ) from error
        if checkpoint.step > self.plan.steps:
            raise CheckpointError(
                f"{path} is of step {checkpoint.step}, the run has {self.plan.steps}; resume from "
                "another checkpoint"
            )
        self.step, self._fell_back = checkpoint.step, found.path != path
        self._notes, self._history = checkpoint.notes, checkpoint.history
        self._winner = checkpoint.winner
        now = _segment(self.config, self.ranks, self.device, self.step)
        self._changes = self._history[-1].changes(now)
        if self._changes:
            self._history = (*self._history, now)
        here = _real(self.output.directory)
        if _real(path).parent == here:  # else there is no best.pt to be better than
            self._best = checkpoint.best
        self._good = (found.path, self.step)
        own = _real(path) == here / LAST
        self._saved = self.step if own and not self._fell_back else -1

    def _write_config(self) -> None:
        if not self.ranks.first:
            return
        run = self.inputs.run_identity(self.config)
        values = {
            "config": self.config.to_json(),
            "digest": self.config.digest,
            "store": self.identity.digest,
            "views": run.views,
            "shards": run.shards,
            "subset": run.subset,
        }
        replace_file(self.output.directory / CONFIG, canonical_json(values) + b"\n")
        replace_file(self.output.directory / RUN, to_toml(self.config))
        self.output.publish()


@contextmanager
def _room_on_disk(output: str) -> Iterator[None]:
    """Say how a run goes on whose disk was full, whatever was to be written."""
    try:
        yield
    except (OSError, PipelineError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # Another disk may be, that of the shard cache or of temporary files.
        what = error if isinstance(error, PipelineError) else error.filename or output
        full = "" if isinstance(error, PipelineError) else ": the disk is full"
        raise PipelineError(
            f"{what}{full}; the checkpoints that were there are whole: free space, and continue "
            "with `resume` auto"
        ) from error


def _threads_of(ranks: Ranks) -> int | None:
    """Return this rank's share of the machine's cores, None for all."""
    if not ranks.several or ranks.own_cpus:
        return None
    return max(1, len(os.sched_getaffinity(0)) // ranks.local_ranks)


def _is_fast(config: TrainConfig) -> bool:
    """Return whether a GPU may trade last bits for speed; a teacher's labels must not change."""
    return not (config.run.deterministic or config.teacher.teacher_in_loop)


def _segment(config: TrainConfig, ranks: Ranks, device: torch.device, step: int) -> Segment:
    """Return how this process computes steps from one on; threads are set already."""
    return Segment(
        step=step,
        epochs=config.plan.epochs,
        ranks=ranks.ranks,
        accumulate=config.run.accumulate,
        threads=torch.get_num_threads(),
        fast=_is_fast(config) and device.type == "cuda",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )


def _real(path: Path) -> Path:
    """Return where a path leads; links in a circle, which are refused when read, to themselves."""
    return Path(os.path.realpath(path))


def checkpoint_to_resume(config: TrainConfig, run_output: RunOutput) -> Path | None:
    """Return the checkpoint to continue from, None to begin; never overwrites a run.

    It is brought to this machine, as long as there is ``run_output``, that of the settings.
    """
    resume, output = run_output.fetch(config.resume), run_output.directory
    last = output / LAST
    if resume == "auto":
        # Only a file system without links could leave the one before alone.
        if last.exists() or last.with_name(PREVIOUS).exists():
            return last
        # An evaluation came before the first of ``checkpoint_epochs``.
        best = output / BEST
        return best if best.exists() else None
    config.require_free(output, resume)
    return Path(resume) if resume is not None else None


def _open_validation(config: TrainConfig, inputs: Inputs) -> ValidationDataset | None:
    if not inputs.validation:
        return None
    identity = inputs.store.identity
    labels = config.evaluation.val_labels
    return ValidationDataset(
        inputs.validation,
        center_views(
            identity.augment, config.evaluation.eval_fraction, config.student.student_size
        ),
        classes=identity.teacher.classes,
        batch_size=config.evaluation.eval_batch_size,
        labels=None
        if labels is None
        else read_teacher_labels(labels, inputs.validation, inputs.classes),
        names=inputs.classes,
    )


def _student_spec(config: TrainConfig, identity: StoreIdentity) -> StudentSpec:
    student, distillation = config.student, config.distillation
    heads: Literal[1, 2] = 2 if distillation.distillation_kind == "token" else 1
    return StudentSpec(
        name=student.model,
        classes=identity.teacher.classes,
        image_size=student.student_size or identity.augment.image_size,
        heads=heads if distillation.loss.taught else None,
        drop_path=student.drop_path,
        seed=config.plan.seed,
        model_args=parse_model_args(student.model_args),
    )
