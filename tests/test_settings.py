"""Settings check their values when they are built, from Python as from the command line."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

import pipeline
import student
from pipeline.errors import ConfigError
from student.config import TrainConfig
from student.losses import DistillationConfig

WORDS = ("Config", "Spec", "Options", "Schedule", "Loss", "Distillation")
"""How the names of settings end."""

NOT_SETTINGS = {"ArraySpec"}  # how a store's array lies on disk

GIVEN: dict[str, Any] = {"per_shard": 2, "batch_size": 2}


def settings() -> Iterator[type]:
    for package in (pipeline, student):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for one in vars(import_module(module.name)).values():
                if isinstance(one, type) and one.__module__ == module.name:
                    yield one


KINDS = sorted(
    {
        one
        for one in settings()
        if dataclasses.is_dataclass(one)
        and one.__name__.endswith(WORDS)
        and not inspect.isabstract(one)
        and not one.__name__.startswith("_")
        and one.__name__ not in NOT_SETTINGS
    },
    key=lambda one: one.__name__,
)


def example(hint: Any) -> Any:
    """Return a value of a type that fits most settings."""
    if get_origin(hint) is tuple:
        return (example(get_args(hint)[0]),)
    if get_origin(hint) is Literal:
        return get_args(hint)[0]
    return {str: "x", int: 1, float: 1.0, Path: Path("x")}[hint]


def required(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {
        field.name: GIVEN.get(field.name, example(hints[field.name]))
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }


def literals(hint: Any) -> bool:
    return get_origin(hint) is Literal or any(map(literals, get_args(hint)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_settings_refuse_a_value_of_another_type_or_outside_their_words(kind: type) -> None:
    values = required(kind)
    kind(**values)
    assert kind.__dataclass_params__.frozen
    hints = get_type_hints(kind)
    for name in (field.name for field in dataclasses.fields(kind)):
        hint = hints[name]
        wrong = [object(), *(["sofft"] if literals(hint) else [])]
        for value in wrong:
            with pytest.raises(ConfigError, match=f"^`{name}` is "):
                kind(**{**values, name: value})


def test_the_walk_meets_the_settings_of_all_commands() -> None:
    names = {kind.__name__ for kind in KINDS}
    assert {
        *("AugmentConfig", "CacheConfig", "LabelConfig", "MixConfig", "PackConfig"),
        *("RelabelConfig", "TrainConfig", "EvaluateConfig", "DistillationConfig", "PlanConfig"),
        *("StudentSpec", "LoaderOptions", "Schedule"),
    } <= names


def test_a_path_is_taken_for_what_may_be_a_url_too() -> None:
    given = {"shards": ("a.tar",), "output": Path("o")}
    config = TrainConfig.of_settings(labels=Path("l.parquet"), val_labels=Path("v"), **given)
    assert config == TrainConfig.of_settings(labels="l.parquet", val_labels="v", **given)


def test_a_misspelt_loss_trains_nothing() -> None:
    with pytest.raises(ConfigError, match=r"use .*'hard'"):
        DistillationConfig(distillation="sofft")
