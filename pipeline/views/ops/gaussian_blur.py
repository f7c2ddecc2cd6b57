"""Blurs the image. The argument is sigma in pixels, fixed-point."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.records import FIXED_ONE, Pixels
from pipeline.views.kernels import WEIGHT_BITS, resample
from pipeline.views.operation import Operation
from pipeline.views.rng import fixed


def _apply(image: Pixels, sigma: int, fill: Pixels, result: Pixels) -> None:
    height, width = image.shape[:2]
    rows = _weights(height, sigma)
    columns = rows if width == height else _weights(width, sigma)
    resample(image, (0, 0, height, width), *rows, *columns, False, result)


def _weights(length: int, sigma: int) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
    """Return resampling weights of a Gaussian; sums are renormalized at the borders."""
    spread = sigma / FIXED_ONE
    radius = max(1, math.ceil(3 * spread))
    # Rounded before use: the last bit of libm's exp differs between machines.
    bell = [fixed(math.exp(-0.5 * (step / spread) ** 2)) for step in range(length)]
    taps = min(length, 2 * radius + 2)  # an even number is quicker
    starts = np.clip(np.arange(length) - radius, 0, length - taps).astype(np.int32)
    distance = np.abs(starts[:, None] + np.arange(taps) - np.arange(length)[:, None])
    values = np.where(distance <= radius, np.array(bell, np.int64)[distance], 0)
    total = values.sum(axis=1, keepdims=True)
    weights = ((values << (WEIGHT_BITS + 1)) + total) // (2 * total)
    center = np.argmax(values, axis=1)
    weights[np.arange(length), center] += (1 << WEIGHT_BITS) - weights.sum(axis=1)
    return starts, weights.astype(np.int16)


OPERATION = Operation(
    name="gaussian-blur",
    draw=lambda words, magnitude: words.uniform(0.1, 2.0),  # DeiT III's, at any magnitude
    apply=_apply,
    fixed_point=True,
    probe=FIXED_ONE * 7 // 5,
)
