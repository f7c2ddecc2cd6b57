"""From encoded image to training view on one core: ours, timm's, torchvision's.

Run by `make bench SHARDS='...'`; `docs/PERFORMANCE.md` has results.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch loads

import numpy as np
import torch
import tyro
from PIL import Image
from timm.data import create_transform
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from benchmarks.timing import Timings, measure, pin_to_one_core
from pipeline.augment import apply_view, decode, image_size, warm_up
from pipeline.config import PRESETS, AugmentConfig
from pipeline.files import expand_shards
from pipeline.packing import shrink
from pipeline.provenance import processor, versions
from pipeline.rng import sample_seed
from pipeline.shards import open_shard
from pipeline.views import draw_view

VIEWS_PER_DECODE = (1, 3, 15)
AIMS = {
    "view_1_per_decode": 2.0,
    "view_3_per_decode": 3.3,
    "view_15_per_decode": 4.0,
    "view_1_packed": 3.0,
}
"""What we aim at, as multiples of timm's speed."""
PACKED = "ours, DeiT's recipe, 1 per decode, packed at 500 px"


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewBenchmark:
    """Compare how fast views of real JPEGs are made, on one core."""

    shards: tuple[str, ...]
    """Shards of photographs: files, brace patterns or globs, in quotes."""
    images: int = 100
    """Images, spread over the shards."""
    rounds: int = 7
    """Rounds; each runs every case once."""
    json: Path | None = None
    """File to write the ratios to."""


def read_images(config: ViewBenchmark) -> list[bytes]:
    """Return encoded JPEGs from all over the shards."""
    shards = [open_shard(path, n) for n, path in enumerate(expand_shards(config.shards))]
    places = [(shard, index) for shard in shards for index in range(len(shard.samples))]
    step = max(1, len(places) // config.images)
    data = [bytes(shard.image_bytes(index)) for shard, index in places[::step]]
    return [one for one in data if one[:2] == b"\xff\xd8"][: config.images]


def ours(images: list[bytes], config: AugmentConfig, views: int) -> Callable[[], int]:
    """Return a case that makes ``views`` views of each image from one decode."""
    seeds = [sample_seed(0, str(number)) for number in range(len(images))]
    epoch = iter(range(0, 1 << 31, views))

    def run() -> int:
        first = next(epoch)  # other views in each round
        for data, seed in zip(images, seeds, strict=True):
            image = decode(data, "image")
            size = image_size(image)
            for view in range(first, first + views):
                apply_view(image, draw_view(seed, view, size, config), config)
        return len(images) * views

    return run


def timm_recipe(images: list[bytes], *, augment: bool) -> Callable[[], int]:
    """Return a case that runs timm's DeiT transform, or its crop and flip alone."""
    transform = create_transform(
        224,
        is_training=True,
        interpolation="bicubic",
        auto_augment="rand-m9-mstd0.5-inc1" if augment else None,
        color_jitter=None,
        re_prob=0.25 if augment else 0.0,
        re_mode="pixel",
    )

    def run() -> int:
        for data in images:
            # One view in 660 asks for posterize with 0 bits, at which Pillow 13 raises.
            with contextlib.suppress(ValueError):
                transform(Image.open(io.BytesIO(data)).convert("RGB"))
        return len(images)

    return run


def torchvision_crop_flip(images: list[bytes]) -> Callable[[], int]:
    """Return a case of torchvision's v2 transforms on tensors, crop and flip."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in images]

    def run() -> int:
        for data in tensors:
            transform(decode_jpeg(data, mode=ImageReadMode.RGB))
        return len(tensors)

    return run


def decode_alone(images: list[bytes]) -> Callable[[], int]:
    """Return a case that decodes each image."""

    def run() -> int:
        for data in images:
            decode(data, "image")
        return len(images)

    return run


def packed(images: list[bytes]) -> list[bytes]:
    """Return the images as `pack-shards --max-side 500 --quality 90` writes them."""
    small = [shrink(Path("image"), data, max_side=500, quality=90) for data in images]
    return [new or old for new, old in zip(small, images, strict=True)]


def run_benchmark(config: ViewBenchmark) -> Timings:
    """Measure all cases."""
    images = read_images(config)
    full, plain = PRESETS["deit"], PRESETS["crop-flip"]
    warm_up()
    cases: dict[str, Callable[[], int]] = {
        "timm, DeiT's recipe": timm_recipe(images, augment=True),
        "timm, crop and flip": timm_recipe(images, augment=False),
        "torchvision v2 on tensors, crop and flip": torchvision_crop_flip(images),
        "ours, decoding alone": decode_alone(images),
        "ours, crop and flip": ours(images, plain, 1),
    }
    for views in VIEWS_PER_DECODE:
        cases[f"ours, DeiT's recipe, {views} per decode"] = ours(images, full, views)
    cases[PACKED] = ours(packed(images), full, 1)
    return measure(cases, config.rounds)


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    config = tyro.cli(ViewBenchmark, description=ViewBenchmark.__doc__)
    torch.set_num_threads(1)
    core = pin_to_one_core()
    timings = run_benchmark(config)
    base = "timm, DeiT's recipe"
    print(f"{processor()}, core {core}, {config.images} images, {config.rounds} rounds\n")
    print("| one view | ms, median | times timm's recipe, median | least .. most |")
    print("|---|---|---|---|")
    for case in timings.seconds:
        ratios = timings.ratios(base, case)
        print(
            f"| {case} | {1e3 * timings.median(case):.2f} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f} .. {max(ratios):.2f} |"
        )
    ratios_by_name = {
        f"view_{views}_per_decode": timings.ratio(base, f"ours, DeiT's recipe, {views} per decode")
        for views in VIEWS_PER_DECODE
    }
    ratios_by_name["view_1_packed"] = timings.ratio(base, PACKED)
    print()
    for name, value in ratios_by_name.items():
        print(f"{name}: {value:.2f} (aim: {AIMS[name]})")
    if config.json is not None:
        context = {
            "processor": processor(),
            "platform": platform.platform(),
            "python": sys.version.split()[0],
            "versions": {**versions(), "numpy": np.__version__},
            "images": config.images,
            "rounds": config.rounds,
            "milliseconds": {case: 1e3 * timings.median(case) for case in timings.seconds},
        }
        config.json.write_text(
            json.dumps({"ratios": ratios_by_name, "context": context}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
