"""Shears along x. The argument: pixels that each row moves beyond the row above, fixed-point."""

from pipeline.records import FIXED_ONE
from pipeline.views.kernels import affine_weights, shift_rows
from pipeline.views.operation import Operation, either_sign

OPERATION = Operation(
    name="shear-x",
    draw=lambda words, magnitude: either_sign(words, magnitude * 3 // 100),
    apply=lambda image, slope, fill, result: shift_rows(
        image, slope, 0, affine_weights(), fill, result
    ),
    fixed_point=True,
    probe=FIXED_ONE // 4,
)
