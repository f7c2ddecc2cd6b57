"""Plain twins of kernels and operations, in NumPy and int64: whole arrays, no loops over pixels.

They are slow and short, and say what the fast code must compute, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.records import FIXED_ONE, Pixels
from pipeline.views import kernels

Integers = NDArray[np.int64]

FILL = (124, 116, 104)  # ImageNet's mean, as timm rounds it


def levels_apart(one: Pixels, other: object) -> Integers:
    return np.abs(one.astype(np.int64) - np.asarray(other).astype(np.int64))


def to_pixels(values: Integers) -> Pixels:
    return np.clip(values, 0, 255).astype(np.uint8)


def as_matrix(starts: NDArray[np.int32], weights: NDArray[np.int32], source: int) -> Integers:
    """Return starts and weights as a matrix, (target, source)."""
    matrix = np.zeros((len(starts), source), np.int64)
    columns = starts[:, None] + np.arange(weights.shape[1])
    np.add.at(matrix, (np.arange(len(starts))[:, None], columns), weights)
    return matrix


def resample_plain(image: Pixels, rows: Integers, columns: Integers, hflip: bool) -> Pixels:
    """Return the image between two weight matrices, rounded to uint8 in between."""
    tall = to_pixels((np.einsum("yi,ixc->yxc", rows, image.astype(np.int64)) + 2**13) >> 14)
    wide = to_pixels((np.einsum("xi,yic->yxc", columns, tall.astype(np.int64)) + 2**13) >> 14)
    return wide[:, ::-1] if hflip else wide


def affine_plain(image: Pixels, matrix: Integers, weights: Integers, fill: Pixels) -> Pixels:
    """Return the image moved by the matrix: four taps a axis, edges repeated, int64."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.int64)
    # Twice the position of the pixel's center, in 2**-16 pixels.
    sx = matrix[0] * (2 * x + 1) + matrix[1] * (2 * y + 1) + 2 * matrix[2]
    sy = matrix[3] * (2 * x + 1) + matrix[4] * (2 * y + 1) + 2 * matrix[5]
    outside = (sx < 0) | (sy < 0) | (sx >= width * 2**17) | (sy >= height * 2**17)
    sx, sy = sx - 2**16, sy - 2**16
    wx = weights.astype(np.int64)[(sx % 2**17) // 2**7]
    wy = weights.astype(np.int64)[(sy % 2**17) // 2**7]
    taps = np.arange(-1, 3)
    columns = np.clip((sx // 2**17)[..., None] + taps, 0, width - 1)
    rows = np.clip((sy // 2**17)[..., None] + taps, 0, height - 1)
    patch = image.astype(np.int64)[rows[..., :, None], columns[..., None, :]]  # (H, W, 4, 4, 3)
    lines = np.einsum("hwi,hwjic->hwjc", wx, patch) // 2**4
    moved = (np.einsum("hwj,hwjc->hwc", wy, lines) + 2**19) // 2**20
    return np.where(outside[..., None], fill, to_pixels(moved))


def gray_plain(image: Pixels) -> Integers:
    """Return ITU-R 601 luma, (H, W)."""
    return (image.astype(np.int64) @ np.array([19595, 38470, 7471]) + 2**15) // 2**16


def blend_plain(base: Integers, image: Pixels, factor: int) -> Pixels:
    return to_pixels((base * 65536 + factor * (image.astype(np.int64) - base)) // 65536)


def smooth_plain(image: Pixels) -> Integers:
    """Return the image smoothed by 3x3, weight 5 in the middle, over 13; borders keep."""
    height, width = image.shape[:2]
    wide = image.astype(np.int64)
    smooth = wide.copy()
    if height > 2 and width > 2:
        around = sum(
            wide[dy : height - 2 + dy, dx : width - 2 + dx] for dy in range(3) for dx in range(3)
        )
        smooth[1:-1, 1:-1] = (around + 4 * wide[1:-1, 1:-1] + 6) // 13
    return smooth


# ----------------------------------------------------------------------- operations


def stretched(channel: Integers) -> Integers:
    low, high = channel.min(), channel.max()
    return (channel - low) * 255 // (high - low) if high > low else channel


def equalized(channel: Integers) -> Integers:
    step = (channel.size - (channel == channel.max()).sum()) // 255
    if step == 0:
        return channel
    below = np.array([(channel < value).sum() for value in range(256)])
    return np.minimum((step // 2 + below[channel]) // step, 255)


def each_channel(image: Pixels, change: Callable[[Integers], Integers]) -> Pixels:
    wide = image.astype(np.int64)
    return to_pixels(np.stack([change(wide[..., channel]) for channel in range(3)], axis=-1))


def mean_gray(image: Pixels) -> Integers:
    gray = gray_plain(image)
    return np.array((2 * gray.sum() + gray.size) // (2 * gray.size))


def moved(image: Pixels, *matrix: int) -> Pixels:
    fill = np.array(FILL, np.uint8)
    return affine_plain(image, np.array(matrix, np.int64), kernels.affine_weights(), fill)


def rotated(image: Pixels, angle: int) -> Pixels:
    height, width = image.shape[:2]
    radians = math.radians(angle / FIXED_ONE)
    cos, sin = (math.floor(f(radians) * 65536 + 0.5) for f in (math.cos, math.sin))
    right = (width * (65536 - cos) + height * sin) // 2
    down = (height * (65536 - cos) - width * sin) // 2
    return moved(image, cos, -sin, right, sin, cos, down)


def blurred(image: Pixels, sigma: int) -> Pixels:
    return resample_plain(image, *(bell_matrix(side, sigma) for side in image.shape[:2]), False)


def bell_matrix(length: int, sigma: int) -> Integers:
    """Return a Gaussian along one axis, cut at 3 sigma, as a matrix whose rows are 2**14."""
    spread = sigma / 65536
    distance = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
    bell = [math.floor(math.exp(-0.5 * (d / spread) ** 2) * 65536 + 0.5) for d in range(length)]
    values = np.where(distance <= max(1, math.ceil(3 * spread)), np.array(bell)[distance], 0)
    total = values.sum(axis=1, keepdims=True)
    weights = (values * 2**15 + total) // (2 * total)
    weights[np.diag_indices(length)] += 2**14 - weights.sum(axis=1)
    return weights


ONE = FIXED_ONE

PLAIN: Mapping[str, Callable[[Pixels, int], Pixels]] = {
    "auto-contrast": lambda image, _: each_channel(image, stretched),
    "equalize": lambda image, _: each_channel(image, equalized),
    "invert": lambda image, _: to_pixels(255 - image.astype(np.int64)),
    "posterize": lambda image, bits: (
        to_pixels(image // 2 ** (8 - bits) * 2 ** (8 - bits)) if bits else np.zeros_like(image)
    ),
    "solarize": lambda image, threshold: np.where(image < threshold, image, 255 - image),
    "solarize-add": lambda image, amount: np.where(
        image < 128, to_pixels(image.astype(np.int64) + amount), image
    ),
    "color": lambda image, factor: blend_plain(gray_plain(image)[..., None], image, factor),
    "contrast": lambda image, factor: blend_plain(mean_gray(image), image, factor),
    "brightness": lambda image, factor: blend_plain(np.array(0), image, factor),
    "sharpness": lambda image, factor: blend_plain(smooth_plain(image), image, factor),
    "grayscale": lambda image, _: to_pixels(np.repeat(gray_plain(image)[..., None], 3, axis=2)),
    "gaussian-blur": blurred,
    "rotate": rotated,
    "shear-x": lambda image, slope: moved(image, ONE, slope, 0, 0, ONE, 0),
    "shear-y": lambda image, slope: moved(image, ONE, 0, 0, slope, ONE, 0),
    "translate-x": lambda image, share: moved(image, ONE, 0, share * image.shape[1], 0, ONE, 0),
    "translate-y": lambda image, share: moved(image, ONE, 0, 0, 0, ONE, share * image.shape[0]),
}
"""The plain twin of each operation, of an image and an argument."""
