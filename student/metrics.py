"""What a run reports: sums on the device, JSON lines, TensorBoard, and progress."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pipeline.files.local import replace
from student.distributed import Ranks
from student.losses import LossTerms

__all__ = ["METRICS", "Meter", "MetricsLog", "Stopwatch", "peak_memory"]

METRICS = "metrics.jsonl"

_NEVER = 1 << 62


class Meter:
    """Sums over an epoch's rows that stay on the device, so that no step waits for them.

    With several ranks all must call the methods that read, at the same steps.
    ``agreement`` is the share of rows where the student's distillation head says what the
    teacher does, ``teacher_accuracy`` that where the teacher names a class of the mixed image.
    """

    NAMES = ("loss", "class_loss", "distillation_loss", "agreement", "teacher_accuracy")

    def __init__(self, device: torch.device, ranks: Ranks = Ranks()) -> None:  # noqa: B008
        self._ranks = ranks
        self._sums = torch.zeros(len(self.NAMES) + 1, dtype=torch.float64, device=device)
        self._reported = torch.zeros(len(self.NAMES) + 1, dtype=torch.float64)
        self._first_bad = torch.full((), _NEVER, dtype=torch.int64, device=device)

    def add(self, step: int, terms: LossTerms, counts: Tensor, rows: int) -> None:
        """Add rows of one step; ``counts`` (2,) are those of agreement and right teachers."""
        loss = terms.loss.detach()
        means = torch.stack([loss, terms.class_loss.detach(), terms.distillation_loss.detach()])
        self._sums[:3] += means.double() * rows
        self._sums[3:5] += counts
        self._sums[5] += rows
        bad = torch.where(loss.isfinite(), _NEVER, step)
        self._first_bad = torch.minimum(self._first_bad, bad)

    def first_bad_step(self) -> int | None:
        """Return the first step whose loss was not finite."""
        step = self._ranks.least(int(self._first_bad))
        return None if step == _NEVER else step

    def take(self) -> dict[str, float]:
        """Return the means over the rows since the last call."""
        sums = self._ranks.sum(self._sums)
        means = self._means(sums - self._reported)
        self._reported = sums
        return means

    def epoch(self) -> dict[str, float]:
        """Return the means over the epoch so far."""
        return self._means(self._ranks.sum(self._sums))

    def _means(self, sums: Tensor) -> dict[str, float]:
        *values, rows = sums.tolist()
        return {
            name: value / max(1.0, rows) for name, value in zip(self.NAMES, values, strict=True)
        }

    def clear(self) -> None:
        """Begin another epoch."""
        self._sums.zero_()
        self._reported = torch.zeros_like(self._reported)

    def state(self) -> dict[str, dict[str, float]]:
        """Return the sums over the ``epoch``, and those ``taken`` of them, for a checkpoint."""
        sums = {"epoch": self._ranks.sum(self._sums), "taken": self._reported}
        names = (*self.NAMES, "rows")
        return {kind: dict(zip(names, one.tolist(), strict=True)) for kind, one in sums.items()}

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Go on from the sums of a checkpoint."""
        epoch, self._reported = (
            torch.tensor([state[kind][name] for name in (*self.NAMES, "rows")], dtype=torch.float64)
            for kind in ("epoch", "taken")
        )
        if self._ranks.first:  # the others' rows are in these sums
            self._sums.copy_(epoch)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process had on a GPU, or in memory where it trains there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Stopwatch:
    """Seconds of an epoch by what they were spent on, as this process sees them.

    A GPU works while this process goes on, so there its time is in ``student`` and
    ``data`` together; the sum is right.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Count the time inside this context as ``name``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Return the seconds so far, and begin again."""
        seconds, self._seconds = self._seconds, {}
        return seconds


class MetricsLog:
    """Writes metrics to OUTPUT/metrics.jsonl and TensorBoard.

    A resumed run keeps the lines up to the step that it starts from. A ``silent`` log, of a
    rank that is not the first, does nothing.
    """

    def __init__(
        self,
        output: Path,
        *,
        start: int,
        silent: bool = False,
        tell: Callable[[Mapping[str, float], int], None] = lambda values, step: None,
    ) -> None:
        """``tell`` is given the numbers of each line by their names, and the step."""
        self._silent, self._tell = silent, tell
        if silent:
            return
        path = output / METRICS
        kept = _lines_until(path, start)
        replace(path, kept)
        self._file = path.open("ab")
        # TensorBoard drops the points at this step too, and that of ``start`` is a line already.
        purged = start + 1 if start else None
        self._board = SummaryWriter(str(output / "tensorboard"), purge_step=purged)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._silent:
            return
        self._board.close()
        self._file.close()

    def flush(self) -> None:
        """See to it that all that was recorded is in the files."""
        if not self._silent:
            self._board.flush()

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Record one line; ``step`` counts the steps done."""
        if self._silent:
            return
        line = {"kind": kind, "step": step, **values}
        self._file.write(json.dumps(_finite(line)).encode() + b"\n")
        self._file.flush()
        scalars = {f"{kind}/{name}": value for name, value in _scalars(values)}
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        self._tell(scalars, step)


def _lines_until(path: Path, step: int) -> bytes:
    """Return a log's whole lines up to a step; a torn last line is left out."""
    if not path.exists() or not step:
        return b""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            break
    return b"".join(kept)


def _finite(value: Any) -> Any:
    """Replace what JSON has no number for by None."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, float(value)
