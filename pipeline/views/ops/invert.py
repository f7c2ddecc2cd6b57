"""Turns each value into 255 less it. Takes no argument."""

import numpy as np

from pipeline.views.operation import Operation, no_argument

OPERATION = Operation(
    name="invert",
    draw=no_argument,
    apply=lambda image, argument, fill, result: np.subtract(255, image, out=result),
    probe=0,
)
