"""The pictures of a report: which views are chosen in one pass, and how they become a gallery."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.classes import class_text
from pipeline.records import Box, MixKind, PartRows, Pixels
from pipeline.reporting.images import SMALL, image_url
from pipeline.reporting.page import Facet, Gallery, Picture
from pipeline.tools.show import DrawnView, ViewIndex, doubt_of
from pipeline.tools.stats import ShardLabels

__all__ = ["Chooser", "gallery_of", "picture_of"]

_CONTEXT = 128  # side of the small image beside a picture's text
_BOX = (255, 64, 0)

_FACETS = (
    Facet(name="teacher", title="The teacher", grouped=True),
    Facet(name="truth", title="True class"),
    Facet(name="label", title="Teacher's class"),
    Facet(name="mixing", title="Mixing"),
    Facet(name="entropy", title="Entropy of the sample's labels, bits, from", least=True),
)

Bits: TypeAlias = Mapping[tuple[int, int], float]
"""Entropy of a sample's labels over its views, by shard and index in the shard."""


class Chooser:
    """Chooses views while shards go by: as many whatever their number, and the same each time.

    Half of them are views that the teacher calls otherwise than the truth, a quarter those of
    which it is least sure, by its probabilities where they are stored, else by how much the
    labels of a sample vary over its views; the others are from all over the store.
    """

    def __init__(self, shards: Collection[int], most: int) -> None:
        self._shards, self._most = set(shards), most
        self._wrong, self._doubtful, self._any = (_Best(most) for _ in range(3))

    def add(self, labels: ShardLabels) -> None:
        """Look at one shard, unless it is none of those that can be drawn."""
        first = labels.parts[0]
        if first.part.shard not in self._shards:
            return
        for rows in labels.parts:
            lot = _lots(rows)
            self._any.add(rows, labels, lot, np.ones_like(rows.has_digest))
            other = (rows.label != rows.target[:, None]) & (rows.target >= 0)[:, None]
            self._wrong.add(rows, labels, lot, other)
            doubt = doubt_of(rows)
            if doubt is not None:
                self._doubtful.add(rows, labels, doubt + 1e-9 * lot, _greatest(doubt))
        if doubt_of(first) is None:
            lot = _lots(first)
            score = labels.entropy[:, None] + 1e-9 * lot
            self._doubtful.add(first, labels, score, _greatest(lot))

    def chosen(self) -> tuple[list[ViewIndex], Bits]:
        """Return the views, those that are needed most first, and their samples' entropy."""
        lists = (self._wrong, self._doubtful, self._any)
        shares, picked, bits = (2, 1, 1), dict[ViewIndex, None](), dict[tuple[int, int], float]()
        queues = [one.sorted() for one in lists]
        while len(picked) < self._most and any(queues):
            for queue, share in zip(queues, shares, strict=True):
                for view, entropy in queue[:share]:
                    picked[view] = None
                    bits[view.shard, view.sample] = entropy
                del queue[:share]
        return list(picked)[: self._most], bits


class _Best:
    """The views with the greatest scores so far."""

    def __init__(self, most: int) -> None:
        self._most, self._score = most, np.zeros(0)
        self._where = np.zeros((0, 3), np.int64)  # shard, index in the shard, view
        self._bits = np.zeros(0)

    def add(
        self,
        rows: PartRows,
        labels: ShardLabels,
        score: NDArray[np.float64],
        mask: NDArray[np.bool_],
    ) -> None:
        """Look at the views of one part in a mask, (N, V), by their scores, (N, V)."""
        if len(self._score) == self._most:
            mask = mask & (score > self._score.min())
        row, column = np.nonzero(mask)
        if not len(row):
            return
        samples = np.flatnonzero(rows.accepted)
        shard = np.full(len(row), rows.part.shard)
        where = np.stack([shard, samples[row], rows.part.first_view + column], axis=1)
        scores = np.concatenate([self._score, score[row, column]])
        best = np.argsort(-scores, kind="stable")[: self._most]
        self._score = scores[best]
        self._where = np.concatenate([self._where, where])[best]
        self._bits = np.concatenate([self._bits, labels.entropy[row]])[best]

    def sorted(self) -> list[tuple[ViewIndex, float]]:
        """Return the views with their samples' entropy, the greatest score first."""
        return [
            (ViewIndex(shard=shard, sample=sample, view=view), bits)
            for (shard, sample, view), bits in zip(
                self._where.tolist(), self._bits.tolist(), strict=True
            )
        ]


def _lots(rows: PartRows) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each view, (N, V), that seed and view alone decide."""
    views = np.arange(rows.part.first_view, rows.part.end_view, dtype=np.uint64)
    with np.errstate(over="ignore"):  # SplitMix64's steps, modulo 2**64
        word = rows.seed.astype(np.uint64)[:, None] + views * np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word ^= word >> np.uint64(31)
    found: NDArray[np.float64] = (word >> np.uint64(11)) * 2.0**-53
    return found


def _greatest(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where each row, (N, V), is greatest: one view of a sample is enough."""
    found = np.zeros(values.shape, np.bool_)
    found[np.arange(len(values)), values.argmax(axis=1)] = True
    return found


def gallery_of(pictures: Sequence[Picture]) -> Gallery:
    """Return pictures of ``picture_of`` as a gallery."""
    return Gallery(
        caption="Views as teacher and student get them",
        facets=_FACETS,
        pictures=tuple(pictures),
    )


def picture_of(view: DrawnView, bits: float | None) -> Picture:
    """Return a drawn view, the entropy of whose sample's labels is ``bits``, as a picture.

    It is None where the sample has one label.
    """
    if view.pixels is None or view.original is None or view.params is None or view.label is None:
        raise ValueError(f"{view.key} has no picture: it is rejected or omitted")
    title, *lines = view.caption()
    truth, teacher, *_ = lines
    agrees = _agrees(view)
    # The class of the image mixed in is no mistake: that image is in the view too.
    wrong = agrees.startswith("disagrees") and not view.names_partner
    mixing = {MixKind.NONE: "not mixed", MixKind.MIXUP: "mixup", MixKind.CUTMIX: "CutMix"}
    return Picture(
        source=image_url(view.pixels),
        alt=f"{title}, {truth}, {teacher}",
        title=title,
        stressed=teacher if wrong else "",
        lines=(
            *lines,
            *([] if bits is None else [f"labels of its views: entropy {bits:.2f} bits"]),
        ),
        context=_context(view.original, view.params.crop),
        context_alt="the whole image, with the crop's box",
        pixelated=max(view.pixels.shape) <= SMALL,
        facets={
            "teacher": agrees,
            "truth": "unknown" if view.target < 0 else class_text(view.target, view.names),
            "label": class_text(view.label, view.names),
            "mixing": mixing[view.mix.kind],
            "entropy": round(bits or 0.0, 4),
        },
    )


def _agrees(view: DrawnView) -> str:
    if view.target < 0:
        return "names a class, the truth is unknown"
    if view.label == view.target:
        return "agrees with the truth"
    return f"disagrees: names {'the image mixed in' if view.names_partner else 'neither image'}"


def _context(original: Pixels, crop: Box) -> str:
    from PIL import Image, ImageDraw

    image = Image.fromarray(original)
    scale = _CONTEXT / max(image.size)
    sides = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(sides, Image.Resampling.BILINEAR)
    left, top = crop.left * scale, crop.top * scale
    right = max(left + 1, (crop.left + crop.width) * scale - 1)
    bottom = max(top + 1, (crop.top + crop.height) * scale - 1)
    ImageDraw.Draw(image).rectangle((left, top, right, bottom), outline=_BOX, width=2)
    return image_url(np.asarray(image))
