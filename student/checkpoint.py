"""Checkpoints: written whole or not at all, and checked before they are used."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import Tensor

from pipeline.classes import check_names
from pipeline.errors import CheckpointError, ConfigError, StoreError
from pipeline.files.kinds import why_no_data
from pipeline.files.local import replace, writing
from pipeline.growth import RELEASE, from_plain, grown, install, one_line, settle, to_plain
from pipeline.identity import AugmentConfig, Precision, canonical_json, different_fields
from pipeline.labelling.weights import Which, code_in, leaves, load_tensors, state_digest
from student.config import FOUNDING, RUN_FILES, SETTINGS

__all__ = [
    "BEST",
    "CONFIG",
    "LAST",
    "PREVIOUS",
    "TORN",
    "Checkpoint",
    "FoundCheckpoint",
    "RunIdentity",
    "SavedStudent",
    "Segment",
    "claim_output",
    "epoch_name",
    "find_checkpoint",
    "keep_epoch",
    "older_epochs",
    "open_checkpoint",
    "read_checkpoint",
    "set_aside",
    "write_checkpoint",
]

LAST, BEST, CONFIG = RUN_FILES
PREVIOUS, TORN = "previous.pt", "torn.pt"
LOCK = ".lock"

_TIMMS_AVERAGE = "state_dict_ema"
"""The name under which timm looks first; the averages have it too, if they won."""

_VERSION = 3
_CURE = "resume from another checkpoint, or start again without `resume` in a new `output`"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """What a checkpoint and the run that continues it must share."""

    config: Mapping[str, Any]  # ``TrainConfig.binding``
    store: Mapping[str, Any]  # the store's identity
    views: Mapping[str, int]  # those that training consumes, as far as their order follows them
    shards: str  # digest of the store's shards and rejections, which the order follows
    subset: str | None = grown(founding=None, since="0.1.0")  # numbers of the shards; None: all

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """How the steps from one on were computed: sums in another order have other last bits."""

    step: int
    epochs: int  # of the whole run, which the learning rate follows
    ranks: int
    accumulate: int
    threads: int  # of each rank
    fast: bool  # on a GPU, with TF32 and kernels that cuDNN chose by their time
    device: str  # cpu, or the GPU's name

    def changes(self, later: Segment) -> list[str]:
        """Return what differs in a later segment that its weights depend on, in words."""
        names = ["epochs", "ranks", "accumulate", "device", "fast"]
        if (self.device, later.device) == ("cpu", "cpu"):  # else they only feed the GPU
            names.append("threads")
        pairs = [(name, getattr(self, name), getattr(later, name)) for name in names]
        return [f"{name} {one} -> {other}" for name, one, other in pairs if one != other]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedStudent:
    """What a checkpoint says of its student; nothing of it is to be trusted."""

    model: str
    model_args: tuple[str, ...]
    classes: int
    image_size: int
    heads: Literal[1, 2] | None
    headline: Literal["class_head", "mean_of_logits"]
    precision: Precision
    views: AugmentConfig  # of validation
    class_names: tuple[str, ...] | None = grown(founding=None, since="0.1.0")  # by index

    def __post_init__(self) -> None:
        settle(self)
        for name, most in (("classes", 65535), ("image_size", 4096)):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)}; use 1 to {most}")
        if self.class_names is not None:
            check_names(self.class_names, "class_names")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped; a file holds these fields."""

    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor] | None  # averaged weights
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]  # of the loss, in fp16
    student: SavedStudent  # how to build it again, and the views it wants
    step: int  # steps done
    run: RunIdentity
    history: tuple[Segment, ...]  # in the order of steps
    meter: Mapping[str, Mapping[str, float]]  # ``Meter.state``, of the epoch under way
    metrics: Mapping[str, Any]  # of the last evaluation
    best: float  # top-1 of the best evaluation so far, -1 before the first
    winner: Which | None  # the better weights in the last evaluation; None before the first
    needs: str  # the oldest release that knows the run's settings, its store and this record
    notes: Mapping[str, Any] = field(default_factory=dict)  # of any release; kept, not understood

    def __post_init__(self) -> None:
        settle(self)
        if self.step < 0 or not self.history:
            raise ConfigError(f"step is {self.step} of {len(self.history)} segments")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCheckpoint:
    """A checkpoint of this run, and the file that it is from."""

    path: Path
    checkpoint: Checkpoint


class ForeignError(CheckpointError):
    """A file is whole, and another program's."""


class TornError(CheckpointError):
    """A checkpoint is missing or its bytes are damaged, so that the one before may take its place.

    One of a later release is neither.
    """


def claim_output(output: Path) -> IO[bytes]:
    """Keep other processes from training into a directory while the returned file is open.

    Raises ``ConfigError`` if another one does, ``PipelineError`` if the disk refuses the file.
    File systems without locks claim nothing.
    """
    with writing(output / LOCK):
        output.mkdir(parents=True, exist_ok=True)
        file = open(output / LOCK, "ab", opener=_without_links)  # noqa: SIM115 - held by the run
    try:
        # Of this process alone: loaders that outlive it for a moment do not hold it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise ConfigError(
            f"`output` {output}: another process is training there; wait for its end, stop it, or "
            "give another `output`"
        ) from error
    except OSError:
        pass
    return file


def _without_links(path: str, flags: int) -> int:
    """Open a file, but none that a link leads to: the directory may have come from others."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in one step over the one that may be there.

    A last.pt that is there stays beside it as previous.pt. The file is a dictionary of plain
    values and tensors, with the weights under ``model``. timm loads those that won: it takes
    averages wherever it finds them, so they have its name for them only then.
    """
    values = {"format_version": _VERSION, **to_plain(checkpoint)}
    values["digest"] = _digest(values)
    if checkpoint.winner == "ema":
        values[_TIMMS_AVERAGE] = values["ema"]  # the same tensors, which are stored once
    buffer = io.BytesIO()
    torch.save(values, buffer)
    if path.name == LAST and path.exists():
        _keep(path, path.with_name(PREVIOUS))
    replace(path, buffer.getvalue())


def keep_epoch(last: Path, epoch: int, kept: int) -> None:
    """Keep a last.pt as that of an epoch, counted from 1, and of these the latest ``kept``."""
    if not kept:
        return
    _keep(last, last.with_name(epoch_name(epoch)))
    for name in older_epochs((path.name for path in last.parent.glob("epoch-*.pt")), kept):
        last.with_name(name).unlink(missing_ok=True)


def epoch_name(epoch: int) -> str:
    """Return the file of an epoch's checkpoint; epochs are counted from 1."""
    return f"epoch-{epoch:04}.pt"


def older_epochs(names: Iterable[str], kept: int) -> list[str]:
    """Return the files of all epochs but the latest ``kept``."""
    return sorted(names, key=lambda name: (len(name), name))[:-kept]


def read_checkpoint(path: Path, run: RunIdentity, *, lengthen: bool = False) -> Checkpoint:
    """Read a checkpoint of this very run, or with ``lengthen`` of one of fewer epochs.

    Raises ``CheckpointError`` as ``open_checkpoint``, and if the settings, store or shards are
    others; it lists what differs.
    """
    return _of_run(open_checkpoint(path), path, run, lengthen)


def _of_run(checkpoint: Checkpoint, path: Path, run: RunIdentity, lengthen: bool) -> Checkpoint:
    """Return a checkpoint if it belongs to this run."""
    # What either leaves out has its founding value.
    ours, theirs = (
        {**to_plain(one), "config": {**FOUNDING, **one.config}} for one in (run, checkpoint.run)
    )
    unknown = sorted(theirs["config"].keys() - set(SETTINGS))
    if unknown:
        raise CheckpointError(
            f"{path} was trained with a setting {one_line(unknown[0])}, which teacher-labels "
            f"{RELEASE} does not know; {install(checkpoint.needs)}"
        )
    epochs = {name: ours["config"].get(name) for name in ("epochs", "warmup_epochs")}
    longer = {**theirs, "config": {**theirs["config"], **epochs}}
    different = different_fields(ours, longer if lengthen else theirs)
    if different:
        cure = "resume with its settings and store, which its config.json names; or " + _CURE
        if not different_fields(ours, longer):
            cure = (
                "resume with its `epochs`, or give `lengthen`: from this checkpoint on the "
                "learning rate then follows the schedule of the new number"
            )
        raise CheckpointError(
            f"{path} belongs to another run (ours / the checkpoint's):\n  "
            + "\n  ".join(re.sub(r"^config\.(\w+)", r"`\1`", line) for line in different)
            + f"\n  cure: {cure}"
        )
    return checkpoint


def find_checkpoint(path: Path, run: RunIdentity, *, lengthen: bool = False) -> FoundCheckpoint:
    """Read a checkpoint, or if it is a torn last.pt, the one before.

    Raises ``CheckpointError`` as ``read_checkpoint``; of the given one if both are torn, naming a
    best.pt that could be gone on from.
    """
    before, best = path.parent / PREVIOUS, path.parent / BEST
    try:
        found = open_checkpoint(path)
    except TornError as error:
        sound = None if path.name != LAST else _sound(before, run, lengthen)
        if sound is not None:
            return FoundCheckpoint(path=before, checkpoint=sound)
        other = None if path == best else _sound(best, run, lengthen)
        if other is None:
            raise
        raise CheckpointError(
            f"{error}. {best}, of step {other.step}, is sound: `resume` {best} goes on from it"
        ) from error
    return FoundCheckpoint(path=path, checkpoint=_of_run(found, path, run, lengthen))


def _sound(path: Path, run: RunIdentity, lengthen: bool) -> Checkpoint | None:
    """Return a checkpoint of this run, None if there is none that can be read."""
    try:
        return read_checkpoint(path, run, lengthen=lengthen)
    except CheckpointError:
        return None


def set_aside(path: Path) -> None:
    """Rename a torn last.pt, so that it never takes the place of the one before."""
    if path.exists():
        path.replace(path.with_name(TORN))


_MACHINE = (errno.EACCES, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of any run, its bytes checked.

    Raises ``CheckpointError`` if there is none, if it is torn, ``ForeignError`` if it is another
    program's, or for a field that only a later release knows.
    """
    reason = why_no_data(path)
    if reason is not None:
        raise TornError(f"{path} {reason}")
    try:
        values = load_tensors(path)
    except Exception as error:  # torn files raise a dozen kinds
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _MACHINE:
            raise CheckpointError(  # else a sound one would be set aside
                f"{path} cannot be read now ({error}); free memory or mend the disk, and run again"
            ) from error
        if (names := code_in(path)) is not None:
            raise CheckpointError(
                f"{path} is no checkpoint of this trainer: it holds {names}, code that is not run; "
                + _CURE
            ) from error
        # Ours and the system's; PyTorch's words say how to run what a file holds.
        why = str(error) if isinstance(error, ValueError | OSError) else type(error).__name__
        raise TornError(
            f"{path} cannot be read, it is torn or no checkpoint ({why}); {_CURE}"
        ) from error
    version = values.pop("format_version", None) if isinstance(values, dict) else None
    if version != _VERSION:
        later = isinstance(version, int) and version > _VERSION
        cure = install(str(values.get("needs"))) if later else _CURE
        kind = ForeignError if version is None else CheckpointError
        raise kind(
            f"{path} is no checkpoint of this trainer (format version {version!r}, expected "
            f"{_VERSION}); {cure}"
        )
    # PyTorch reads its files without their checksums.
    digest = values.pop("digest", None)
    values.pop(_TIMMS_AVERAGE, None)
    try:
        sound = digest == _digest({"format_version": version, **values})
    except (RuntimeError, TypeError, ValueError):  # values that no trainer writes
        sound = False
    if not sound:
        raise TornError(f"{path} is damaged: its digest is another; {_CURE}")
    try:
        return from_plain(Checkpoint, values, "checkpoint", str(values.get("needs")))
    except StoreError as error:
        raise CheckpointError(f"{path}: {error}; or {_CURE}") from error


def _digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 over all values of a checkpoint."""
    found = dict(leaves(values))
    tensors = {name: one for name, one in found.items() if isinstance(one, Tensor)}
    others = {name: _plain(one) for name, one in found.items() if name not in tensors}
    text = canonical_json({"tensors": state_digest(tensors), "others": others})
    return hashlib.sha256(text).hexdigest()


def _plain(value: Any) -> str:
    """Return a plain value as text; raises ``TypeError`` for others, whose text may be endless."""
    if value is not None and type(value) not in (bool, int, float, str):
        raise TypeError(f"a {type(value).__name__} is no value of a checkpoint")
    return repr(value)


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
