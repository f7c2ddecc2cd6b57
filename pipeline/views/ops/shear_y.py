"""Shears along y. The argument: pixels each column moves beyond the one before, fixed-point."""

from pipeline.records import FIXED_ONE
from pipeline.views.kernels import affine_weights, shift_columns
from pipeline.views.operation import Operation, either_sign

OPERATION = Operation(
    name="shear-y",
    draw=lambda words, magnitude: either_sign(words, magnitude * 3 // 100),
    apply=lambda image, slope, fill, result: shift_columns(
        image, slope, 0, affine_weights(), fill, result
    ),
    fixed_point=True,
    probe=-FIXED_ONE // 5,
)
