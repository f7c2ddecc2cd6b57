"""Weights, and how a step changes them: rate, optimizer, reduced precision, moving average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_info,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.growth import settle
from student.adaptation import head_modules
from student.config import OptimizationConfig, TrainConfig, parse_arguments
from student.order import TrainingPlan

__all__ = ["Optimization", "Schedule", "TimmSchedule", "autocast", "schedule_of"]

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


class TimmSchedule:
    """One of timm's schedules, asked for the rate of any step; nothing of it is kept in a run.

    Raises ``ConfigError`` for arguments that timm does not take, and for a schedule that its
    version has not.
    """

    def __init__(self, config: TrainConfig, plan: TrainingPlan) -> None:
        settings = config.optimization
        self._probe = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.peak_lr)
        arguments = parse_arguments("schedule_args", settings.schedule_args)
        try:
            scheduler, _ = create_scheduler_v2(
                self._probe,
                settings.schedule.removeprefix("timm-"),
                num_epochs=config.plan.epochs,
                warmup_epochs=config.effective_warmup_epochs,
                warmup_lr=min(settings.warmup_lr, config.peak_lr),
                min_lr=min(settings.min_lr, config.peak_lr),
                step_on_epochs=False,
                # A mean: epochs end within a batch, so they differ by a step.
                updates_per_epoch=plan.steps / config.plan.epochs,
                **arguments,
            )
        except (TypeError, ValueError, AssertionError, ArithmeticError) as error:
            raise ConfigError(
                f"`schedule` {settings.schedule} cannot be made with `schedule_args` "
                f"{list(settings.schedule_args)}: {error}"
            ) from error
        if scheduler is None:
            raise ConfigError(
                f"`schedule` {settings.schedule}: timm {timm.__version__} has none of that name; "
                "update timm, or choose another"
            )
        self._scheduler = scheduler

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        self._scheduler.step_update(step)
        return float(self._probe.param_groups[0]["lr"])


def schedule_of(config: TrainConfig, plan: TrainingPlan) -> Schedule | TimmSchedule:
    """Return the learning rates of a run; they are a function of the step alone."""
    if config.optimization.schedule == "cosine":
        return Schedule.of(config, plan)
    return TimmSchedule(config, plan)


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
        self._average = self._create_average() if self._settings.ema_decay else None
        self._step = 0
        if self._average is not None:
            # Chance would not go on where a run stopped; timm before 1.0.31 rounds without it.
            self._average.stochastic_rounding = False

    def _create_average(self) -> ModelEmaV3:
        settings = self._settings
        home = torch.device("cpu") if settings.ema_on_cpu else None
        return ModelEmaV3(
            self._model, decay=settings.ema_decay, use_warmup=settings.ema_warmup, device=home
        )

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

    @contextmanager
    def average_on_device(self) -> Iterator[nn.Module | None]:
        """Give the average on the student's device inside this context."""
        average = self.average
        if average is None:
            yield None
            return
        home = next(average.parameters()).device
        try:
            yield average.to(self._device)
        finally:
            average.to(home)

    def begin(self, lr: float, step: int = 0) -> None:
        """Begin a step, counted from 0, at this learning rate, without gradients."""
        self._step = step
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def finish(self) -> None:
        """Take the step; in fp16, a step whose gradients overflowed is left out."""
        if self._settings.clip_grad is not None:
            self._scaler.unscale_(self.optimizer)
            dispatch_clip_grad(self._clipped(), self._settings.clip_grad, self._settings.clip_mode)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._average is not None:
            # timm's decay of update n warms up with n + 1.
            warm = self._step + 1 if self._settings.ema_warmup else None
            self._average.update(self._model, step=warm)

    def _clipped(self) -> list[nn.Parameter]:
        """Return the weights whose gradients are clipped; adaptively, all but the heads'."""
        if self._settings.clip_mode != "agc":
            return list(self._model.parameters())
        heads = {id(one) for module in head_modules(self._model) for one in module.parameters()}
        return [one for one in self._model.parameters() if id(one) not in heads]

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
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _create_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return timm's optimizer; biases, norms, tokens and position embeddings do not decay."""
    settings = config.optimization
    given = {"eps": settings.optimizer_eps, "betas": settings.optimizer_betas}
    arguments = {name: value for name, value in given.items() if value is not None}
    more = parse_arguments("optimizer_args", settings.optimizer_args)
    for name in ("lr", "weight_decay", *given):
        if name in more:
            raise ConfigError(f"`optimizer_args` has {name}, which is a setting of its own")
    for name in arguments:
        if not _takes(settings.optimizer, f"has_{name}"):
            raise ConfigError(f"`optimizer_{name}`: {settings.optimizer} has none; leave it out")
    if _takes(settings.optimizer, "second_order", unknown=False):
        raise ConfigError(
            f"`optimizer` {settings.optimizer!r} draws random numbers of its own, which no "
            "checkpoint has, so no run could go on as if it had never stopped; use another"
        )
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            settings.optimizer,
            lr=config.peak_lr,
            weight_decay=settings.weight_decay,
            param_group_fn=lambda model: _parameter_groups(model, settings),
            **arguments,
            **more,
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"`optimizer` {settings.optimizer!r} is not one that timm builds"
            + (f" with `optimizer_args` {list(settings.optimizer_args)}" if more else "")
            + f" ({error}); DeiT's is adamw"
        ) from error
    return optimizer


def _parameter_groups(model: nn.Module, settings: OptimizationConfig) -> list[dict[str, Any]]:
    """Return timm's groups of the weights that are trained, by decay and perhaps by layer."""
    kept = _without_decay(model)
    if settings.layer_decay is None:
        groups = param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=kept)
    else:
        groups = param_groups_layer_decay(
            model, settings.weight_decay, kept, layer_decay=settings.layer_decay
        )
    found: list[dict[str, Any]] = groups
    return found


def _takes(optimizer: str, trait: str, *, unknown: bool = True) -> bool:
    """Return whether timm says this of an optimizer; ``unknown`` for one that it does not know."""
    try:
        return bool(getattr(get_optimizer_info(optimizer), trait))
    except ValueError:
        return unknown


def _without_decay(model: nn.Module) -> set[str]:
    """Return the weights of more than one dimension that do not decay, by name.

    They are those that the model names, as timm's do, and those with timm's usual names.
    """
    named = getattr(model, "no_weight_decay", set)
    usual = {name for name, _ in model.named_parameters() if name.split(".")[-1] in _TOKENS}
    return {*named(), *usual}
