"""Begins from trained weights, at another resolution or with other classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import CheckpointError
from pipeline.labelling.weights import FoundWeights, WeightsError, Which, read_state
from student.output import file_here

__all__ = ["Loaded", "load_weights", "read_weights", "resize_position_embedding"]

_HEADS = ("head.", "head_dist.", "fc.", "classifier.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What was not taken over as it was."""

    which: Which  # the weights that the student has now
    resized: tuple[str, ...]  # position embeddings
    new: tuple[str, ...]  # heads that begin anew


def load_weights(
    model: nn.Module, found: FoundWeights, source: str, names: Sequence[str] | None = None
) -> Loaded:
    """Load weights into a student built for its own images and classes.

    Position embeddings of another grid are resized; heads of other classes, by their number or
    by ``names`` where both have some, keep their fresh weights. Raises ``CheckpointError`` for any
    other difference, naming the first.
    """
    own, state = model.state_dict(), found.state
    for one, other, whose in ((state, own, "the student"), (own, state, "the checkpoint")):
        if "dist_token" in one and "dist_token" not in other:
            raise _misfit(source, f"{whose} has no distillation token")
    known = found.class_names is not None and names is not None
    other_classes = known and found.class_names != tuple(names or ())
    taken, resized, new = dict(own), [], []
    for name, tensor in state.items():
        if name not in own:
            if name.startswith(_HEADS):
                continue  # a head that the student lacks: a teacher of two for one, say
            raise _misfit(source, f"{name} is no weight of the student")
        if other_classes and name.startswith(_HEADS):
            new.append(name)
        elif tensor.shape == own[name].shape:
            taken[name] = tensor
        elif name.endswith("pos_embed"):
            taken[name] = _fit_positions(model, name, tensor, own[name], source)
            resized.append(name)
        elif name.startswith(_HEADS):
            new.append(name)
        else:
            shapes = f"{tuple(tensor.shape)} for {tuple(own[name].shape)}"
            raise _misfit(source, f"{name} has shape {shapes}")
    missing = [name for name in own if name not in state]
    for name in missing:
        if not name.startswith(_HEADS):
            raise _misfit(source, f"{name} is missing")
    model.load_state_dict(taken)
    return Loaded(which=found.which, resized=tuple(resized), new=(*new, *missing))


def resize_position_embedding(embedding: Tensor, grid: tuple[int, int], prefix: int) -> Tensor:
    """Return (1, prefix + T, D) position embeddings for another grid of patches.

    The first ``prefix`` positions are tokens' and stay; the others are interpolated bicubically, as
    DeiT's main.py does. The old grid is square.
    """
    tokens, patches = embedding[:, :prefix].float(), embedding[:, prefix:].float()
    side = round(patches.shape[1] ** 0.5)
    field = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    # Without antialias: that is another cubic, also where the grid grows.
    vectors = F.interpolate(field, size=grid, mode="bicubic", align_corners=False)
    new = vectors.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1)
    return torch.cat([tokens, new], dim=1).to(embedding.dtype)


def read_weights(path: str | Path, which: Which | None = None) -> FoundWeights:
    """Return the weights in a checkpoint of the trainer or of timm's, a .safetensors or .pth file.

    It is at a path or URL.
    ``which`` chooses the raw or the averaged (``ema``) ones; None takes those that won the last
    evaluation of train-student, else the raw ones. Raises ``CheckpointError`` naming the file.
    """
    try:
        with file_here(path) as file:
            return read_state(file, which, "finetune_weights")
    except WeightsError as error:
        raise CheckpointError(f"`finetune` {path} {error}") from error


def _fit_positions(model: nn.Module, name: str, found: Tensor, own: Tensor, source: str) -> Tensor:
    """Return the found position embeddings in the shape of the student's own."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is None or found.dim() != 3 or found.shape[2] != own.shape[2]:
        raise _misfit(source, f"{name} has shape {tuple(found.shape)} for {tuple(own.shape)}")
    prefix = own.shape[1] - grid[0] * grid[1]
    side = round(max(0, found.shape[1] - prefix) ** 0.5)
    if side * side != found.shape[1] - prefix or side == 0:
        raise _misfit(source, f"{name} has {found.shape[1]} positions, not a square and {prefix}")
    return resize_position_embedding(found, (int(grid[0]), int(grid[1])), prefix)


def _misfit(source: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"`finetune` {source} does not fit the student: {what}; give `model` and `model_args` "
        "that it was trained with"
    )
