"""One stream of random words per (purpose, identity), and distributions built from words.

NumPy promises that a bit generator's integers never change, but not what
``Generator.beta`` or ``shuffle`` make of them, so the few distributions that views need
are here. Their results are fixed-point integers wherever libm is involved, because the
last bit of ``log`` or ``cos`` differs between machines.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from hashlib import blake2b
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pipeline.records import FIXED_ONE

__all__ = ["Stream", "fixed", "noise_bytes", "sample_seed", "sample_share", "stream"]

_STANDARD_NORMAL = NormalDist()
_BLOCKS = 8  # of four words, fetched at once; the sequence does not depend on it


def fixed(value: float) -> int:
    """Return ``value`` in units of 2**-16, rounded to nearest, halves up."""
    return math.floor(value * FIXED_ONE + 0.5)


def sample_seed(root_seed: int, key: str) -> int:
    """Return the 63-bit seed of a sample, a hash of the job's seed and its key."""
    return int.from_bytes(_digest("sample", (root_seed, key), 8), "little") >> 1


def sample_share(seed: int, key: str) -> float:
    """Return where in [0, 1) a sample lies, by a hash: the samples below .01 are below .1 too."""
    return (int.from_bytes(_digest("share", (seed, key), 8), "little") >> 11) * 2.0**-53


def stream(purpose: str, *identity: int | str) -> Stream:
    """Return the random words owned by one identity."""
    return Stream(_digest(purpose, identity, 16))


def noise_bytes(seed: int, count: int) -> NDArray[np.uint16]:
    """Return ``count`` uniform 16-bit words, (count,), expanded from a drawn 64-bit seed."""
    words = _philox_words(seed.to_bytes(16, "little"), 0, (count + 15) // 16)
    # Little end first on every machine.
    return words.astype("<u8", copy=False).view("<u2")[:count]


def _philox_words(key: bytes, skipped: int, blocks: int) -> NDArray[np.uint64]:
    """Return words of a stream whose key is 16 bytes, little end first; see ``philox_words``."""
    from pipeline.views.philox import philox_words  # numba, for which `--help` must not wait

    words: NDArray[np.uint64] = philox_words(
        np.frombuffer(key, "<u8").astype(np.uint64, copy=False), skipped, blocks
    )
    return words


def _digest(purpose: str, identity: Sequence[int | str], size: int) -> bytes:
    text = json.dumps([purpose, *identity]).encode()
    return blake2b(text, digest_size=size).digest()


class Stream:
    """The words of one Philox generator, and what is drawn from them."""

    __slots__ = ("_blocks", "_key", "_next", "_words")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._blocks = 0  # fetched so far
        self._words: list[int] = []  # of the last of them
        self._next = 0

    def word(self) -> int:
        """Return the next 64-bit word."""
        if self._next == len(self._words):
            self._words = _philox_words(self._key, self._blocks, _BLOCKS).tolist()
            self._blocks += _BLOCKS
            self._next = 0
        word = self._words[self._next]
        self._next += 1
        return word

    def unit(self) -> float:
        """Return the next number in [0, 1), to 53 bits."""
        return (self.word() >> 11) * 2.0**-53

    def uniform(self, low: float, high: float) -> int:
        """Return a fixed-point number, uniform in [low, high]."""
        return fixed(low + (high - low) * self.unit())

    def log_uniform(self, low: float, high: float) -> int:
        """Return a fixed-point number whose logarithm is uniform in [log low, log high]."""
        return fixed(math.exp(math.log(low) + (math.log(high) - math.log(low)) * self.unit()))

    def normal(self, mean: float, std: float) -> int:
        """Return a fixed-point number, normally distributed."""
        middle = ((self.word() >> 11) + 0.5) * 2.0**-53  # never 0 or 1
        return fixed(mean + std * _STANDARD_NORMAL.inv_cdf(middle))

    def beta(self, a: float) -> int:
        """Return a fixed-point number in [0, 1], Beta(a, a) with 0 < a <= 1 (Jöhnk, 1964)."""
        if not 0 < a <= 1:
            raise ValueError(f"beta needs 0 < a <= 1, got {a}")
        while True:
            x, y = self.unit() ** (1 / a), self.unit() ** (1 / a)
            if 0 < x + y <= 1:
                return fixed(x / (x + y))

    def happens(self, probability: float) -> bool:
        """Return True with the given probability; always takes one word."""
        return self.unit() < probability

    def integer(self, count: int) -> int:
        """Return an integer in [0, count); the bias is below count / 2**64."""
        return (self.word() * count) >> 64

    def permutation(self, count: int) -> list[int]:
        """Return the integers 0 .. count - 1 in random order (Fisher and Yates)."""
        order = list(range(count))
        for last in range(count - 1, 0, -1):
            other = self.integer(last + 1)
            order[last], order[other] = order[other], order[last]
        return order
