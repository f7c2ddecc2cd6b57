"""How a label job runs, measured every few seconds: for Ray's metrics, and as lines of JSON."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.files.kinds import without_waiting

__all__ = ["HELP", "Flow", "Measured", "Metrics", "check_path", "measuring"]

EVERY_SECONDS = 5.0
SHOW_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """What teachers have told of themselves."""

    teachers: int = 0  # that label now
    busy_seconds: float = 0.0  # in which any of them ran its network, since the job began
    labels: int = 0  # of parts that are not committed yet
    window: int = 0  # groups that are augmented, or wait for a teacher
    again: int = 0  # groups that were augmented again, as a process died or hung
    lost: int = 0  # teachers that died or hung
    parts_again: int = 0  # that they had: two each, at most
    store_missing: float = 0.0  # bytes of shared memory that a machine lacks, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One line: what holds now, and speeds since the line before."""

    time: float  # seconds since 1970
    parts: int  # that this job has committed
    parts_to_do: int  # when it began
    labels: int
    labels_per_second: float
    rejected: int  # samples
    teachers: int
    teacher_busy_share: float
    window: int
    retries: int


HELP = {
    "parts": "parts that the job has committed",
    "parts_to_do": "parts that were missing when the job began",
    "labels": "labels that the job has committed",
    "labels_per_second": "labels committed per second",
    "rejected": "samples whose image does not decode",
    "teachers": "teachers that label now",
    "teacher_busy_share": "share of the time in which a teacher runs its network",
    "window": "groups of views that are augmented, or wait for a teacher",
    "retries": "groups augmented again, and teachers replaced",
}
"""What is measured, by its name in `Measured`. In Ray's metrics it begins with teacher_labels_."""


class Metrics:
    """Measures a job from a thread of its own."""

    def __init__(
        self,
        progress: Callable[[], tuple[int, int, int]],
        parts_to_do: int,
        flow: Callable[[], Flow],
        export: Callable[[dict[str, float]], None],
        path: Path | None,
        show: Callable[[int], None] = lambda labels: None,
    ) -> None:
        """``progress`` gives parts, labels and rejected samples, ``export`` takes named values.

        ``show`` is told how many labels there are, those of parts under way included.
        """
        self._progress = progress
        self._parts_to_do = parts_to_do
        self._flow = flow
        self._export = export
        self._path = path
        self._show = show
        self._began = self._last = time.monotonic()
        self._last_labels, self._last_busy = 0, 0.0
        self._teacher_seconds = 0.0
        self._most = 0  # labels that were shown

    def measure(self) -> Measured:
        """Measure once, since the last time."""
        now, flow = time.monotonic(), self._flow()
        seconds = max(1e-9, now - self._last)
        parts, labels, rejected = self._progress()
        busy = (flow.busy_seconds - self._last_busy) / max(1, flow.teachers) / seconds
        measured = Measured(
            time=round(time.time(), 3),
            parts=parts,
            parts_to_do=self._parts_to_do,
            labels=labels,
            labels_per_second=round((labels - self._last_labels) / seconds, 3),
            rejected=rejected,
            teachers=flow.teachers,
            teacher_busy_share=round(min(1.0, max(0.0, busy)), 4),
            window=flow.window,
            retries=flow.again + flow.lost,
        )
        self._teacher_seconds += seconds * flow.teachers
        self._last, self._last_labels, self._last_busy = now, labels, flow.busy_seconds
        return measured

    def publish(self) -> None:
        """Measure, and tell."""
        values = asdict(self.measure())
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8", opener=without_waiting) as file:
                file.write(json.dumps(values) + "\n")
        self._export({name: float(values[name]) for name in HELP})

    def show(self) -> None:
        """Tell how many labels there are; a part that is lost takes none back."""
        self._most = max(self._most, self._progress()[1] + self._flow().labels)
        self._show(self._most)

    def summary(self) -> dict[str, float]:
        """Return what is worth remembering of the whole job."""
        flow = self._flow()
        seconds = self._teacher_seconds + (time.monotonic() - self._last) * flow.teachers
        return {
            "teacher_busy_share": round(min(1.0, flow.busy_seconds / max(1e-9, seconds)), 4),
            "groups_augmented_again": flow.again,
            "teachers_lost": flow.lost,
            "parts_labelled_again": flow.parts_again,
            "shared_memory_bytes_missing": round(flow.store_missing),
        }


@contextmanager
def measuring(metrics: Metrics) -> Iterator[Metrics]:
    """Publish what a job does for as long as this context lasts, and once at its end."""
    over = threading.Event()

    def run() -> None:
        published = time.monotonic()
        while not over.wait(SHOW_SECONDS):
            with suppress(OSError):  # a full disk must not end a job for want of a line
                metrics.show()
                if time.monotonic() - published >= EVERY_SECONDS:
                    published = time.monotonic()
                    metrics.publish()

    thread = threading.Thread(target=run, daemon=True, name="metrics")
    thread.start()
    try:
        yield metrics
    finally:
        over.set()
        thread.join(EVERY_SECONDS)
        with suppress(OSError):
            metrics.show()
            metrics.publish()


def check_path(path: Path | None) -> None:
    """Raise ``ConfigError`` unless lines can be added to a file."""
    if path is None:
        return
    try:
        open(path, "a", opener=without_waiting).close()
    except OSError as error:
        raise ConfigError(f"`metrics_file` {path} cannot be written ({error.strerror})") from error
