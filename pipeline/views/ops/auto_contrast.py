"""Stretches each channel to 0..255; a channel of one value stays. Takes no argument."""

from __future__ import annotations

import numpy as np

from pipeline.records import Pixels
from pipeline.views.kernels import apply_table, histogram
from pipeline.views.operation import VALUES, Operation, no_argument


def _apply(image: Pixels, argument: int, fill: Pixels) -> Pixels:
    table = np.tile(VALUES, (3, 1))
    for channel, counts in enumerate(histogram(image)):
        present = np.flatnonzero(counts)
        low, high = int(present[0]), int(present[-1])
        if high > low:
            table[channel] = np.clip((table[channel] - low) * 255 // (high - low), 0, 255)
    return apply_table(image, table.astype(np.uint8))


OPERATION = Operation(name="auto-contrast", draw=no_argument, apply=_apply, probe=0)
