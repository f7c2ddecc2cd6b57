"""Draws the parameters of a view. Sees no pixels, only the image's size.

The order and distributions are those of DeiT's training transform as timm builds it
(``create_transform`` with ``rand-m9-mstd0.5-inc1`` and pixel erasing); 3-Augment follows
DeiT III (Touvron et al., 2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.identity import AugmentConfig
from pipeline.records import FIXED_ONE, AppliedOp, Box, ImageSize, ViewParams
from pipeline.views.operation import TEN
from pipeline.views.ops import OPERATIONS
from pipeline.views.rng import Stream, stream

__all__ = [
    "DIGEST_EVERY",
    "JITTER",
    "MIXED_DIGEST_EVERY",
    "RAND_AUGMENT",
    "THREE_AUGMENT",
    "draw_view",
    "has_digest",
    "has_mixed_digest",
    "policy_ops",
]

DIGEST_EVERY = 64
"""One view in this many has a digest, and view 0: see ``has_digest``."""

MIXED_DIGEST_EVERY = 16
"""One digested view in this many has a second digest, of the mixed image that the teacher got."""

_ATTEMPTS = 10  # at a crop or an erased box, as in torchvision and timm

RAND_AUGMENT: Mapping[str, tuple[str, ...]] = {
    "rand-augment": (  # timm's "increasing" operations, in timm's order
        "auto-contrast",
        "equalize",
        "invert",
        "rotate",
        "posterize",
        "solarize",
        "solarize-add",
        "color",
        "contrast",
        "brightness",
        "sharpness",
        "shear-x",
        "shear-y",
        "translate-x",
        "translate-y",
    ),
}
"""The operations of each policy that draws as RandAugment does.

An index into its list is drawn, so the list of a policy that stores have never changes: one line
more is another policy, with a name of its own in ``AugmentConfig.policy``.
"""

THREE_AUGMENT = ("grayscale", "solarize", "gaussian-blur")
"""The operations of which 3-Augment draws one."""

JITTER = ("brightness", "contrast", "color")
"""The operations that follow in 3-Augment, in any order."""


def policy_ops(config: AugmentConfig) -> tuple[str, ...]:
    """Return the operations that a view of these settings may have, in the policy's order."""
    if config.policy == "three-augment":
        return THREE_AUGMENT + JITTER * (config.color_jitter > 0)
    return RAND_AUGMENT.get(config.policy, ()) if config.rand_ops else ()


@overload
def has_digest(seed: int, view: int) -> bool: ...
@overload
def has_digest(seed: NDArray[np.int64], view: NDArray[np.int64]) -> NDArray[np.bool_]: ...
def has_digest(seed: Any, view: Any) -> Any:
    """Return whether the digests of these views, of the samples with these seeds, are stored.

    Each sample has one at view 0, so that none is without, and at one of any 64 consecutive views.
    Takes one view, or arrays that broadcast.
    """
    return (view == 0) | ((seed ^ view) % DIGEST_EVERY == 0)


Whether = TypeVar("Whether", bool, NDArray[np.bool_])
Number = TypeVar("Number", int, NDArray[np.int64])


def has_mixed_digest(digested: Whether, seed: Number, view: Number) -> Whether:
    """Return whether views have a second digest: some of those that have a first one.

    Takes one view, or arrays that broadcast.
    """
    blocks = (seed // DIGEST_EVERY) ^ (view // DIGEST_EVERY)
    due: Whether = digested & (blocks % MIXED_DIGEST_EVERY == 0)
    return due


def draw_view(seed: int, view: int, size: ImageSize, config: AugmentConfig) -> ViewParams:
    """Return the parameters of one view of the sample with this seed."""
    words = stream("view", seed, view)
    if config.crop == "random-resized":
        crop = _draw_random_crop(words, size, config)
    else:
        crop = _center_crop(size, config.center_fraction)
    # Takes its word even where nothing is flipped: settings must not shift the words of what
    # follows.
    hflip = words.happens(config.hflip)
    ops: tuple[AppliedOp, ...] = ()
    if config.policy == "three-augment":
        ops = _draw_three_augment(words, config.color_jitter)
    elif config.policy in RAND_AUGMENT:
        ops = _draw_rand_augment(words, RAND_AUGMENT[config.policy], config)
    erase = _draw_erase(words, config) if words.happens(config.erase_probability) else None
    # A seed, not the noise itself: parameters stay small, and pixels are not drawn.
    noise = words.word() if erase is not None else 0
    return ViewParams(crop=crop, hflip=hflip, ops=ops, erase=erase, erase_noise=noise)


def _draw_random_crop(words: Stream, size: ImageSize, config: AugmentConfig) -> Box:
    area = size.height * size.width
    for _ in range(_ATTEMPTS):
        target = words.uniform(*config.crop_scale) * area / FIXED_ONE
        ratio = words.log_uniform(*config.crop_ratio) / FIXED_ONE
        # Square root and division are exactly rounded by IEEE 754, unlike exp and log.
        width = max(1, round(math.sqrt(target * ratio)))
        height = max(1, round(math.sqrt(target / ratio)))
        if width <= size.width and height <= size.height:
            top = words.integer(size.height - height + 1)
            left = words.integer(size.width - width + 1)
            return Box(top=top, left=left, height=height, width=width)
    return _central_box_of_ratio(size, *config.crop_ratio)


def _central_box_of_ratio(size: ImageSize, low: float, high: float) -> Box:
    """Return the largest central box whose ratio is allowed, as torchvision falls back."""
    height, width = size.height, size.width
    if width < height * low:
        height = max(1, min(height, round(width / low)))
    elif width > height * high:
        width = max(1, min(width, round(height * high)))
    return _centered(size, height, width)


def _center_crop(size: ImageSize, fraction: float) -> Box:
    side = max(1, round(min(size.height, size.width) * fraction))
    return _centered(size, side, side)


def _centered(size: ImageSize, height: int, width: int) -> Box:
    top, left = (size.height - height) // 2, (size.width - width) // 2
    return Box(top=top, left=left, height=height, width=width)


def _draw_rand_augment(
    words: Stream, names: tuple[str, ...], config: AugmentConfig
) -> tuple[AppliedOp, ...]:
    # All operations are chosen before the first argument is drawn, as in timm.
    chosen = [names[words.integer(len(names))] for _ in range(config.rand_ops)]
    applied = []
    for name in chosen:
        if words.happens(config.rand_probability):
            magnitude = words.normal(config.rand_magnitude, config.rand_magnitude_std)
            applied.append(_draw_op(words, name, min(max(magnitude, 0), TEN)))
    return tuple(applied)


def _draw_three_augment(words: Stream, jitter: float) -> tuple[AppliedOp, ...]:
    name = THREE_AUGMENT[words.integer(len(THREE_AUGMENT))]
    first = _draw_op(words, name, TEN // 2)  # solarizes from 128 on, as DeiT III
    if jitter == 0:
        return (first,)
    order = words.permutation(len(JITTER))
    factors = [words.uniform(1 - jitter, 1 + jitter) for _ in JITTER]
    return (first, *(AppliedOp(op=JITTER[i], argument=factors[i]) for i in order))


def _draw_op(words: Stream, name: str, magnitude: int) -> AppliedOp:
    return AppliedOp(op=name, argument=OPERATIONS[name].draw(words, magnitude))


def _draw_erase(words: Stream, config: AugmentConfig) -> Box | None:
    """Return the box to erase, or None if ten attempts found none that fits, as in timm."""
    side = config.image_size
    for _ in range(_ATTEMPTS):
        target = words.uniform(*config.erase_area) * side * side / FIXED_ONE
        ratio = words.log_uniform(*config.erase_ratio) / FIXED_ONE
        height = max(1, round(math.sqrt(target * ratio)))
        width = max(1, round(math.sqrt(target / ratio)))
        if height < side and width < side:
            top = words.integer(side - height + 1)
            left = words.integer(side - width + 1)
            return Box(top=top, left=left, height=height, width=width)
    return None
