"""Rotates the image about its center. The argument: degrees counter-clockwise, fixed-point."""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.records import FIXED_ONE, Pixels
from pipeline.views.compiled import kernel
from pipeline.views.kernels import affine_weights
from pipeline.views.operation import Operation, either_sign
from pipeline.views.rng import fixed

# Those of affine_weights(), written again: numba compiles them in, and its cache would not see
# them change in another file.
_POSITION_BITS, _WEIGHT_BITS = 10, 12


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


@kernel
def apply_affine(image, matrix, weights, fill, result):
    """Write the image moved by a 2x3 matrix of 2**-16 pixels, bicubic.

    As Pillow's ``transform(AFFINE, BICUBIC)``: output center (x + 1/2, y + 1/2) is looked
    up at ``matrix @ (x + 1/2, y + 1/2, 1)``; centers outside give ``fill``, neighbors
    outside are the border's. ``weights`` is ``affine_weights()``, (1024, 4).
    """
    _move(_with_border(image), matrix, weights, fill, result)


@kernel
def _move(pixels, matrix, weights, fill, result):
    """Write an image with its border moved, as ``apply_affine`` does.

    It is an argument, so that it outlives its address: numba frees an array after the last line
    that names it, and addresses do not count.
    """
    height, width = result.shape[:2]
    pitch = 4 * (width + 4)
    source, factors, target = pixels.ctypes.data, weights.ctypes.data, result.ctypes.data
    shift, mask = 17 - _POSITION_BITS, (1 << _POSITION_BITS) - 1
    for y in range(height):
        # In units of 2**-17 pixel, so that half a pixel is a whole number.
        sx = matrix[0] + matrix[1] * (2 * y + 1) + 2 * matrix[2]
        sy = matrix[3] + matrix[4] * (2 * y + 1) + 2 * matrix[5]
        for x in range(width):
            if sx < 0 or sy < 0 or sx >= width << 17 or sy >= height << 17:
                for channel in range(3):
                    result[y, x, channel] = fill[channel]
            else:
                # Of the first of four neighbors in each direction, with the border: -3/2 + 2.
                px, py = sx + (1 << 16), sy + (1 << 16)
                _weigh_neighbors(
                    source + (py >> 17) * pitch + (px >> 17) * 4,
                    pitch,
                    factors + 8 * ((px >> shift) & mask),
                    factors + 8 * ((py >> shift) & mask),
                    target + (y * width + x) * 3,
                )
            sx += 2 * matrix[0]
            sy += 2 * matrix[3]


@kernel
def _with_border(image):
    """Return the image with two pixels of border around it, repeated, and a channel of zeros."""
    height, width = image.shape[:2]
    result = np.empty((height + 4, 4 * (width + 4)), np.uint8)
    for y in range(height + 4):
        line, inside = image[min(max(y - 2, 0), height - 1)].reshape(-1), result[y, 8:]
        # Unsigned, or numba looks for negative indices in each step.
        for x in range(np.uint64(width)):
            for channel in range(np.uint64(4)):
                number = line[np.uint64(3) * x + channel] if channel < 3 else np.uint8(0)
                inside[np.uint64(4) * x + channel] = number
        for i in range(8):
            result[y, i] = inside[i % 4]
            result[y, 4 * (width + 2) + i] = inside[4 * (width - 1) + i % 4]
    return result


@intrinsic
def _weigh_neighbors(typing_context, source, pitch, across, down, target):
    """Write the pixel that 4 x 4 neighbors give.

    Arguments are addresses: of the first neighbor, of the four weights across and of those down,
    and where to write; ``pitch`` is bytes from row to row. Sums across are cut to 2**-8, those down
    rounded. This is LLVM's portable language: with vectors a pixel takes a third of the time.
    """

    def generate(context, builder, signature, arguments):
        source, pitch, across, down, target = arguments
        rows = [builder.add(source, builder.mul(pitch, ir.Constant(_WORD, j))) for j in range(4)]
        rows = [_load(builder, row, _BYTE, 16) for row in rows]
        halves = [_chosen(builder, range(32), *rows[j : j + 2]) for j in (0, 2)]
        # Of each row the first two neighbors, channel by channel, then the other two: products of
        # 16 bits are added in pairs by one instruction.
        pairs = [(0, 1, c) for c in range(4)] + [(2, 3, c) for c in range(4)]
        order = [16 * j + 4 * i + c for j in range(4) for *pair, c in pairs for i in pair]
        values = builder.zext(_chosen(builder, order, *halves), ir.VectorType(_INT, 64))
        weights, order = _load(builder, across, _SHORT, 4), [i for *pair, _ in pairs for i in pair]
        weights = _chosen(builder, order * 4, weights, weights)
        products = builder.mul(values, builder.sext(weights, values.type))
        sums = _added(builder, products, range(0, 64, 2), range(1, 64, 2))
        first = [8 * j + c for j in range(4) for c in range(4)]
        sums = builder.ashr(_added(builder, sums, first, [i + 4 for i in first]), _same(4, 16))
        weights = builder.sext(_load(builder, down, _SHORT, 4), ir.VectorType(_INT, 4))
        order = [j for j in range(4) for _ in range(4)]
        sums = builder.mul(sums, _chosen(builder, order, weights, weights))
        sums = _added(builder, sums, range(8), range(8, 16))
        sums = builder.add(_added(builder, sums, range(4), range(4, 8)), _same(1 << 19, 4))
        sums = builder.ashr(sums, _same(20, 4))
        for sign, end in ((">", 0), ("<", 255)):
            sums = builder.select(
                builder.icmp_signed(sign, sums, _same(end, 4)), sums, _same(end, 4)
            )
        for channel in range(3):
            number = builder.extract_element(sums, ir.Constant(_INT, channel))
            address = builder.add(target, ir.Constant(_WORD, channel))
            pointer = builder.inttoptr(address, _BYTE.as_pointer())
            builder.store(builder.trunc(number, _BYTE), pointer, align=1)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


_BYTE, _SHORT, _INT, _WORD = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def _same(value, count):
    return ir.Constant(ir.VectorType(_INT, count), [value] * count)


def _load(builder, address, kind, count):
    pointer = builder.inttoptr(address, ir.VectorType(kind, count).as_pointer())
    return builder.load(pointer, align=1)


def _chosen(builder, order, one, other):
    """Return elements of two vectors by their indices; those of ``other`` follow on."""
    order = ir.Constant(ir.VectorType(_INT, len(order)), list(order))
    return builder.shuffle_vector(one, other, order)


def _added(builder, vector, one, other):
    """Return the sums of a vector's elements at some indices and at others."""
    parts = [_chosen(builder, order, vector, vector) for order in (one, other)]
    return builder.add(*parts)


OPERATION = Operation(
    name="rotate",
    draw=lambda words, magnitude: either_sign(words, magnitude * 3),  # up to 30 degrees
    apply=_apply,
    fixed_point=True,
    probe=-17 * FIXED_ONE,
)
