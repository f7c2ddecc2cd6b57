"""Integer pixel kernels, compiled by numba: the same bits on every machine.

Every function here computes a result that is defined in integers alone. Floats would not do:
a compiler may fuse a multiplication and an addition (FMA) or reorder a sum where an instruction
set allows it, and each rounds otherwise. ``tests/pipeline`` holds a plain NumPy twin of each.
Images are (H, W, 3) uint8, C-contiguous.

A kernel that one operation alone uses lies in that operation's file, if it calls none of these:
numba's cache watches a kernel's own file, and would keep what was compiled from an old version
of another.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.views.compiled import kernel

__all__ = [
    "WEIGHT_BITS",
    "affine_weights",
    "apply_table",
    "blend_with_gray",
    "blend_with_smooth",
    "fill_box",
    "gray_sum",
    "histogram",
    "resample",
    "resize_weights",
    "shift_columns",
    "shift_rows",
    "to_gray",
]

WEIGHT_BITS = 14
"""Resampling weights are integers that add up to 2**14."""

_AFFINE_BITS = 10  # affine sampling positions are cut to 1/1024 pixel
_AFFINE_WEIGHT_BITS = 12


@lru_cache(maxsize=1)
def affine_weights() -> NDArray[np.int32]:
    """Return Pillow's cubic (a = -1) for 1024 positions between two pixels, (1024, 4).

    Weights are integers that add up to 2**12.
    """
    steps, one = 1 << _AFFINE_BITS, 1 << _AFFINE_WEIGHT_BITS
    rows = []
    for step in range(steps):
        d = step / steps  # a dyadic fraction: all that follows is exact
        cubic = (
            d * (-1 + d * (2 - d)),
            1 + d * d * (d - 2),
            d * (1 + d * (1 - d)),
            d * d * (d - 1),
        )
        row = [math.floor(value * one + 0.5) for value in cubic]
        row[1 if d <= 0.5 else 2] += one - sum(row)
        rows.append(row)
    return np.array(rows, np.int32)


@kernel
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


@kernel
def resize_weights(source, target):
    """Return (starts, weights) of an antialiased bicubic resize along one axis.

    ``starts`` is (target,), ``weights`` (target, taps); output i is the sum over t of
    ``weights[i, t] * input[starts[i] + t]`` over 2**14. Positions are those of pixel
    centers; when shrinking, the kernel is as much wider as the image gets smaller.
    """
    wide = max(source, target)
    taps = min(source, 4 * wide // target + 2)
    starts = np.empty(target, np.int32)
    weights = np.zeros((target, taps), np.int32)
    values = np.empty(taps, np.int64)
    for i in range(target):
        center = (2 * i + 1) * source  # in units of 1 / (2 * target) pixel
        start = (center - 4 * wide) // (2 * target)
        start = min(max(start, 0), source - taps)
        total = np.int64(0)
        for t in range(taps):
            offset = abs((2 * (start + t) + 1) * target - center)
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


@kernel
def resample(image, rows, row_weights, columns, column_weights, hflip):
    """Return the image resampled along both axes, rows first, rounded to uint8 in between.

    ``rows`` and ``columns`` are starts as ``resize_weights`` returns them. Both passes run
    along whole lines of numbers, which compilers turn into vector code; for the second one
    the image lies on its side.
    """
    # Rows first whatever the shape, as rounding in between makes the order visible in the
    # pixels: Pillow 13 takes another order than Pillow 11 for some tall images.
    height, width = image.shape[:2]
    height_out, width_out = row_weights.shape[0], column_weights.shape[0]
    if hflip:
        columns, column_weights = columns[::-1], column_weights[::-1]
    shrunk = _combine(image.reshape(height, width * 3), rows, row_weights)
    turned = _transpose(shrunk)  # a line for each column and channel, padded to 8 rows
    pitch = turned.shape[1]
    across = _combine(turned[: width * 3].reshape(width, 3 * pitch), columns, column_weights)
    upright = _transpose(across.reshape(across.shape[0] * 3, pitch))
    return upright[:height_out, : width_out * 3].copy().reshape(height_out, width_out, 3)


@kernel
def _combine(lines, starts, weights):
    """Return weighted sums of lines over 2**14, (n, length), padded to multiples of 8.

    Sum i is of ``weights[i, t] * lines[starts[i] + t]``, rounded and clipped to uint8.
    """
    count, length = weights.shape[0], lines.shape[1]
    result = np.zeros((-(-count // 8) * 8, -(-length // 8) * 8), np.uint8)
    total = np.empty(length, np.int32)
    for i in range(count):
        first, end = 0, weights.shape[1]
        while weights[i, first] == 0:
            first += 1
        while weights[i, end - 1] == 0:
            end -= 1
        total[:] = 1 << (WEIGHT_BITS - 1)
        _accumulate(total, lines, starts[i] + first, weights[i, first:end])
        line = result[i]
        for j in range(length):
            line[j] = min(max(total[j] >> WEIGHT_BITS, np.int32(0)), np.int32(255))
    return result


@kernel
def _accumulate(total, lines, start, weights):
    """Add ``weights[t] * lines[start + t]`` to ``total``, four lines at a time."""
    taps = weights.shape[0]
    t = 0
    while t + 4 <= taps:
        a, b = lines[start + t], lines[start + t + 1]
        c, d = lines[start + t + 2], lines[start + t + 3]
        wa, wb = np.int32(weights[t]), np.int32(weights[t + 1])
        wc, wd = np.int32(weights[t + 2]), np.int32(weights[t + 3])
        for i in range(total.shape[0]):
            # Casts keep numba from widening products to 64 bits.
            first = np.int32(wa * np.int32(a[i])) + np.int32(wb * np.int32(b[i]))
            other = np.int32(wc * np.int32(c[i])) + np.int32(wd * np.int32(d[i]))
            total[i] = np.int32(total[i] + np.int32(first) + np.int32(other))
        t += 4
    while t < taps:
        a, wa = lines[start + t], np.int32(weights[t])
        for i in range(total.shape[0]):
            total[i] = np.int32(total[i] + np.int32(wa * np.int32(a[i])))
        t += 1


@kernel
def _transpose(matrix):
    """Return the transpose of a uint8 matrix whose sides are multiples of 8.

    Turns blocks of 8 x 8 bytes, held in eight 64-bit words, in three rounds of exchanges
    (Warren, Hacker's Delight, 7-3); byte by byte would take longer than the resampling.
    """
    result = np.empty((matrix.shape[1], matrix.shape[0]), np.uint8)
    source, target = matrix.view(np.uint64), result.view(np.uint64)
    words = np.empty(8, np.uint64)
    for y in range(source.shape[0] // 8):
        for x in range(source.shape[1]):
            for i in range(8):
                words[i] = source[8 * y + i, x]
            for i in range(0, 8, 2):
                _exchange(words, i, i + 1, np.uint64(8), np.uint64(0x00FF00FF00FF00FF))
            for i in (0, 1, 4, 5):
                _exchange(words, i, i + 2, np.uint64(16), np.uint64(0x0000FFFF0000FFFF))
            for i in range(4):
                _exchange(words, i, i + 4, np.uint64(32), np.uint64(0x00000000FFFFFFFF))
            for i in range(8):
                target[8 * x + i, y] = words[i]
    return result


@kernel
def _exchange(words, low, high, shift, mask):
    """Exchange the upper parts of one word, as masked, with the lower parts of another."""
    difference = ((words[low] >> shift) ^ words[high]) & mask
    words[high] ^= difference
    words[low] ^= difference << shift


@kernel
def shift_rows(image, slope, offset, weights, fill):
    """Return the image with each row looked up further right, bicubic, same size.

    Row y moves by ``slope * (y + 1/2) + offset``, both in 2**-16 pixels: shear and translation
    along x, as the affine move of ``ops/rotate.py`` would do them. ``weights`` is
    ``affine_weights()``; ``fill`` is for pixels whose center lies outside.
    """
    height, width = image.shape[:2]
    result = np.empty((height, width * 3), np.uint8)
    for i in range(width * 3):
        result[:, i] = fill[i % 3]
    lines = image.reshape(height, width * 3)
    for y in range(height):
        move = slope * (2 * y + 1) + 2 * offset
        _shift_line(result[y], lines[y], move, weights, 3)
    return result.reshape(height, width, 3)


@kernel
def shift_columns(image, slope, offset, weights, fill):
    """Return the image with each column looked up further down; see ``shift_rows``."""
    height, width = image.shape[:2]
    size = (-(-height // 8) * 8, -(-width * 3 // 8) * 8)
    upright = np.zeros(size, np.uint8)
    upright[:height, : width * 3] = image.reshape(height, width * 3)
    lines = _transpose(upright)  # one for each column and channel
    result = np.zeros_like(lines)
    for x in range(width):
        move = slope * (2 * x + 1) + 2 * offset
        for c in range(3):
            i = 3 * x + c
            result[i, :height] = fill[c]
            _shift_line(result[i, :height], lines[i, :height], move, weights, 1)
    turned = _transpose(result)
    return turned[:height, : width * 3].copy().reshape(height, width, 3)


@kernel
def _shift_line(result, line, move, weights, step):
    """Write a line of pixels, ``step`` numbers each, moved by ``move`` in 2**-17 pixels."""
    length = line.shape[0] // step
    whole = (move + (1 << 16)) >> 17
    low, high = max(0, -whole), min(length, length - whole)  # centers inside
    base = (move >> 17) - 1
    w = weights[(move >> (17 - _AFFINE_BITS)) & ((1 << _AFFINE_BITS) - 1)]
    w0, w1, w2, w3 = np.int32(w[0]), np.int32(w[1]), np.int32(w[2]), np.int32(w[3])
    half = np.int32(1 << (_AFFINE_WEIGHT_BITS - 1))
    inner_low = min(max(low, -base), high)
    inner_high = max(min(high, length - 3 - base), inner_low)
    for x in range(low, high):
        if inner_low <= x < inner_high:
            continue
        for c in range(step):
            total = half
            for i in range(4):
                total += w[i] * line[min(max(x + base + i, 0), length - 1) * step + c]
            result[x * step + c] = min(max(total >> _AFFINE_WEIGHT_BITS, 0), 255)
    start, end = inner_low * step, inner_high * step
    a, b = line[start + base * step :], line[start + (base + 1) * step :]
    c, d = line[start + (base + 2) * step :], line[start + (base + 3) * step :]
    inner = result[start:end]
    for i in range(end - start):
        first = np.int32(w0 * np.int32(a[i])) + np.int32(w1 * np.int32(b[i]))
        other = np.int32(w2 * np.int32(c[i])) + np.int32(w3 * np.int32(d[i]))
        total = np.int32(np.int32(first) + np.int32(other) + half) >> _AFFINE_WEIGHT_BITS
        inner[i] = min(max(total, np.int32(0)), np.int32(255))


@kernel
def histogram(image):
    """Return how often each value occurs in each channel, (3, 256)."""
    counts = np.zeros((3, 256), np.int64)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            counts[0, image[y, x, 0]] += 1
            counts[1, image[y, x, 1]] += 1
            counts[2, image[y, x, 2]] += 1
    return counts


@kernel
def apply_table(image, table):
    """Return the image with each channel looked up in its row of ``table``, (3, 256)."""
    result = np.empty_like(image)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            result[y, x, 0] = table[0, image[y, x, 0]]
            result[y, x, 1] = table[1, image[y, x, 1]]
            result[y, x, 2] = table[2, image[y, x, 2]]
    return result


@kernel
def fill_box(image, box, words, table):
    """Write into a box (top, left, height, width) what ``table`` (3, 65536) has for its words.

    ``words`` is uint16, one for each channel of each pixel, row by row.
    """
    top, left, height, width = box
    noise = words.reshape(height, width, 3)
    for y in range(height):
        for x in range(width):
            for channel in range(3):
                image[top + y, left + x, channel] = table[channel, noise[y, x, channel]]


@kernel
def _gray(pixel):
    """ITU-R 601 luma, with Pillow's integer weights."""
    total = np.int32(pixel[0]) * 19595 + np.int32(pixel[1]) * 38470 + np.int32(pixel[2]) * 7471
    return (total + 0x8000) >> 16


@kernel
def to_gray(image):
    """Return the image in gray, three equal channels."""
    result = np.empty_like(image)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            gray = _gray(image[y, x])
            result[y, x, 0] = gray
            result[y, x, 1] = gray
            result[y, x, 2] = gray
    return result


@kernel
def gray_sum(image):
    """Return the sum of the image's gray values."""
    total = np.int64(0)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            total += _gray(image[y, x])
    return total


@kernel
def _blend(base, value, factor):
    """``base + factor * (value - base)``, rounded down and clipped; int32, factor in 2**-16."""
    step = np.int32(factor * np.int32(value - base))
    mixed = np.int32(np.int32(base << 16) + step) >> 16
    return min(max(mixed, np.int32(0)), np.int32(255))


@kernel
def blend_with_gray(image, factor):
    """Return the image moved from (or, above 1, away from) its own gray version."""
    result = np.empty_like(image)
    factor = np.int32(factor)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            gray = np.int32(_gray(image[y, x]))
            for c in range(3):
                result[y, x, c] = _blend(gray, np.int32(image[y, x, c]), factor)
    return result


@kernel
def blend_with_smooth(image, factor):
    """Return the image moved from its smoothed version, as Pillow's ``Sharpness``.

    The smoothing is 3x3 with weight 5 in the middle, over 13, rounded; borders keep.
    """
    height, width = image.shape[:2]
    lines, result = image.reshape(height, width * 3), image.copy()
    written = result.reshape(height, width * 3)
    factor = np.int32(factor)
    column = np.empty(width * 3, np.int32)  # sums of three pixels, one above the other
    for y in range(1, height - 1):
        above, here, below = lines[y - 1], lines[y], lines[y + 1]
        for i in range(width * 3):
            column[i] = np.int32(above[i]) + np.int32(here[i]) + np.int32(below[i])
        left, right = column[: width * 3 - 6], column[6:]
        middle, own, line = column[3:], here[3:], written[y, 3:]
        for i in range(width * 3 - 6):
            value = np.int32(own[i])
            total = np.int32(left[i] + middle[i]) + np.int32(right[i] + np.int32(4 * value) + 6)
            smooth = np.int32(np.int32(total) * np.int32(20165)) >> 18  # over 13, up to 3321
            line[i] = _blend(np.int32(smooth), value, factor)
    return result
