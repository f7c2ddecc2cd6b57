"""Hears SIGTERM: ends a job at once, or what is under way within a bounded time."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

__all__ = ["Drain", "Stopped"]


class Stopped(BaseException):
    """SIGTERM came while nothing was under way that is worth finishing; no error to catch."""


class Drain:
    """What became of SIGTERM.

    It raises ``Stopped`` wherever the job is, but for two places: inside of ``asked`` somebody
    calls ``check`` often, and inside of ``labelling`` somebody looks at ``deadline``.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline: float | None = None
        self._raises = True

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM for as long as this context lasts."""
        before = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Raise ``Stopped`` in ``check`` alone, or where this context ends.

        Ray's calls do not pass exceptions of signal handlers on.
        """
        with self.labelling():
            yield
        self.check()

    @contextlib.contextmanager
    def labelling(self) -> Iterator[None]:
        """Raise nothing for as long as this context lasts."""
        before, self._raises = self._raises, False
        try:
            yield
        finally:
            self._raises = before

    def check(self) -> None:
        """Raise ``Stopped`` if SIGTERM came."""
        if self._deadline is not None:
            raise Stopped

    def deadline(self) -> float | None:
        """Return the ``time.monotonic()`` at which to give up, None without a signal."""
        return self._deadline

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._deadline is None:  # a second one must not break off what the first began
            self._deadline = time.monotonic() + self._seconds
            if self._raises:
                raise Stopped
