"""Which command comes after another, whole, so that it can be pasted as it stands."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.classes import CLASSES_FILE
from pipeline.cli.console import some_of, tell, tell_next, unused
from pipeline.errors import PipelineError
from pipeline.files.local import open_folder
from pipeline.files.objects import is_url
from pipeline.shards.packing import VALIDATION, PackConfig

if TYPE_CHECKING:
    from pipeline.store import Manifest

__all__ = [
    "MILD",
    "SMALL_SIDE",
    "shards_of",
    "student_flags",
    "tell_after_labelling",
    "tell_after_packing",
    "tell_look",
    "tell_report",
    "tell_training",
    "tell_verify",
    "validation_beside",
]

SMALL_SIDE = 96  # in pixels, up to which timm's smallest network sees all of an image
MILD = ("--views", "16", "--preset", "crop-flip", "--crop-scale", "0.5", "1")
"""Views from which a small student learns of a small teacher; the defaults are for ImageNet."""
_FEW_SAMPLES = 20_000
_KEPT = ("per_shard", "max_side", "quality", "restart", "lossless")
"""Settings that all shards of a data set share."""


def tell_after_packing(config: PackConfig) -> None:
    """Name what comes next: the images that are not packed yet, and then a teacher."""
    training, validation = _both(config)
    if training is not None and validation is not None:
        weights = unused("teacher.safetensors")
        both = ("--shards", training, "--val-shards", validation)
        tell(
            "a teacher of your own labels them by `label-teacher`, with its --teacher and "
            "--teacher-checkpoint; for want of one, train a small one:"
        )
        tell_next("teacher-labels", "train-teacher", *both, "--out", weights)
        return
    name, missing = ("val", _validation_images) if validation is None else ("train", _images)
    images = missing(config)
    if images is not None:
        order = config.out if config.classes is None else config.classes
        out = _beside(config.out, name)
        flags = (*images, "--out", out if is_url(out) else unused(out), "--classes", order)
        tell_next("pack-shards", *flags, *_kept(config))
    elif validation is not None:
        tell("pack the images to learn from too, if they are not packed yet")
    else:
        _tell_split(config)


def _tell_split(config: PackConfig) -> None:
    """Name two commands that pack the same images in two parts, in either order."""
    above, _, last = config.out.rstrip("/").rpartition("/")
    root = (above or "shards") if last == "train" else config.out.rstrip("/")
    root = root if Path(root).name else str(Path("..", "shards"))  # "." has no name
    root = f"{root}-2" if is_url(root) else unused(root)
    order = str(config.images) if config.classes is None else config.classes
    tell("to have images to validate on, pack these anew, in two parts:")
    for low, high, name in (("0", "0.8", "train"), ("0.8", "1", "val")):
        part = ("--images", str(config.images), "--part", low, high)
        flags = ("--out", f"{root}/{name}", "--classes", order)
        tell_next("pack-shards", *part, *flags, *_kept(config))


def _both(config: PackConfig) -> tuple[str | None, str | None]:
    """Return the shards to learn from and those to validate on, as far as they are there."""
    learned = config.classes
    if learned is not None and Path(learned).is_file():
        learned = str(Path(learned).parent)
    if learned is not None and (learned == config.out or not _holds_shards(learned)):
        learned = None
    words = {config.images.name, config.out.rstrip("/").rpartition("/")[2]}
    if learned is None and not config.part[0] and words.isdisjoint(VALIDATION):
        beside = validation_beside((config.out,))
        return config.out, beside[1] if beside and _alike(config.out, beside[1]) else None
    if learned is None:
        learned = _beside(config.out, "train")
        if is_url(learned) or not (_holds_shards(learned) and _alike(config.out, learned)):
            learned = None
    return learned, config.out


def _validation_images(config: PackConfig) -> tuple[str, ...] | None:
    """Return the flags for images to validate on: those of the other part, or beside these."""
    if config.part[1] < 1:
        return ("--images", str(config.images), "--part", f"{config.part[1]:g}", "1")
    return _images_beside(config.images, VALIDATION)


def _images(config: PackConfig) -> tuple[str, ...] | None:
    """Return the flags for images to learn from: those of the other part, or beside these."""
    if config.part[0] > 0:
        return ("--images", str(config.images), "--part", "0", f"{config.part[0]:g}")
    return _images_beside(config.images, ("train", "training"))


def _images_beside(images: Path, names: Sequence[str]) -> tuple[str, ...] | None:
    found = (images.with_name(name) for name in names if images.name)
    there = next((one for one in found if one != images and one.is_dir()), None)
    return None if there is None else ("--images", str(there))


def _beside(out: str, name: str) -> str:
    """Return where other shards of a data set are: beside these."""
    if is_url(out):
        return f"{out.rstrip('/').rpartition('/')[0]}/{name}"
    path = Path(out)  # "." has no name
    return str(path.with_name(name) if path.name else path / ".." / name)


def _kept(config: PackConfig) -> tuple[str, ...]:
    """Return the flags of settings that other shards of a data set should have too."""
    words: list[str] = []
    for field in fields(PackConfig):
        value = getattr(config, field.name)
        if field.name in _KEPT and value != field.default:
            words += [f"--{field.name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return tuple(words)


def _holds_shards(location: str) -> bool:
    return is_url(location) or any(Path(location).glob("*.tar"))


def _alike(one: str, other: str) -> bool:
    """Return whether two directories of shards name the same classes."""
    files = [Path(at) / CLASSES_FILE for at in (one, other)]
    return all(map(Path.is_file, files)) and files[0].read_bytes() == files[1].read_bytes()


def tell_after_labelling(store: str, manifest: Manifest, shards: Sequence[str]) -> None:
    """Name what comes after a label job: a look, and of views to learn from a proof, a student."""
    tell_look(store, manifest, shards)
    if not _is_plain(manifest):
        tell_verify(store, shards)
        tell_training(store, manifest, shards)


def tell_verify(store: str, shards: Sequence[str]) -> None:
    """Name the command that proves a store; of files alone where its shards are not known."""
    given = ("--shards", *some_of(shards), "--all") if shards else ()
    tell_next("label-store", "verify", store, *given)


def tell_look(store: str, manifest: Manifest, shards: Sequence[str]) -> None:
    """Name the command that shows a store: of plain images the mistakes, of others the views.

    On a mixed view another class than the image's own is mostly no mistake.
    """
    shown = ("--disagree", "--out", unused("wrong.png"))
    if not _is_plain(manifest):
        shown = ("--original", "--out", unused("views.png"))
    tell_next("label-store", "show", store, "--shards", *some_of(shards), *shown)


def tell_report(store: str, *more: str, shards: Sequence[str] = ()) -> None:
    """Name the command that writes a page about a store."""
    given = ("--shards", *some_of(shards)) if shards else ()
    tell_next("label-store", "report", store, *given, *more, "--out", unused("report.html"))


def tell_training(store: str, manifest: Manifest, shards: Sequence[str]) -> None:
    """Name the command that trains a student of views to learn from."""
    views, side = manifest.view_range, manifest.identity.augment.image_size
    if _is_plain(manifest) or not shards:
        return
    tell_next(
        "train-student",
        *("--labels", store, "--shards", *some_of(shards), *validation_beside(shards)),
        *("--epochs", str(len(views)), *student_flags(manifest.counts.labelled, side)),
        *("--output", unused("runs/first")),
    )


def _is_plain(manifest: Manifest) -> bool:
    """Return whether views are images as they are looked at, not learned from."""
    return manifest.identity.augment.crop == "center"


def shards_of(store: str, given: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the shards of a store: those that are given, or that its label jobs recorded, if any.

    What a record says is whoever's the store is: what would be a flag or no text is not taken.
    """
    from pipeline.tools.extend import recorded_shards

    with contextlib.suppress(PipelineError, OSError):
        return tuple(given) or recorded_shards(open_folder(store))
    return ()


def validation_beside(shards: Sequence[str]) -> tuple[str, ...]:
    """Return the flag for validation shards, if a directory beside these is one by its name."""
    if any(map(is_url, shards)):
        return ()
    named = map(Path, shards)
    training = {one if one.is_dir() else one.parent for one in named}
    beside = [one.with_name(name) for name in VALIDATION for one in training if one.name]
    there = [one for one in beside if one not in training and any(one.glob("*.tar"))]
    return ("--val-shards", str(there[0])) if there else ()


def student_flags(samples: int, side: int) -> tuple[str, ...]:
    """Return flags for a student that learns from so many samples: from few no transformer does."""
    if samples >= _FEW_SAMPLES:
        return ()
    model = "test_resnet" if side <= SMALL_SIDE else "resnet18"
    batch = min(32, 1 << max(0, (samples // 8).bit_length() - 1))
    learning = ("--batch-size", str(batch), "--lr", "3e-3")
    return ("--model", model, "--distillation-kind", "classical", *learning)
