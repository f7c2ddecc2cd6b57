"""Weights, and how a step changes them: optimiser, reduced precision, moving average."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from pipeline.errors import ConfigError
from student.config import TrainConfig

__all__ = ["Optimisation", "autocast"]

_TOKENS = frozenset({"cls_token", "dist_token", "pos_embed"})

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Optimisation:
    """The optimiser of a student, its gradient scaler, and the average of its weights.

    ``average`` follows the weights by exponential decay, None where the decay is 0. Raises
    ``ConfigError`` for an optimiser that timm does not know.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device) -> None:
        self._model, self._config, self._device = model, config, device
        self.optimizer = _create_optimizer(model, config)
        # Gradients of fp16 underflow unless the loss is scaled up.
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self._average = ModelEmaV3(model, decay=config.ema_decay) if config.ema_decay else None
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
        return autocast(self._device, self._config.precision)

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
        if self._config.clip_grad is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), self._config.clip_grad)
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
        """Return what a checkpoint needs beside the weights."""
        average = self.average
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "ema": None if average is None else average.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; raises what PyTorch raises if it does not fit."""
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(dict(state["scaler"]))
        if self.average is not None:
            self.average.load_state_dict(state["ema"])


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return a context in which models run in ``precision``: fp32, bf16 or fp16."""
    dtype = _AUTOCAST[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def _create_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return timm's optimiser; biases, norms, tokens and position embeddings do not decay."""
    given = {"eps": config.optimizer_eps, "betas": config.optimizer_betas}
    arguments = {name: value for name, value in given.items() if value is not None}
    for name in arguments:
        if not _takes(config.optimizer, name):
            raise ConfigError(f"--optimizer-{name}: {config.optimizer} has none; leave it out")
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            config.optimizer,
            lr=config.peak_lr,
            weight_decay=config.weight_decay,
            param_group_fn=lambda model: param_groups_weight_decay(
                model, config.weight_decay, no_weight_decay_list=_without_decay(model)
            ),
            **arguments,
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--optimizer {config.optimizer!r} is not one that timm builds ({error}); "
            "DeiT's is adamw"
        ) from error
    return optimizer


def _takes(optimizer: str, name: str) -> bool:
    """Return whether an optimiser has such a setting; true for one that timm does not know."""
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
