"""Moves the image from black. The argument is a factor, fixed-point."""

from pipeline.records import FIXED_ONE
from pipeline.views.colors import blend
from pipeline.views.operation import Operation, draw_factor

OPERATION = Operation(
    name="brightness",
    draw=draw_factor,
    apply=lambda image, factor, fill, result: blend(image, 0, factor, result),
    fixed_point=True,
    probe=FIXED_ONE * 7 // 5,
)
