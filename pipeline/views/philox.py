"""Philox 4x64 with ten rounds, compiled: the words of NumPy's ``Philox``, without its object.

Making that object takes longer than drawing a view; see Salmon et al., "Parallel random numbers:
as easy as 1, 2, 3" (2011). Golden values and NumPy's own words are in the tests.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pipeline.views.compiled import kernel

__all__ = ["philox_words"]

_WORD, _TWO_WORDS = ir.IntType(64), ir.IntType(128)
_FIRST_FACTOR, _SECOND_FACTOR = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_FIRST_STEP, _SECOND_STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)


@intrinsic
def _upper_half(typing_context, a, b):
    """The upper 64 bits of a product of two words, one instruction where numba offers none."""

    def generate(context, builder, signature, arguments):
        a, b = (builder.zext(one, _TWO_WORDS) for one in arguments)
        upper = builder.lshr(builder.mul(a, b), ir.Constant(_TWO_WORDS, 64))
        return builder.trunc(upper, _WORD)

    return types.uint64(types.uint64, types.uint64), generate


@kernel(inline="always")
def _block(number, key, upper_key):
    """The four words of one block; NumPy's first block is number 1."""
    a, b, c, d = np.uint64(number), np.uint64(0), np.uint64(0), np.uint64(0)
    for _ in range(10):
        a, b, c, d = (
            _upper_half(_SECOND_FACTOR, c) ^ b ^ key,
            _SECOND_FACTOR * c,
            _upper_half(_FIRST_FACTOR, a) ^ d ^ upper_key,
            _FIRST_FACTOR * a,
        )
        key, upper_key = key + _FIRST_STEP, upper_key + _SECOND_STEP
    return a, b, c, d


@kernel
def philox_words(key, skipped, blocks):
    """Return the words of some blocks, (4 * blocks,) uint64, after the blocks that are skipped.

    ``key`` is (2,) uint64, the lower word first.
    """
    words = np.empty(4 * blocks, np.uint64)
    for i in range(blocks):
        a, b, c, d = _block(skipped + i + 1, key[0], key[1])
        words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3] = a, b, c, d
    return words
