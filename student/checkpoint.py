"""Checkpoints: written whole or not at all, and checked before they are used."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config import different_fields
from pipeline.errors import CheckpointError
from pipeline.files import replace

__all__ = ["BEST", "LAST", "Checkpoint", "RunIdentity", "read_checkpoint", "write_checkpoint"]

LAST, BEST = "last.pt", "best.pt"

_VERSION = 1
_CURE = "resume from another checkpoint, or start again without --resume in a new --output"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """What a checkpoint and the run that continues it must share."""

    config: Mapping[str, Any]  # ``TrainConfig.binding``
    config_digest: str
    store: str  # digest of the store's identity
    shards: str  # digest of the store's shards and rejections, which the order follows

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "config": dict(self.config),
            "config_digest": self.config_digest,
            "store": self.store,
            "shards": self.shards,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped."""

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    step: int  # steps done
    run: RunIdentity
    meter: Mapping[str, float]  # sums over the epoch under way
    metrics: Mapping[str, Any]  # of the last evaluation
    best: float  # top-1 of the best evaluation so far, -1 before the first


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in one step over the one that may be there.

    The file is a dictionary of plain values and tensors, with the weights under ``model``.
    """
    buffer = io.BytesIO()
    values = {
        "format_version": _VERSION,
        "model": dict(checkpoint.model),
        "optimizer": dict(checkpoint.optimizer),
        "step": checkpoint.step,
        "run": checkpoint.run.to_json(),
        "meter": dict(checkpoint.meter),
        "metrics": dict(checkpoint.metrics),
        "best": checkpoint.best,
    }
    torch.save(values, buffer)
    replace(path, buffer.getvalue())


def read_checkpoint(path: Path, run: RunIdentity) -> Checkpoint:
    """Read a checkpoint of this very run.

    Raises ``CheckpointError`` if there is none, if it is torn or no checkpoint of this
    project, or if its settings, store or shards are others; it lists what differs.
    """
    if not path.is_file():
        raise CheckpointError(f"--resume {path}: no such file; give a last.pt or best.pt")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torn files raise a dozen kinds
        raise CheckpointError(
            f"{path} cannot be read, it is torn or no checkpoint "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); {_CURE}"
        ) from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != _VERSION:
        raise CheckpointError(
            f"{path} is no checkpoint of this trainer (format version {version!r}, expected "
            f"{_VERSION}); {_CURE}"
        )
    theirs = values["run"]
    different = different_fields(run.to_json(), theirs)
    lines = [line for line in different if not line.startswith("config_digest:")]
    if lines:
        raise CheckpointError(
            f"{path} belongs to another run (ours / the checkpoint's):\n  "
            + "\n  ".join(line.removeprefix("config.") for line in lines)
            + f"\nresume with its settings and store, which its config.json names; or {_CURE}"
        )
    return Checkpoint(
        model=values["model"],
        optimizer=values["optimizer"],
        step=int(values["step"]),
        run=run,
        meter=values["meter"],
        metrics=values["metrics"],
        best=float(values["best"]),
    )
