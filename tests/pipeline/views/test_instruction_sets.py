"""Pixels must not depend on which vector instructions a processor has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.identity import PRESETS
from pipeline.records import MixKind, MixParams, ViewMix
from pipeline.views.apply import apply_op, decode
from pipeline.views.make import make_view
from pipeline.views.mixing import mix_images, normalize
from pipeline.views.ops import OPERATIONS
from tests.factories import encode, photographs

ROOT = Path(__file__).resolve().parents[3]


def views() -> bytes:
    """Return the pixels of decoded photographs, of each operation, and of drawn views."""
    parts = []
    for number, photograph in enumerate(photographs()):
        for options in ({}, {"subsampling": "4:2:0", "quality": 60}, {"progressive": True}):
            image = decode(encode(photograph[:301, :407], **options), "x", max_pixels=1 << 20)
            parts.append(image)
        for operation in OPERATIONS.values():
            parts.append(apply_op(image, operation.probed, PRESETS["deit"]))
        for preset in ("deit", "three-augment"):
            config = PRESETS[preset]
            for view in range(12):
                parts.append(make_view(image, number, view, config))
    return b"".join(part.tobytes() for part in parts)


def mixed() -> bytes:
    """Return a normalized and mixed batch, as the teacher and the student see it."""
    pixels = np.stack([photograph[:64, :64] for photograph in photographs()])
    mix = ViewMix.unmixed(2)
    mix.set_row(0, 1, MixParams(kind=MixKind.MIXUP, lam=20_011, box=None))
    mix.set_row(1, 0, MixParams(kind=MixKind.MIXUP, lam=45_525, box=None))
    config = PRESETS["deit"]
    images = mix_images(normalize(torch.from_numpy(pixels), config.mean, config.std), mix)
    return images.numpy().tobytes()


def digest() -> str:
    import hashlib

    return f"{hashlib.sha256(views()).hexdigest()} {hashlib.sha256(mixed()).hexdigest()}"


def digest_with(environment: dict[str, str]) -> str:
    """Return the digest of a process of its own, with more in its environment."""
    command = [sys.executable, "-c", f"import {__name__} as m; print(m.digest())"]
    found = subprocess.run(
        command,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    return found.stdout.strip()


@pytest.mark.timeout(300)
def test_pixels_do_not_depend_on_vector_instructions(tmp_path):
    plain = {
        "JSIMD_FORCENONE": "1",  # libjpeg-turbo
        "ATEN_CPU_CAPABILITY": "default",  # PyTorch
        "NUMBA_CPU_NAME": "generic",  # our kernels, compiled anew for any x86-64
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    assert digest_with(plain) == digest()
    assert any(tmp_path.rglob("*.kernel"))  # the kernels were compiled anew


def test_no_kernel_reads_memory_that_it_gave_back():
    """Each array has pages of its own here, which are gone, or hold other bytes, once it is freed.

    Numba frees an array after the last line that names it, whatever is read by its address.
    """
    strict = {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_PERTURB_": "165"}  # glibc's
    assert digest_with(strict) == digest()
