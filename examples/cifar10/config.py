"""The settings of the comparison, and the record that keeps them together with its results."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from pipeline.errors import ConfigError
from pipeline.files.local import replace
from pipeline.identity import PRESETS, AugmentConfig, Preset, canonical_json, different_fields

__all__ = ["ARM_NAMES", "VOTES", "ArmName", "EvidenceConfig", "keep_settings", "smoke"]

ArmName: TypeAlias = Literal[
    "none",
    "hard-store",
    "hard-loop",
    "static",
    "soft-store",
    "soft-top-5",
    "soft-top-2",
    "soft-top-1",
    "hard-sure",
    "vote-majority",
    "vote-mean",
    "loop-deit-mixing",
]
ARM_NAMES: tuple[ArmName, ...] = get_args(ArmName)
VOTES = frozenset({"vote-majority", "vote-mean"})
"""Arms that need more teachers than one."""

SETTINGS = "settings.json"

_FREE_FIELDS = frozenset(
    {
        *("out", "shards", "val_shards", "download", "report", "notes"),
        *("teacher_checkpoint", "other_checkpoints", "arms", "seeds", "workers"),
    }
)
"""Settings that may change when the comparison goes on: where things are, and how much is run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceConfig:
    """Train small students on CIFAR-10 in several ways, and report how they compare.

    Stores, checkpoints and results lie in --out. Run again, it does what is missing.
    """

    teacher_checkpoint: Path
    """The teacher's weights, a .safetensors."""
    teacher: str = "regnety_002"
    """The teacher's architecture, timm's name."""
    other_teachers: tuple[str, ...] = ()
    """Architectures of two teachers or more that vote with it; without them no arm votes."""
    other_checkpoints: tuple[Path, ...] = ()
    """Their weights, in the same order; teacher-labels train-teacher makes some."""
    shards: tuple[str, ...] = ()
    """Training shards: files, brace patterns or globs, in quotes."""
    val_shards: tuple[str, ...] = ()
    """Validation shards."""
    download: Path | None = None
    """Without shards: a directory into which torchvision fetches CIFAR-10, to be packed there."""
    download_images: tuple[int, int] = (10_000, 5_000)
    """With --download: training and validation images to pack, evenly of all classes."""
    out: Path = Path("evidence-output")
    """Directory of label stores, runs and results."""
    report: Path | None = None
    """Markdown file for the report, with its plots in a directory beside it; by default
    EVIDENCE.md in --out."""
    notes: Path | None = None
    """Markdown file that ends the report: what you have to say about the numbers."""
    arms: tuple[ArmName, ...] | None = None
    """Ways to teach that are run; by default all that the teachers allow."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights and order; each arm is trained once with each."""
    epochs: int = 30
    """Epochs, and views that are labelled of every image."""
    preset: Preset = "crop-flip"
    """Augmentation."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image that a crop covers."""
    view_size: int = 64
    """Side of the views in pixels, as the teacher sees them."""
    student_size: int = 32
    """Side in pixels to which the student's views are resized."""
    model: str = "deit_tiny_distilled_patch16_224"
    """timm's name of the student, which has a distillation head."""
    model_args: tuple[str, ...] = ("patch_size=4", "embed_dim=96", "depth=4", "num_heads=3")
    """Changes to the student, as KEY=VALUE."""
    batch_size: int = 128
    """Rows of a batch."""
    lr: float = 1e-3
    """Peak learning rate."""
    topk: int = 10
    """Classes with probabilities that the store of the soft arms keeps; by default all."""
    min_confidence: float = 0.5
    """Probability from which on the teacher counts as sure."""
    eval_epochs: int = 5
    """Epochs between evaluations."""
    threads: int | None = None
    """CPU threads of PyTorch; all cores by default."""
    workers: int = 1
    """Processes that decode and augment while a student trains."""
    smoke: bool = False
    """Only show that all works: one shard, two epochs, one seed, a student of no use. Results and
    report lie in OUT/smoke, apart from real ones."""

    def __post_init__(self) -> None:
        given = bool(self.shards) + bool(self.val_shards)
        if given != (0 if self.download is not None else 2):
            raise ConfigError(
                "give --shards and --val-shards, or --download DIR to have CIFAR-10 fetched"
            )
        for name in ("arms", "seeds"):
            values = getattr(self, name)
            if values is not None and not 0 < len(set(values)) == len(values):
                raise ConfigError(f"--{name} is {values}; name each once, and at least one")
        others, files = self.other_teachers, self.other_checkpoints
        if len(others) != len(files) or len(others) == 1:
            raise ConfigError(
                f"--other-teachers names {len(others)}, --other-checkpoints {len(files)}; a vote "
                "takes two or more of them, and each has its weights"
            )
        if votes := VOTES.intersection(self.used_arms) if not others else ():
            raise ConfigError(
                f"{' and '.join(sorted(votes))} need --other-teachers and --other-checkpoints; "
                "teacher-labels train-teacher trains small ones"
            )
        if self.epochs < 1 or self.eval_epochs < 1:
            raise ConfigError("--epochs and --eval-epochs start at 1")

    @property
    def used_arms(self) -> tuple[ArmName, ...]:
        """Ways to teach, the default resolved."""
        if self.arms is not None:
            return self.arms
        return tuple(name for name in ARM_NAMES if self.other_teachers or name not in VOTES)

    @property
    def augment(self) -> AugmentConfig:
        """How training views are drawn."""
        return dataclasses.replace(
            PRESETS[self.preset], image_size=self.view_size, crop_scale=self.crop_scale
        )

    @property
    def plain(self) -> AugmentConfig:
        """The whole image, at the size of a view."""
        return dataclasses.replace(
            PRESETS["center"], image_size=self.view_size, center_fraction=1.0
        )

    @property
    def used_threads(self) -> int:
        """PyTorch's threads, the default resolved: sums depend on them in their last bits."""
        return self.threads or len(os.sched_getaffinity(0))

    def binding(self) -> dict[str, Any]:
        """Return the settings that all results in one directory share, as plain JSON values."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in _FREE_FIELDS
        }
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return {**plain, "threads": self.used_threads}


def smoke(config: EvidenceConfig) -> EvidenceConfig:
    """Return the settings at a size that shows nothing but that every step works."""
    return dataclasses.replace(
        config,
        out=config.out / "smoke",
        report=None,
        seeds=config.seeds[:1],
        epochs=2,
        eval_epochs=1,
        model="deit_tiny_distilled_patch16_224",
        model_args=("patch_size=8", "embed_dim=48", "depth=2", "num_heads=3"),
        batch_size=min(config.batch_size, 64),
    )


def keep_settings(config: EvidenceConfig) -> None:
    """Write the settings into the output directory, or check that they are those in there.

    Raises ``ConfigError`` naming those that differ.
    """
    path = config.out / SETTINGS
    if not path.exists():
        config.out.mkdir(parents=True, exist_ok=True)
        replace(path, canonical_json(config.binding()) + b"\n")
        return
    different = different_fields(config.binding(), json.loads(path.read_bytes()))
    if different:
        raise ConfigError(
            f"--out {config.out} holds results of other settings (ours / theirs):\n  "
            + "\n  ".join(different)
            + "\nuse those settings to go on, or another --out"
        )
