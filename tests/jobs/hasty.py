"""``label-teacher`` that soon says what it waits for."""

from __future__ import annotations

from dataclasses import replace

from jobs import entry
from jobs.supervisor import Patience

SAY_SECONDS = 1.0
_usual = Patience.of


def of(hang_seconds: float, wait_seconds: float) -> Patience:
    """Return the patience of a job's settings, but for how often it says what it waits for."""
    return replace(_usual(hang_seconds, wait_seconds), say_seconds=SAY_SECONDS)


def label_teacher() -> None:
    """Run ``label-teacher``."""
    Patience.of = of  # type: ignore[method-assign,assignment]
    entry.label_teacher()
