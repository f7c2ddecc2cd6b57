"""Checkpoints: written whole or not at all, and checked before they are used."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import replace as replace_field
from pathlib import Path
from typing import IO, Any, get_args

import torch
from torch import Tensor

from pipeline.errors import CheckpointError, ConfigError, PipelineError
from pipeline.files.local import replace, writing
from pipeline.growth import from_plain
from pipeline.identity import AugmentConfig, Precision, canonical_json, different_fields
from pipeline.labelling.weights import leaves, load_tensors, state_digest

__all__ = [
    "BEST",
    "LAST",
    "PREVIOUS",
    "Checkpoint",
    "RunIdentity",
    "SavedStudent",
    "claim_output",
    "read_checkpoint",
    "read_sound_checkpoint",
    "read_values",
    "set_aside",
    "write_checkpoint",
]

LAST, PREVIOUS, BEST, TORN = "last.pt", "previous.pt", "best.pt", "torn.pt"
LOCK = ".lock"

_VERSION = 2
_OTHER = "give last.pt or best.pt of a run"
_CURE = "resume from another checkpoint, or start again without --resume in a new --output"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """What a checkpoint and the run that continues it must share."""

    config: Mapping[str, Any]  # ``TrainConfig.binding``
    config_digest: str
    store: Mapping[str, Any]  # the store's identity
    views: Mapping[str, int]  # those that training consumes, as far as their order follows them
    shards: str  # digest of the store's shards and rejections, which the order follows

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "config": dict(self.config),
            "config_digest": self.config_digest,
            "store": dict(self.store),
            "views": dict(self.views),
            "shards": self.shards,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped."""

    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor] | None  # averaged weights
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]  # of the loss, in fp16
    student: Mapping[str, Any]  # how to build it again, and the views it wants
    step: int  # steps done
    run: RunIdentity
    meter: Mapping[str, float]  # sums over the epoch under way
    metrics: Mapping[str, Any]  # of the last evaluation
    best: float  # top-1 of the best evaluation so far, -1 before the first
    fallback: bool = False  # read in place of a torn last.pt


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedStudent:
    """What a checkpoint says of its student; nothing of it is to be trusted."""

    model: str
    model_args: tuple[str, ...]
    classes: int
    image_size: int
    heads: int | None
    headline: str
    precision: Precision
    views: AugmentConfig  # of validation

    @staticmethod
    def from_values(values: Mapping[str, Any], path: Path) -> SavedStudent:
        """Build it from a checkpoint's ``student``; raises ``CheckpointError`` if malformed."""
        try:
            views = from_plain(AugmentConfig, values["views"], "views")
            found = SavedStudent(
                **{**values, "views": views, "model_args": tuple(values["model_args"])}
            )
            sound = (
                all(isinstance(one, str) for one in (found.model, *found.model_args))
                and _is_whole(found.classes, 1, 65535)
                and _is_whole(found.image_size, 1, 4096)
                and _is_whole(views.image_size, 1, 4096)
                and found.heads in (None, 1, 2)
                and found.headline in ("class_head", "mean_of_logits")
                and found.precision in get_args(Precision)
            )
        except (KeyError, TypeError, ValueError, PipelineError) as error:
            raise CheckpointError(f"{path} describes no student ({error!r}); {_OTHER}") from error
        if not sound:
            raise CheckpointError(f"{path} describes no student: {dict(values)}; {_OTHER}")
        return found


def _is_whole(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def claim_output(output: Path) -> IO[bytes]:
    """Keep other processes from training into a directory while the returned file is open.

    Raises ``ConfigError`` if another one does, ``PipelineError`` if the disk refuses the file.
    File systems without locks claim nothing.
    """
    with writing(output / LOCK):
        output.mkdir(parents=True, exist_ok=True)
        file = (output / LOCK).open("ab")
    try:
        # Of this process alone: loaders that outlive it for a moment do not hold it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise ConfigError(
            f"--output {output}: another process is training there; wait for its end, stop it, or "
            "give another --output"
        ) from error
    except OSError:
        pass
    return file


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in one step over the one that may be there.

    A last.pt that is there stays beside it as previous.pt. The file is a dictionary of plain
    values and tensors, with the weights under ``model``.
    """
    values = {
        "format_version": _VERSION,
        "model": dict(checkpoint.model),
        "ema": None if checkpoint.ema is None else dict(checkpoint.ema),
        "optimizer": dict(checkpoint.optimizer),
        "scaler": dict(checkpoint.scaler),
        "student": dict(checkpoint.student),
        "step": checkpoint.step,
        "run": checkpoint.run.to_json(),
        "meter": dict(checkpoint.meter),
        "metrics": dict(checkpoint.metrics),
        "best": checkpoint.best,
    }
    values["digest"] = _digest(values)
    buffer = io.BytesIO()
    torch.save(values, buffer)
    if path.name == LAST and path.exists():
        _keep(path, path.with_name(PREVIOUS))
    replace(path, buffer.getvalue())


def read_checkpoint(path: Path, run: RunIdentity) -> Checkpoint:
    """Read a checkpoint of this very run.

    Raises ``CheckpointError`` if there is none, if it is torn or no checkpoint of this
    project, or if its settings, store or shards are others; it lists what differs.
    """
    return _of_run(read_values(path), path, run)


def _of_run(values: Mapping[str, Any], path: Path, run: RunIdentity) -> Checkpoint:
    """Return a checkpoint's values as a record, if it belongs to this run."""
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
        ema=values["ema"],
        optimizer=values["optimizer"],
        scaler=values["scaler"],
        student=values["student"],
        step=int(values["step"]),
        run=run,
        meter=values["meter"],
        metrics=values["metrics"],
        best=float(values["best"]),
    )


def read_sound_checkpoint(path: Path, run: RunIdentity) -> Checkpoint:
    """Read a checkpoint, or if it is a torn last.pt, the one before; ``fallback`` says so.

    Raises ``CheckpointError`` as ``read_checkpoint``, of the given one if both are torn.
    """
    before = path.with_name(PREVIOUS)
    try:
        values = read_values(path)
    except CheckpointError as error:
        if path.name != LAST or not before.is_file():
            raise
        try:
            checkpoint = read_checkpoint(before, run)
        except CheckpointError:
            raise error from None
        return replace_field(checkpoint, fallback=True)
    return _of_run(values, path, run)


def set_aside(path: Path) -> None:
    """Rename a torn last.pt, so that it never takes the place of the one before."""
    if path.exists():
        path.replace(path.with_name(TORN))


def read_values(path: Path) -> dict[str, Any]:
    """Return the values of a checkpoint, its bytes checked.

    Raises ``CheckpointError`` if there is none, or if it is torn or of another kind.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give a last.pt or best.pt")
    try:
        values = load_tensors(path)
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
    wrong = sorted(name for name, fits in _VALUES.items() if not fits(values.get(name)))
    if wrong:
        raise CheckpointError(f"{path} is malformed in {', '.join(wrong)}; {_CURE}")
    # PyTorch reads its files without their checksums.
    try:
        sound = values.pop("digest", None) == _digest(values)
    except (RuntimeError, TypeError, ValueError):  # values that no trainer writes
        sound = False
    if not sound:
        raise CheckpointError(f"{path} is damaged: its digest is another; {_CURE}")
    checked: dict[str, Any] = values
    return checked


def _digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 over all values of a checkpoint."""
    found = dict(leaves(values))
    tensors = {name: one for name, one in found.items() if isinstance(one, Tensor)}
    others = {name: repr(one) for name, one in found.items() if name not in tensors}
    text = canonical_json({"tensors": state_digest(tensors), "others": others})
    return hashlib.sha256(text).hexdigest()


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(one, Tensor) for name, one in value.items()
    )


_VALUES: Mapping[str, Callable[[object], bool]] = {
    "model": _is_state,
    "ema": lambda value: value is None or _is_state(value),
    "step": lambda value: _is_whole(value, 0, 1 << 62),
    "best": lambda value: type(value) in (int, float),
    **dict.fromkeys(("optimizer", "scaler", "student", "run", "meter", "metrics"), _is_mapping),
}
"""What a checkpoint holds, and whether a value may be it."""


def _keep(path: Path, before: Path) -> None:
    """Give a file a second name, in one step and without reading it where links work."""
    aside = before.with_name(f".{before.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        try:
            aside.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, aside)
        aside.replace(before)
    finally:
        aside.unlink(missing_ok=True)
