"""Recipes and run files: settings by name or from TOML, under those of the command line."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.files.kinds import read_toml
from pipeline.growth import convert
from student.config import SETTINGS, TrainConfig
from student.trust import require_named_arguments, require_named_model

__all__ = ["RECIPES", "read_run_file", "recipe", "to_toml"]

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # DeiT's defaults, as far as they are not ours too (warm-up) or timm's (epsilon, betas).
    # 1008 rows, not 1024: triples of pairs on 1, 2, 3, 4, 6, 7 or 8 ranks.
    "deit": {
        "epochs": 300,
        "batch_size": 1008,
        "repeated_augmentation": True,
        "distillation": "hard",
        "alpha": 0.5,
        "smoothing": 0.1,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "warmup_lr": 1e-6,
        "min_lr": 1e-5,
        "drop_path": 0.1,
        "ema_decay": 0.99996,
        "eval_fraction": 0.875,
    },
    # DeiT's fine-tuning at 384 pixels, its learning rate of 5e-6 at 512 rows.
    "deit-384": {
        "epochs": 30,
        "batch_size": 504,
        "repeated_augmentation": True,
        "distillation": "hard",
        "alpha": 0.5,
        "smoothing": 0.1,
        "optimizer": "adamw",
        "weight_decay": 1e-8,
        "lr": 5e-6,
        "warmup_lr": 1e-6,
        "min_lr": 5e-6,
        "drop_path": 0.1,
        "train_mode": False,
        "ema_decay": 0.99996,
        "eval_fraction": 0.875,
    },
}
"""Settings of the original recipes, as far as they are the trainer's and not the store's."""

_NOT_SAVED = frozenset({"resume", "lengthen"})


def recipe(name: str) -> dict[str, Any]:
    """Return a recipe's settings; raises ``ConfigError`` for a name that there is not."""
    if name not in RECIPES:
        raise ConfigError(f"`recipe` {name!r} is not known; use {' or '.join(RECIPES)}")
    return dict(RECIPES[name])


def read_run_file(path: Path, named: Collection[str] = ()) -> tuple[dict[str, Any], str | None]:
    """Return the settings in a TOML file, over those of its ``recipe``, and that one's name.

    Paths and URLs are the file's to give, code is not. Raises ``ConfigError`` if it cannot be
    read, for a setting that there is not, for a value of another type, or for a model that is
    code or may fetch something, unless that setting is in ``named``, those that the user gives.
    """
    values = read_toml(path)
    name_of_recipe = str(values.pop("recipe")) if "recipe" in values else None
    settings = {} if name_of_recipe is None else recipe(name_of_recipe)
    for name, value in values.items():
        if name not in SETTINGS:
            raise ConfigError(f"{path}: there is no setting {name!r}; names are those of run.toml")
        settings[name] = convert(value, SETTINGS[name], f"{path}: {name}")
    if "model" in values and "model" not in named:
        require_named_model(str(path), settings["model"], None)
    if "model_args" in values and "model_args" not in named:
        require_named_arguments(str(path), settings["model_args"], ())
    return settings, name_of_recipe


def to_toml(config: TrainConfig) -> bytes:
    """Return a run's settings, defaults resolved, as a file that ``read_run_file`` takes.

    What the run may have continued from is left out.
    """
    lines = [
        "# The settings of a run, for the config of another. Here lr and warmup_epochs",
        "# are what the run had: without them they follow batch_size and epochs again.",
        f"# digest {config.digest}",
    ]
    for name, value in config.to_json().items():
        if value is not None and name not in _NOT_SAVED:
            lines.append(f"{name} = {_toml(value)}")
    return ("\n".join(lines) + "\n").encode()


def _toml(value: Any) -> str:
    """Return one value; strings, numbers, booleans and lists of them are almost JSON."""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
