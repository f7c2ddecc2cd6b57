"""Normalizes and mixes a batch on the device: one code for teacher and student.

Each step is one elementwise operation, rounded on its own in float32, so results do not
depend on the batch's size, its order, or the device's instruction set.
"""

from __future__ import annotations

import binascii
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.records import FIXED_ONE, Box, MixKind, MixParams, Pixels, ViewMix
from pipeline.views.tables import mix_by_tables

__all__ = [
    "MixRows",
    "float_digests",
    "mix_images",
    "mixed_digests",
    "mixed_views",
    "normalize",
    "to_device",
]

_log = logging.getLogger(__name__)


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
    """How each of N rows is mixed, as tensors beside its images, whose shapes N alone decides."""

    partner: Tensor  # (N,) int64, row of the partner; the row itself if unmixed
    kind: Tensor  # (N,) uint8, ``MixKind.code``
    lam: Tensor  # (N,) float32, share of the own image
    box: Tensor  # (N, 4) int32: top, left, height, width; zeros unless CutMix

    @staticmethod
    def of(mix: ViewMix) -> MixRows:
        """Return the same rows, on the host."""
        lam = mix.lam.astype(np.float32) / np.float32(FIXED_ONE)
        arrays = {"partner": mix.partner, "kind": mix.kind, "lam": lam, "box": mix.box}
        return MixRows(**{name: torch.from_numpy(one) for name, one in arrays.items()})

    def map(self, change: Callable[[Tensor], Tensor]) -> MixRows:
        """Return the rows with each of their tensors changed alike."""
        return MixRows(**{one.name: change(getattr(self, one.name)) for one in fields(self)})

    def to(self, device: torch.device) -> MixRows:
        """Return the same rows on a device."""
        return self.map(lambda one: one.to(device))


def mix_images(images: Tensor, mix: ViewMix) -> Tensor:
    """Return N of (M, 3, S, S) normalized images, each mixed with its partner's row.

    ``mix`` is of the first N; others, if any, are mixed into them and not returned.
    mixup: ``lam * own + (1 - lam) * partner``; CutMix: the partner's pixels in the box.
    """
    rows = MixRows.of(mix).to(images.device)
    return _mixed(images[: len(mix.kind)], images[rows.partner], rows)


def _mixed(own: Tensor, partners: Tensor, rows: MixRows) -> Tensor:
    """Return (N, 3, S, S) normalized images, each mixed with its partner."""
    lam, kind = (one.view(-1, 1, 1, 1) for one in (rows.lam, rows.kind))
    # 1 - lam is exact: lam is a multiple of 2**-16. No fused multiply-add here.
    blended = (own * lam).add_(partners * (1 - lam))
    result = torch.where(kind == MixKind.MIXUP.code, blended, own)
    inside = _box_masks(rows.box, own.shape[-1])
    return torch.where(inside & (kind == MixKind.CUTMIX.code), partners, result)


def mixed_views(
    pixels: Tensor,
    rows: MixRows,
    mean: Sequence[float],
    std: Sequence[float],
    result: Tensor | None = None,
) -> Tensor:
    """Return ``mix_images`` of ``normalize`` of (M, S, S, 3) uint8 pixels, in one pass if possible.

    ``rows`` are on the pixels' device. Writes into ``result`` if it is given, (N, 3, S, S),
    channels last in memory, of any type of floats, to which the float32 are rounded.
    """
    if result is None:
        shape = (len(rows.kind), *pixels.shape[1:])
        result = torch.empty(shape, device=pixels.device).permute(0, 3, 1, 2)
    if pixels.device.type in _IN_ONE_PASS:
        _mix_by_tables(pixels, rows, mean, std, result)
    elif _is_fused(pixels.device, result.dtype, pixels.shape[1], tuple(mean), tuple(std)):
        _mix_fused(pixels, rows, mean, std, result)
    else:
        _mix_in_pieces(pixels, rows, mean, std, result)
    return result


_IN_ONE_PASS, _IN_ONE_KERNEL = ("cpu",), ("cuda",)  # devices
_PIECE = 32  # rows of which there are float32 at a time: 19 MB at 224 pixels, each of some copies


def _mix_in_pieces(
    pixels: Tensor, rows: MixRows, mean: Sequence[float], std: Sequence[float], result: Tensor
) -> None:
    for start in range(0, len(result), _PIECE):
        piece = slice(start, min(start + _PIECE, len(result)))
        some = rows.map(itemgetter(piece))
        own, partners = (normalize(pixels[one], mean, std) for one in (piece, some.partner))
        result[piece] = _mixed(own, partners, some)


def _mix_by_tables(
    pixels: Tensor, rows: MixRows, mean: Sequence[float], std: Sequence[float], result: Tensor
) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 256, 1, 1).expand(1, 256, 1, 3)
    table = normalize(values, mean, std).reshape(3, 256).contiguous().numpy()
    written = result.permute(0, 2, 3, 1)
    is_float32 = written.dtype == torch.float32
    step = len(written) if is_float32 else _PIECE  # else float32 lie beside what they become
    for start in range(0, len(written), max(1, step)):
        piece = slice(start, start + step)
        some, there = rows.map(itemgetter(piece)), written[piece]
        floats = there if is_float32 else torch.empty(there.shape)
        mix_by_tables(
            pixels.numpy(),
            start,
            some.partner.numpy(),
            (some.kind == MixKind.MIXUP.code).numpy(),
            (some.kind == MixKind.CUTMIX.code).numpy(),
            some.lam.numpy(),
            some.box.numpy(),
            table,
            floats.numpy(),
        )
        if not is_float32:
            there.copy_(floats)


def _mix_fused(
    pixels: Tensor, rows: MixRows, mean: Sequence[float], std: Sequence[float], result: Tensor
) -> None:
    from pipeline.views.fused import mix_fused

    constants = _constants(tuple(mean), tuple(std), 1, pixels.device)
    mix_fused(pixels, rows.partner, rows.kind, rows.lam, rows.box, *constants, result)


@lru_cache(maxsize=16)
def _is_fused(
    device: torch.device,
    dtype: torch.dtype,
    side: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> bool:
    """Return whether one kernel gives the bits of the plain steps here: tried out, not believed."""
    if device.type not in _IN_ONE_KERNEL:
        return False
    pixels, rows = _proof(side)
    try:
        results = []
        for mix in (_mix_in_pieces, _mix_fused):
            results.append(torch.empty(len(rows.kind), side, side, 3, dtype=dtype, device=device))
            mix(pixels.to(device), rows.to(device), mean, std, results[-1].permute(0, 3, 1, 2))
        same = torch.equal(*(one.view(torch.uint8) for one in results))
    except (
        Exception
    ) as error:  # no Triton, no compiler for what it makes, an old device: all is well
        _log.info("views are mixed step by step on %s, for there is no kernel: %s", device, error)
        return False
    if not same:
        _log.warning("views are mixed step by step on %s: its kernel gives other bits", device)
    return same


def _proof(side: int) -> tuple[Tensor, MixRows]:
    """Return noise to mix, (32, side, side, 3), and rows of all kinds with odd shares and boxes."""
    count, random = 32, np.random.Philox(side)
    words = random.random_raw(count * side * side * 3) >> np.uint64(56)
    mix = ViewMix.unmixed(count)
    for row in range(2, count):
        top, left, height, width, lam = (int(one >> 11) for one in random.random_raw(5))
        top, left = top % side, left % side
        box = Box(
            top=top,
            left=left,
            height=1 + height % (side - top),
            width=1 + width % (side - left),
        )
        kind = (MixKind.MIXUP, MixKind.CUTMIX)[row % 2]
        params = MixParams(kind=kind, lam=lam % (FIXED_ONE + 1), box=box)
        mix.set_row(row, (row * 7 + 3) % count, params)
    pixels = words.astype(np.uint8).reshape(count, side, side, 3)
    return torch.from_numpy(pixels), MixRows.of(mix)


def mixed_digests(images: Tensor, rows: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Return the CRC-32 of some rows of (N, 3, S, S) float32 images, (N,); 0 for the others.

    Of the bytes of float32, little end first, in rows of RGB: (S, S, 3). Only those rows leave
    the device.
    """
    digests = np.zeros(len(rows), np.uint32)
    chosen = np.flatnonzero(rows)
    if len(chosen):
        floats = images[torch.from_numpy(chosen).to(images.device)].permute(0, 2, 3, 1)
        digests[chosen] = float_digests(floats.contiguous().cpu())
    return digests


def float_digests(images: Tensor) -> list[int]:
    """Return the CRC-32 of each of (N, S, S, 3) float32 images on the host."""
    return [binascii.crc32(image) for image in images.numpy().astype("<f4", copy=False)]


def _box_masks(box: Tensor, size: int) -> Tensor:
    """Return where (N, 4) boxes lie, (N, 1, size, size) bool."""
    top, left, height, width = (part[:, None] for part in box.unbind(1))
    index = torch.arange(size, device=box.device)
    rows = (index >= top) & (index < top + height)
    columns = (index >= left) & (index < left + width)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
