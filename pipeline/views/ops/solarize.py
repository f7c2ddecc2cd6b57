"""Inverts values from a threshold on. The argument is the threshold, 0..256."""

import numpy as np

from pipeline.records import Pixels
from pipeline.views.operation import TEN, Operation


def _apply(image: Pixels, threshold: int, fill: Pixels, result: Pixels) -> None:
    np.negative((image >= threshold).view(np.uint8), out=result)  # 255 where it is
    np.bitwise_xor(image, result, out=result)


OPERATION = Operation(
    name="solarize",
    draw=lambda words, magnitude: 256 - min(256, magnitude * 256 // TEN),
    apply=_apply,
    probe=26,
)
