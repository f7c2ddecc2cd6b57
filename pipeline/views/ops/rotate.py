"""Rotates the image about its center. The argument: degrees counter-clockwise, fixed-point."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.records import FIXED_ONE, Pixels
from pipeline.views.kernels import affine_weights
from pipeline.views.operation import Operation, either_sign
from pipeline.views.rng import fixed

# Those of affine_weights(), written again: numba compiles them in, and its cache would not see
# them change in another file.
_POSITION_BITS, _WEIGHT_BITS = 10, 12
_LANE_BITS = 21
_LANE_BIAS = 1 << 19  # keeps a lane's sum, -0.26 to 1.31 million, positive


def _apply(image: Pixels, argument: int, fill: Pixels, result: Pixels) -> None:
    matrix = _rotation(argument, *image.shape[:2])
    apply_affine(image, matrix, affine_weights(), fill, result)


def _rotation(argument: int, height: int, width: int) -> NDArray[np.int64]:
    """Return the rotation as (a, b, c, d, e, f) in 2**-16 pixels, from output to source."""
    angle = math.radians(argument / FIXED_ONE)
    # Rounded before use: the last bit of libm's cos and sin differs between machines.
    cos, sin = fixed(math.cos(angle)), fixed(math.sin(angle))
    right = (width * (FIXED_ONE - cos) + height * sin) // 2
    down = (height * (FIXED_ONE - cos) - width * sin) // 2
    return np.array((cos, -sin, right, sin, cos, down), np.int64)


@njit(cache=True, nogil=True)
def apply_affine(image, matrix, weights, fill, result):
    """Write the image moved by a 2x3 matrix of 2**-16 pixels, bicubic.

    As Pillow's ``transform(AFFINE, BICUBIC)``: output center (x + 1/2, y + 1/2) is looked
    up at ``matrix @ (x + 1/2, y + 1/2, 1)``; centers outside give ``fill``, neighbors
    outside are the border's. ``weights`` is ``affine_weights()``, (1024, 4).
    """
    height, width = image.shape[:2]
    words = _pack_lanes(image)
    shift, lane = _WEIGHT_BITS + 8, (1 << _LANE_BITS) - 1
    # Vertical weights add up to 2**12, so the lanes' bias comes to the same in each pixel.
    start = (1 << (shift - 1)) - ((_LANE_BIAS >> 4) << _WEIGHT_BITS)
    for y in range(height):
        for x in range(width):
            # In units of 2**-17 pixel, so that half a pixel is a whole number.
            sx = matrix[0] * (2 * x + 1) + matrix[1] * (2 * y + 1) + 2 * matrix[2]
            sy = matrix[3] * (2 * x + 1) + matrix[4] * (2 * y + 1) + 2 * matrix[5]
            if sx < 0 or sy < 0 or sx >= width << 17 or sy >= height << 17:
                result[y, x, 0] = fill[0]
                result[y, x, 1] = fill[1]
                result[y, x, 2] = fill[2]
                continue
            sx -= 1 << 16
            sy -= 1 << 16
            left, top = (sx >> 17) + 1, (sy >> 17) + 1  # of the four neighbors, with padding
            wx = weights[(sx >> (17 - _POSITION_BITS)) & ((1 << _POSITION_BITS) - 1)]
            wy = weights[(sy >> (17 - _POSITION_BITS)) & ((1 << _POSITION_BITS) - 1)]
            w0, w1, w2, w3 = np.int64(wx[0]), np.int64(wx[1]), np.int64(wx[2]), np.int64(wx[3])
            red, green, blue = start, start, start
            for j in range(4):
                row = words[top + j]
                total = _LANE_BIAS | _LANE_BIAS << _LANE_BITS | _LANE_BIAS << (2 * _LANE_BITS)
                total += w0 * row[left] + w1 * row[left + 1]
                total += w2 * row[left + 2] + w3 * row[left + 3]
                weight = np.int64(wy[j])
                red += weight * ((total & lane) >> 4)
                green += weight * (((total >> _LANE_BITS) & lane) >> 4)
                blue += weight * (total >> (2 * _LANE_BITS + 4))
            result[y, x, 0] = min(max(red >> shift, 0), 255)
            result[y, x, 1] = min(max(green >> shift, 0), 255)
            result[y, x, 2] = min(max(blue >> shift, 0), 255)


@njit(cache=True, nogil=True)
def _pack_lanes(image):
    """Return each pixel's channels in the lanes of one word, with two pixels of border around.

    One multiplication then weighs three channels: a sum of four weighted pixels, and its
    bias, stays within its lane.
    """
    height, width = image.shape[:2]
    words = np.empty((height + 4, width + 4), np.int64)
    for y in range(height):
        for x in range(width):
            red, green, blue = image[y, x, 0], image[y, x, 1], image[y, x, 2]
            words[y + 2, x + 2] = (
                np.int64(red) | np.int64(green) << _LANE_BITS | np.int64(blue) << (2 * _LANE_BITS)
            )
    # In plain loops: numba compiles assignments to slices for seconds.
    for y in range(2, height + 2):
        for x in range(2):
            words[y, x] = words[y, 2]
            words[y, width + 2 + x] = words[y, width + 1]
    for y in range(2):
        for x in range(width + 4):
            words[y, x] = words[2, x]
            words[height + 2 + y, x] = words[height + 1, x]
    return words


OPERATION = Operation(
    name="rotate",
    draw=lambda words, magnitude: either_sign(words, magnitude * 3),  # up to 30 degrees
    apply=_apply,
    fixed_point=True,
    probe=-17 * FIXED_ONE,
)
