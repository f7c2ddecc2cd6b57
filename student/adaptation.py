"""What is done to a student that is built: weights that rest, activations that are not kept."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

from pipeline.errors import ConfigError
from student.config import StudentConfig

__all__ = ["adapt", "head_modules", "parameter_count"]


def adapt(model: nn.Module, config: StudentConfig, device: torch.device) -> nn.Module:
    """Return a student as the settings want it trained; its weights are the same tensors.

    Raises ``ConfigError`` for what the model or the device cannot do.
    """
    if config.attn_only:
        _train_attention_alone(model, config.model)
    if config.grad_checkpointing:
        _compute_activations_again(model, config.model)
    if config.sync_bn:
        if device.type != "cuda":
            raise ConfigError("`sync_bn` is of PyTorch's for GPUs; train there, or leave it out")
        model = convert_sync_batchnorm(model)
    return model


def head_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the classifiers of a student, as far as timm's names or its usual ones tell them."""
    found = getattr(model, "get_classifier", lambda: None)()
    heads = found if isinstance(found, tuple | list) else (found,)
    named = (getattr(model, name, None) for name in ("head", "head_dist", "fc", "classifier"))
    for head in heads if any(isinstance(one, nn.Module) for one in heads) else named:
        if isinstance(head, nn.Module):
            yield head


def parameter_count(model: nn.Module, *, trained: bool = False) -> int:
    """Return how many numbers a student's weights are, or those of them that are trained."""
    return sum(one.numel() for one in model.parameters() if one.requires_grad or not trained)


def _train_attention_alone(model: nn.Module, name: str) -> None:
    """Let all weights rest but attention's, the heads' and position embeddings, as DeiT does."""
    heads = {id(one) for module in head_modules(model) for one in module.parameters()}
    found = False
    for path, one in model.named_parameters():
        attention = "attn" in path.split(".")
        found |= attention
        one.requires_grad = attention or id(one) in heads or path.endswith("pos_embed")
    if not found:
        raise ConfigError(f"`attn_only`: `model` {name} has no weights below a module named attn")


def _compute_activations_again(model: nn.Module, name: str) -> None:
    switch = getattr(model, "set_grad_checkpointing", None)
    try:
        if switch is None:
            raise NotImplementedError("it has no set_grad_checkpointing")
        switch(True)
    except (AssertionError, NotImplementedError, TypeError) as error:  # timm's own refusal asserts
        raise ConfigError(
            f"`grad_checkpointing`: `model` {name} cannot ({error}); save memory with `accumulate`"
        ) from error
