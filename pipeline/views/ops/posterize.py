"""Keeps the upper bits of each value. The argument is how many, 0..8; 0 is black."""

import numpy as np

from pipeline.views.operation import TEN, Operation

OPERATION = Operation(
    name="posterize",
    draw=lambda words, magnitude: 4 - magnitude * 4 // TEN,  # 4 bits at magnitude 0, none at 10
    apply=lambda image, bits, fill, result: np.bitwise_and(
        image, np.uint8(0xFF & ~((1 << (8 - bits)) - 1)), out=result
    ),
    probe=1,
)
