"""Moves the image from black. The argument is a factor, fixed-point."""

from pipeline.records import FIXED_ONE
from pipeline.views.kernels import apply_table
from pipeline.views.operation import Operation, blend_table, draw_factor

OPERATION = Operation(
    name="brightness",
    draw=draw_factor,
    apply=lambda image, factor, fill: apply_table(image, blend_table(0, factor)),
    fixed_point=True,
    probe=FIXED_ONE * 7 // 5,
)
