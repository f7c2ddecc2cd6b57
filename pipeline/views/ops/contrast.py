"""Moves the image from its mean gray. The argument is a factor, fixed-point."""

from __future__ import annotations

from pipeline.records import FIXED_ONE, Pixels
from pipeline.views.colors import blend, gray_sum
from pipeline.views.operation import Operation, draw_factor


def _apply(image: Pixels, factor: int, fill: Pixels, result: Pixels) -> None:
    area = image.shape[0] * image.shape[1]
    mean = (2 * int(gray_sum(image)) + area) // (2 * area)  # rounded, halves up
    blend(image, mean, factor, result)


OPERATION = Operation(
    name="contrast", draw=draw_factor, fixed_point=True, apply=_apply, probe=FIXED_ONE * 7 // 5
)
