"""Stretches each channel to 0..255; a channel of one value stays. Takes no argument."""

from __future__ import annotations

import numpy as np

from pipeline.views.compiled import kernel
from pipeline.views.operation import Operation, no_argument


@kernel
def stretch(image, result):
    """Write ``(value - least) * 255 // (largest - least)`` of each value, channel by channel."""
    height, length = image.shape[0], 3 * image.shape[1]
    lines, written = image.reshape(height, length), result.reshape(height, length)
    low, high = lines[0].copy(), lines[0].copy()
    for y in range(1, height):
        for i in range(length):
            low[i] = min(low[i], lines[y, i])
            high[i] = max(high[i], lines[y, i])
    least, factor = np.zeros(length, np.int32), np.full(length, np.int32(1 << 16))
    for channel in range(3):
        bottom, top = np.int32(low[channel::3].min()), np.int32(high[channel::3].max())
        if top > bottom:
            least[channel::3] = bottom
            # Rounded up, a factor of 2**-16 gives the same as the division, for all 8-bit values.
            factor[channel::3] = -(-(255 << 16) // (top - bottom))
    for y in range(height):
        for i in range(length):
            above = np.int32(np.int32(lines[y, i]) - least[i])
            written[y, i] = np.int32(factor[i] * above) >> np.int32(16)


OPERATION = Operation(
    name="auto-contrast",
    draw=no_argument,
    apply=lambda image, argument, fill, result: stretch(image, result),
    probe=0,
)
