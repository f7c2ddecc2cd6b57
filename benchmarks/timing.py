"""Times several ways of one thing in turn, so that a machine's moods hit all alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Timings", "measure", "on_one_core", "pin_to_one_core"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds per item of each case, a number for each round."""

    seconds: Mapping[str, tuple[float, ...]]
    # Of the processor, all threads of the process: others' turns on a busy machine do not count.
    cpu_seconds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def median(self, case: str) -> float:
        """Return a case's median seconds per item."""
        return statistics.median(self.seconds[case])

    def ratios(self, slow: str, fast: str) -> tuple[float, ...]:
        """Return how many times faster ``fast`` is, round by round."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return tuple(a / b for a, b in pairs)

    def ratio(self, slow: str, fast: str) -> float:
        """Return the median of ``ratios``."""
        return statistics.median(self.ratios(slow, fast))

    def cpu_ratio(self, slow: str, fast: str) -> float:
        """Return the median of how many times less CPU time ``fast`` takes, round by round."""
        pairs = zip(self.cpu_seconds[slow], self.cpu_seconds[fast], strict=True)
        return statistics.median(a / b for a, b in pairs)


def measure(cases: Mapping[str, Callable[[], int]], rounds: int) -> Timings:
    """Run all cases once to warm up, then ``rounds`` times in turn, in rotating order.

    A case returns the number of items that it did.
    """
    names = list(cases)
    for name in names:
        cases[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds):
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            started, worked = time.perf_counter(), time.process_time()
            items = cases[name]()
            cpu_seconds[name].append((time.process_time() - worked) / items)
            seconds[name].append((time.perf_counter() - started) / items)
    return Timings(
        seconds={name: tuple(values) for name, values in seconds.items()},
        cpu_seconds={name: tuple(values) for name, values in cpu_seconds.items()},
    )


def pin_to_one_core() -> int:
    """Keep this process on one of its cores, the last; return which."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keep this process on one core for a while."""
    cores = os.sched_getaffinity(0)
    pin_to_one_core()
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
