"""Integer kernels that move pixels, compiled by numba: the same bits on every machine.

Every function here and in ``colors.py`` computes a result that is defined in integers alone. Floats
would not do: a compiler may fuse a multiplication and an addition (FMA) or reorder a sum where an
instruction set allows it, and each rounds otherwise. ``tests/pipeline`` holds a plain NumPy twin of
each. Images are (H, W, 3) uint8, C-contiguous; ``result`` is another one, into which a kernel
writes.

A kernel that one operation alone uses lies in that operation's file, if it calls none of these:
numba's cache watches a kernel's own file, and would keep what was compiled from an old version
of another.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.views.compiled import kernel

__all__ = [
    "WEIGHT_BITS",
    "affine_weights",
    "resample",
    "resize_weights",
    "shift_columns",
    "shift_rows",
]

WEIGHT_BITS = 14
"""Resampling weights are integers that add up to 2**14."""

_AFFINE_BITS = 10  # affine sampling positions are cut to 1/1024 pixel
_AFFINE_WEIGHT_BITS = 12


@lru_cache(maxsize=1)
def affine_weights() -> NDArray[np.int16]:
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
    return np.array(rows, np.int16)


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
    weights = np.zeros((target, taps), np.int16)
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
def resample(image, box, rows, row_weights, columns, column_weights, hflip, result):
    """Write an image's box, resampled along both axes and maybe flipped, into ``result``.

    ``box`` is (top, left, height, width); ``rows`` and ``columns`` are starts in it, as
    ``resize_weights`` returns them. Both passes round to uint8, and each turns what it makes on
    its side, so that sums always run along whole lines of numbers.
    """
    # Rows first whatever the shape, as rounding in between makes the order visible in the
    # pixels: Pillow 13 takes another order than Pillow 11 for some tall images.
    top, left, _, width = box
    pitch, height_out = 3 * image.shape[1], len(rows)
    turned = np.empty((3 * width, height_out), np.uint8)
    origin = top * pitch + 3 * left
    _combine(image.reshape(-1), origin, pitch, rows, row_weights, False, 1, turned)
    upright = result.reshape(height_out, 3 * len(columns))
    pitch = 3 * height_out
    _combine(turned.reshape(-1), 0, pitch, columns, column_weights, hflip, 3, upright)


@kernel
def _combine(numbers, origin, pitch, starts, weights, backwards, channels, result):
    """Write weighted sums of lines, each turned into ``channels`` columns, into ``result``.

    Line k is the numbers from ``origin + k * pitch`` on, one channel after the other. Sum i is of
    lines ``starts[i] + t`` by ``weights[i, t]``, over 2**14, rounded and clipped to uint8;
    ``backwards`` begins with the last.
    """
    count, length, taps = len(starts), channels * result.shape[0], weights.shape[1]
    strip = np.empty((8, length), np.uint8)
    # Addresses: arrays that are handed on are counted, which takes as long as a line.
    source, factors, target = numbers.ctypes.data, weights.ctypes.data, strip.ctypes.data
    for i in range(0, count, 8):
        sums = min(8, count - i)
        for j in range(sums):
            k = count - 1 - i - j if backwards else i + j
            first, end = _nonzero(weights, k)
            start = origin + (starts[k] + first) * pitch
            if length < _BLOCK or (end - first) % 2:
                _sum_plainly(strip[j], numbers, start, pitch, weights[k, first:end], WEIGHT_BITS)
            else:
                factor, line = factors + 2 * (k * taps + first), target + j * length
                _sum_lines(source + start, pitch, factor, end - first, WEIGHT_BITS, line, length)
        lines = strip[:sums].reshape(sums * channels, length // channels)
        _turn(lines, result, i * channels)


@kernel(inline="always")
def _nonzero(weights, row):
    """Where a row's weights that are not 0 begin and end; an even number, if there is room."""
    first, end = 0, weights.shape[1]
    while weights[row, first] == 0:
        first += 1
    while weights[row, end - 1] == 0:
        end -= 1
    if (end - first) % 2:
        if end < weights.shape[1]:
            end += 1
        elif first > 0:
            first -= 1
    return first, end


@kernel
def _sum_plainly(line, numbers, start, pitch, weights, bits):
    """Write sums over t of ``weights[t]`` times the numbers from ``start + t * pitch`` on.

    They are rounded, over ``2**bits``, and clipped to uint8.
    """
    totals = np.full(len(line), np.int32(1 << (bits - 1)))
    for t in range(len(weights)):
        weight, added = np.int32(weights[t]), numbers[start + t * pitch :]
        for x in range(len(line)):
            # Casts keep numba from widening products to 64 bits.
            totals[x] = np.int32(totals[x] + np.int32(weight * np.int32(added[x])))
    for x in range(len(line)):
        line[x] = min(max(totals[x] >> np.int32(bits), np.int32(0)), np.int32(255))


# What follows is written in LLVM's portable language, as compilers do not see by themselves that
# products of 16 bits can be added in pairs, or how bytes are turned. Processors without vectors of
# 64 bytes take several for one.
_BLOCK = 64
_BYTE, _SHORT, _INT, _WORD = (ir.IntType(bits) for bits in (8, 16, 32, 64))


@kernel
def _sum_lines(source, pitch, weights, taps, bits, target, length):
    """Write sums as ``_sum_plainly``, of an even number of lines, of 64 numbers or more."""
    last = length - _BLOCK
    for x in range(0, last, _BLOCK):
        _sum_block(source + x, pitch, weights, taps // 2, bits, target + x)
    _sum_block(source + last, pitch, weights, taps // 2, bits, target + last)  # some once more


@intrinsic
def _sum_block(typing_context, source, pitch, weights, pairs, bits, target):
    """Write 64 sums; arguments are addresses, and ``pairs`` half the number of lines."""

    def generate(context, builder, signature, arguments):
        source, pitch, weights, pairs, bits, target = arguments
        bits = builder.trunc(bits, _INT)
        half = builder.shl(ir.Constant(_INT, 1), builder.sub(bits, ir.Constant(_INT, 1)))
        totals = [cgutils.alloca_once_value(builder, _filled(builder, half)) for _ in range(4)]
        with cgutils.for_range(builder, pairs) as loop:
            line = builder.shl(loop.index, ir.Constant(_WORD, 1))
            lines = [
                _load(builder, source, pitch, builder.add(line, ir.Constant(_WORD, i)), _BYTE, 64)
                for i in range(2)
            ]
            factors = _load(builder, weights, ir.Constant(_WORD, 4), loop.index, _SHORT, 2)
            both = _zipped(builder, *lines)
            values = [words for half in both for words in _zipped(builder, half)]
            for total, words in zip(totals, values, strict=True):
                added = _add_products(builder, words, factors)
                builder.store(builder.add(builder.load(total), added), total)
        sums = [_clipped(builder, builder.load(total), bits) for total in totals]
        low, high = (_packed(builder, _SHORT, *sums[i : i + 2]) for i in (0, 2))
        _store(builder, _packed(builder, _BYTE, low, high), target)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@kernel
def _turn(lines, result, column):
    """Write lines as columns of ``result``, from ``column`` on."""
    count, length = lines.shape
    eights, sixteens = count // 8 * 8, length // 16 * 16
    source, target, pitch = lines.ctypes.data, result.ctypes.data + column, result.shape[1]
    for x in range(0, sixteens, 16):
        for i in range(0, eights, 8):
            _turn_block(source + i * length + x, length, target + x * pitch + i, pitch)
    for i in range(count):
        for x in range(sixteens if i < eights else 0, length):
            result[x, column + i] = lines[i, x]


@intrinsic
def _turn_block(typing_context, source, pitch, target, target_pitch):
    """Write 8 lines of 16 bytes as 16 lines of 8: addresses, and bytes from line to line."""

    def generate(context, builder, signature, arguments):
        source, pitch, target, target_pitch = arguments
        lines = [_load(builder, source, pitch, i, _BYTE, 16) for i in range(8)]
        for _ in range(3):  # each doubles how many bytes of one column lie together
            pairs = [(lines[i], lines[i + 4]) for i in range(4)]
            lines = [half for pair in pairs for half in _zipped(builder, *pair)]
        for i in range(16):
            words = builder.bitcast(lines[i // 2], ir.VectorType(_WORD, 2))
            word = builder.extract_element(words, ir.Constant(_INT, i % 2))
            offset = builder.mul(target_pitch, ir.Constant(_WORD, i))
            _store(builder, word, builder.add(target, offset))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), generate


def _load(builder, base, pitch, line, kind, count):
    """Return the first ``count`` numbers of the line ``line * pitch`` bytes after ``base``."""
    line = ir.Constant(_WORD, line) if isinstance(line, int) else line
    address = builder.add(base, builder.mul(pitch, line))
    return builder.load(builder.inttoptr(address, ir.VectorType(kind, count).as_pointer()), align=1)


def _filled(builder, number):
    """Return 16 times the same number, of 32 bits."""
    nothing = ir.Constant(ir.VectorType(_INT, 16), ir.Undefined)
    one = builder.insert_element(nothing, number, ir.Constant(_INT, 0))
    return _chosen(builder, one, one, [0] * 16)


def _store(builder, value, address):
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def _chosen(builder, one, other, order):
    """Return elements of two vectors by their indices; those of ``other`` follow on."""
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(_INT, len(order)), order))


def _zipped(builder, one, other=None):
    """Yield the bytes of two vectors, or of one and zeros, in turn.

    Of each 16 bytes, first of all lower halves, then of all upper ones: one instruction each.
    """
    size = one.type.count
    other = other or ir.Constant(one.type, [0] * size)
    for half in (0, 8):
        own = [start + i for start in range(half, size, 16) for i in range(8)]
        yield _chosen(builder, one, other, [byte for i in own for byte in (i, size + i)])


def _packed(builder, kind, one, other):
    """Return the lower halves, ``kind``, of the numbers of two vectors: ``_zipped`` undone."""
    size = one.type.count * 2
    one, other = (builder.bitcast(each, ir.VectorType(kind, size)) for each in (one, other))
    lane = 128 // kind.width
    starts = [start + base for start in range(0, size, lane) for base in (0, size)]
    return _chosen(builder, one, other, [start + i for start in starts for i in range(0, lane, 2)])


def _add_products(builder, pairs, factors):
    """Return ``a * c + b * d`` of 16-bit pairs (a, b), given as bytes, and the factors (c, d)."""
    count = pairs.type.count // 2
    wide = ir.VectorType(_INT, count)
    words = builder.sext(builder.bitcast(pairs, ir.VectorType(_SHORT, count)), wide)
    factors = builder.sext(_chosen(builder, factors, factors, [0, 1] * (count // 2)), wide)
    products = builder.mul(words, factors)
    even, odd = (_chosen(builder, products, products, list(range(i, count, 2))) for i in (0, 1))
    return builder.add(even, odd)


def _clipped(builder, total, bits):
    """Return 32-bit numbers over ``2**bits``, clipped to 0..255."""
    total = builder.ashr(total, _filled(builder, bits))
    for sign, end in ((">", 0), ("<", 255)):
        limit = ir.Constant(total.type, [end] * total.type.count)
        total = builder.select(builder.icmp_signed(sign, total, limit), total, limit)
    return total


@kernel
def shift_rows(image, slope, offset, weights, fill, result):
    """Write the image with each row looked up further right, bicubic.

    Row y moves by ``slope * (y + 1/2) + offset``, both in 2**-16 pixels: shear and translation
    along x, as the affine move of ``ops/rotate.py`` would do them. ``weights`` is
    ``affine_weights()``; ``fill`` is for pixels whose center lies outside.
    """
    height, width = image.shape[:2]
    color = _tiled(fill, width).reshape(1, 3 * width)
    lines = _with_room(image.reshape(height, 3 * width), 3)
    _shift_lines(lines, 3, slope, offset, weights, color, result.reshape(height, 3 * width))


@kernel
def shift_columns(image, slope, offset, weights, fill, result):
    """Write the image with each column looked up further down; see ``shift_rows``."""
    height, length = image.shape[0], 3 * image.shape[1]
    if slope == 0:  # all columns alike: a single one, of whole rows
        color = _tiled(fill, height * image.shape[1]).reshape(1, height * length)
        lines = _with_room(image.reshape(1, height * length), length)
        _shift_lines(lines, length, 0, offset, weights, color, result.reshape(1, height * length))
        return
    colors = np.empty((3, height), np.uint8)
    for channel in range(3):
        colors[channel] = fill[channel]
    lines, moved = np.empty((length, height + 4), np.uint8), np.empty((length, height), np.uint8)
    _turn(image.reshape(height, length), lines, 2)
    _shift_lines(lines, 1, slope, offset, weights, colors, moved)
    _turn(moved, result.reshape(height, length), 0)


@kernel
def _shift_lines(lines, step, slope, offset, weights, colors, result):
    """Write lines of items, ``step`` numbers each, moved by ``slope * (y + 1/2) + offset`` items.

    ``lines`` have room for two more items at each end; ``colors`` are lines of what lies outside,
    one for each channel of y.
    """
    channels, length = len(colors), result.shape[1] // step
    ends = (2 * step, (length + 2) * step)
    # Addresses: arrays that are handed on are counted, which takes as long as a line.
    source, factors, target = lines.ctypes.data, weights.ctypes.data, result.ctypes.data
    for i in range(len(lines)):
        for item in range(2):
            for k in range(step):
                lines[i, item * step + k] = lines[i, ends[0] + k]
                lines[i, ends[1] + item * step + k] = lines[i, ends[1] - step + k]
        move = slope * (2 * (i // channels) + 1) + 2 * offset  # in 2**-17 items
        whole, left = (move + (1 << 16)) >> 17, (move >> 17) - 1  # left: of four neighbors
        low = min(max(0, -whole), length)
        high = max(min(length, length - whole), low)
        for k in range(np.uint64(low * step)):
            result[i, k] = colors[i % channels, k]
        for k in range(np.uint64(high * step), np.uint64(length * step)):
            result[i, k] = colors[i % channels, k]
        position = (move >> (17 - _AFFINE_BITS)) & ((1 << _AFFINE_BITS) - 1)
        first, count = (low + left + 2) * step, (high - low) * step
        if count >= _BLOCK:
            inside = target + i * result.shape[1] + low * step
            start, factor = source + i * lines.shape[1] + first, factors + 8 * position
            _sum_lines(start, step, factor, 4, _AFFINE_WEIGHT_BITS, inside, count)
        elif count:
            piece = result[i, low * step : high * step]
            _sum_plainly(piece, lines[i], first, step, weights[position], _AFFINE_WEIGHT_BITS)


@kernel
def _with_room(lines, step):
    """Return lines with room for two items of ``step`` numbers before and behind."""
    count, length = lines.shape
    result = np.empty((count, length + 4 * step), np.uint8)
    start = np.uint64(2 * step)
    for i in range(count):
        for k in range(np.uint64(length)):
            result[i, start + k] = lines[i, k]
    return result


@kernel
def _tiled(fill, pixels):
    line = np.empty(3 * pixels, np.uint8)
    for x in range(np.uint64(pixels)):
        for channel in range(np.uint64(3)):
            line[np.uint64(3) * x + channel] = fill[channel]
    return line
