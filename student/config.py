"""All settings of a training run. Nothing here knows PyTorch."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.cache import CacheConfig
from pipeline.config import canonical_json
from pipeline.errors import ConfigError
from pipeline.objects import is_url
from pipeline.planning import PlanConfig

__all__ = ["TrainConfig", "parse_model_args"]

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
    }
)
"""Settings that a resumed run may change: where things are, and how fast they go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Train a distilled student on the augmented views and teacher labels of a store.

    Everything about the views comes from the store: size, augmentation, mixing, classes.
    """

    labels: str
    """Label store: the directory or URL that ends in .parquet."""
    shards: tuple[str, ...]
    """The shards that were labelled: files, brace patterns ('x-{000..127}.tar') or globs, in
    quotes; s3://, gs:// or az:// for shards in object storage."""
    output: Path
    """Directory of this run: last.pt, best.pt, config.json, metrics.jsonl, TensorBoard's log."""
    val_shards: tuple[str, ...] = ()
    """Validation shards; without them nothing is evaluated and there is no best.pt."""
    model: str = "deit_tiny_distilled_patch16_224"
    """timm's name of a model with a distillation head; built at the store's view size."""
    model_args: tuple[str, ...] = ()
    """Changes to the model, as KEY=VALUE: patch_size=4 embed_dim=192 depth=6 num_heads=3."""
    epochs: int = 300
    """Epochs; each consumes one view of every sample."""
    batch_size: int = 1024
    """Rows of a global batch."""
    seed: int = 0
    """Seed of the order of training, of the weights and of drop path."""
    repeated_augmentation: bool = False
    """Show three views of a sample in one batch, from one decode (DeiT's repeated
    augmentation); three epochs then consume each view once."""
    resume: str | None = None
    """'auto' continues from OUTPUT/last.pt if it is there; a path continues from that file."""
    teacher_in_loop: bool = False
    """Ignore the stored labels and run the store's teacher on every batch instead."""
    teacher_checkpoint: Path | None = None
    """In the loop: the teacher's weights; pretrained ones are fetched without it."""
    teacher_random_weights: int | None = None
    """In the loop: the seed of a teacher that was labelled with --teacher-random-weights."""
    alpha: float = 0.5
    """Weight of the distillation head's loss; the class head's is 1 - alpha."""
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
    weight_decay: float = 0.05
    """Weight decay, not on biases, norms, tokens and position embeddings."""
    drop_path: float = 0.1
    """Stochastic depth: the last block's probability of being skipped."""
    clip_grad: float | None = None
    """Largest norm of the gradient; no clipping by default."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the student's forward pass; bf16 by autocast."""
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
    log_every: int = 50
    """Steps between lines of the metrics log."""
    checkpoint_epochs: int = 1
    """Epochs between checkpoints; the last epoch always has one."""
    checkpoint_steps: int | None = None
    """Steps between further checkpoints, for epochs that take hours."""

    def __post_init__(self) -> None:
        if is_url(str(self.output).replace(":/", "://", 1)):  # as a path has it
            raise ConfigError("--output is a URL; a run is written to a file system: give a path")
        for name in ("eval_batch_size", "log_every", "checkpoint_epochs"):
            self._require(name, getattr(self, name) >= 1, "use 1 or more")
        for name in ("threads", "checkpoint_steps"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "use 1 or more")
        self._require("workers", self.workers >= 0, "use 0 or more")
        self._require("alpha", 0 <= self.alpha <= 1, "use 0..1")
        self._require("smoothing", 0 <= self.smoothing < 1, "use 0 or more, less than 1")
        self._require("drop_path", 0 <= self.drop_path < 1, "use 0 or more, less than 1")
        self._require("eval_fraction", 0 < self.eval_fraction <= 1, "use more than 0, at most 1")
        self._require("weight_decay", self.weight_decay >= 0, "use 0 or more")
        for name in ("lr", "clip_grad"):
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
        parse_model_args(self.model_args)
        _ = self.plan, self.cache  # they check their own fields

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
        values = {
            field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)
        }
        return {**values, "lr": self.peak_lr, "warmup_epochs": self.effective_warmup_epochs}

    def binding(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share, as plain JSON values."""
        return {name: value for name, value in self.to_json().items() if name not in _FREE_FIELDS}

    @property
    def digest(self) -> str:
        """SHA-256 of the settings that a resumed run must share."""
        return hashlib.sha256(canonical_json(self.binding())).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


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
        except (ValueError, SyntaxError):
            parsed[name] = text
    return parsed
