"""Adds to values below 128. The argument is how much, 0..128."""

import numpy as np

from pipeline.records import Pixels
from pipeline.views.operation import TEN, Operation


def _apply(image: Pixels, amount: int, fill: Pixels, result: Pixels) -> None:
    np.negative((image < 128).view(np.uint8), out=result)  # 255 where it is
    np.bitwise_and(result, np.uint8(amount), out=result)
    np.add(image, result, out=result)  # at most 127 + 128


OPERATION = Operation(
    name="solarize-add",
    draw=lambda words, magnitude: min(128, magnitude * 110 // TEN),
    apply=_apply,
    probe=99,
)
