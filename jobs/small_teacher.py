"""Trains a small teacher on augmented views of labelled shards, for want of a published one.

The views are the project's own, drawn from another root seed than a label job's default, so
the teacher does not see in advance what it will label. They are not mixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.classes import names_beside
from pipeline.cli.console import (
    counted,
    first_of,
    flags_of,
    note,
    parse_flags,
    running,
    say,
    some_of,
    tell,
    tell_next,
    unused,
    words_given,
)
from pipeline.cli.following import MILD, SMALL_SIDE
from pipeline.errors import ConfigError, DecodeError, ShardError
from pipeline.files.local import expand_shards, replace, require_writable
from pipeline.growth import require
from pipeline.identity import AugmentConfig
from pipeline.labelling.agreement import least_share
from pipeline.labelling.timm_files import require_model
from pipeline.labelling.weights import tensor_file
from pipeline.records import Pixels
from pipeline.shards.index import open_shard
from pipeline.telling import step
from pipeline.views.apply import decode
from pipeline.views.make import make_view
from pipeline.views.mixing import normalize
from pipeline.views.rng import sample_seed

__all__ = ["TeacherTraining", "TrainedTeacher", "main", "train_teacher"]

ROOT_SEED = 1_000_003  # a label job's default is 0
_LISTED = 5  # names printed before "and N more"
_KEPT = ("model", "image_size", "crop_scale", "hflip", "lr", "threads", "seed")
_MANY_EPOCHS, _SMALL_BATCH = 60, 16  # of which a small network learns from some dozens of images


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherTraining:
    """Train a small teacher on shards, for want of one, and write it as .safetensors."""

    shards: tuple[str, ...]
    """Shards to learn from: files, brace patterns or globs, in quotes."""
    val_shards: tuple[str, ...]
    """Shards to report the accuracy on."""
    out: Path
    """File to write, a .safetensors."""
    model: str = "test_resnet"
    """timm's name; this one is tiny, and learns small images on a CPU."""
    image_size: int = 64
    """Side of the views, in pixels."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Smallest and largest share of the image that a crop covers."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    epochs: int = 10
    """Epochs, each on new views."""
    batch_size: int | None = None
    """Views of a batch: by default 32, fewer where there are fewer than 256 images."""
    lr: float = 3e-3
    """Peak learning rate of AdamW."""
    threads: int = 1
    """CPU threads of PyTorch; more do not help with views this small."""
    seed: int = 0
    """Seed of weights and order."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "threads"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "use 1 or more")
        require(self, "lr", 0 < self.lr < math.inf, "use more than 0")
        require(self, "out", self.out.suffix == ".safetensors", "its name ends in .safetensors")
        require_model(self.model, "model")


@dataclass(frozen=True, slots=True)
class Images:
    """N decoded images with their seeds and classes."""

    pixels: tuple[Pixels, ...]
    seed: tuple[int, ...]
    target: NDArray[np.int64]  # (N,)
    classes: int  # one more than the highest, those of images that do not decode included


def read_images(patterns: tuple[str, ...]) -> Images:
    """Decode all images of some shards; those that do not decode are left out, which is said."""
    pixels, seeds, targets, broken, classes = [], [], [], [], 0
    for number, path in enumerate(expand_shards(patterns)):
        shard = open_shard(path, number)
        for index, sample in enumerate(shard.samples):
            classes = max(classes, sample.target + 1)
            data = shard.image_bytes(index)
            try:
                pixels.append(decode(data, sample.image_name, AugmentConfig().max_pixels))
            except DecodeError:
                broken.append(sample.image_name)
                continue
            seeds.append(sample_seed(ROOT_SEED, sample.key))
            targets.append(sample.target)
    count = len(pixels) + len(broken)
    if not pixels:
        raise ShardError(
            f"{' '.join(patterns)}: none of the {count} images decodes; are these the right shards?"
        )
    if broken:
        names = first_of(broken, _LISTED)
        say(f"left out {len(broken)} of {count} images, which do not decode: {names}")
    return Images(tuple(pixels), tuple(seeds), np.array(targets), classes)


def views_of(images: Images, rows: NDArray[np.int64], view: int, config: AugmentConfig) -> Tensor:
    """Return one view of each of these images, (N, 3, S, S) normalized."""
    views = []
    for row in rows:
        image = images.pixels[row]
        views.append(make_view(image, images.seed[row], view, config))
    return normalize(torch.from_numpy(np.stack(views)), config.mean, config.std)


def batches(count: int, size: int, order: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of an epoch's full batches."""
    rows = order.permutation(count)
    for start in range(0, count - size + 1, size):
        yield rows[start : start + size]


def create(options: TeacherTraining, classes: int) -> nn.Module:
    """Return an untrained model; raise ``ConfigError`` for one that takes no such images."""
    try:
        model: nn.Module = timm.create_model(options.model, num_classes=classes)
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, options.image_size, options.image_size))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"`model` {options.model} does not take images with an `image_size` of "
            f"{options.image_size} ({why}); choose another, or another size"
        ) from error
    return model


def batch_of(options: TeacherTraining, count: int) -> int:
    """Return the views of a batch, of so many images: few of them make small batches, of 8 or more.

    Raises ``ConfigError`` if more are asked for than there are.
    """
    if options.batch_size is None:
        return min(32, max(count // 8, min(8, count)))
    if options.batch_size > count:
        raise ConfigError(
            f"`batch_size` is {options.batch_size}, and there are {count} images to "
            "learn from; use no more than these"
        )
    return options.batch_size


def train(
    options: TeacherTraining, images: Images, views: AugmentConfig, batch_size: int
) -> nn.Module:
    """Return a model trained on an epoch of new views at a time."""
    torch.manual_seed(options.seed)
    order = np.random.default_rng(options.seed)
    model = create(options, images.classes)
    model = model.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.05)
    steps = options.epochs * (len(images.pixels) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps)
    target = torch.from_numpy(images.target)
    with step("training", "steps") as show:
        show(0, steps)
        for epoch in range(options.epochs):
            model.train()
            total = 0.0
            for rows in batches(len(images.pixels), batch_size, order):
                logits = model(views_of(images, rows, epoch, views))
                loss = F.cross_entropy(logits, target[rows], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += loss.item() * len(rows)
                show(schedule.last_epoch, steps)
            say(f"epoch {epoch + 1}/{options.epochs}: loss {total / len(images.pixels):.3f}")
    return model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, images: Images, side: int) -> float:
    """Return the share of plain images that the model gets right."""
    plain = AugmentConfig(
        image_size=side,
        crop="center",
        center_fraction=1.0,
        hflip=0.0,
        policy="none",
        erase_probability=0.0,
    )
    found = model(views_of(images, np.arange(len(images.pixels)), 0, plain)).argmax(1).numpy()
    return float((found == images.target).mean())


def main(arguments: Sequence[str] | None = None, program: str = "train-teacher") -> None:
    """Train, report and write."""
    arguments = words_given(arguments)
    again = "interrupted; nothing is written, run the same command again"
    with running(program, flags_of(TeacherTraining), again, arguments):
        options: TeacherTraining = parse_flags(TeacherTraining, program, arguments)
        trained = train_teacher(options)
        say(f"{options.out}: {options.model}, {trained.share:.1%} of the validation images right")
        if trained.is_poor and options.epochs < _MANY_EPOCHS:
            _tell_better(options, min(_SMALL_BATCH, trained.batch_size))
        else:
            _tell_labelling(options)


def _tell_better(options: TeacherTraining, batch_size: int) -> None:
    """Name the command that trains a better teacher, of the same images."""
    given: list[str] = []
    for one in fields(options):
        value = getattr(options, one.name)
        if one.name in _KEPT and value != one.default:
            values = value if isinstance(value, tuple) else (value,)
            given += [f"--{one.name.replace('_', '-')}", *map(str, values)]
    tell("train a better one, that learns for longer:")
    tell_next(
        "teacher-labels",
        "train-teacher",
        *("--shards", *some_of(options.shards), "--val-shards", *some_of(options.val_shards)),
        *("--epochs", str(_MANY_EPOCHS), "--batch-size", str(batch_size), *given),
        *("--out", unused(str(options.out))),
    )


def _tell_labelling(options: TeacherTraining) -> None:
    """Name the commands that let a teacher label: for small images views that are mild."""
    teacher = ("--teacher", options.model, "--teacher-checkpoint", str(options.out))
    last = ("--image-size", str(options.image_size), *teacher)
    mild = MILD if options.image_size <= SMALL_SIDE else ("--views", "16")
    tell("see what it gets wrong on plain images, and then let it label:")
    for shards, out, views in (
        (options.val_shards, "val.parquet", ("--views", "1", "--preset", "center")),
        (options.shards, "labels.parquet", mild),
    ):
        given = ("--shards", *some_of(shards), "--out", unused(out))
        tell_next("teacher-labels", "label", *given, *views, *last)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTeacher:
    """How a training went."""

    share: float  # of the validation images, those that are right
    is_poor: bool  # too few of them for a label job
    batch_size: int


def train_teacher(options: TeacherTraining) -> TrainedTeacher:
    """Train a teacher, write its file, and say how well it knows the validation images."""
    torch.set_num_threads(options.threads)
    require_writable(options.out)
    views = AugmentConfig(
        image_size=options.image_size,
        crop_scale=options.crop_scale,
        hflip=options.hflip,
        policy="none",
        erase_probability=0.0,
    )
    images, validation = read_images(options.shards), read_images(options.val_shards)
    batch_size = batch_of(options, len(images.pixels))
    say(f"training {options.model} on {len(images.pixels)} images, {options.epochs} epochs")
    model = train(options, images, views, batch_size)
    share = accuracy(model, validation, options.image_size)
    guess = np.bincount(validation.target).max() / len(validation.target)
    say(f"validation: {len(validation.target)} images, {guess:.1%} of them of the commonest class")
    is_poor = share < least_share(images.classes, guess)
    if is_poor:
        steps = options.epochs * (len(images.target) // batch_size)
        naming_one = max(guess, 1 / images.classes)
        note(
            f"warning: {share:.1%} of the validation images right is little, where naming one "
            f"class alone gives {naming_one:.1%}, and a label job may refuse this teacher. It "
            f"learned in {counted(steps, 'step')}: give more `epochs`, a smaller `batch_size`, or "
            "more images, of each class about as many"
        )
    said: dict[str, object] = {
        "image_size": options.image_size,
        "mean": views.mean,
        "std": views.std,
        "accuracy": share,
    }
    names = names_beside(expand_shards(options.shards))
    if names is not None:  # a label job compares them with those of its shards
        said["class_names"] = names.names
    replace(options.out, tensor_file(model.state_dict(), said))
    return TrainedTeacher(share=share, is_poor=is_poor, batch_size=batch_size)
