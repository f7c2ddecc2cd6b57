"""Fingerprints of normalizing and mixing, which run on a device: what uint8 pixels become.

Of each there are two: ``.values`` of numbers so coarse that they are the same on every sound
device, and ``.bits`` of the very floats. Each step is one operation that IEEE 754 rounds, so CPUs
and GPUs give the same bits; where a device does not, the digests of mixed floats cannot be redone.
"""

from __future__ import annotations

import binascii

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.identity import AugmentConfig, MixConfig, StoreIdentity
from pipeline.records import FIXED_ONE, Box, MixKind, MixParams, Pixels, ViewMix
from pipeline.views.fingerprints import fingerprints
from pipeline.views.mixing import MixRows, mixed_views, normalize, to_device
from pipeline.views.rng import noise_bytes

__all__ = ["fingerprints_on", "float_fingerprints"]

_SEED = 20261129  # any constant does
_ROWS, _SIDE = 6, 17
_STEPS = 4  # of a level of uint8: how coarse ``.values`` are
_MARGIN = 0.05  # of a step: nearer to where rounding turns, a value is not looked at

Floats = NDArray[np.float64]


def fingerprints_on(identity: StoreIdentity, device: torch.device | str) -> dict[str, int]:
    """Return all fingerprints of this machine, those of floats on a device; see both parts."""
    floats = float_fingerprints(identity.augment, identity.mix, device)
    return {**fingerprints(identity), **floats}


def float_fingerprints(
    augment: AugmentConfig, mix: MixConfig, device: torch.device | str
) -> dict[str, int]:
    """Return a device's fingerprints of normalizing, and of mixing where it is on, by name."""
    pixels = _pixels()
    moved = to_device(pixels, torch.device(device))
    images = normalize(moved, augment.mean, augment.std)
    exact = (pixels - 255 * np.array(augment.mean)) / (255 * np.array(augment.std))
    scale = _STEPS * 255 * np.array(augment.std)
    found = _crcs("normalized", images, exact, scale)
    if mix.probability:
        drawn = _mixing()
        rows = MixRows.of(drawn).to(moved.device)
        mixed = mixed_views(moved, rows, augment.mean, augment.std)
        found |= _crcs("mixed", mixed, _mixed_exactly(exact, drawn), scale)
    return found


def _crcs(name: str, images: Tensor, exact: Floats, scale: Floats) -> dict[str, int]:
    floats = images.permute(0, 2, 3, 1).contiguous().cpu().numpy().astype("<f4", copy=False)
    steps = exact * scale
    # A value near a half may be rounded either way by devices that differ in the last bits.
    safe = np.abs(steps - np.floor(steps) - 0.5) > _MARGIN
    values = np.where(safe, np.rint(floats * scale), 0).astype("<i4")
    numbers = {"values": values, "bits": floats}
    return {f"{name}.{kind}": binascii.crc32(one.tobytes()) for kind, one in numbers.items()}


def _pixels() -> Pixels:
    words = noise_bytes(_SEED, _ROWS * _SIDE * _SIDE * 3) >> 8
    return words.astype(np.uint8).reshape(_ROWS, _SIDE, _SIDE, 3)


def _mixing() -> ViewMix:
    """Return mixup, CutMix and an unmixed row; nothing in them is symmetric."""
    mix = ViewMix.unmixed(_ROWS)
    boxes = (Box(top=1, left=4, height=3, width=11), Box(top=6, left=0, height=10, width=2))
    for row, (partner, lam) in enumerate(((1, 13000), (2, 51000))):
        mix.set_row(row, partner, MixParams(kind=MixKind.MIXUP, lam=lam, box=None))
    for row, (partner, box) in enumerate(zip((5, 4), boxes, strict=True), start=2):
        mix.set_row(row, partner, MixParams(kind=MixKind.CUTMIX, lam=40000, box=box))
    mix.set_row(5, 0, MixParams(kind=MixKind.MIXUP, lam=FIXED_ONE - 7, box=None))
    return mix


def _mixed_exactly(images: Floats, mix: ViewMix) -> Floats:
    """Return (N, S, S, 3) mixed in float64, one row at a time."""
    mixed = images.copy()
    for row, kind in enumerate(mix.kind.tolist()):
        partner = images[mix.partner[row]]
        if kind == MixKind.MIXUP.code:
            share = mix.lam[row] / FIXED_ONE
            mixed[row] = share * images[row] + (1 - share) * partner
        elif kind == MixKind.CUTMIX.code:
            top, left, height, width = mix.box[row].tolist()
            inside = (slice(top, top + height), slice(left, left + width))
            mixed[row][inside] = partner[inside]
    return mixed
