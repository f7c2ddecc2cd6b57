"""All settings of a training run. Nothing here knows PyTorch."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import ConfigError
from pipeline.files.cache import CacheConfig
from pipeline.files.objects import is_url
from pipeline.growth import founding_values, plain_value, settle
from pipeline.identity import canonical_json
from student.order import PlanConfig

__all__ = ["FOUNDING", "SETTINGS", "EvaluateConfig", "TrainConfig", "parse_model_args"]

_FREE_FIELDS = frozenset(
    {
        "labels",
        "shards",
        "val_shards",
        "output",
        "teacher_checkpoint",
        "resume",
        "device",
        "workers",
        "threads",
        "audit",
        "cache_dir",
        "cache_gb",
        "eval_batch_size",
        "log_every",
        "checkpoint_epochs",
        "checkpoint_steps",
        "accumulate",
        "eval_epochs",
        "val_labels",
        "finetune",
        "finetune_weights",
        "image_size",
    }
)
"""Settings that a resumed run may change: where things are, and how fast they go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Train a distilled student on the augmented views and teacher labels of a store.

    Everything about the views comes from the store: size, augmentation, mixing, classes.
    """

    labels: str
    """Label store: a .parquet directory, a .zarr directory, or one .parquet file; path or URL."""
    shards: tuple[str, ...]
    """The shards that were labelled: files, brace patterns ('x-{000..127}.tar') or globs, in
    quotes; s3://, gs:// or az:// for shards in object storage."""
    output: Path
    """Directory of this run: last.pt, previous.pt, best.pt, run.toml, config.json,
    metrics.jsonl, TensorBoard's log."""
    val_shards: tuple[str, ...] = ()
    """Validation shards; without them nothing is evaluated and there is no best.pt."""
    val_labels: str | None = None
    """Label store of the validation shards (center views, no mixing): shows the teacher's
    accuracy beside the student's, and how often they agree."""
    model: str = "deit_tiny_distilled_patch16_224"
    """timm's name of a model, or 'package.module:function' of your own; built at the store's
    view size."""
    model_args: tuple[str, ...] = ()
    """Changes to the model, as KEY=VALUE: patch_size=4 embed_dim=192 depth=6 num_heads=3."""
    image_size: int | None = None
    """Side in pixels that the store's views must have; by default whatever they have."""
    student_size: int | None = None
    """Side in pixels to which views are resized on the device, if the student's is not the
    store's; the teacher saw the store's."""
    finetune: Path | None = None
    """Begin from these weights: a checkpoint of train-student, .safetensors or .pth. Position
    embeddings are resized; heads of other classes begin anew."""
    finetune_weights: Literal["raw", "ema"] = "raw"
    """Which of a train-student checkpoint's weights --finetune takes."""
    epochs: int = 300
    """Epochs; each consumes one view of every sample."""
    batch_size: int = 1024
    """Rows of a global batch, over all ranks and accumulated pieces."""
    accumulate: int = 1
    """Pieces in which each rank works off its share of a batch, to save memory."""
    seed: int = 0
    """Seed of the order of training, of the weights and of drop path."""
    repeated_augmentation: bool = False
    """Show three views of a sample in one batch, from one decode (DeiT's repeated
    augmentation); three epochs then consume each view once."""
    cycle_views: bool = False
    """Begin with the store's first views again when all were shown; the same images then come
    back as they were."""
    resume: str | None = None
    """'auto' continues from OUTPUT/last.pt, or previous.pt or best.pt where that is missing, if any
    is there; a path continues from that file."""
    teacher_in_loop: bool = False
    """Ignore the stored labels and run the store's teacher on every batch instead."""
    teacher_checkpoint: Path | None = None
    """In the loop: the teacher's weights; pretrained ones are fetched without it."""
    teacher_random_weights: int | None = None
    """In the loop: the seed of a teacher that was labelled with --teacher-random-weights."""
    distillation: Literal["hard", "soft", "none"] = "hard"
    """Learn the teacher's label, its top-k probabilities (of a store that has them), or
    nothing of it."""
    distillation_kind: Literal["token", "classical"] = "token"
    """token: a distillation head learns from the teacher; classical: a student of one head
    learns both from it."""
    alpha: float = 0.5
    """Hard: weight of the teacher's loss; the truth's is 1 - alpha."""
    soft_lambda: float = 0.1
    """Soft: weight of the teacher's loss; the truth's is 1 - this."""
    tau: float = 3.0
    """Soft: temperature."""
    smoothing: float = 0.1
    """Label smoothing of the truth; teacher labels are not smoothed."""
    lr: float | None = None
    """Peak learning rate; by default 5e-4 * batch size / 512."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step."""
    min_lr: float = 1e-5
    """Learning rate at the end; never above the peak."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up; by default 5, or a fifth of a run under 25 epochs."""
    optimizer: str = "adamw"
    """timm's name of the optimiser."""
    optimizer_eps: float | None = None
    """Its epsilon, if it has one; by default timm's, 1e-8 for adamw."""
    optimizer_betas: tuple[float, float] | None = None
    """Its betas, if it has them; by default timm's, .9 and .999 for adamw."""
    weight_decay: float = 0.05
    """Weight decay, not on biases, norms, tokens and position embeddings (cls_token, dist_token,
    pos_embed, and what a model's no_weight_decay() names)."""
    drop_path: float = 0.1
    """Stochastic depth: the last block's probability of being skipped."""
    clip_grad: float | None = None
    """Largest norm of the gradient; no clipping by default."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the weights, which is evaluated beside them;
    DeiT's is 0.99996, 0 keeps none."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the student's forward pass, by autocast; fp16 scales the loss."""
    compile: bool = False
    """Compile the student with torch.compile; changes the last bits."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the student trains."""
    threads: int | None = None
    """CPU threads of PyTorch; all cores by default."""
    workers: int = 2
    """Processes that decode and augment; 0 does it in the training process."""
    cache_dir: Path | None = None
    """Where shards from object storage are kept, shared by all runs of a machine; by default
    teacher-labels/shards in $XDG_CACHE_HOME or ~/.cache."""
    cache_gb: float = 100.0
    """Size of that directory; the least recently used shards go first."""
    audit: bool = True
    """Compare each replayed view that has a digest with it, and stop where they differ."""
    eval_batch_size: int = 256
    """Rows of a validation batch."""
    eval_fraction: float = 0.875
    """Share of the shorter side that the validation's centre crop keeps."""
    eval_epochs: int = 1
    """Epochs between evaluations; the last epoch always has one."""
    log_every: int = 50
    """Steps between lines of the metrics log."""
    checkpoint_epochs: int = 1
    """Epochs between checkpoints; the last epoch always has one."""
    checkpoint_steps: int | None = None
    """Steps between further checkpoints, for epochs that take hours."""

    def __post_init__(self) -> None:
        settle(self)
        if is_url(str(self.output).replace(":/", "://", 1)):  # as a path has it
            raise ConfigError("--output is a URL; a run is written to a file system: give a path")
        for name in (
            "eval_batch_size",
            "log_every",
            "checkpoint_epochs",
            "accumulate",
            "eval_epochs",
        ):
            self._require(name, getattr(self, name) >= 1, "use 1 or more")
        for name in ("threads", "checkpoint_steps", "student_size", "image_size"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "use 1 or more")
        self._require("workers", self.workers >= 0, "use 0 or more")
        self._require("alpha", 0 <= self.alpha <= 1, "use 0..1")
        self._require("smoothing", 0 <= self.smoothing < 1, "use 0 or more, less than 1")
        self._require("drop_path", 0 <= self.drop_path < 1, "use 0 or more, less than 1")
        self._require("eval_fraction", 0 < self.eval_fraction <= 1, "use more than 0, at most 1")
        self._require("weight_decay", self.weight_decay >= 0, "use 0 or more")
        self._require("soft_lambda", 0 <= self.soft_lambda <= 1, "use 0..1")
        self._require("ema_decay", 0 <= self.ema_decay < 1, "use 0 or more, less than 1")
        self._require("tau", self.tau > 0, "use a positive number")
        betas = self.optimizer_betas or ()
        self._require("optimizer_betas", all(0 <= one < 1 for one in betas), "use 0 to below 1")
        for name in ("lr", "clip_grad", "optimizer_eps"):
            value = getattr(self, name)
            self._require(name, value is None or value > 0, "use a positive number")
        for name in ("warmup_lr", "min_lr"):
            self._require(name, getattr(self, name) >= 0, "use 0 or more")
        warmup = self.warmup_epochs
        self._require(
            "warmup_epochs",
            warmup is None or 0 <= warmup <= self.epochs,
            f"use 0 to {self.epochs}, the run's epochs",
        )
        if self.teacher_checkpoint is not None and self.teacher_random_weights is not None:
            raise ConfigError("give --teacher-checkpoint or --teacher-random-weights, not both")
        if self.teacher_in_loop and self.distillation == "none":
            raise ConfigError("--teacher-in-loop with --distillation none: drop one of them")
        parse_model_args(self.model_args)
        _ = self.plan, self.cache  # they check their own fields

    def require_useful(self) -> None:
        """Raise ``ConfigError`` for a setting that does nothing without another.

        A run file may hold such a one, for flags to complete.
        """
        for useless, name, needed in (
            (not self.val_shards and self.val_labels, "val_labels", "--val-shards"),
            (
                self.finetune is None and self.finetune_weights != "raw",
                "finetune_weights",
                "--finetune",
            ),
            (
                not self.teacher_in_loop and self.teacher_checkpoint,
                "teacher_checkpoint",
                "--teacher-in-loop",
            ),
            (
                not self.teacher_in_loop and self.teacher_random_weights is not None,
                "teacher_random_weights",
                "--teacher-in-loop",
            ),
        ):
            self._require(
                name, not useless, f"without {needed} it does nothing: add that, or drop it"
            )

    def _require(self, name: str, condition: bool, cure: str) -> None:
        if not condition:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is {getattr(self, name)}; {cure}")

    @property
    def cache(self) -> CacheConfig:
        """Where shards from object storage are kept."""
        return CacheConfig.of_flags(self.cache_dir, self.cache_gb)

    @property
    def plan(self) -> PlanConfig:
        """What decides the order of training."""
        return PlanConfig(
            seed=self.seed,
            batch_size=self.batch_size,
            epochs=self.epochs,
            repeated_augmentation=self.repeated_augmentation,
            cycle_views=self.cycle_views,
        )

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.lr if self.lr is not None else 5e-4 * self.batch_size / 512

    @property
    def effective_warmup_epochs(self) -> float:
        """Epochs of warm-up, short runs considered."""
        return self.warmup_epochs if self.warmup_epochs is not None else min(5.0, self.epochs / 5)

    def to_json(self) -> dict[str, Any]:
        """Return all settings as plain JSON values, defaults resolved."""
        whole = replace(self, lr=self.peak_lr, warmup_epochs=self.effective_warmup_epochs)
        names = [field.name for field in dataclasses.fields(self)]
        return {name: plain_value(getattr(whole, name)) for name in names}

    @property
    def losses(self) -> dict[str, Any]:
        """The fields of ``DistillationConfig``."""
        names = ("distillation", "smoothing", "alpha", "soft_lambda", "tau")
        return {name: getattr(self, name) for name in names}

    def binding(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share, as plain JSON values.

        Those at their founding values are left out, so that older releases' runs go on.
        """
        founding = founding_values(self)
        return {
            name: value
            for name, value in self.to_json().items()
            if name not in _FREE_FIELDS and not (name in founding and founding[name] == value)
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the settings that a resumed run must share."""
        return hashlib.sha256(canonical_json(self.binding())).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Evaluate a checkpoint of train-student on validation shards."""

    checkpoint: Path
    """last.pt or best.pt of a run."""
    val_shards: tuple[str, ...]
    """Validation shards: files, brace patterns or globs, in quotes."""
    model: str | None = None
    """The checkpoint's model, if that is a 'package.module:function': a file alone chooses no
    code."""
    model_args: tuple[str, ...] = ()
    """Those of the checkpoint's model arguments that may fetch or read something, such as
    pretrained=True: a file alone does not choose that."""
    val_labels: str | None = None
    """Label store of these shards (center views, no mixing), for the teacher's part."""
    eval_batch_size: int = 256
    """Rows of a batch."""
    eval_fraction: float | None = None
    """Share of the shorter side that the centre crop keeps; by default that of the run."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
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
    """Where shards from object storage are kept, as train-student has it."""
    cache_gb: float = 100.0
    """Size of that directory."""

    def __post_init__(self) -> None:
        settle(self)
        if self.eval_batch_size < 1 or self.workers < 0 or (self.threads or 1) < 1:
            raise ConfigError("--eval-batch-size, --workers or --threads is too small; use 1")
        if self.eval_fraction is not None and not 0 < self.eval_fraction <= 1:
            raise ConfigError(f"--eval-fraction is {self.eval_fraction}; use more than 0, up to 1")
        if self.plot is not None and not self.analysis:
            raise ConfigError("--plot draws the analysis; give --analysis too")
        _ = self.cache  # checks its own fields

    @property
    def cache(self) -> CacheConfig:
        """Where shards from object storage are kept."""
        return CacheConfig(directory=self.cache_dir, gigabytes=self.cache_gb)


SETTINGS = tuple(field.name for field in dataclasses.fields(TrainConfig))
"""The names of all settings."""

FOUNDING = founding_values(TrainConfig)
"""What runs of older releases did without the settings that were added since."""


def parse_model_args(arguments: tuple[str, ...]) -> Mapping[str, Any]:
    """Return KEY=VALUE texts as a mapping; values are Python literals, or else text.

    Raises ``ConfigError`` for a text without a name and ``=``, or a name given twice.
    """
    parsed: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--model-args {argument!r}: write KEY=VALUE, such as depth=6")
        if name in parsed:
            raise ConfigError(f"--model-args gives {name} twice")
        try:
            parsed[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            parsed[name] = text
    return parsed
