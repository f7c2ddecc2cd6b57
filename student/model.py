"""Builds students: timm's models, or the user's own, with one head or two."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.growth import settle
from pipeline.views.rng import stream

__all__ = ["StudentSpec", "create_student", "reseed", "split_heads", "two_headed"]


_CANNOT_BUILD = (
    *(TypeError, ValueError, RuntimeError, AssertionError),
    *(ArithmeticError, LookupError, AttributeError, MemoryError),
)
"""What arguments that do not fit a model make it raise."""


def reseed(purpose: str, *identity: int | str) -> None:
    """Set PyTorch's generators, on all devices, to the words owned by one identity."""
    torch.manual_seed(stream(purpose, *identity).word() >> 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSpec:
    """Which student to build."""

    name: str  # timm's, or 'package.module:function'
    classes: int
    image_size: int  # side of its images in pixels, whatever the name says
    heads: Literal[1, 2] | None = 2  # with 2 it has a distillation head; None: any
    drop_path: float = 0.0
    seed: int = 0  # of the weights
    model_args: Mapping[str, Any] = field(default_factory=dict)  # over timm's arguments

    def __post_init__(self) -> None:
        settle(self)


def create_student(spec: StudentSpec) -> nn.Module:
    """Return an untrained student, whose output in training ``split_heads`` takes apart.

    A function of the user's own is called with ``num_classes``, ``img_size`` (left out if it
    has no such argument), ``drop_path_rate`` (likewise, if that is 0) and the model arguments; its
    module returns logits (B, C), or those of the class head and of the distillation head.
    Raises ``ConfigError`` for a name that is not known, another number of heads, or a model
    that cannot be built for these images.
    """
    build = _function(spec.name) if ":" in spec.name else _timm_builder(spec)
    with torch.random.fork_rng(devices=[]):
        try:
            model = _build(build, spec)
        except _CANNOT_BUILD as error:
            raise _misfit(spec, error) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"`model` {spec.name} gives a {type(model).__name__}, not a module")
    if _heads(model):
        model.set_distilled_training(True)  # type: ignore[operator]
    elif spec.heads == 2 and ":" not in spec.name:
        raise ConfigError(
            f"`model` {spec.name} has no distillation head; {_advice()}; or teach its one head "
            "both with `distillation_kind` classical"
        )
    _try_out(model, spec)
    return model


def split_heads(output: Any) -> tuple[Tensor, Tensor]:
    """Return (class logits, distillation logits), each (B, C); the same for one head."""
    if isinstance(output, tuple | list):
        class_logits, distillation_logits = output
        return class_logits, distillation_logits
    return output, output


def _function(name: str) -> Callable[..., Any]:
    """Return the function that a name means, from the working directory or as installed."""
    module_name, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # a console script does not look where it is started
        sys.path.append(here)
    try:
        found: Callable[..., Any] = getattr(import_module(module_name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"`model` {name!r} cannot be imported ({error}); write 'package.module:function', "
            "and put the package in the working directory or install it"
        ) from error
    return found


def _timm_builder(spec: StudentSpec) -> Callable[..., Any]:
    if not timm.is_model(spec.name):
        close = get_close_matches(spec.name, timm.list_models(), n=5)
        raise ConfigError(
            f"`model` {spec.name!r} is no model of timm {timm.__version__}; "
            + (f"similar names: {', '.join(close)}" if close else _advice())
        )

    def build(**arguments: Any) -> Any:
        model = timm.create_model(spec.name, **arguments)
        if spec.name.startswith("deit_") and isinstance(model.cls_token, nn.Parameter):
            # timm draws it with a deviation of 1e-6, DeiT like all its weights.
            trunc_normal_(model.cls_token, std=0.02)
        return model

    return build


def _build(build: Callable[..., Any], spec: StudentSpec) -> Any:
    """Call a builder, without arguments that it does not have and need not have."""
    arguments: dict[str, Any] = {"num_classes": spec.classes, "img_size": spec.image_size}
    if spec.drop_path or ":" in spec.name:
        arguments["drop_path_rate"] = spec.drop_path
    arguments.update(spec.model_args)
    optional = ["img_size"] if spec.drop_path else ["img_size", "drop_path_rate"]
    while True:
        reseed("init", spec.seed)
        try:
            return build(**arguments)
        except TypeError as error:
            unknown = next((one for one in optional if f"'{one}'" in str(error)), None)
            if arguments.pop(unknown or "", None) is None:
                raise


@contextmanager
def two_headed(model: nn.Module) -> Iterator[None]:
    """Put a student in evaluation mode, but let it give both heads' logits.

    timm's two-headed models average their heads unless the module with the heads is in
    training mode; its layers need not be.
    """
    before = model.training
    model.eval()
    for module in _heads(model):
        module.training = True  # this module's own flag, not its layers'
    try:
        yield
    finally:
        model.train(before)


def _heads(model: nn.Module) -> list[nn.Module]:
    """Return the modules that decide whether two heads' logits are given, or one's."""
    if not hasattr(model, "set_distilled_training"):
        return []
    return [module for module in model.modules() if hasattr(module, "distilled_training")]


def _try_out(model: nn.Module, spec: StudentSpec) -> None:
    """Run one black image through the model, so that a misfit shows before training."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
    if spec.image_size % patch[0] or spec.image_size % patch[1]:
        raise _misfit(spec, f"patches of {patch[0]} pixels leave a rim of them unseen")
    with two_headed(model), torch.no_grad():
        try:
            output = model(torch.zeros(1, 3, spec.image_size, spec.image_size))
        except _CANNOT_BUILD as error:
            raise _misfit(spec, error) from error
    several = isinstance(output, tuple | list)
    heads = output if several else (output,)
    shapes = [tuple(head.shape) if isinstance(head, Tensor) else None for head in heads]
    if shapes != [(1, spec.classes)] * (2 if several else 1):
        raise ConfigError(
            f"`model` {spec.name} gives {shapes} for one image, not one or two heads of "
            f"{spec.classes} classes; {_advice()}"
        )
    if spec.heads == 1 and len(shapes) == 2:
        raise ConfigError(
            f"`model` {spec.name} has a distillation head, which `distillation_kind` classical "
            "leaves untrained; use `distillation_kind` token, or a model of one head "
            "(deit_tiny_patch16_224)"
        )
    if spec.heads == 2 and len(shapes) == 1:
        raise ConfigError(
            f"`model` {spec.name} gives the logits of one head; return those of the class head "
            "and of the distillation head, in training and in evaluation mode, or use "
            "`distillation_kind` classical"
        )


def _misfit(spec: StudentSpec, error: Exception | str) -> ConfigError:
    return ConfigError(
        f"`model` {spec.name} cannot be built for images of {spec.image_size} pixels: {error}; "
        "check `model_args` (a patch_size that divides the image's side, an embed_dim that "
        "num_heads divides), and `drop_path` 0 for a model without drop path"
    )


def _advice() -> str:
    names = timm.list_models("*distilled*")
    return f"models that have one: {', '.join(names)}"
