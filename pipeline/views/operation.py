"""What an augmentation operation is, and what several operations share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.records import FIXED_ONE, AppliedOp, Pixels
from pipeline.views.rng import Stream

__all__ = [
    "TEN",
    "Operation",
    "draw_factor",
    "either_sign",
    "no_argument",
]

TEN = 10 * FIXED_ONE
"""The highest magnitude."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An operation on pixels, applied after crop and flip; each lies in a file of ``ops``.

    A view stores nothing but the name and an integer argument, so what the two mean never
    changes: a better operation is another one, with another name. ``apply`` writes into pixels of
    the same shape and leaves its input alone; what a geometric operation uncovers gets the fill
    color.
    """

    name: str  # the file's, with hyphens
    draw: Callable[[Stream, int], int]  # the argument, at a fixed-point magnitude of 0..10
    # Of image, argument, fill color (3,), and where to write.
    apply: Callable[[Pixels, int, Pixels, Pixels], object]
    probe: int  # the argument at which a fingerprint watches it
    fixed_point: bool = False  # whether the argument is a real number, in units of 2**-16

    @property
    def probed(self) -> AppliedOp:
        """The operation at its probe."""
        return AppliedOp(op=self.name, argument=self.probe)

    def in_words(self, argument: int) -> str:
        """Return the operation with its argument, for people: ``rotate 29.2``."""
        if self.draw is no_argument:
            return self.name
        return (
            f"{self.name} {argument / FIXED_ONE:.3g}"
            if self.fixed_point
            else (f"{self.name} {argument}")
        )


def no_argument(words: Stream, magnitude: int) -> int:
    """Return 0, for an operation that takes no argument; draws nothing."""
    return 0


def either_sign(words: Stream, value: int) -> int:
    """Return ``value``, or in half of the draws ``-value``."""
    return -value if words.happens(0.5) else value


def draw_factor(words: Stream, magnitude: int) -> int:
    """Return the factor of a blend, fixed-point: 1, which changes nothing, -/+ .9 at 10."""
    return max(FIXED_ONE // 10, FIXED_ONE + either_sign(words, magnitude * 9 // 100))
