"""Takes the color from an image. Takes no argument."""

from pipeline.views.colors import to_gray
from pipeline.views.operation import Operation, no_argument

OPERATION = Operation(
    name="grayscale",
    draw=no_argument,
    apply=lambda image, argument, fill, result: to_gray(image, result),
    probe=0,
)
