"""Moves the image from its mean gray. The argument is a factor, fixed-point."""

from __future__ import annotations

from pipeline.records import FIXED_ONE, Pixels
from pipeline.views.kernels import apply_table, gray_sum
from pipeline.views.operation import Operation, blend_table, draw_factor


def _apply(image: Pixels, factor: int, fill: Pixels) -> Pixels:
    area = image.shape[0] * image.shape[1]
    mean = (2 * int(gray_sum(image)) + area) // (2 * area)  # rounded, halves up
    return apply_table(image, blend_table(mean, factor))


OPERATION = Operation(
    name="contrast", draw=draw_factor, fixed_point=True, apply=_apply, probe=FIXED_ONE * 7 // 5
)
