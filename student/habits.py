"""Flags that people type out of habit, from timm's and DeiT's scripts, and what is meant here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.errors import ConfigError

__all__ = ["HABITS", "require_own_flags"]

_VIEWS = "views are drawn once, by the label job: `label-teacher` "

HABITS: Mapping[str, str] = {
    "-b": "--batch-size",
    "-j": "--workers",
    "--num-workers": "--workers",
    "--opt": "--optimizer",
    "--opt-eps": "--optimizer-eps",
    "--opt-betas": "--optimizer-betas",
    "--opt-kwargs": "--optimizer-args",
    "--momentum": "--optimizer-args momentum=0.9",
    "--sched": "--schedule",
    "--decay-epochs": "--schedule-args decay_epochs=30",
    "--decay-rate": "--schedule-args decay_rate=0.1",
    "--model-ema": "--ema-decay 0.99996",
    "--model-ema-decay": "--ema-decay",
    "--model-kwargs": "--model-args",
    "--drop": "--model-args drop_rate=0.1",
    "--amp": "--precision bf16",
    "--amp-dtype": "--precision bf16",
    "--torchcompile": "--compile",
    "--grad-accum-steps": "--accumulate",
    "--distillation-type": "--distillation",
    "--distillation-alpha": "--alpha",
    "--distillation-tau": "--tau",
    "--teacher-path": "--teacher-checkpoint",
    "--data-path": "--shards (`pack-shards` makes them of a folder)",
    "--data-dir": "--shards (`pack-shards` makes them of a folder)",
    "--val-split": "--val-shards",
    "--output-dir": "--output",
    "--validation-batch-size": "--eval-batch-size",
    "--crop-pct": "--eval-fraction",
    "--eval-crop-ratio": "--eval-fraction",
    "--initial-checkpoint": "--finetune",
    "--eval": "`evaluate-student --checkpoint`",
    "--log-wandb": "--tracker wandb",
    "--wandb-project": "--tracker-project",
    "--num-classes": "nothing: the store has the teacher's",
    "--teacher-model": "nothing: the store has it",
    "--input-size": f"{_VIEWS}--image-size (--student-size resizes on the device)",
    "--img-size": f"{_VIEWS}--image-size (--student-size resizes on the device)",
    "--aa": f"{_VIEWS}--policy",
    "--hflip": f"{_VIEWS}--hflip",
    "--color-jitter": f"{_VIEWS}--color-jitter",
    "--reprob": f"{_VIEWS}--erase-probability",
    "--mixup": f"{_VIEWS}--mixing.mixup-alpha",
    "--cutmix": f"{_VIEWS}--mixing.cutmix-alpha",
}
"""By a flag that train-student has not; docs/RECIPES.md has the whole table."""

ABSENT = [
    "cooldown-epochs",
    "patience-epochs",
    "train-interpolation",
    "src",
    "remode",
    "recount",
    "resplit",
    "cutmix-minmax",
    "mixup-mode",
    "cosub",
    "dataset-download",
    "dataset-trust-remote-code",
    "input-img-mode",
    "input-key",
    "target-key",
    "interpolation",
    "fuser",
    "torchscript",
    "fast-norm",
    "head-init-scale",
    "head-init-bias",
    "model-dtype",
    "synchronize-step",
    "no-ddp-bb",
    "device-modules",
    "layer-decay-min-scale",
    "layer-decay-no-opt-scale",
    "vflip",
    "aug-splits",
    "jsd-loss",
    "split-bn",
    "bce-sum",
    "bce-pos-weight",
    "mixup-off-epoch",
    "no-prefetcher",
    "use-multi-epochs-loader",
    "eval-metric",
    "tta",
    "wandb-tags",
    "wandb-resume-id",
    "naflex-loader",
    "kd-student-feature-dim",
    "kd-teacher-feature-dim",
]
"""Names of flags for which nothing is here; docs/RECIPES.md says why."""


def require_own_flags(arguments: Sequence[str]) -> None:
    """Raise ``ConfigError`` for flags of timm's or DeiT's scripts, with what each is here."""
    given = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    names = {word: word.replace("_", "-") if word[:2] == "--" else word[:2] for word in given}
    foreign = {word: f"here it is {HABITS[name]}" for word, name in names.items() if name in HABITS}
    for word, name in names.items():
        if name.removeprefix("--") in ABSENT:
            foreign[word] = "it is not here, for a reason that docs/RECIPES.md gives"
    if foreign:
        answers = "; ".join(f"{word}: {answer}" for word, answer in foreign.items())
        raise ConfigError(
            f"of timm's or DeiT's script is {answers}; docs/RECIPES.md has all of their flags"
        )
