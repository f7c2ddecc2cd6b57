"""Adds to values below 128. The argument is how much, 0..128."""

import numpy as np

from pipeline.views.kernels import apply_table
from pipeline.views.operation import TEN, VALUES, Operation, same_table

OPERATION = Operation(
    name="solarize-add",
    draw=lambda words, magnitude: min(128, magnitude * 110 // TEN),
    apply=lambda image, amount, fill: apply_table(
        image, same_table(np.where(VALUES < 128, np.minimum(255, VALUES + amount), VALUES))
    ),
    probe=99,
)
