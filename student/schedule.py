"""The learning rate, a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.growth import settle

__all__ = ["Schedule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Linear warm-up, then a half cosine over the whole run, as timm's and DeiT's.

    As there, the cosine counts from the run's first step, not from the warm-up's end. Unlike
    there, the rate changes every step, and a resumed run needs nothing but its step.
    """

    steps: int
    warmup_steps: int
    peak: float
    warmup_from: float
    end: float

    def __post_init__(self) -> None:
        settle(self)

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.warmup_from + (self.peak - self.warmup_from) * step / self.warmup_steps
        end = min(self.end, self.peak)
        return end + (self.peak - end) * (1 + math.cos(math.pi * step / self.steps)) / 2
