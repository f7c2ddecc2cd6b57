"""Training and validation shards: given ones, shuffled if need be, or CIFAR-10 fetched."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from examples.cifar10.config import EvidenceConfig
from pipeline.classes import CLASSES_FILE, names_beside
from pipeline.errors import ConfigError
from pipeline.files.local import expand_shards
from pipeline.labelling.job import index_shards
from pipeline.shards.index import open_shard
from pipeline.shards.packing import PackConfig, pack_shards

__all__ = ["Shards", "find_shards", "pack_images", "shuffle_shards"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Files of shards, as patterns."""

    training: tuple[str, ...]
    validation: tuple[str, ...]


def find_shards(config: EvidenceConfig) -> Shards:
    """Return the shards, after fetching and packing them if that was asked for.

    Training shards that are sorted by class are packed anew into --out, shuffled: pairs are
    drawn within a shard, and pairs of one class would make mixing another thing.
    """
    if config.download is None:
        training = config.shards
        if index_shards(training).warnings:
            training = (shuffle_shards(training, config.out / "shards"),)
        shards = Shards(training=training, validation=config.val_shards)
    else:
        shards = _fetch(config.download, config.download_images)
    if not config.smoke:
        return shards
    return Shards(training=_first(shards.training), validation=_first(shards.validation))


def _first(patterns: tuple[str, ...]) -> tuple[str, ...]:
    return (str(expand_shards(patterns)[0]),)


def shuffle_shards(patterns: tuple[str, ...], directory: Path) -> str:
    """Pack the images of some shards anew, in random order, and return the pattern of shards.

    Names of classes are kept. Nothing is done if that was done before. Raises ``ConfigError`` if
    the classes have neither names nor are 0, 1, 2, ... without a gap.
    """
    out = directory / "shuffled"
    if (out / CLASSES_FILE).exists():
        return str(out / "*.tar")
    print(f"evidence: {', '.join(patterns)} are sorted by class; packing them in {out}", flush=True)
    folder = directory / "images"
    for left in (folder, out):
        shutil.rmtree(left, ignore_errors=True)
    files = expand_shards(patterns)
    names = names_beside(files)
    targets = set()
    for number, file in enumerate(files):
        shard = open_shard(file, number)
        for index, sample in enumerate(shard.samples):
            targets.add(sample.target)
            # Five digits, so that directories sort as their classes do.
            of_class = f"{sample.target:05d}" if names is None else names.names[sample.target]
            path = folder / of_class / f"{sample.key}{Path(sample.image_name).suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(shard.image_bytes(index))
    if names is None and targets != set(range(len(targets))):
        raise ConfigError(
            f"--shards have the classes {sorted(targets)}; number them 0, 1, 2, ... without a gap, "
            "or give shards that pack-shards has shuffled"
        )
    classes = None if names is None else names.source
    pack_shards(PackConfig(images=folder, out=str(out), classes=classes))
    shutil.rmtree(folder)
    return str(out / "*.tar")


def _fetch(directory: Path, images: tuple[int, int]) -> Shards:
    from torchvision.datasets import CIFAR10

    patterns = []
    for split, count in zip(("train", "val"), images, strict=True):
        out = directory / "shards" / f"{split}-{count}"
        if not (out / CLASSES_FILE).exists():
            data = CIFAR10(str(directory / "download"), train=split == "train", download=True)
            pack_images(data, data.classes, count, directory / "images" / f"{split}-{count}", out)
        patterns.append((str(out / "*.tar"),))
    training, validation = patterns
    return Shards(training=training, validation=validation)


def pack_images(
    data: Iterable[tuple[Image.Image, int]],
    classes: Sequence[str],
    count: int,
    folder: Path,
    out: Path,
) -> None:
    """Write the first images of each class, ``count`` in all, as PNG files, and pack them.

    What an interrupted run left is written anew. Raises ``ConfigError`` if there are too few.
    """
    each = count // len(classes)
    for left in (folder, out):
        shutil.rmtree(left, ignore_errors=True)
    written: Counter[int] = Counter()
    for number, (image, target) in enumerate(data):
        if written[target] < each:
            written[target] += 1
            path = folder / classes[target] / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    if each == 0 or any(written[target] < each for target in range(len(classes))):
        raise ConfigError(
            f"--download-images asks for {count} images, {each} of each of {len(classes)} classes; "
            f"there are {sum(written.values())}: ask for fewer, and at least one of each"
        )
    pack_shards(PackConfig(images=folder, out=str(out)))
