"""Inverts values from a threshold on. The argument is the threshold, 0..256."""

import numpy as np

from pipeline.views.kernels import apply_table
from pipeline.views.operation import TEN, VALUES, Operation, same_table

OPERATION = Operation(
    name="solarize",
    draw=lambda words, magnitude: 256 - min(256, magnitude * 256 // TEN),
    apply=lambda image, threshold, fill: apply_table(
        image, same_table(np.where(threshold > VALUES, VALUES, 255 - VALUES))
    ),
    probe=26,
)
