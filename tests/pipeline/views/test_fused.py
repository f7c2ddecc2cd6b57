"""The kernel that normalizes and mixes at once: its logic, what is compiled of it, and its proof.

No GPU is needed: Triton's interpreter runs it, and its compiler makes code for a GPU that is not
there. `make gpu` runs it on one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.identity import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, MixConfig
from pipeline.views import fused, mixing
from pipeline.views.floats import float_fingerprints
from pipeline.views.mixing import MixRows, mixed_views

ROOT = Path(__file__).resolve().parents[3]

# The interpreter cuts bf16 off where a GPU rounds, so that type is left to the compiled code.
INTERPRETED = """
import torch
from pipeline.identity import IMAGENET_MEAN, IMAGENET_STD
from pipeline.views import mixing

mixing._IN_ONE_KERNEL = ("cpu",)
for side in (17, 30):
    for dtype in (torch.float32, torch.float16):
        assert mixing._is_fused(torch.device("cpu"), dtype, side, IMAGENET_MEAN, IMAGENET_STD)
"""


def test_the_kernel_gives_the_bits_of_the_plain_steps() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def compiled(result: str, capability: int, options: dict[str, Any]) -> str:
    """Return the kernel in a GPU's language, PTX."""
    types = ("*u8", "*i64", "*u8", "*fp32", "*i32", "*fp32", "*fp32", result, "i32")
    names = fused.mix_kernel.arg_names
    constants = {"SIDE": 224, "BLOCK": fused.BLOCK, "MIXUP": 1}
    source = ASTSource(
        fused.mix_kernel,
        signature=dict(zip(names, (*types, *["constexpr"] * 3), strict=True)),
        constexprs=constants,
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return str(made.asm["ptx"])


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("result", ["*fp32", "*bf16", "*fp16"])
def test_no_multiplication_of_the_compiled_kernel_is_fused_with_an_addition(
    result: str, capability: int
) -> None:
    text = compiled(result, capability, fused.OPTIONS)
    assert re.search(r"\bmul(\.rn)?\.f32\b", text)
    assert not re.search(r"\bfma\b", text)
    assert re.search(r"\bfma\b", compiled(result, capability, {"enable_fp_fusion": True}))
    if result != "*fp32":
        assert set(re.findall(r"cvt\.(\w+)\.b?f16", text)) == {"rn"}


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the CPU for a device that has kernels."""
    monkeypatch.setattr(mixing, "_IN_ONE_PASS", ())
    monkeypatch.setattr(mixing, "_IN_ONE_KERNEL", ("cpu",))
    mixing._is_fused.cache_clear()
    yield
    mixing._is_fused.cache_clear()


def in_last_bit(*arguments: Any) -> None:
    mixing._mix_in_pieces(*arguments)
    arguments[-1].view(torch.int32)[-1, -1, -1, -1] ^= 1


def without_compiler(*_: Any) -> None:
    raise RuntimeError("Failed to find C compiler")


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (mixing._mix_in_pieces, None),
        (in_last_bit, "its kernel gives other bits"),
        (without_compiler, "there is no kernel: Failed to find C compiler"),
    ],
)
def test_a_kernel_is_used_only_where_it_gives_the_bits_of_the_plain_steps(
    as_on_a_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kernel: Callable[..., None],
    words: str | None,
) -> None:
    used: list[int] = []

    def counted(pixels: Tensor, *others: Any) -> None:
        used.append(len(pixels))
        kernel(pixels, *others)

    monkeypatch.setattr(mixing, "_mix_fused", counted)
    pixels, rows = mixing._proof(9)
    some = rows.map(lambda one: one[:5])
    with caplog.at_level("INFO"):
        found = mixed_views(pixels, some, IMAGENET_MEAN, IMAGENET_STD)
        mixed_views(pixels, some, IMAGENET_MEAN, IMAGENET_STD)
    plain = torch.empty_like(found)
    mixing._mix_in_pieces(pixels, some, IMAGENET_MEAN, IMAGENET_STD, plain)
    assert torch.equal(found, plain)
    assert len(used) == (3 if words is None else 1)  # the proof is made once
    assert (words or "") in caplog.text
    assert bool(words) == bool(caplog.records)


def test_the_proof_meets_all_kinds_of_mixing_odd_shares_and_the_edges() -> None:
    pixels, rows = mixing._proof(224)
    assert set(pixels.unique().tolist()) == set(range(256))
    assert rows.kind.unique().tolist() == [0, 1, 2]
    assert (rows.lam[rows.kind == 1] * 65536 % 2 == 1).any()
    cut = rows.box[rows.kind == 2]
    assert (cut[:, :2] + cut[:, 2:] <= 224).all()
    assert isinstance(rows, MixRows)
    assert (rows.partner[2:] != torch.arange(2, 32)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_gives_the_bits_of_a_cpu_in_one_kernel_and_step_by_step(dtype: torch.dtype) -> None:
    cuda = torch.device("cuda")
    assert mixing._is_fused(cuda, dtype, 224, IMAGENET_MEAN, IMAGENET_STD)
    pixels, rows = mixing._proof(224)
    expected = mixed_views(pixels, rows, IMAGENET_MEAN, IMAGENET_STD).to(dtype)
    for mix in (mixing._mix_fused, mixing._mix_in_pieces):
        found = torch.empty(32, 224, 224, 3, dtype=dtype, device=cuda).permute(0, 3, 1, 2)
        mix(pixels.to(cuda), rows.to(cuda), IMAGENET_MEAN, IMAGENET_STD, found)
        assert torch.equal(found.cpu(), expected)


@pytest.mark.gpu
def test_the_fingerprints_of_a_gpu_are_those_of_a_cpu() -> None:
    found, expected = (
        float_fingerprints(AugmentConfig(), MixConfig(), device) for device in ("cuda", "cpu")
    )
    assert found == expected
