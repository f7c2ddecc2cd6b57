"""Flattens each channel's histogram, as Pillow's ``ImageOps.equalize``. Takes no argument."""

from __future__ import annotations

import numpy as np

from pipeline.records import Pixels
from pipeline.views.kernels import apply_table, histogram
from pipeline.views.operation import VALUES, Operation, no_argument


def _apply(image: Pixels, argument: int, fill: Pixels) -> Pixels:
    table = np.tile(VALUES, (3, 1))
    for channel, counts in enumerate(histogram(image)):
        last = int(np.flatnonzero(counts)[-1])
        step = (int(counts.sum()) - int(counts[last])) // 255
        if step > 0:
            below = np.cumsum(counts) - counts
            table[channel] = np.minimum((step // 2 + below) // step, 255)
    return apply_table(image, table.astype(np.uint8))


OPERATION = Operation(name="equalize", draw=no_argument, apply=_apply, probe=0)
