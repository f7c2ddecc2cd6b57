"""Shifts the image to the left. The argument is a share of its width, fixed-point."""

from pipeline.records import FIXED_ONE
from pipeline.views.kernels import affine_weights, shift_rows
from pipeline.views.operation import Operation, either_sign

OPERATION = Operation(
    name="translate-x",
    draw=lambda words, magnitude: either_sign(words, magnitude * 45 // 1000),
    apply=lambda image, share, fill, result: shift_rows(
        image, 0, share * image.shape[1], affine_weights(), fill, result
    ),
    fixed_point=True,
    probe=FIXED_ONE // 3,
)
