"""Shifts the image up. The argument is a share of its height, fixed-point."""

from pipeline.records import FIXED_ONE
from pipeline.views.kernels import affine_weights, shift_columns
from pipeline.views.operation import Operation, either_sign

OPERATION = Operation(
    name="translate-y",
    draw=lambda words, magnitude: either_sign(words, magnitude * 45 // 1000),
    apply=lambda image, share, fill, result: shift_columns(
        image, 0, share * image.shape[0], affine_weights(), fill, result
    ),
    fixed_point=True,
    probe=-FIXED_ONE // 7,
)
