"""All settings of a training run, in groups. Nothing here knows PyTorch."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_type_hints

from pipeline.errors import ConfigError
from pipeline.files.cache import CacheConfig
from pipeline.files.kinds import at_home
from pipeline.files.objects import ObjectUrl, is_url
from pipeline.growth import founding_values, grown, plain_value, require, settle
from pipeline.identity import Precision, canonical_json
from pipeline.labelling.timm_files import require_fetched, why_not_fetched
from student.losses import LOSSES, DistillationConfig
from student.order import PlanConfig

__all__ = [
    "FOUNDING",
    "RUN_FILES",
    "SETTINGS",
    "EvaluateConfig",
    "EvaluationConfig",
    "ExportConfig",
    "OptimizationConfig",
    "RunConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainConfig",
    "not_fetched",
    "parse_arguments",
    "parse_model_args",
    "require_own_name",
]

Schedules: TypeAlias = Literal[
    "cosine", "timm-cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant"
]

_SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")
"""What timm's names begin with where weights are fetched from or read."""

_POSITIVE, _SHARE = "use a positive number", "use 0 or more, less than 1"
_LARGEST = 1e30  # of rates and limits


def free(default: Any = dataclasses.MISSING) -> Any:
    """Return a field that a resumed run may change: where things are, and how fast they go."""
    return field(default=default, metadata={"free": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentConfig:
    """Which student is trained, and what it begins from."""

    model: str = "deit_tiny_distilled_patch16_224"
    """timm's name of a model, or 'package.module:function' of your own; built at the store's
    view size."""
    model_args: tuple[str, ...] = ()
    """Changes to the model, as KEY=VALUE: patch_size=4 embed_dim=192 depth=6 num_heads=3."""
    student_size: int | None = None
    """Side in pixels to which views are resized on the device, if the student's is not the
    store's; the teacher saw the store's."""
    drop_path: float = 0.1
    """Stochastic depth: the last block's probability of being skipped."""
    train_mode: bool = grown(founding=True, since="0.1.0")
    """Train with the model in training mode. DeiT fine-tunes without: drop path and dropout are
    off, and batch norm uses the means that it has."""
    precision: Precision = "fp32"
    """Number format of the student's forward pass, by autocast; fp16 scales the loss."""
    compile: bool = False
    """Compile the student with torch.compile; changes the last bits."""
    grad_checkpointing: bool = grown(founding=False, since="0.1.0")
    """Keep few activations, and compute the others again on the way back: less memory, slower."""
    attn_only: bool = grown(founding=False, since="0.1.0")
    """Train attention, heads and position embeddings alone, as DeiT III's fine-tuning may."""
    sync_bn: bool = grown(founding=False, since="0.1.0")
    """Take batch norm's means over all ranks; on GPUs."""
    dist_bn: Literal["broadcast", "reduce"] = grown(founding="broadcast", since="0.1.0")
    """What ranks do with the running means of batch norm after each epoch: all take rank 0's, or
    their average."""
    finetune: str | None = free(None)
    """Begin from these weights: a checkpoint of a run, .safetensors or .pth; path or URL. Position
    embeddings are resized; heads of other classes begin anew."""
    finetune_weights: Literal["raw", "ema"] | None = free(None)
    """Which of a checkpoint's weights it begins from; by default those that won the last
    evaluation, if the checkpoint says so, or else the raw ones."""

    def __post_init__(self) -> None:
        settle(self)
        _require_one(self, "student_size")
        require(self, "drop_path", 0 <= self.drop_path < 1, _SHARE)
        parse_arguments("model_args", self.model_args)

    def check_fetched(self) -> None:
        """Raise ``ConfigError`` for a student that is a source to fetch from, or one whose weights
        are asked for and neither the hub nor its cache have.

        PyTorch, which takes seconds to load, is not needed for that.
        """
        require_own_name(self.model)
        pretrained = parse_model_args(self.model_args).get("pretrained")
        if pretrained and (why := why_not_fetched(self.model)):
            raise not_fetched(self.model, why)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationConfig:
    """How a step changes the weights."""

    lr: float | None = None
    """Peak learning rate; by default 5e-4 * batch size / 512."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step."""
    min_lr: float = 1e-5
    """Learning rate at the end; never above the peak."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up; by default 5, or a fifth of a run under 25 epochs."""
    optimizer: str = "adamw"
    """timm's name of the optimizer."""
    optimizer_eps: float | None = None
    """Its epsilon, if it has one; by default timm's, 1e-8 for adamw."""
    optimizer_betas: tuple[float, float] | None = None
    """Its betas, if it has them; by default timm's, .9 and .999 for adamw."""
    weight_decay: float = 0.05
    """Weight decay, not on biases, norms, tokens and position embeddings (cls_token, dist_token,
    pos_embed, and what a model's no_weight_decay() names)."""
    clip_grad: float | None = None
    """Largest norm of the gradient, or what `clip_mode` makes of it; no clipping by default."""
    clip_mode: Literal["norm", "value", "agc"] = grown(founding="norm", since="0.1.0")
    """What `clip_grad` bounds: the gradient's norm, each of its values, or the norm of each unit's
    gradient by that of its weights (adaptive gradient clipping, of NFNets: 0.01)."""
    layer_decay: float | None = grown(founding=None, since="0.1.0")
    """Factor of the learning rate from each layer to the one before it, as timm groups layers."""
    optimizer_args: tuple[str, ...] = grown(founding=(), since="0.1.0")
    """Further arguments of timm's optimizer, as KEY=VALUE: momentum=0.9 nesterov=True."""
    schedule: Schedules = grown(founding="cosine", since="0.1.0")
    """The learning rate after warm-up; all but cosine are timm's, taken at each step."""
    schedule_args: tuple[str, ...] = grown(founding=(), since="0.1.0")
    """Further arguments of timm's create_scheduler_v2, in epochs, as KEY=VALUE: decay_epochs=30
    decay_rate=0.1 cycle_limit=3 noise=0.5."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the weights, which is evaluated beside them;
    DeiT's is 0.99996, 0 keeps none."""
    ema_warmup: bool = grown(founding=False, since="0.1.0")
    """Let the decay grow with the steps up to `ema_decay`, as timm's: 1 - (1 + step)^(-2/3)."""
    ema_on_cpu: bool = free(False)
    """Keep the average in the CPU's memory; it goes to the device to be evaluated."""

    def __post_init__(self) -> None:
        settle(self)
        for name in ("lr", "clip_grad", "optimizer_eps"):
            value = getattr(self, name)
            require(self, name, value is None or value > 0, _POSITIVE)
        for name in ("warmup_lr", "min_lr", "weight_decay"):
            require(self, name, getattr(self, name) >= 0, "use 0 or more")
        for name in ("lr", "clip_grad", "optimizer_eps", "warmup_lr", "min_lr", "weight_decay"):
            # PyTorch's fp32 ends at 3.4e38, with a traceback at the first step.
            require(self, name, (getattr(self, name) or 0) <= _LARGEST, f"use {_LARGEST:g} at most")
        betas = self.optimizer_betas or ()
        require(self, "optimizer_betas", all(0 <= one < 1 for one in betas), "use 0 to below 1")
        require(self, "ema_decay", 0 <= self.ema_decay < 1, _SHARE)
        decay = self.layer_decay
        require(self, "layer_decay", decay is None or 0 < decay <= 1, "use more than 0, at most 1")
        for name in ("optimizer_args", "schedule_args"):
            parse_arguments(name, getattr(self, name))
        if self.schedule == "cosine" and self.schedule_args:
            raise ConfigError(
                "`schedule_args` are of timm's schedules, and `schedule` cosine is this package's; "
                "for cycles or k-decay give timm-cosine"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """What is evaluated while a run trains, and when."""

    val_shards: tuple[str, ...] = free(())
    """Validation shards; without them nothing is evaluated and there is no best.pt."""
    val_labels: str | None = free(None)
    """Label store of the validation shards (center views, no mixing): shows the teacher's
    accuracy beside the student's, and how often they agree."""
    eval_fraction: float = 0.875
    """Share of the shorter side that the validation's center crop keeps, as timm's crop_pct."""
    eval_epochs: int = free(1)
    """Epochs between evaluations; the last epoch always has one."""
    eval_batch_size: int = free(256)
    """Rows of a validation batch."""

    def __post_init__(self) -> None:
        settle(self)
        _require_one(self, "eval_batch_size", "eval_epochs")
        _require_fraction(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """The teacher in the loop, for comparison."""

    teacher_in_loop: bool = False
    """Ignore the stored labels and run the store's teacher on every batch instead."""
    teacher_checkpoint: Path | None = free(None)
    """In the loop: the teacher's weights; pretrained ones are fetched without it."""
    teacher_random_weights: int | None = None
    """In the loop: the seed of a teacher that was labelled with untrained weights."""

    def __post_init__(self) -> None:
        settle(self)
        if self.teacher_checkpoint is not None and self.teacher_random_weights is not None:
            raise ConfigError("give `teacher_checkpoint` or `teacher_random_weights`, not both")

    def check_fetched(self, architecture: str) -> None:
        """Raise ``TeacherError`` if the store's teacher shall be in the loop, and neither the hub
        nor its cache have its weights.
        """
        local = self.teacher_checkpoint is not None or self.teacher_random_weights is not None
        if self.teacher_in_loop and not local:
            require_fetched(architecture)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How a run goes; what it comes to depends on few of these, and on those in the last bits."""

    device: Literal["auto", "cpu", "cuda"] = free("auto")
    """Where the student trains."""
    deterministic: bool = free(False)
    """On a GPU: train without TF32 and cuDNN's choice of the fastest kernels, which change the last
    bits from run to run. A teacher in the loop always does without."""
    threads: int | None = free(None)
    """CPU threads of PyTorch; all cores by default."""
    workers: int = free(2)
    """Processes that decode and augment; 0 does it in the training process."""
    accumulate: int = free(1)
    """Pieces in which each rank works off its share of a batch, to save memory."""
    audit: bool = free(True)
    """Compare each replayed view that has a digest with it, and stop where they differ."""
    image_size: int | None = free(None)
    """Side in pixels that the store's views must have; by default whatever they have."""
    subset: bool = free(False)
    """Train on those of the store's shards that are given, if some are missing. Which they are
    binds a resumed run."""
    log_every: int = free(50)
    """Steps between lines of the metrics log."""
    tracker: Literal["wandb", "mlflow", "trackio"] | None = free(None)
    """Send settings and metrics to Weights & Biases, MLflow or Trackio too, by its own client,
    where its own variables say (WANDB_MODE=offline, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID). Needs
    the extra of that name. What fails there does not end training."""
    tracker_project: str = free("teacher-labels")
    """Project, or in MLflow the experiment, that the run is shown in."""
    report_images: int = free(24)
    """Validation images that the student knows least, shown in the run's report; 0 shows none."""
    checkpoint_epochs: int = free(1)
    """Epochs between checkpoints; the last epoch always has one."""
    checkpoint_steps: int | None = free(None)
    """Steps between further checkpoints, for epochs that take hours."""
    checkpoint_history: int = free(0)
    """Checkpoints of epochs that are kept beside the last and the best: epoch-0007.pt and so on."""
    cache_dir: Path | None = free(None)
    """Where shards from object storage are kept, shared by all runs of a machine; by default
    teacher-labels/shards in $XDG_CACHE_HOME or ~/.cache."""
    cache_gb: float = free(100.0)
    """Size of that directory; the least recently used shards go first."""

    def __post_init__(self) -> None:
        settle(self)
        _require_one(self, "threads", "accumulate", "image_size", "log_every")
        _require_one(self, "checkpoint_epochs", "checkpoint_steps")
        for name in ("workers", "checkpoint_history"):
            require(self, name, getattr(self, name) >= 0, "use 0 or more")
        require(self, "report_images", 0 <= self.report_images <= 48, "use 0..48")
        _ = self.cache  # checks its own fields

    @property
    def cache(self) -> CacheConfig:
        """Where shards from object storage are kept."""
        return CacheConfig.of_flags(self.cache_dir, self.cache_gb)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Train a distilled student on the augmented views and teacher labels of a store.

    Everything about the views comes from the store: size, augmentation, mixing, classes. The
    settings of all groups have names of their own; ``of_settings`` takes them as they come.
    """

    labels: str = free()
    """Label store: a .parquet directory, a .zarr directory, or one .parquet file; path or URL."""
    shards: tuple[str, ...] = free()
    """The shards that were labelled: their directory, files, a .txt that lists them, or patterns
    in quotes ('x-{000..127}.tar'); s3://, gs:// or az:// for shards in object storage."""
    output: str = free()
    """Directory of this run, or a URL in object storage: last.pt, previous.pt, best.pt, run.toml,
    config.json, metrics.jsonl, TensorBoard's log, and report.html once it is finished."""
    lengthen: bool = free(False)
    """Let a resumed run have more epochs than it had, finished or not: from there on the learning
    rate follows the schedule of the new number."""
    resume: str | None = free(None)
    """'auto' continues from OUTPUT/last.pt, or previous.pt or best.pt where that is missing, if any
    is there; a path continues from that file."""
    student: StudentConfig = field(default_factory=StudentConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    def __post_init__(self) -> None:
        settle(self)
        if isinstance(self.output, str):  # else it is still to be given
            object.__setattr__(self, "output", at_home(self.output))
            if is_url(self.output):
                ObjectUrl.parse(self.output)  # which says what is wrong with it
        epochs, warmup = self.plan.epochs, self.optimization.warmup_epochs
        require(
            self.optimization,
            "warmup_epochs",
            warmup is None or 0 <= warmup <= epochs,
            f"use 0 to {epochs}, the run's epochs",
        )
        if self.teacher.teacher_in_loop and not self.distillation.loss.taught:
            raise ConfigError(
                f"`teacher_in_loop` with `distillation` {self.distillation.distillation}: drop "
                "one of them"
            )

    @staticmethod
    def of_settings(**values: Any) -> TrainConfig:
        """Return the configuration with these settings by name, whatever their groups.

        Raises ``ConfigError`` for a name that there is not.
        """
        unknown = sorted(values.keys() - SETTINGS)
        if unknown:
            raise ConfigError(f"there is no setting `{unknown[0]}`")
        config: TrainConfig = _grouped(TrainConfig, values)
        return config

    def require_free(self, output: Path, resume: str | None) -> None:
        """Raise ``ConfigError`` if a run is in ``output`` that is not the one to be resumed."""
        if output.exists() and not output.is_dir():
            raise ConfigError(f"`output` {self.output} is a file; give a directory")
        # Links in a circle lead to themselves, and are refused where they are read.
        real = os.path.realpath(output)
        own = resume == "auto" or (resume and str(Path(os.path.realpath(resume)).parent) == real)
        taken = [name for name in RUN_FILES if (output / name).exists()]
        if taken and not own:
            raise ConfigError(
                f"`output` {self.output} holds a run ({', '.join(taken)}); continue it with "
                "`resume` auto, or give another `output`"
            )

    def require_useful(self) -> None:
        """Raise ``ConfigError`` for a setting that does nothing without another.

        A run file may hold such a one, for flags to complete.
        """
        useless = "without `{}` it does nothing: add that, or drop it".format
        student, evaluation, teacher = self.student, self.evaluation, self.teacher
        val_labels, either = evaluation.val_labels, student.finetune_weights is None
        shown, begun = bool(evaluation.val_shards), student.finetune is not None
        optimization = self.optimization
        for name, needed in (
            ("clip_mode", "clip_grad"),
            ("ema_warmup", "ema_decay"),
            ("ema_on_cpu", "ema_decay"),
        ):
            fits = getattr(optimization, name) in (False, "norm") or getattr(optimization, needed)
            require(optimization, name, bool(fits), useless(needed))
        require(evaluation, "val_labels", shown or not val_labels, useless("val_shards"))
        require(student, "finetune_weights", begun or either, useless("finetune"))
        for name in ("teacher_checkpoint", "teacher_random_weights"):
            fits = teacher.teacher_in_loop or getattr(teacher, name) is None
            require(teacher, name, fits, useless("teacher_in_loop"))

    def output_file(self, name: str) -> str:
        """Return where a file of the run lies, for messages."""
        return f"{self.output.rstrip('/')}/{name}"

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        given = self.optimization.lr
        return given if given is not None else 5e-4 * self.plan.batch_size / 512

    @property
    def effective_warmup_epochs(self) -> float:
        """Epochs of warm-up, short runs considered."""
        given = self.optimization.warmup_epochs
        return given if given is not None else min(5.0, self.plan.epochs / 5)

    def to_json(self) -> dict[str, Any]:
        """Return all settings by name as plain JSON values, defaults resolved."""
        lr, warmup = self.peak_lr, self.effective_warmup_epochs
        optimization = replace(self.optimization, lr=lr, warmup_epochs=warmup)
        whole = replace(self, optimization=optimization)
        return {one.name: plain_value(value) for one, value in _values(whole)}

    def binding(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share, as plain JSON values.

        Those at their founding values are left out, so that older releases' runs go on, and
        the parameters of losses that were not chosen.
        """
        idle = {
            one.name
            for kind in LOSSES.values()
            for one in dataclasses.fields(kind)
            if kind is not type(self.distillation.loss)
        }
        free = {one.name for one, _ in _values(self) if "free" in one.metadata}
        founding = founding_values(type(self))
        return {
            name: value
            for name, value in self.to_json().items()
            if name not in idle | free and not (name in founding and founding[name] == value)
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the settings that a resumed run must share."""
        return hashlib.sha256(canonical_json(self.binding())).hexdigest()


def _values(record: Any) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Yield the fields of a record and of the groups in it, with their values."""
    for one in dataclasses.fields(record):
        value = getattr(record, one.name)
        if dataclasses.is_dataclass(value):
            yield from _values(value)
        else:
            yield one, value


def _types(kind: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and types of the fields of a record and of the groups in it."""
    hints = get_type_hints(kind)
    for one in dataclasses.fields(kind):
        hint = hints[one.name]
        if dataclasses.is_dataclass(hint):
            yield from _types(hint)
        else:
            yield one.name, hint


def _grouped(kind: Any, values: Mapping[str, Any]) -> Any:
    """Return a record with the values that it and the groups in it have a field for."""
    found, hints = {}, get_type_hints(kind)
    for one in dataclasses.fields(kind):
        hint = hints[one.name]
        if dataclasses.is_dataclass(hint):
            found[one.name] = _grouped(hint, values)
        elif one.name in values:
            found[one.name] = values[one.name]
    return kind(**found)


RUN_FILES = ("last.pt", "best.pt", "config.json")
"""The last checkpoint of a run, its best one, and its settings."""

SETTINGS: Mapping[str, Any] = dict(_types(TrainConfig))
"""The names of all settings, with their types."""

FOUNDING = founding_values(TrainConfig)
"""What runs of older releases did without the settings that were added since."""


_TOO_MANY = 1 << 31  # PyTorch counts in 32 bits


def _require_one(record: Any, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        require(record, name, value is None or value >= 1, "use 1 or more")
        require(record, name, value is None or value < _TOO_MANY, "use fewer")


def _require_fraction(record: Any) -> None:
    fraction = record.eval_fraction
    fits = fraction is None or 0 < fraction <= 1
    require(record, "eval_fraction", fits, "use more than 0, at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Evaluate students on validation shards: checkpoints of runs here, timm's or DeiT's."""

    checkpoint: str
    """last.pt or best.pt of a run, weights of timm's or DeiT's (with `model`), or a directory, of
    which all .pt, .pth and .safetensors files are evaluated; path or URL."""
    val_shards: tuple[str, ...]
    """Validation shards: their directory, files, or patterns in quotes."""
    model: str | None = None
    """The checkpoint's model, if that is a 'package.module:function': a file alone chooses no
    code. Of other programs' weights timm's name of what they are the weights of."""
    model_args: tuple[str, ...] = ()
    """Those of the checkpoint's model arguments that may fetch or read something, such as
    pretrained=True: a file alone does not choose that. Of other programs' weights all of them."""
    image_size: int | None = None
    """Side of the images in pixels, for other programs' weights; by default their model's.
    A checkpoint of a run says its own, and above 1,024 only if it is given here too."""
    val_labels: str | None = None
    """Label store of these shards (center views, no mixing), for the teacher's part."""
    eval_batch_size: int = 256
    """Rows of a batch."""
    eval_fraction: float | None = None
    """Share of the shorter side that the center crop keeps; by default that of the run."""
    precision: Precision | None = None
    """Number format of the student's forward pass; by default that of the run."""
    json: Path | None = None
    """File for all numbers."""
    analysis: bool = False
    """Compare class and distillation token by layer, and teacher, heads and truth."""
    plot: Path | None = None
    """Image file for the analysis; needs matplotlib."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the student runs."""
    threads: int | None = None
    """CPU threads of PyTorch; all cores by default."""
    workers: int = 2
    """Processes that decode; 0 does it in this one."""
    cache_dir: Path | None = None
    """Where shards from object storage are kept, as training has it."""
    cache_gb: float = 100.0
    """Size of that directory."""

    def __post_init__(self) -> None:
        settle(self)
        _require_one(self, "eval_batch_size", "threads", "image_size")
        require(self, "workers", self.workers >= 0, "use 0 or more")
        _require_fraction(self)
        if self.plot is not None and not self.analysis:
            raise ConfigError("`plot` draws the analysis; give `analysis` too")
        _ = self.cache  # checks its own fields

    @property
    def cache(self) -> CacheConfig:
        """Where shards from object storage are kept."""
        return CacheConfig(directory=self.cache_dir, gigabytes=self.cache_gb)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """Write a run's student as a file that timm, Hugging Face's hub or ONNX can load."""

    run: str
    """A run's directory, of which best.pt is taken, or else last.pt; or one of its checkpoints;
    path or URL."""
    to: Literal["timm", "safetensors", "hub", "onnx"]
    """timm: a .pth as its train.py writes; safetensors: the weights alone; hub: a directory
    as on Hugging Face's hub, to upload, for timm and transformers; onnx: a graph, with the extra
    'export'."""
    out: Path
    """The file to write, or for hub the directory. A name ends in .safetensors for these alone:
    timm goes by it."""
    heads: Literal["both", "fused", "class"] = "both"
    """Of a student of two heads. both: as it is, and in a graph two outputs; fused: the mean of
    both, which timm's models give in evaluation by themselves; class: the class head alone."""
    weights: Literal["raw", "ema"] | None = None
    """Which of a checkpoint's weights; by default those that won the last evaluation."""
    model: str | None = None
    """The checkpoint's model, if that is code of your own, as evaluation has it."""
    model_args: tuple[str, ...] = ()
    """Those of its model arguments that may fetch or read something, likewise."""
    image_size: int | None = None
    """Side of its images in pixels, if it is above 1,024, likewise."""

    def __post_init__(self) -> None:
        settle(self)
        parse_model_args(self.model_args)
        ending = ".safetensors"
        fits = (self.to == "safetensors") == (self.out.suffix == ending) or self.to == "onnx"
        end = "end" if self.to == "safetensors" else "not end"
        require(self, "out", fits, f"let it {end} in {ending}, by which timm knows that format")


def require_own_name(model: str) -> None:
    """Raise ``ConfigError`` for a student that is a source to fetch from."""
    if model.startswith(_SOURCES) or "/" in model:
        raise ConfigError(
            f"`model` {model!r} is a source to fetch from, and a model begins untrained: give "
            "its own name, such as vit_tiny_patch16_224, and the file of weights with `finetune`"
        )


def not_fetched(model: str, why: str) -> ConfigError:
    """Return that a student's weights cannot be had, and why."""
    return ConfigError(
        f"`model` {model} cannot fetch or read what `model_args` ask for ({why}); fetch weights "
        "where there is a network, and give their file with `finetune`"
    )


def parse_model_args(arguments: tuple[str, ...]) -> Mapping[str, Any]:
    """Return a model's KEY=VALUE texts as a mapping; see ``parse_arguments``."""
    return parse_arguments("model_args", arguments)


def parse_arguments(setting: str, arguments: tuple[str, ...]) -> Mapping[str, Any]:
    """Return KEY=VALUE texts of a setting as a mapping; values are Python literals, or else text.

    Raises ``ConfigError`` for a text without a name and ``=``, or a name given twice.
    """
    parsed: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"`{setting}` has {argument!r}; write KEY=VALUE, such as depth=6")
        if name in parsed:
            raise ConfigError(f"`{setting}` gives {name} twice")
        try:
            parsed[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            parsed[name] = text
    return parsed
