"""Normalizes and mixes views on a GPU in one kernel, where Triton is there (it comes with PyTorch).

Each multiplication and addition is rounded on its own, as the plain steps of ``mixing.py`` are;
whoever calls this has compared the two on the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.records import MixKind

__all__ = ["OPTIONS", "mix_fused"]

BLOCK = 1024  # numbers of a row that one program makes

OPTIONS = {"enable_fp_fusion": False}
"""How the kernel is compiled: multiplication and addition fused are rounded once too little."""


@triton.jit
def mix_kernel(  # type: ignore[no-untyped-def]
    pixels,
    partner,
    kind,
    lam,
    box,
    shift,
    scale,
    result,
    numbers,
    SIDE: tl.constexpr,  # noqa: N803 - Triton's habit
    BLOCK: tl.constexpr,  # noqa: N803
    MIXUP: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = index < numbers
    less = tl.load(shift + index % 3, mask=there)
    times = tl.load(scale + index % 3, mask=there)
    value = (tl.load(pixels + row * numbers + index, mask=there).to(tl.float32) - less) * times
    how = tl.load(kind + row)
    if how != 0:
        start = tl.load(partner + row) * numbers
        other = (tl.load(pixels + start + index, mask=there).to(tl.float32) - less) * times
        if how == MIXUP:
            share = tl.load(lam + row)
            value = value * share + other * (1 - share)
        else:
            y = index // (3 * SIDE) - tl.load(box + 4 * row)
            x = index // 3 % SIDE - tl.load(box + 4 * row + 1)
            height, width = tl.load(box + 4 * row + 2), tl.load(box + 4 * row + 3)
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            value = tl.where(inside, other, value)
    tl.store(result + row * numbers + index, value.to(result.dtype.element_ty), mask=there)


def mix_fused(
    pixels: Tensor,
    partner: Tensor,
    kind: Tensor,
    lam: Tensor,
    box: Tensor,
    shift: Tensor,
    scale: Tensor,
    result: Tensor,
) -> None:
    """Write N of M views, (M, S, S, 3) uint8, normalized and mixed, into (N, 3, S, S) ``result``.

    It is channels last in memory, of float32, bfloat16 or float16. ``partner``, ``kind``, ``lam``
    and ``box`` are the tensors of ``MixRows``; ``shift`` and ``scale`` those of a pixel, (3,).
    """
    side, numbers = pixels.shape[1], pixels[0].numel()
    grid = (len(result), triton.cdiv(numbers, BLOCK))
    with torch.cuda.device_of(pixels):
        mix_kernel[grid](
            *(pixels, partner, kind, lam, box, shift, scale),
            *(result.permute(0, 2, 3, 1), numbers),
            SIDE=side,
            BLOCK=BLOCK,
            MIXUP=MixKind.MIXUP.code,
            **OPTIONS,
        )
