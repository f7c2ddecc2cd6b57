"""From encoded image to training view on one core: ours, and other libraries'.

Run by `make bench SHARDS='...'`; `docs/PERFORMANCE.md` has results.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch loads

import torch
import tyro

from benchmarks.peers import ALBUMENTATIONS, DALI, TIMM, peers
from benchmarks.report import Report, describe_machine, print_table
from benchmarks.timing import Timings, measure, pin_to_one_core
from pipeline.errors import ConfigError
from pipeline.files.local import expand_shards
from pipeline.identity import PRESETS, AugmentConfig
from pipeline.shards.encoding import Encoding, encode_image, find_jpegtran
from pipeline.shards.index import open_shard
from pipeline.store.provenance import processor
from pipeline.views.apply import decode, warm_up
from pipeline.views.make import make_view
from pipeline.views.regions import EncodedImage
from pipeline.views.rng import sample_seed

VIEWS_PER_DECODE = (1, 3, 15)
CROP_FLIP = "ours, crop and flip"
RESTART = "ours, DeiT's recipe, 1 per decode, restart markers"
CROP_FLIP_RESTART = "ours, crop and flip, restart markers"
PACKED = "ours, DeiT's recipe, 1 per decode, packed at 500 px"
PACKED_15 = "ours, DeiT's recipe, 15 per decode, packed at 500 px"


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
    positions = [(shard, index) for shard in shards for index in range(len(shard.samples))]
    step = max(1, len(positions) // config.images)
    data = [bytes(shard.image_bytes(index)) for shard, index in positions[::step]]
    return [one for one in data if one[:2] == b"\xff\xd8"][: config.images]


def ours(images: list[bytes], config: AugmentConfig, views: int) -> Callable[[], int]:
    """Return a case that makes ``views`` views of each image from one decode, as training does."""
    seeds = [sample_seed(0, str(number)) for number in range(len(images))]
    epoch = iter(range(0, 1 << 31, views))

    def run() -> int:
        first = next(epoch)  # other views in each round
        for data, seed in zip(images, seeds, strict=True):
            encoded = EncodedImage(data=data, name="image", max_pixels=config.max_pixels)
            image = encoded if views == 1 else encoded.decode()
            for view in range(first, first + views):
                make_view(image, seed, view, config)
        return len(images) * views

    return run


def decode_alone(images: list[bytes]) -> Callable[[], int]:
    """Return a case that decodes each image."""

    def run() -> int:
        for data in images:
            decode(data, "image", AugmentConfig().max_pixels)
        return len(images)

    return run


def packed(images: list[bytes]) -> list[bytes]:
    """Return the images as `pack-shards --max-side 500 --quality 90` writes them."""
    small = Encoding(max_side=500, quality=90)
    return [encode_image(Path("x.jpg"), data, small).data for data in images]


def marked(images: list[bytes]) -> list[bytes] | None:
    """Return the images as `pack-shards --lossless` writes them, None without jpegtran."""
    try:
        find_jpegtran()
    except ConfigError:
        return None
    lossless = Encoding(lossless=True)
    return [encode_image(Path("x.jpg"), data, lossless).data for data in images]


def _ours_at(views: int) -> str:
    return f"ours, DeiT's recipe, {views} per decode"


def run_benchmark(config: ViewBenchmark) -> Timings:
    """Measure all cases."""
    images = read_images(config)
    full, plain = PRESETS["deit"], PRESETS["crop-flip"]
    warm_up()
    cases: dict[str, Callable[[], int]] = {
        **peers(images),
        "ours, decoding alone": decode_alone(images),
        CROP_FLIP: ours(images, plain, 1),
    }
    for views in VIEWS_PER_DECODE:
        cases[_ours_at(views)] = ours(images, full, views)
    pieces = marked(images)
    if pieces is not None:
        cases[CROP_FLIP_RESTART], cases[RESTART] = ours(pieces, plain, 1), ours(pieces, full, 1)
    small = packed(images)
    cases[PACKED], cases[PACKED_15] = ours(small, full, 1), ours(small, full, 15)
    return measure(cases, config.rounds)


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    config = tyro.cli(ViewBenchmark, description=ViewBenchmark.__doc__)
    torch.set_num_threads(1)
    core = pin_to_one_core()
    timings = run_benchmark(config)
    print(f"{processor()}, core {core}, {config.images} images, {config.rounds} rounds\n")
    print_table(timings, TIMM, "view")
    ratios: dict[str, float | None] = {
        f"view_{views}_per_decode": timings.ratio(TIMM, _ours_at(views))
        for views in VIEWS_PER_DECODE
    }
    with_markers = RESTART in timings.seconds
    ratios["view_1_restart"] = timings.ratio(TIMM, RESTART) if with_markers else None
    ratios["view_1_packed"] = timings.ratio(TIMM, PACKED)
    ratios["view_15_packed"] = timings.ratio(TIMM, PACKED_15)
    for name, peer in {"dali": DALI, "albumentations": ALBUMENTATIONS}.items():
        here = peer in timings.seconds
        ratios[f"crop_flip_vs_{name}"] = timings.ratio(peer, CROP_FLIP) if here else None
    context = {
        "images": config.images,
        "rounds": config.rounds,
        "milliseconds": {case: 1e3 * timings.median(case) for case in timings.seconds},
        "times_timm_by_cpu_time": {case: timings.cpu_ratio(TIMM, case) for case in timings.seconds},
    }
    report = Report(ratios=ratios, context={"machine": describe_machine(), "views": context})
    report.show()
    report.write(config.json)


if __name__ == "__main__":
    main()
