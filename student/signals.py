"""SIGTERM and Ctrl-C: they end the process, or once it trains ask it for a last checkpoint."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from student.launch import is_first

__all__ = ["StopRequest", "outlive_signals", "signal_name"]

_GRACE_SECONDS = 600  # longer than a validation
_ECHO_SECONDS = 2.0  # within which launchers pass a signal on that all processes had already
_AGAIN = "ends the step and writes a checkpoint; again in 2 s to stop at once"


def signal_name(number: int) -> str:
    """Return what users call a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def outlive_signals() -> None:
    """Let this process, a loader's, go on after SIGTERM and Ctrl-C.

    torchrun and terminals signal all processes of a rank at once, and the step or the
    validation under way needs its batches. The loader ends its processes by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: _end_later())


def _end_later() -> None:
    signal.alarm(_GRACE_SECONDS)


class StopRequest:
    """Whether this process was sent SIGTERM, or SIGINT as Ctrl-C does.

    Before ``training`` SIGTERM calls ``before``, which ends the process, and SIGINT raises
    ``KeyboardInterrupt``; so does a second one later. After it SIGTERM does nothing more.
    """

    def __init__(self, before: Callable[[], None], program: str = "train-student") -> None:
        self._before = before
        self._again = f"\n{program}: {_AGAIN}\n".encode()
        self._asked, self._asked_at = 0, 0.0
        self._phase: Literal["before", "training", "after"] = "before"
        self._owner = os.getpid()

    def __call__(self) -> int:
        """Return the signal that asks to stop, 0 if none did."""
        return self._asked

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside this context, in the main thread.

        SIGINT stays ignored where it is: a shell's background job is not to be stopped by it.
        """
        numbers = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            numbers.append(signal.SIGINT)
        previous = [signal.signal(number, self._handle) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, previous, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let the signals ask for a stop between steps, inside this context."""
        self._phase = "training"
        try:
            yield
        finally:
            self._phase = "after"

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a loader's process that has only just begun
            if number == signal.SIGTERM:
                _end_later()
            return
        now = time.monotonic()
        if self._asked and now - self._asked_at < _ECHO_SECONDS:
            return
        if number == signal.SIGINT and (self._asked or self._phase != "training"):
            raise KeyboardInterrupt
        self._asked, self._asked_at = number, now
        if self._phase == "before":
            self._before()
        elif number == signal.SIGINT and is_first():
            os.write(2, self._again)
