"""Weights, and how a step changes them: rate, optimizer, reduced precision, moving average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.growth import settle
from student.config import TrainConfig
from student.order import TrainingPlan

__all__ = ["Optimization", "Schedule", "autocast"]

_TOKENS = frozenset({"cls_token", "dist_token", "pos_embed"})

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Linear warm-up, then a half cosine over the whole run, as timm's and DeiT's.

    As there, the cosine counts from the run's first step, not from the warm-up's end. Unlike
    there, the rate changes every step, and a resumed run needs nothing but its step.
    """

    steps: int
    warmup_steps: int
    peak: float
    warmup_from: float
    end: float

    def __post_init__(self) -> None:
        settle(self)

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.warmup_from + (self.peak - self.warmup_from) * step / self.warmup_steps
        end = min(self.end, self.peak)
        return end + (self.peak - end) * (1 + math.cos(math.pi * step / self.steps)) / 2

    @staticmethod
    def of(config: TrainConfig, plan: TrainingPlan) -> Schedule:
        """Return the schedule of a run."""
        warmup_steps = math.ceil(config.effective_warmup_epochs * plan.epoch_start(1))
        return Schedule(
            steps=plan.steps,
            warmup_steps=min(plan.steps, warmup_steps),
            peak=config.peak_lr,
            warmup_from=min(config.optimization.warmup_lr, config.peak_lr),
            end=config.optimization.min_lr,
        )


class Optimization:
    """The optimizer of a student, its gradient scaler, and the average of its weights.

    ``average`` follows the weights by exponential decay, None where the decay is 0. Raises
    ``ConfigError`` for an optimizer that timm does not know.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device) -> None:
        self._model, self._settings, self._device = model, config.optimization, device
        self._precision = config.student.precision
        self.optimizer = _create_optimizer(model, config)
        # Gradients of fp16 underflow unless the loss is scaled up.
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._precision == "fp16")
        decay = self._settings.ema_decay
        self._average = ModelEmaV3(model, decay=decay) if decay else None
        if self._average is not None:
            # Chance would not go on where a run stopped; timm before 1.0.31 rounds without it.
            self._average.stochastic_rounding = False

    @property
    def average(self) -> nn.Module | None:
        """The student with averaged weights, in evaluation mode."""
        if self._average is None:
            return None
        module: nn.Module = self._average.module
        return module

    def forward_precision(self) -> AbstractContextManager[Any]:
        """Return a context in which the student runs in the configured precision."""
        return autocast(self._device, self._precision)

    def begin(self, lr: float) -> None:
        """Begin a step at this learning rate, without gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def finish(self) -> None:
        """Take the step; in fp16, a step whose gradients overflowed is left out."""
        if self._settings.clip_grad is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.clip_grad)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update(self._model)

    def first_not_finite(self) -> str | None:
        """Return the name of a weight, average or moment that is infinite or undefined.

        Buffers may be infinite, as masks are, but not undefined.
        """
        for kind, module in (("model", self._model), ("ema", self.average)):
            if module is None:
                continue
            for name, one in module.named_parameters():
                if not one.isfinite().all():
                    return f"{kind}/{name}"
            for name, buffer in module.named_buffers():
                if buffer.isnan().any():
                    return f"{kind}/{name}"
        for state in self.optimizer.state.values():
            for name, one in state.items():
                if isinstance(one, Tensor) and not one.isfinite().all():
                    return f"optimizer/{name}"
        return None

    def state(self) -> dict[str, Any]:
        """Return a checkpoint's fields of what is here beside the weights."""
        average = self.average
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "ema": None if average is None else average.state_dict(),
        }

    def restore(
        self, optimizer: Mapping[str, Any], scaler: Mapping[str, Any], ema: Mapping[str, Any] | None
    ) -> None:
        """Go on from ``state``; raises what PyTorch raises if it does not fit."""
        self.optimizer.load_state_dict(dict(optimizer))
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(dict(scaler))
        if self.average is not None:
            self.average.load_state_dict(ema or {})


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return a context in which models run in ``precision``: fp32, bf16 or fp16."""
    dtype = _AUTOCAST[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def _create_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return timm's optimizer; biases, norms, tokens and position embeddings do not decay."""
    settings = config.optimization
    given = {"eps": settings.optimizer_eps, "betas": settings.optimizer_betas}
    arguments = {name: value for name, value in given.items() if value is not None}
    for name in arguments:
        if not _takes(settings.optimizer, name):
            raise ConfigError(f"`optimizer_{name}`: {settings.optimizer} has none; leave it out")
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            settings.optimizer,
            lr=config.peak_lr,
            weight_decay=settings.weight_decay,
            param_group_fn=lambda model: param_groups_weight_decay(
                model, settings.weight_decay, no_weight_decay_list=_without_decay(model)
            ),
            **arguments,
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"`optimizer` {settings.optimizer!r} is not one that timm builds ({error}); "
            "DeiT's is adamw"
        ) from error
    return optimizer


def _takes(optimizer: str, name: str) -> bool:
    """Return whether an optimizer has such a setting; true for one that timm does not know."""
    try:
        return bool(getattr(get_optimizer_info(optimizer), f"has_{name}"))
    except ValueError:
        return True


def _without_decay(model: nn.Module) -> set[str]:
    """Return the weights of more than one dimension that do not decay, by name.

    They are those that the model names, as timm's do, and those with timm's usual names.
    """
    named = getattr(model, "no_weight_decay", set)
    usual = {name for name, _ in model.named_parameters() if name.split(".")[-1] in _TOKENS}
    return {*named(), *usual}
