"""Flattens each channel's histogram, as Pillow's ``ImageOps.equalize``. Takes no argument."""

from __future__ import annotations

import numpy as np

from pipeline.views.compiled import kernel
from pipeline.views.operation import Operation, no_argument


@kernel
def equalize(image, result):
    """Write for each value a share of 255: of its channel's values, how many lie below it."""
    numbers, written = image.reshape(-1), result.reshape(-1)
    table = _table(_histogram(numbers))
    # Unsigned, or numba looks for negative indices in each step.
    for i in range(np.uint64(0), np.uint64(len(numbers)), np.uint64(3)):
        for channel in range(np.uint64(3)):
            written[i + channel] = table[channel, numbers[i + channel]]


@kernel
def _histogram(numbers):
    """Return how often each value occurs in each channel, (3, 256)."""
    # Two counts of each: one would wait for itself where neighbors are equal.
    counts = np.zeros((6, 256), np.int64)
    sixes = len(numbers) // 6 * 6
    for i in range(np.uint64(0), np.uint64(sixes), np.uint64(6)):
        for k in range(np.uint64(6)):
            counts[k, numbers[i + k]] += 1
    for i in range(sixes, len(numbers)):
        counts[i - sixes, numbers[i]] += 1
    return counts[:3] + counts[3:]


@kernel
def _table(counts):
    """Return what becomes of each value of each channel, (3, 256)."""
    table = np.empty((3, 256), np.uint8)
    for channel in range(3):
        last = 255
        while counts[channel, last] == 0:
            last -= 1
        step = (counts[channel].sum() - counts[channel, last]) // 255
        below = 0
        for value in range(256):
            table[channel, value] = min((step // 2 + below) // step, 255) if step else value
            below += counts[channel, value]
    return table


OPERATION = Operation(
    name="equalize",
    draw=no_argument,
    apply=lambda image, argument, fill, result: equalize(image, result),
    probe=0,
)
