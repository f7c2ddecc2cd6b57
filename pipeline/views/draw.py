"""Draws the parameters of a view. Sees no pixels, only the image's size.

The order and distributions are those of DeiT's training transform as timm builds it
(``create_transform`` with ``rand-m9-mstd0.5-inc1`` and pixel erasing); 3-Augment follows
DeiT III (Touvron et al., 2022).
"""

from __future__ import annotations

import math

from pipeline.identity import AugmentConfig
from pipeline.records import FIXED_ONE, AppliedOp, Box, ImageSize, Op, ViewParams
from pipeline.views.rng import Stream, stream

__all__ = ["DIGEST_EVERY", "RAND_AUGMENT_OPS", "draw_view", "has_digest", "policy_ops"]

DIGEST_EVERY = 64
"""One view in this many has a digest: for each sample, one of any 64 consecutive views."""

_ATTEMPTS = 10  # at a crop or an erased box, as in torchvision and timm

RAND_AUGMENT_OPS = (
    Op.AUTO_CONTRAST,
    Op.EQUALIZE,
    Op.INVERT,
    Op.ROTATE,
    Op.POSTERIZE,
    Op.SOLARIZE,
    Op.SOLARIZE_ADD,
    Op.COLOR,
    Op.CONTRAST,
    Op.BRIGHTNESS,
    Op.SHARPNESS,
    Op.SHEAR_X,
    Op.SHEAR_Y,
    Op.TRANSLATE_X,
    Op.TRANSLATE_Y,
)
"""timm's "increasing" operations, in timm's order."""

THREE_AUGMENT_OPS = (Op.GRAYSCALE, Op.SOLARIZE, Op.GAUSSIAN_BLUR)
JITTER_OPS = (Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR)


def policy_ops(config: AugmentConfig) -> tuple[Op, ...]:
    """Return the operations that a view of these settings may have, in the policy's order."""
    if config.policy == "rand-augment" and config.rand_ops:
        return RAND_AUGMENT_OPS
    if config.policy == "three-augment":
        return THREE_AUGMENT_OPS + JITTER_OPS * (config.color_jitter > 0)
    return ()


def has_digest(seed: int, view: int) -> bool:
    """Return whether the digest of this view of the sample with this seed is stored."""
    return (seed ^ view) % DIGEST_EVERY == 0


def draw_view(seed: int, view: int, size: ImageSize, config: AugmentConfig) -> ViewParams:
    """Return the parameters of one view of the sample with this seed."""
    words = stream("view", seed, view)
    if config.crop == "random-resized":
        crop = _draw_random_crop(words, size, config)
    else:
        crop = _center_crop(size, config.center_fraction)
    hflip = words.happens(config.hflip)
    if config.policy == "rand-augment":
        ops = _draw_rand_augment(words, config)
    elif config.policy == "three-augment":
        ops = _draw_three_augment(words, config.color_jitter)
    else:
        ops = ()
    erase = _draw_erase(words, config) if words.happens(config.erase_probability) else None
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
    return _centred(size, height, width)


def _center_crop(size: ImageSize, fraction: float) -> Box:
    side = max(1, round(min(size.height, size.width) * fraction))
    return _centred(size, side, side)


def _centred(size: ImageSize, height: int, width: int) -> Box:
    top, left = (size.height - height) // 2, (size.width - width) // 2
    return Box(top=top, left=left, height=height, width=width)


def _draw_rand_augment(words: Stream, config: AugmentConfig) -> tuple[AppliedOp, ...]:
    chosen = [
        RAND_AUGMENT_OPS[words.integer(len(RAND_AUGMENT_OPS))] for _ in range(config.rand_ops)
    ]
    applied = []
    for op in chosen:
        if words.happens(config.rand_probability):
            magnitude = words.normal(config.rand_magnitude, config.rand_magnitude_std)
            level = min(max(magnitude, 0), 10 * FIXED_ONE)
            applied.append(AppliedOp(op=op, argument=_argument(words, op, level)))
    return tuple(applied)


def _argument(words: Stream, op: Op, level: int) -> int:
    """Turn a fixed-point magnitude of 0..10 into the operation's argument, as timm does."""
    ten = 10 * FIXED_ONE
    match op:
        case Op.ROTATE:  # up to 30 degrees either way
            return _either_sign(words, level * 3)
        case Op.POSTERIZE:  # 4 bits at magnitude 0, none at 10
            return 4 - level * 4 // ten
        case Op.SOLARIZE:
            return 256 - min(256, level * 256 // ten)
        case Op.SOLARIZE_ADD:
            return min(128, level * 110 // ten)
        case Op.COLOR | Op.CONTRAST | Op.BRIGHTNESS | Op.SHARPNESS:
            return max(FIXED_ONE // 10, FIXED_ONE + _either_sign(words, level * 9 // 100))
        case Op.SHEAR_X | Op.SHEAR_Y:
            return _either_sign(words, level * 3 // 100)
        case Op.TRANSLATE_X | Op.TRANSLATE_Y:
            return _either_sign(words, level * 45 // 1000)
        case _:
            return 0


def _either_sign(words: Stream, value: int) -> int:
    return -value if words.happens(0.5) else value


def _draw_three_augment(words: Stream, jitter: float) -> tuple[AppliedOp, ...]:
    op = THREE_AUGMENT_OPS[words.integer(3)]
    if op is Op.GRAYSCALE:
        first = AppliedOp(op=op)
    elif op is Op.SOLARIZE:
        first = AppliedOp(op=op, argument=128)
    else:
        first = AppliedOp(op=op, argument=words.uniform(0.1, 2.0))
    if jitter == 0:
        return (first,)
    order = words.permutation(len(JITTER_OPS))
    factors = [words.uniform(1 - jitter, 1 + jitter) for _ in JITTER_OPS]
    jitters = [AppliedOp(op=JITTER_OPS[i], argument=factors[i]) for i in order]
    return (first, *jitters)


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
