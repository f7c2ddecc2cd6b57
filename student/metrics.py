"""What a run reports: sums on the device, JSON lines, TensorBoard, and progress."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pipeline.files.local import LocalFolder, replace
from pipeline.identity import read_json
from student.distributed import Ranks
from student.losses import LossTerms

__all__ = ["BOARD", "METRICS", "Meter", "MetricsLog", "Stopwatch", "peak_memory"]

METRICS, BOARD = "metrics.jsonl", "tensorboard"

_MOST_BYTES = 1 << 30  # of a log that is resumed, some millions of lines
_NEVER = 1 << 62
_UNREAD = 1000  # steps, whose few numbers stay on the device


class Meter:
    """Sums over an epoch's rows. What a step gives stays on the device until it is asked for.

    So no step waits for it. With several ranks all must call the methods that read, at the same
    steps. ``agreement`` is the share of rows where the student's distillation head says what the
    teacher does, ``teacher_accuracy`` that where the teacher names a class of the mixed image.
    """

    NAMES = ("loss", "class_loss", "distillation_loss", "agreement", "teacher_accuracy")

    def __init__(self, ranks: Ranks = Ranks()) -> None:  # noqa: B008
        self._ranks = ranks
        self._sums = [0.0] * (len(self.NAMES) + 1)
        self._reported = torch.zeros(len(self.NAMES) + 1, dtype=torch.float64)
        self._unread: list[tuple[int, Sequence[Tensor], Tensor]] = []
        self._first_bad = _NEVER

    def add(self, step: int, terms: LossTerms, classes: Tensor) -> None:
        """Add B rows of one step.

        ``classes`` (4, B) are the student's, the teacher's, the truth and the partner's truth.
        """
        losses = (terms.loss, terms.class_loss, terms.distillation_loss)
        self._unread.append((step, [one.detach() for one in losses], classes))
        if len(self._unread) == _UNREAD:
            self._read()

    def _read(self) -> None:
        """Add up what the steps gave, in their order and in float64."""
        if not self._unread:
            return
        steps, losses, classes = zip(*self._unread, strict=True)
        self._unread.clear()
        means = torch.stack([one for three in losses for one in three]).view(-1, 3).tolist()
        for step, three, four in zip(steps, means, classes, strict=True):
            rows = four.shape[1]
            self._add([*(one * rows for one in three), 0, 0, rows])
            if not math.isfinite(three[0]):
                self._first_bad = min(self._first_bad, step)
        called, teacher, own, partner = torch.cat(classes, dim=1)
        right = (teacher == own) | (teacher == partner)
        self._add([0, 0, 0, *torch.stack([called == teacher, right]).sum(1).tolist(), 0])

    def _add(self, values: Sequence[float]) -> None:
        self._sums = [one + other for one, other in zip(self._sums, values, strict=True)]

    def first_bad_step(self) -> int | None:
        """Return the first step whose loss was not finite."""
        self._read()
        step = self._ranks.least(self._first_bad)
        return None if step == _NEVER else step

    def _summed(self) -> Tensor:
        """Return the sums of all ranks."""
        self._read()
        return self._ranks.sum(torch.tensor(self._sums, dtype=torch.float64))

    def take(self) -> dict[str, float]:
        """Return the means over the rows since the last call."""
        sums = self._summed()
        means = self._means(sums - self._reported)
        self._reported = sums
        return means

    def epoch(self) -> dict[str, float]:
        """Return the means over the epoch so far."""
        return self._means(self._summed())

    def _means(self, sums: Tensor) -> dict[str, float]:
        *values, rows = sums.tolist()
        return {
            name: value / max(1.0, rows) for name, value in zip(self.NAMES, values, strict=True)
        }

    def clear(self) -> None:
        """Begin another epoch."""
        self._read()
        self._sums = [0.0] * len(self._sums)
        self._reported = torch.zeros_like(self._reported)

    def state(self) -> dict[str, dict[str, float]]:
        """Return the sums over the ``epoch``, and those ``taken`` of them, for a checkpoint."""
        sums = {"epoch": self._summed(), "taken": self._reported}
        names = (*self.NAMES, "rows")
        return {kind: dict(zip(names, one.tolist(), strict=True)) for kind, one in sums.items()}

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Go on from the sums of a checkpoint."""
        epoch, self._reported = (
            torch.tensor([state[kind][name] for name in (*self.NAMES, "rows")], dtype=torch.float64)
            for kind in ("epoch", "taken")
        )
        if self._ranks.first:  # the others' rows are in these sums
            self._sums = epoch.tolist()


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
        # Raises for a link in its place that leads out: files would be written there.
        LocalFolder(output).exists(f"{BOARD}/events")
        # TensorBoard drops the points at this step too, and that of ``start`` is a line already.
        purged = start + 1 if start else None
        self._board = SummaryWriter(str(output / BOARD), purge_step=purged)

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
    if not step:
        return b""
    try:
        data = LocalFolder(path.parent).read_unwatched(path.name, _MOST_BYTES)
    except FileNotFoundError:
        return b""
    kept = []
    for line in data.splitlines(keepends=True):
        try:
            if read_json(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
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
