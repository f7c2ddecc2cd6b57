"""Takes the color from an image. Takes no argument."""

from pipeline.views.kernels import to_gray
from pipeline.views.operation import Operation, no_argument

OPERATION = Operation(
    name="grayscale",
    draw=no_argument,
    apply=lambda image, argument, fill: to_gray(image),
    probe=0,
)
