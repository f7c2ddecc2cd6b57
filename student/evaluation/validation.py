"""Validation: the center view of every sample once, with the teacher's label if it is known."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.classes import ClassNames, agreed_names, class_in_words
from pipeline.errors import DecodeError, ShardError, StoreError
from pipeline.files.cache import ShardFile
from pipeline.identity import AugmentConfig
from pipeline.records import Pixels, ShardInfo
from pipeline.shards.index import (
    Shard,
    UniqueKeys,
    match_shards,
    open_indexed_shard,
    summarize_shard,
)
from pipeline.store import open_store
from pipeline.telling import told
from pipeline.views.apply import decode
from student.lending import ALIGNMENT
from student.loading import LoaderOptions, batch_memory, load

__all__ = [
    "ValidationBatch",
    "ValidationDataset",
    "center_views",
    "read_teacher_labels",
    "require_decodable",
    "validation_view",
]

_OPEN_SHARDS = 16
_NAMED = 5  # of the images that do not decode

_CURE = "mend or remove it, so that accuracies count the same images everywhere"

NO_LABEL = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationBatch:
    """N center views with their classes."""

    pixels: Tensor  # (N, S, S, 3) uint8
    target: Tensor  # (N,) int64
    teacher: Tensor  # (N,) int64, the teacher's label, -1 where it is not known

    def pin_memory(self) -> ValidationBatch:
        """Return the batch in pinned memory; the loader calls this."""
        return ValidationBatch(
            pixels=self.pixels.pin_memory(),
            target=self.target.pin_memory(),
            teacher=self.teacher.pin_memory(),
        )


def center_views(
    augment: AugmentConfig, fraction: float, image_size: int | None = None
) -> AugmentConfig:
    """Return the store's settings without any randomness, for validation.

    ``fraction`` is the share of the shorter side that the center crop keeps; the views have
    the store's size unless ``image_size`` is given, in pixels.
    """
    return replace(
        augment,
        image_size=image_size or augment.image_size,
        crop="center",
        center_fraction=fraction,
        hflip=0.0,
        policy="none",
        erase_probability=0.0,
    )


def read_teacher_labels(
    store: str, shards: Sequence[ShardFile], names: ClassNames | None = None
) -> Mapping[str, NDArray[np.int64]]:
    """Return the teacher's label of each sample of validation shards, -1 where it has none.

    Raises ``StoreError`` if the store's views are not plain center views, ``ShardError`` if
    it labels other shards, ``ClassesError`` if its classes have other ``names``.
    """
    labels = open_store(store)
    agreed_names(names, ClassNames.of(labels.manifest.classes, f"`val_labels` {store}"))
    identity = labels.identity
    if center_views(identity.augment, identity.augment.center_fraction) != identity.augment or (
        identity.mix.probability
    ):
        raise StoreError(
            f"`val_labels` {store} labels augmented or mixed views, which are not those that are "
            "evaluated; label the validation shards with the preset center"
        )
    numbers = match_shards(labels.manifest.shards, shards, "val_shards", subset=None)
    view = labels.manifest.view_range.start
    found = {}
    for number, path in numbers.items():
        rows = labels.read_view(number, view)
        found[str(path)] = np.where(rows.accepted, rows.label.astype(np.int64), NO_LABEL)
    return found


class ValidationDataset(Dataset[ValidationBatch]):
    """Consecutive batches of all samples of some shards, with the teacher's ``labels`` if given.

    Raises ``ShardError`` for a shard that cannot be read, a key that two shards have, or a class
    that the student lacks; an item raises it for an image that does not decode.
    """

    def __init__(
        self,
        paths: Sequence[ShardFile],
        views: AugmentConfig,
        *,
        classes: int,
        batch_size: int,
        labels: Mapping[str, NDArray[np.int64]] | None = None,
        names: ClassNames | None = None,
    ) -> None:
        self._paths, self._batch_size = tuple(paths), batch_size
        self.views = views
        self._labels = labels or {}
        self._forget()
        self._infos, keys = list[ShardInfo](), UniqueKeys()
        for number, path in enumerate(self._paths):
            summary = summarize_shard(path, number)
            self._infos.append(summary.info)
            keys.add(path, summary)
            if summary.max_target >= classes:
                found = class_in_words(summary.max_target, None if names is None else names.names)
                raise ShardError(
                    f"{path}: sample {summary.max_target_key!r} has class {found}, the store's "
                    f"teacher and the student have {classes} classes (0..{classes - 1}); give "
                    "validation shards whose .cls are the teacher's class indices"
                )
        keys.check()
        self._ends = list(accumulate(info.samples for info in self._infos))

    def _forget(self) -> None:
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._open_shard)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_shard"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def __len__(self) -> int:
        return -(-self._ends[-1] // self._batch_size) if self._ends else 0

    def __getitem__(self, item: int) -> ValidationBatch:
        rows, side = self.rows_of(item), self.views.image_size
        pixels = batch_memory(len(rows), side, side, 3)
        for view, row in zip(pixels.numpy(), rows, strict=True):
            view[:] = self.view_of(row)
        target, teacher = zip(*map(self._classes_of, rows), strict=True)
        return ValidationBatch(
            pixels=pixels, target=torch.tensor(target), teacher=torch.tensor(teacher)
        )

    @property
    def item_bytes(self) -> int:
        """Return how many bytes the tensors of an item take at most."""
        classes = 2 * 8
        return self._batch_size * (3 * self.views.image_size**2 + classes) + 3 * ALIGNMENT

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher's labels are known, of all samples that it could decode."""
        return bool(self._labels)

    def _open_shard(self, number: int) -> Shard:
        return open_indexed_shard(self._paths[number], self._infos[number])

    def rows_of(self, item: int) -> range:
        """Return the samples of a batch, counted over all shards."""
        start = item * self._batch_size
        return range(start, min(start + self._batch_size, self._ends[-1]))

    def key_of(self, row: int) -> str:
        """Return a sample's key."""
        shard, index = self._place(row)
        return shard.samples[index].key

    def view_of(self, row: int) -> Pixels:
        """Return a sample's center view, (S, S, 3)."""
        return validation_view(self.decode_row(row), self.views)

    def decode_row(self, row: int) -> Pixels:
        """Return a sample's image; raises ``ShardError`` naming it if it does not decode."""
        shard, index = self._place(row)
        sample, data = shard.samples[index], shard.image_bytes(index)
        try:
            return decode(data, sample.image_name, self.views.max_pixels)
        except DecodeError as error:
            raise ShardError(
                f"{shard.path}: validation image {sample.key!r} does not decode ({error}); {_CURE}"
            ) from error

    def _place(self, row: int) -> tuple[Shard, int]:
        """Return a sample's shard, and its index there."""
        number = bisect.bisect_right(self._ends, row)
        return self._shard(number), row - (self._ends[number - 1] if number else 0)

    def _classes_of(self, row: int) -> tuple[int, int]:
        """Return a sample's class and the teacher's label."""
        shard, index = self._place(row)
        labels = self._labels.get(str(self._paths[shard.info.number]))
        teacher = NO_LABEL if labels is None else int(labels[index])
        return shard.samples[index].target, teacher


def validation_view(image: Pixels, views: AugmentConfig) -> Pixels:
    """Return the center of an image, (H, W, 3), as timm and torchvision evaluate it, (S, S, 3).

    The shorter side is resized to S over the fraction that the crop keeps, by Pillow's bicubic
    filter, and the middle is cut out. Views that are labelled come from this package's own
    resampling, which has other last bits.
    """
    size = views.image_size
    height, width = image.shape[:2]
    short = math.floor(size / views.center_fraction)
    long = int(short * max(height, width) / min(height, width))
    resized = (short, long) if width <= height else (long, short)
    pixels = np.asarray(Image.fromarray(image).resize(resized, Image.Resampling.BICUBIC))
    left, top = (round((side - size) / 2) for side in resized)
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])


def require_decodable(dataset: ValidationDataset, options: LoaderOptions) -> None:
    """Raise ``ShardError`` naming validation images that do not decode.

    All are decoded, in the loader's processes: a header may be whole where pixels are not, and an
    image that is found after the first epoch costs that epoch.
    """
    batches = load(_Decoding(dataset), range(len(dataset)), options)
    shown = told(batches, "decoding validation images", "batches", len(dataset))
    found = [text for texts in shown for text in texts]
    if found:
        more = f"\n  and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise ShardError(
            f"{len(found)} validation images do not decode; {_CURE}:\n  "
            + "\n  ".join(found[:_NAMED])
            + more
        )


class _Decoding(Dataset[tuple[str, ...]]):
    """Item k says which images of the k-th batch do not decode."""

    def __init__(self, dataset: ValidationDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, item: int) -> tuple[str, ...]:
        found = []
        for row in self._dataset.rows_of(item):
            try:
                self._dataset.decode_row(row)
            except ShardError as error:
                found.append(str(error).removesuffix(f"; {_CURE}"))
        return tuple(found)
