"""Moves the image from its own gray version. The argument is a factor, fixed-point."""

from pipeline.records import FIXED_ONE
from pipeline.views.colors import blend_with_gray
from pipeline.views.operation import Operation, draw_factor

OPERATION = Operation(
    name="color",
    draw=draw_factor,
    apply=lambda image, factor, fill, result: blend_with_gray(image, factor, result),
    fixed_point=True,
    probe=FIXED_ONE * 7 // 5,
)
