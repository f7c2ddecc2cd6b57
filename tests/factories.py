"""Makes images, shards and folders of images for tests; all from installed packages."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.records import Pixels
from pipeline.views.rng import noise_bytes


@lru_cache(maxsize=1)
def photographs() -> tuple[Pixels, Pixels]:
    """Return scikit-learn's two photographs, (427, 640, 3)."""
    from sklearn.datasets import load_sample_images  # slow to load, and few need them

    china, flower = load_sample_images().images
    return china, flower


@lru_cache(maxsize=1)
def digits() -> tuple[tuple[Pixels, ...], NDArray[np.int64]]:
    """Return scikit-learn's 1,797 handwritten digits as (8, 8, 3) images, and their classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    gray = np.minimum(data.images * 16, 255).astype(np.uint8)
    return tuple(np.repeat(one[..., None], 3, axis=2) for one in gray), data.target


def synthetic_image(height: int, width: int, seed: int = 1) -> Pixels:
    """Return noise over a ramp, (H, W, 3): the same bytes everywhere, from no decoder."""
    noise = noise_bytes(seed, height * width * 3).reshape(height, width, 3)
    rows, columns = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    ramp = (160 * rows // height + 60 * columns // width + 10 * np.arange(3)).astype(np.uint8)
    return np.ascontiguousarray(ramp + (noise & 15).astype(np.uint8))


def encode(pixels: Pixels, kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    """Return the image as a file of one of Pillow's kinds, after conversion to ``mode``."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def write_shard(path: Path, samples: Iterable[tuple[str, bytes, int]]) -> Path:
    """Write a shard of (key, JPEG bytes, target), as WebDataset does."""
    from webdataset import TarWriter  # which loads PyTorch

    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for key, image, target in samples:
            tar.write({"__key__": key, "jpg": image, "cls": str(target).encode()})
    return path


def write_members(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar of any (name, bytes), also such as no shard should hold."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def digit_samples(count: int, first: int = 0) -> list[tuple[str, bytes, int]]:
    """Return ``count`` digits as (key, JPEG bytes, target) for ``write_shard``."""
    images, targets = digits()
    return [
        (f"digit_{i:04d}", encode(images[i], quality=95), int(targets[i]))
        for i in range(first, first + count)
    ]


def install_jpegtran(
    directory: Path, monkeypatch: pytest.MonkeyPatch, answers: Mapping[bytes, bytes]
) -> Path:
    """Put a program ``jpegtran`` first into ``PATH`` that knows these files, and return its path.

    It is no transcoder: where Pillow encodes an image with restart markers and without, the
    coefficients are the same, so one of the files answers the other.
    """
    known = directory / "jpegtran-answers"
    known.mkdir()
    for data, answer in answers.items():
        (known / hashlib.sha256(data).hexdigest()).write_bytes(answer)
    program = directory / "jpegtran-program" / "jpegtran"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec cat '{known}'/$(sha256sum | cut -c 1-64)\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return program
