"""Integer pixel kernels, compiled by numba: the same bits on every machine.

Every function here computes a result that is defined in integers alone, so instruction
sets, vector widths and compiler versions cannot change it. ``tests/pipeline`` holds a plain
NumPy twin of each. Images are (H, W, 3) uint8, C-contiguous.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = [
    "AFFINE_BITS",
    "WEIGHT_BITS",
    "apply_affine",
    "apply_table",
    "blend_with_gray",
    "blend_with_smooth",
    "gray_sum",
    "histogram",
    "resample",
    "resize_weights",
    "to_gray",
]

WEIGHT_BITS = 14
"""Resampling weights are integers that add up to 2**14."""

AFFINE_BITS = 10
"""Affine sampling positions are cut to 1/1024 pixel."""

_AFFINE_WEIGHT_BITS = 12


@njit(cache=True, nogil=True)
def _cubic(distance):
    """Keys' cubic with a = -1/2 at a distance in 2**-16, in units of 2**-32."""
    d = np.int64(distance)
    if d >= 2 << 16:
        return np.int64(0)
    square = d * d
    if d < 1 << 16:
        value = 3 * square * d - ((5 * square) << 16) + (np.int64(2) << 48)
    else:
        value = -square * d + ((5 * square) << 16) - ((8 * d) << 32) + (np.int64(4) << 48)
    return value >> 17


@njit(cache=True, nogil=True)
def resize_weights(source, target):
    """Return (starts, weights) of an antialiased bicubic resize along one axis.

    ``starts`` is (target,), ``weights`` (target, taps); output i is the sum over t of
    ``weights[i, t] * input[starts[i] + t]`` over 2**14. Positions are those of pixel
    centres; when shrinking, the kernel is as much wider as the image gets smaller.
    """
    wide = max(source, target)
    taps = min(source, 4 * wide // target + 2)
    starts = np.empty(target, np.int32)
    weights = np.zeros((target, taps), np.int32)
    values = np.empty(taps, np.int64)
    for i in range(target):
        centre = (2 * i + 1) * source  # in units of 1 / (2 * target) pixel
        start = (centre - 4 * wide) // (2 * target)
        start = min(max(start, 0), source - taps)
        total = np.int64(0)
        for t in range(taps):
            offset = abs((2 * (start + t) + 1) * target - centre)
            values[t] = _cubic((np.int64(offset) << 16) // (2 * wide))
            total += values[t]
        largest = 0
        left = 1 << WEIGHT_BITS
        for t in range(taps):
            weight = ((values[t] << (WEIGHT_BITS + 1)) + total) // (2 * total)
            weights[i, t] = weight
            left -= weight
            if values[t] > values[largest]:
                largest = t
        weights[i, largest] += left  # a flat image stays flat
        starts[i] = start
    return starts, weights


@njit(cache=True, nogil=True)
def resample(image, rows, row_weights, columns, column_weights, hflip):
    """Return the image resampled along both axes, rows first, rounded to uint8 in between.

    ``rows`` and ``columns`` are starts as ``resize_weights`` returns them. The inner loops
    run along whole rows of numbers, which compilers turn into vector code.
    """
    width = image.shape[1]
    height_out, taps_y = row_weights.shape
    width_out, taps_x = column_weights.shape
    half = 1 << (WEIGHT_BITS - 1)
    flat = image.reshape(image.shape[0], width * 3)
    total = np.empty(width * 3, np.int32)
    turned = np.empty((width, 3 * height_out), np.uint8)
    for y in range(height_out):
        total[:] = half
        for t in range(taps_y):
            weight = row_weights[y, t]
            if weight != 0:
                line = flat[rows[y] + t]
                for i in range(width * 3):
                    total[i] += weight * np.int32(line[i])
        for x in range(width):
            for c in range(3):
                value = total[3 * x + c] >> WEIGHT_BITS
                turned[x, c * height_out + y] = min(max(value, 0), 255)
    result = np.empty((height_out, width_out, 3), np.uint8)
    column = np.empty(3 * height_out, np.int32)
    for x in range(width_out):
        column[:] = half
        for t in range(taps_x):
            weight = column_weights[x, t]
            if weight != 0:
                line = turned[columns[x] + t]
                for i in range(3 * height_out):
                    column[i] += weight * np.int32(line[i])
        place = width_out - 1 - x if hflip else x
        for c in range(3):
            for y in range(height_out):
                value = column[c * height_out + y] >> WEIGHT_BITS
                result[y, place, c] = min(max(value, 0), 255)
    return result


@njit(cache=True, nogil=True)
def apply_affine(image, matrix, weights, fill):
    """Return the image moved by a 2x3 matrix of 2**-16 pixels, bicubic, same size.

    As Pillow's ``transform(AFFINE, BICUBIC)``: output centre (x + 1/2, y + 1/2) is looked
    up at ``matrix @ (x + 1/2, y + 1/2, 1)``; centres outside give ``fill``, neighbours
    outside are the border's. ``weights`` is ``affine_weights()``, (1024, 4).
    """
    height, width = image.shape[:2]
    result = np.empty_like(image)
    half = 1 << (_AFFINE_WEIGHT_BITS + 7)
    xs = np.empty(4, np.int64)
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
            left, top = (sx >> 17) - 1, (sy >> 17) - 1
            wx = weights[(sx >> (17 - AFFINE_BITS)) & ((1 << AFFINE_BITS) - 1)]
            wy = weights[(sy >> (17 - AFFINE_BITS)) & ((1 << AFFINE_BITS) - 1)]
            for i in range(4):
                xs[i] = min(max(left + i, 0), width - 1)
            red, green, blue = half, half, half
            for j in range(4):
                if wy[j] == 0:
                    continue
                row = image[min(max(top + j, 0), height - 1)]
                r, g, b = 0, 0, 0
                for i in range(4):
                    r += wx[i] * row[xs[i], 0]
                    g += wx[i] * row[xs[i], 1]
                    b += wx[i] * row[xs[i], 2]
                red += wy[j] * (r >> 4)
                green += wy[j] * (g >> 4)
                blue += wy[j] * (b >> 4)
            result[y, x, 0] = min(max(red >> (_AFFINE_WEIGHT_BITS + 8), 0), 255)
            result[y, x, 1] = min(max(green >> (_AFFINE_WEIGHT_BITS + 8), 0), 255)
            result[y, x, 2] = min(max(blue >> (_AFFINE_WEIGHT_BITS + 8), 0), 255)
    return result


@njit(cache=True, nogil=True)
def histogram(image):
    """Return how often each value occurs in each channel, (3, 256)."""
    counts = np.zeros((3, 256), np.int64)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            counts[0, image[y, x, 0]] += 1
            counts[1, image[y, x, 1]] += 1
            counts[2, image[y, x, 2]] += 1
    return counts


@njit(cache=True, nogil=True)
def apply_table(image, table):
    """Return the image with each channel looked up in its row of ``table``, (3, 256)."""
    result = np.empty_like(image)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            result[y, x, 0] = table[0, image[y, x, 0]]
            result[y, x, 1] = table[1, image[y, x, 1]]
            result[y, x, 2] = table[2, image[y, x, 2]]
    return result


@njit(cache=True, nogil=True)
def _gray(pixel):
    """ITU-R 601 luma, with Pillow's integer weights."""
    total = np.int32(pixel[0]) * 19595 + np.int32(pixel[1]) * 38470 + np.int32(pixel[2]) * 7471
    return (total + 0x8000) >> 16


@njit(cache=True, nogil=True)
def to_gray(image):
    """Return the image in grey, three equal channels."""
    result = np.empty_like(image)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            gray = _gray(image[y, x])
            result[y, x, 0] = gray
            result[y, x, 1] = gray
            result[y, x, 2] = gray
    return result


@njit(cache=True, nogil=True)
def gray_sum(image):
    """Return the sum of the image's grey values."""
    total = np.int64(0)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            total += _gray(image[y, x])
    return total


@njit(cache=True, nogil=True)
def _blend(base, value, factor):
    """``base + factor * (value - base)``, rounded down and clipped; factor in 2**-16."""
    mixed = (np.int64(base) * 65536 + factor * (np.int64(value) - np.int64(base))) >> 16
    return min(max(mixed, 0), 255)


@njit(cache=True, nogil=True)
def blend_with_gray(image, factor):
    """Return the image moved from (or, above 1, away from) its own grey version."""
    result = np.empty_like(image)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            gray = _gray(image[y, x])
            for c in range(3):
                result[y, x, c] = _blend(gray, image[y, x, c], factor)
    return result


@njit(cache=True, nogil=True)
def blend_with_smooth(image, factor):
    """Return the image moved from its smoothed version, as Pillow's ``Sharpness``.

    The smoothing is 3x3 with weight 5 in the middle, over 13, rounded; borders keep.
    """
    height, width = image.shape[:2]
    result = image.copy()
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            for c in range(3):
                total = 4 * np.int32(image[y, x, c])
                for dy in range(-1, 2):
                    for dx in range(-1, 2):
                        total += np.int32(image[y + dy, x + dx, c])
                result[y, x, c] = _blend((total + 6) // 13, image[y, x, c], factor)
    return result
