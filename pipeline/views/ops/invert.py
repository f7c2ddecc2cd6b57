"""Turns each value into 255 less it. Takes no argument."""

from pipeline.views.operation import Operation, no_argument

OPERATION = Operation(
    name="invert",
    draw=no_argument,
    apply=lambda image, argument, fill: 255 - image,
    probe=0,
)
