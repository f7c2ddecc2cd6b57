"""SIGTERM: before training it ends the process, in training it asks for a last checkpoint."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["TERMINATED", "StopRequest", "outlive_sigterm"]

TERMINATED = 128 + signal.SIGTERM
"""The exit status of a run that was told to stop."""

_GRACE_SECONDS = 10


def outlive_sigterm() -> None:
    """Let this process, a loader's, go on for a while after SIGTERM.

    torchrun signals all processes of a rank at once, and the step under way needs its batch.
    """
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.alarm(_GRACE_SECONDS) and None)


class StopRequest:
    """Whether this process was sent SIGTERM.

    Before ``training`` the signal calls ``before``, which ends the process.
    """

    def __init__(self, before: Callable[[], None]) -> None:
        self.asked = False
        self._before = before
        self._training = False
        self._owner = os.getpid()

    def __call__(self) -> bool:
        """Return whether to stop."""
        return self.asked

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signal inside this context, in the main thread."""
        previous = signal.signal(signal.SIGTERM, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let the signal ask for a stop between steps, inside this context."""
        self._training = True
        try:
            yield
        finally:
            self._training = False

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            os._exit(TERMINATED)  # a loader's process that has only just begun
        self.asked = True
        if not self._training:
            self._before()
