"""Integer kernels that look at each pixel by itself or at its neighbors; see ``kernels.py``."""

from __future__ import annotations

import numpy as np

from pipeline.views.compiled import kernel

__all__ = [
    "blend",
    "blend_with_gray",
    "blend_with_smooth",
    "fill_box",
    "gray_sum",
    "to_gray",
]


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


@kernel(inline="always")
def _gray(red, green, blue):
    """ITU-R 601 luma, with Pillow's integer weights."""
    # Casts keep numba from widening sums and products to 64 bits.
    red, green = np.int32(np.int32(red) * 19595), np.int32(np.int32(green) * 38470)
    total = np.int32(np.int32(red + green) + np.int32(np.int32(blue) * 7471))
    return np.int32(np.int32(total + 0x8000) >> np.int32(16))


@kernel
def to_gray(image, result):
    """Write the image in gray, three equal channels."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            gray = _gray(image[y, x, 0], image[y, x, 1], image[y, x, 2])
            for channel in range(3):
                result[y, x, channel] = gray


@kernel
def gray_sum(image):
    """Return the sum of the image's gray values."""
    total = np.int64(0)
    for y in range(image.shape[0]):
        line, of_line = image[y].reshape(-1), np.int32(0)
        for x in range(np.uint64(image.shape[1])):
            i = np.uint64(3) * x
            gray = _gray(line[i], line[i + np.uint64(1)], line[i + np.uint64(2)])
            of_line = np.int32(of_line + gray)
        total += of_line
    return total


@kernel(inline="always")
def _blend(base, value, factor):
    """``base + factor * (value - base)``, rounded down and clipped; int32, factor in 2**-16."""
    step = np.int32(factor * np.int32(value - base))
    mixed = np.int32(np.int32(base << np.int32(16)) + step) >> np.int32(16)
    return min(max(np.int32(mixed), np.int32(0)), np.int32(255))


@kernel
def blend(image, base, factor, result):
    """Write the image moved from (or, above 1, away from) a flat image of the value ``base``."""
    numbers, written = image.reshape(-1), result.reshape(-1)
    base, factor = np.int32(base), np.int32(factor)
    for i in range(len(numbers)):
        written[i] = _blend(base, np.int32(numbers[i]), factor)


@kernel
def blend_with_gray(image, factor, result):
    """Write the image moved from (or, above 1, away from) its own gray version."""
    numbers, written = image.reshape(-1), result.reshape(-1)
    factor = np.int32(factor)
    for x in range(np.uint64(len(numbers) // 3)):
        i = np.uint64(3) * x
        red, green, blue = numbers[i], numbers[i + np.uint64(1)], numbers[i + np.uint64(2)]
        gray = _gray(red, green, blue)
        written[i] = _blend(gray, np.int32(red), factor)
        written[i + np.uint64(1)] = _blend(gray, np.int32(green), factor)
        written[i + np.uint64(2)] = _blend(gray, np.int32(blue), factor)


@kernel
def blend_with_smooth(image, factor, result):
    """Write the image moved from its smoothed version, as Pillow's ``Sharpness``.

    The smoothing is 3x3 with weight 5 in the middle, over 13, rounded; borders keep.
    """
    length = 3 * image.shape[1]
    numbers, written = image.reshape(-1), result.reshape(-1)
    for i in range(len(numbers)):
        written[i] = numbers[i]
    factor, pitch = np.int32(factor), np.uint64(length)
    for y in range(1, image.shape[0] - 1):
        start = np.uint64(y * length)
        # Unsigned, or numba looks for negative indices in each step.
        for i in range(start + np.uint64(3), start + np.uint64(max(3, length - 3))):
            total = np.int32(np.int32(4 * np.int32(numbers[i])) + np.int32(6))
            for line in (i - pitch, i, i + pitch):
                for number in (line - np.uint64(3), line, line + np.uint64(3)):
                    total = np.int32(total + np.int32(numbers[number]))
            smooth = np.int32(total * np.int32(20165)) >> np.int32(18)  # over 13, up to 3321
            written[i] = _blend(np.int32(smooth), np.int32(numbers[i]), factor)
