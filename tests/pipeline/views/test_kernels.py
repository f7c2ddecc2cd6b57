"""Each kernel against a plain NumPy twin in int64: whole arrays, no loops over pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from pipeline.records import FIXED_ONE, Pixels
from pipeline.views import colors, kernels
from pipeline.views.ops.rotate import apply_affine
from pipeline.views.rng import noise_bytes
from tests.factories import synthetic_image
from tests.pipeline.views.plain import (
    Integers,
    affine_plain,
    as_matrix,
    blend_plain,
    gray_plain,
    resample_plain,
    smooth_plain,
)

Weights = tuple[NDArray[np.int32], NDArray[np.int16]]  # as ``resize_weights`` returns them

lengths = st.one_of(
    st.sampled_from([(1, 1), (1, 300), (300, 1), (2, 3), (3000, 2), (1999, 7), (5, 224)]),
    st.tuples(st.integers(1, 500), st.integers(1, 300)),
)
shapes = st.one_of(
    st.sampled_from([(1, 1), (1, 17), (17, 1), (2, 2), (3, 3), (1, 200), (2, 65), (150, 5)]),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
images = shapes.flatmap(lambda shape: arrays(np.uint8, (*shape, 3)))
factors = st.integers(FIXED_ONE // 10, 2 * FIXED_ONE)


# ------------------------------------------------------------------------ resizing


def cubic_plain(distance: Integers) -> Integers:
    """Return Keys' cubic, 1.5 d^3 - 2.5 d^2 + 1 and -.5 d^3 + 2.5 d^2 - 4 d + 2, in 2**-32."""
    one = np.int64(1) << 16
    near = 3 * distance**3 - 5 * distance**2 * one + 2 * one**3
    far = -(distance**3) + 5 * distance**2 * one - 8 * distance * one**2 + 4 * one**3
    return np.where(distance < one, near, np.where(distance < 2 * one, far, 0)) // (2 * one)


def weight_matrix_plain(source: int, target: int) -> Integers:
    """Return the resize along one axis as a matrix, (target, source), rows of 2**14."""
    wide = max(source, target)
    center = (2 * np.arange(target, dtype=np.int64)[:, None] + 1) * source
    position = (2 * np.arange(source, dtype=np.int64) + 1) * target
    values = cubic_plain(np.abs(position - center) * 65536 // (2 * wide))
    total = values.sum(axis=1, keepdims=True)
    weights = (values * 2**15 + total) // (2 * total)
    weights[np.arange(target), values.argmax(axis=1)] += 2**14 - weights.sum(axis=1)
    return weights


@given(lengths)
def test_resize_weights_equal_the_plain_ones(length):
    source, target = length
    starts, weights = kernels.resize_weights(source, target)
    assert starts.min() >= 0
    assert starts.max() + weights.shape[1] <= source
    assert_array_equal(as_matrix(starts, weights, source), weight_matrix_plain(source, target))


@given(lengths)
def test_resize_weights_add_up_to_one(length):
    _, weights = kernels.resize_weights(*length)
    assert_array_equal(weights.sum(axis=1), 1 << kernels.WEIGHT_BITS)


@pytest.mark.parametrize(("source", "target"), [(7, 20), (20, 7), (500, 224), (1, 5), (97, 96)])
def test_resize_weights_are_keys_cubic(source, target):
    scale = max(source / target, 1.0)
    center = (np.arange(target)[:, None] + 0.5) * source / target
    d = np.abs(np.arange(source) + 0.5 - center) / scale
    real = np.where(
        d < 1, 1.5 * d**3 - 2.5 * d**2 + 1, np.where(d < 2, ((5 - d) * d - 8) * d / 2 + 2, 0)
    )
    real /= real.sum(axis=1, keepdims=True)
    matrix = as_matrix(*kernels.resize_weights(source, target), source) / 2**14
    # Each weight is rounded to 2**-14; the largest also takes up what the others left.
    assert np.abs(matrix - real).max() < source / 2 * 2**-14


@pytest.mark.parametrize("length", [1, 2, 7, 224])
def test_a_resize_to_the_same_length_changes_nothing(length):
    starts, weights = kernels.resize_weights(length, length)
    assert_array_equal(as_matrix(starts, weights, length), np.eye(length) * 2**14)


def written(kernel: Callable[..., None], image: Pixels, *arguments: object) -> Pixels:
    """Return what a kernel writes, and see that it writes all of it and leaves the image alone."""
    results = [np.full_like(image, value) for value in (0, 255)]
    before = image.copy()
    for result in results:
        kernel(image, *arguments, result)
    assert_array_equal(*results)
    assert_array_equal(image, before)
    return results[0]


def resampled(image: Pixels, rows: Weights, columns: Weights, hflip: bool) -> Pixels:
    result = np.empty((len(rows[0]), len(columns[0]), 3), np.uint8)
    kernels.resample(image, (0, 0, *image.shape[:2]), *rows, *columns, hflip, result)
    return result


@given(
    height=lengths, width=lengths, hflip=st.booleans(), seed=st.integers(0, 99), hard=st.booleans()
)
def test_resample_equals_the_plain_one(height, width, hflip, seed, hard):
    image = synthetic_image(height[0], min(width[0], 300), seed)
    if hard:  # black and white makes the cubic overshoot
        image = np.where(image & 1, np.uint8(255), np.uint8(0))
    rows = kernels.resize_weights(height[0], min(height[1], 64))
    columns = kernels.resize_weights(image.shape[1], min(width[1], 64))
    assert_array_equal(
        resampled(image, rows, columns, hflip),
        resample_plain(
            image, as_matrix(*rows, height[0]), as_matrix(*columns, image.shape[1]), hflip
        ),
    )


@given(value=st.integers(0, 255), height=lengths, width=lengths)
def test_a_flat_image_stays_flat(value, height, width):
    image = np.full((height[0], width[0], 3), value, np.uint8)
    rows, columns = kernels.resize_weights(*height), kernels.resize_weights(*width)
    assert (resampled(image, rows, columns, False) == value).all()


# -------------------------------------------------------------------------- affine


def affine_matrices(spread: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Return matrices whose linear part is off the identity by up to ``spread``."""
    near_one = st.integers(FIXED_ONE - spread, FIXED_ONE + spread)
    near_zero = st.integers(-spread, spread)
    shift = st.integers(-4 * FIXED_ONE, 4 * FIXED_ONE)
    return st.tuples(near_one, near_zero, shift, near_zero, near_one, shift)


@settings(max_examples=150)
@given(image=images, matrix=affine_matrices(FIXED_ONE // 2) | affine_matrices(3 * FIXED_ONE))
def test_apply_affine_equals_the_plain_one(image, matrix):
    moves = np.array(matrix, np.int64)
    fill = np.array([124, 116, 104], np.uint8)
    assert_array_equal(
        written(apply_affine, image, moves, kernels.affine_weights(), fill),
        affine_plain(image, moves, kernels.affine_weights(), fill),
    )


@settings(max_examples=150)
@given(
    image=images,
    slope=st.integers(-FIXED_ONE, FIXED_ONE) | st.just(0),
    offset=st.integers(-12 * FIXED_ONE, 12 * FIXED_ONE) | st.integers(-2, 2),
)
def test_shifting_rows_and_columns_equals_the_plain_affine_move(image, slope, offset):
    fill = np.array([124, 116, 104], np.uint8)
    weights = kernels.affine_weights()
    along_x = np.array([FIXED_ONE, slope, offset, 0, FIXED_ONE, 0], np.int64)
    along_y = np.array([FIXED_ONE, 0, 0, slope, FIXED_ONE, offset], np.int64)
    assert_array_equal(
        written(kernels.shift_rows, image, slope, offset, weights, fill),
        affine_plain(image, along_x, weights, fill),
    )
    assert_array_equal(
        written(kernels.shift_columns, image, slope, offset, weights, fill),
        affine_plain(image, along_y, weights, fill),
    )


@given(images)
def test_the_identity_moves_nothing(image):
    identity = np.array([FIXED_ONE, 0, 0, 0, FIXED_ONE, 0], np.int64)
    fill = np.zeros(3, np.uint8)
    moved = written(apply_affine, image, identity, kernels.affine_weights(), fill)
    assert_array_equal(moved, image)


@given(image=images, dx=st.integers(-9, 9), dy=st.integers(-9, 9))
def test_a_move_by_whole_pixels_is_exact(image, dx, dy):
    height, width = image.shape[:2]
    moves = np.array([FIXED_ONE, 0, dx * FIXED_ONE, 0, FIXED_ONE, dy * FIXED_ONE], np.int64)
    fill = np.array([1, 2, 3], np.uint8)
    moved = written(apply_affine, image, moves, kernels.affine_weights(), fill)
    expected = np.broadcast_to(fill, image.shape).copy()
    for y in range(max(0, -dy), min(height, height - dy)):
        for x in range(max(0, -dx), min(width, width - dx)):
            expected[y, x] = image[y + dy, x + dx]
    assert_array_equal(moved, expected)


# ------------------------------------------------------------------- colors, tables


@given(image=images, seed=st.integers(0, 99), data=st.data())
def test_fill_box_equals_the_plain_one(image, seed, data):
    top, left = (data.draw(st.integers(0, side - 1)) for side in image.shape[:2])
    height = data.draw(st.integers(1, image.shape[0] - top))
    width = data.draw(st.integers(1, image.shape[1] - left))
    table = synthetic_image(1 << 8, 1 << 8, seed).reshape(3, 1 << 16)
    words = noise_bytes(seed, height * width * 3)
    plain = image.copy()
    for number, word in enumerate(words.tolist()):
        pixel, channel = divmod(number, 3)
        plain[top + pixel // width, left + pixel % width, channel] = table[channel, word]
    colors.fill_box(image, (top, left, height, width), words, table)
    assert_array_equal(image, plain)


@given(images)
def test_gray_equals_the_plain_one(image):
    plain = gray_plain(image)
    assert_array_equal(written(colors.to_gray, image), np.repeat(plain[..., None], 3, axis=2))
    assert colors.gray_sum(image) == plain.sum()


@given(image=images, base=st.integers(0, 255), factor=factors)
def test_blends_equal_the_plain_ones(image, base, factor):
    bases = {
        colors.blend: np.array(base),
        colors.blend_with_gray: gray_plain(image)[..., None],
        colors.blend_with_smooth: smooth_plain(image),
    }
    for kernel, plain in bases.items():
        given_base = (base,) if kernel is colors.blend else ()
        found = written(kernel, image, *given_base, factor)
        assert_array_equal(found, blend_plain(plain, image, factor))


@given(images)
def test_a_factor_of_one_changes_nothing(image):
    for kernel in (colors.blend_with_gray, colors.blend_with_smooth):
        assert_array_equal(written(kernel, image, FIXED_ONE), image)
