"""Students: timm's models with a class head and a distillation head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.rng import stream

__all__ = ["StudentSpec", "create_student", "reseed", "two_headed"]


def reseed(purpose: str, *identity: int | str) -> None:
    """Set PyTorch's generators, on all devices, to the words owned by one identity."""
    torch.manual_seed(stream(purpose, *identity).word() >> 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSpec:
    """Which student to build."""

    name: str  # timm's
    classes: int
    image_size: int  # side of the store's views in pixels, whatever the name says
    drop_path: float = 0.0
    seed: int = 0  # of the weights
    model_args: Mapping[str, Any] = field(default_factory=dict)  # over timm's arguments


def create_student(spec: StudentSpec) -> nn.Module:
    """Return an untrained student that gives (class logits, distillation logits) in training.

    Raises ``ConfigError`` for a name timm does not know, a model without a distillation
    head, or one that cannot be built for these images.
    """
    if not timm.is_model(spec.name):
        close = get_close_matches(spec.name, timm.list_models(), n=5)
        raise ConfigError(
            f"--model {spec.name!r} is no model of timm {timm.__version__}; "
            + (f"similar names: {', '.join(close)}" if close else _advice())
        )
    arguments = {"img_size": spec.image_size, **spec.model_args}
    with torch.random.fork_rng(devices=[]):
        reseed("init", spec.seed)
        try:
            model: nn.Module = timm.create_model(
                spec.name, num_classes=spec.classes, drop_path_rate=spec.drop_path, **arguments
            )
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise _misfit(spec, error) from error
    if not _heads(model):
        raise ConfigError(f"--model {spec.name} has no distillation head; {_advice()}")
    model.set_distilled_training(True)  # type: ignore[operator]
    _try_out(model, spec)
    return model


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
        except (RuntimeError, ValueError, AssertionError) as error:
            raise _misfit(spec, error) from error
    heads = output if isinstance(output, tuple) else (output,)
    shapes = [tuple(head.shape) for head in heads if isinstance(head, Tensor)]
    if shapes != [(1, spec.classes)] * 2:
        raise ConfigError(
            f"--model {spec.name} gives {shapes} for one image, not two heads of "
            f"{spec.classes} classes; {_advice()}"
        )


def _misfit(spec: StudentSpec, error: Exception | str) -> ConfigError:
    return ConfigError(
        f"--model {spec.name} cannot be built for views of {spec.image_size} pixels: {error}; "
        "check --model-args (a patch_size that divides the view's side, an embed_dim that "
        "num_heads divides)"
    )


def _advice() -> str:
    names = timm.list_models("*distilled*")
    return f"models that have one: {', '.join(names[:8])}"
