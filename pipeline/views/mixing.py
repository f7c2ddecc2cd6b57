"""Normalizes and mixes a batch on the device: one code for teacher and student.

Each step is one elementwise operation, rounded on its own in float32, so results do not
depend on the batch's size, its order, or the device's instruction set.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.records import FIXED_ONE, MixKind, Pixels, ViewMix
from pipeline.views.tables import mix_by_tables

__all__ = ["MixRows", "mix_images", "mixed_digests", "mixed_views", "normalize", "to_device"]


def to_device(pixels: Pixels | Tensor, device: torch.device) -> Tensor:
    """Move uint8 rows to a device; the copy does not block if the memory is pinned."""
    tensor = torch.from_numpy(pixels) if isinstance(pixels, np.ndarray) else pixels
    return tensor.to(device, non_blocking=True)


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (N, S, S, 3) uint8 pixels as (N, 3, S, S) float32, channels last in memory.

    ``mean`` and ``std`` are of pixels in [0, 1].
    """
    width = pixels.shape[2]
    shift, scale = _constants(tuple(mean), tuple(std), width, pixels.device)
    # Rows of numbers, not of pixels: along three numbers a CPU takes no vectors.
    rows = pixels.to(torch.float32).reshape(-1, 3 * width).sub_(shift).mul_(scale)
    return rows.view(pixels.shape).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return shift and scale of a row of pixels, (3 * width,) each, which stay on the device."""
    # Rounded to float32 once, on the host: (pixel - 255 mean) * 1 / (255 std).
    shift = torch.tensor([255 * value for value in mean], dtype=torch.float32)
    scale = torch.tensor([1 / (255 * value) for value in std], dtype=torch.float32)
    return shift.repeat(width).to(device), scale.repeat(width).to(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixRows:
    """Which rows of a batch are mixed, and how, as tensors beside its images."""

    mixup: Tensor  # (K,) int64, rows
    mixup_partner: Tensor  # (K,) int64
    lam: Tensor  # (K,) float32
    cutmix: Tensor  # (L,) int64, rows
    cutmix_partner: Tensor  # (L,) int64
    box: Tensor  # (L, 4) int32: top, left, height, width

    @staticmethod
    def of(mix: ViewMix) -> MixRows:
        """Return the rows that are mixed, on the host."""
        mixup = np.flatnonzero(mix.kind == MixKind.MIXUP.code)
        cutmix = np.flatnonzero(mix.kind == MixKind.CUTMIX.code)
        lam = mix.lam[mixup].astype(np.float32) / np.float32(FIXED_ONE)
        return MixRows(
            mixup=torch.from_numpy(mixup),
            mixup_partner=torch.from_numpy(mix.partner[mixup]),
            lam=torch.from_numpy(lam),
            cutmix=torch.from_numpy(cutmix),
            cutmix_partner=torch.from_numpy(mix.partner[cutmix]),
            box=torch.from_numpy(mix.box[cutmix]),
        )

    def to(self, device: torch.device) -> MixRows:
        """Return the same rows on a device."""
        moved = {one.name: getattr(self, one.name).to(device) for one in fields(self)}
        return MixRows(**moved)


def mix_images(images: Tensor, mix: ViewMix, rows: MixRows | None = None) -> Tensor:
    """Return N of (M, 3, S, S) normalized images, each mixed with its partner's row.

    ``mix`` is of the first N; others, if any, are mixed into them and not returned.
    mixup: ``lam * own + (1 - lam) * partner``; CutMix: the partner's pixels in the box. ``rows``
    are those of ``mix`` on the images' device; without them they are copied there.
    """
    rows = MixRows.of(mix).to(images.device) if rows is None else rows
    own = images[: len(mix.kind)]
    if len(rows.mixup) == len(rows.cutmix) == 0:
        return own
    result = own.clone()
    if len(rows.mixup):
        lam = rows.lam.view(-1, 1, 1, 1)
        # 1 - lam is exact: lam is a multiple of 2**-16. No fused multiply-add here.
        partners = images[rows.mixup_partner].mul_(1 - lam)
        result[rows.mixup] = images[rows.mixup].mul_(lam).add_(partners)
    if len(rows.cutmix):
        inside = _box_masks(rows.box, images.shape[-1])
        partners = images[rows.cutmix_partner]
        result[rows.cutmix] = torch.where(inside, partners, images[rows.cutmix])
    return result


def mixed_views(
    pixels: Tensor,
    mix: ViewMix,
    mean: Sequence[float],
    std: Sequence[float],
    rows: MixRows | None = None,
) -> Tensor:
    """Return ``mix_images`` of ``normalize`` of (M, S, S, 3) uint8 pixels, on a CPU in one pass."""
    if pixels.device.type not in _IN_ONE_PASS:
        return mix_images(normalize(pixels, mean, std), mix, rows)
    values = torch.arange(256, dtype=torch.uint8).view(1, 256, 1, 1).expand(1, 256, 1, 3)
    result = torch.empty((len(mix.kind), *pixels.shape[1:]))
    mix_by_tables(
        pixels.numpy(),
        mix.partner,
        mix.kind == MixKind.MIXUP.code,
        mix.kind == MixKind.CUTMIX.code,
        mix.lam.astype(np.float32) / np.float32(FIXED_ONE),
        mix.box,
        normalize(values, mean, std).reshape(3, 256).contiguous().numpy(),
        result.numpy(),
    )
    return result.permute(0, 3, 1, 2)


_IN_ONE_PASS = ("cpu",)  # devices


def mixed_digests(images: Tensor, rows: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Return the CRC-32 of some rows of (N, 3, S, S) float32 images, (N,); 0 for the others.

    Of the bytes of float32, little end first, in rows of RGB: (S, S, 3). Only those rows leave
    the device.
    """
    digests = np.zeros(len(rows), np.uint32)
    chosen = np.flatnonzero(rows)
    if len(chosen):
        floats = images[torch.from_numpy(chosen).to(images.device)].permute(0, 2, 3, 1)
        found = floats.contiguous().cpu().numpy().astype("<f4", copy=False)
        digests[chosen] = [binascii.crc32(image) for image in found]
    return digests


def _box_masks(box: Tensor, size: int) -> Tensor:
    """Return where (N, 4) boxes lie, (N, 1, size, size) bool."""
    top, left, height, width = (part[:, None] for part in box.unbind(1))
    index = torch.arange(size, device=box.device)
    rows = (index >= top) & (index < top + height)
    columns = (index >= left) & (index < left + width)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
