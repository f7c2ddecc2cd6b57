"""Moves the image from its smoothed version. The argument is a factor, fixed-point."""

from pipeline.records import FIXED_ONE
from pipeline.views.colors import blend_with_smooth
from pipeline.views.operation import Operation, draw_factor

OPERATION = Operation(
    name="sharpness",
    draw=draw_factor,
    apply=lambda image, factor, fill, result: blend_with_smooth(image, factor, result),
    fixed_point=True,
    probe=FIXED_ONE * 7 // 5,
)
