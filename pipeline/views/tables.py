"""Normalizes and mixes views on a CPU, in one pass over their pixels.

What a pixel becomes is looked up among 256 floats, or for mixup in two tables of products; the one
sum that is left is rounded as every processor rounds it. So floats are those of ``mixing.py``.
"""

from __future__ import annotations

import numpy as np

from pipeline.views.compiled import kernel

__all__ = ["mix_by_tables"]


@kernel
def mix_by_tables(pixels, first, partner, mixup, cutmix, share, box, table, result):
    """Write N of M views, (M, S, S, 3) uint8, from ``first`` on, normalized and mixed, as float32.

    ``partner`` is of each of the N, ``mixup`` and ``cutmix`` say whether it is mixed so, ``share``
    is its own share (float32), ``box`` (N, 4) where a partner's pixels lie. ``table``, (3, 256),
    has what each value becomes.
    """
    for row in range(len(result)):
        own, other = pixels[first + row].reshape(-1), pixels[partner[row]].reshape(-1)
        written = result[row].reshape(-1)
        if mixup[row]:
            ours, theirs = table * share[row], table * (np.float32(1) - share[row])
            # Unsigned, or numba looks for negative indices in each step.
            for i in range(np.uint64(0), np.uint64(len(own)), np.uint64(3)):
                for channel in range(np.uint64(3)):
                    k = i + channel
                    written[k] = ours[channel, own[k]] + theirs[channel, other[k]]
            continue
        for i in range(np.uint64(0), np.uint64(len(own)), np.uint64(3)):
            for channel in range(np.uint64(3)):
                written[i + channel] = table[channel, own[i + channel]]
        if cutmix[row]:
            top, left, height, width = box[row]
            for y in range(top, top + height):
                for x in range(left, left + width):
                    for channel in range(3):
                        value = pixels[partner[row], y, x, channel]
                        result[row, y, x, channel] = table[channel, value]
