"""SIGTERM and Ctrl-C: they end the process, or once it trains ask it for a last checkpoint."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["TERMINATED", "RunWarning", "StopRequest", "outlive_signals"]

TERMINATED = 128 + signal.SIGTERM
"""The exit status of a run that was stopped by SIGTERM."""


class RunWarning(UserWarning):
    """What a run says of itself and goes on."""


_GRACE_SECONDS = 10
_ECHO_SECONDS = 2.0  # within which launchers pass a signal on that all processes had already


def outlive_signals() -> None:
    """Let this process, a loader's, go on for a while after SIGTERM and Ctrl-C.

    torchrun and terminals signal all processes of a rank at once, and the step under way needs
    its batch.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: signal.alarm(_GRACE_SECONDS) and None)


class StopRequest:
    """Whether this process was sent SIGTERM, or SIGINT as Ctrl-C does.

    Before ``training`` SIGTERM calls ``before``, which ends the process, and SIGINT raises
    ``KeyboardInterrupt``, as a second one does later.
    """

    def __init__(self, before: Callable[[], None]) -> None:
        self.asked = False
        self.status = TERMINATED  # to exit with
        self._asked_at = 0.0
        self._before = before
        self._training = False
        self._owner = os.getpid()

    def __call__(self) -> bool:
        """Return whether to stop."""
        return self.asked

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside this context, in the main thread."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        previous = [signal.signal(number, self._handle) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, previous, strict=True):
                signal.signal(number, handler)

    @property
    def name(self) -> str:
        """What the run was stopped by."""
        return "SIGTERM" if self.status == TERMINATED else "Ctrl-C"

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let the signals ask for a stop between steps, inside this context."""
        self._training = True
        try:
            yield
        finally:
            self._training = False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            os._exit(128 + number)  # a loader's process that has only just begun
        now = time.monotonic()
        if self.asked and now - self._asked_at < _ECHO_SECONDS:
            return
        if number == signal.SIGINT and (self.asked or not self._training):
            raise KeyboardInterrupt
        self.asked, self._asked_at, self.status = True, now, 128 + number
        if not self._training:
            self._before()
        elif number == signal.SIGINT:
            text = "\ntrain-student: ends the step and writes a checkpoint; again to stop at once\n"
            os.write(2, text.encode())
