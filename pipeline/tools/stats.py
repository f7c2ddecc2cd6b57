"""What the labels of a store look like: classes, agreement with the truth, spread over views."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.classes import class_text
from pipeline.records import PartRows
from pipeline.store import Agreement, LabelStore
from pipeline.store.card import first_lines, markdown_table, share

__all__ = ["ClassStats", "EntropyStats", "StoreStats", "ViewStats", "store_stats"]

ENTROPY_STEP = 0.5
"""Width of the bins of the entropies' histogram, in bits."""

_LISTED = 40  # classes and views in the text; JSON has all


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassStats:
    """A class, as the teacher's choice and as the truth."""

    number: int
    labels: int  # views that the teacher gave this class
    truth: Agreement  # of the views whose true class this is


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewStats:
    """The labels of all samples at one view."""

    view: int
    labels: int
    truth: Agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyStats:
    """How much the label of a sample varies over its views, in bits; 0 if it never does."""

    samples: int
    mean: float
    histogram: tuple[int, ...]  # samples with bin * ENTROPY_STEP <= entropy < the next bin


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """All labels of a store, counted."""

    store: str
    labels: int
    truth: Agreement
    classes: tuple[ClassStats, ...]  # those that are a label or a target, by number
    views: tuple[ViewStats, ...]  # by number
    entropy: EntropyStats
    names: tuple[str, ...] | None  # of all classes, if the store has them

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain JSON values."""
        return {**asdict(self), "entropy_step_bits": ENTROPY_STEP}

    def to_markdown(self) -> str:
        """Return the counts as Markdown."""
        unknown = self.labels - self.truth.known
        return (
            f"# Labels of {self.store}\n\n"
            + markdown_table(
                ("", ""),
                [
                    ("labels", self.labels),
                    ("of samples whose true class is unknown", unknown),
                    ("agreement with the true class", _truth(self.truth)),
                    ("classes that are a label", sum(one.labels > 0 for one in self.classes)),
                    (
                        "entropy of a sample's labels over its views, mean",
                        f"{self.entropy.mean:.4f} bits",
                    ),
                ],
            )
            + "\n## Classes, the most frequent labels first\n\n"
            + _cut(
                markdown_table(
                    ("class", "labels", "agreement where it is the true class"),
                    [
                        (class_text(one.number, self.names), one.labels, _truth(one.truth))
                        for one in sorted(self.classes, key=lambda one: (-one.labels, one.number))
                    ],
                )
            )
            + "\n## Views\n\n"
            + _cut(
                markdown_table(
                    ("view", "labels", "agreement"),
                    [(one.view, one.labels, _truth(one.truth)) for one in self.views],
                )
            )
            + "\n## Samples by entropy\n\n"
            + markdown_table(
                ("bits", "samples"),
                [
                    (f"{bin_ * ENTROPY_STEP:g} to {(bin_ + 1) * ENTROPY_STEP:g}", count)
                    for bin_, count in enumerate(self.entropy.histogram)
                ],
            )
        )


def _truth(counts: Agreement) -> str:
    return f"{share(counts.equal, counts.known)} ({counts.equal} of {counts.known})"


def _cut(table: str) -> str:
    lines = table.splitlines()
    body = first_lines(lines[2:], _LISTED)
    gap = [""] if len(body) > _LISTED else []
    return "\n".join([*lines[:2], *body[:_LISTED], *gap, *body[_LISTED:]]) + "\n"


def store_stats(store: LabelStore) -> StoreStats:
    """Count the labels of a store, reading each part once.

    Holds one part and the labels of one shard in memory. Raises ``ChecksumError`` for a
    damaged part.

    >>> store_stats(open_store("teacher.parquet")).truth.known
    210
    """
    counts = _Counts()
    for shard in store.manifest.shards:
        labels: list[NDArray[np.uint16]] = []
        keys: tuple[str, ...] = ()
        for entry in store.manifest.parts_of_shard(shard.number):
            rows = store.read_part(entry)
            counts.add(rows)
            labels.append(rows.label)
            keys = rows.keys
        if keys:
            counts.add_entropies(label_entropies(np.concatenate(labels, axis=1)))
    return counts.report(store.root.name, store.manifest.classes)


def label_entropies(labels: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Return the entropy, in bits, of each row of (N, V) labels: (N,)."""
    samples, views = labels.shape
    ordered = np.sort(labels, axis=1)
    # A run of equal labels of length n adds n/V * log2(V/n).
    starts = np.ones((samples, views), np.bool_)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.flatnonzero(starts)
    lengths = np.diff(first, append=samples * views)
    terms = lengths / views * np.log2(views / lengths)
    return np.add.reduceat(terms, np.searchsorted(first, np.arange(samples) * views))


class _Counts:
    """Sums over parts, by class, view and bin of entropy."""

    def __init__(self) -> None:
        self._labels: Counter[int] = Counter()
        self._known: Counter[int] = Counter()
        self._equal: Counter[int] = Counter()
        self._views: Counter[int] = Counter()
        self._views_known: Counter[int] = Counter()
        self._views_equal: Counter[int] = Counter()
        self._bins: Counter[int] = Counter()
        self._bits = 0.0

    def add(self, rows: PartRows) -> None:
        """Count one part."""
        known = rows.target >= 0
        labels, targets = rows.label[known], rows.target[known]
        equal = labels == targets[:, None]
        _count(self._labels, rows.label)
        _count(self._known, targets, times=rows.part.views)
        _count(self._equal, labels[equal])
        for column, view in enumerate(range(rows.part.first_view, rows.part.end_view)):
            self._views[view] += len(rows.label)
            self._views_known[view] += len(labels)
            self._views_equal[view] += int(equal[:, column].sum())

    def add_entropies(self, bits: NDArray[np.float64]) -> None:
        """Count the samples of one shard."""
        self._bits += float(bits.sum())
        # Sums of logarithms end a little below or above a bin's edge.
        _count(self._bins, np.floor(bits / ENTROPY_STEP + 1e-9).astype(np.int64))

    def report(self, store: str, names: tuple[str, ...] | None) -> StoreStats:
        """Return the sums."""
        samples = self._bins.total()
        return StoreStats(
            store=store,
            labels=self._labels.total(),
            truth=Agreement(known=self._known.total(), equal=self._equal.total()),
            classes=tuple(
                ClassStats(
                    number=number,
                    labels=self._labels[number],
                    truth=Agreement(known=self._known[number], equal=self._equal[number]),
                )
                for number in sorted({*self._labels, *self._known})
            ),
            views=tuple(
                ViewStats(
                    view=view,
                    labels=labels,
                    truth=Agreement(known=self._views_known[view], equal=self._views_equal[view]),
                )
                for view, labels in sorted(self._views.items())
            ),
            entropy=EntropyStats(
                samples=samples,
                mean=self._bits / max(1, samples),
                histogram=tuple(self._bins[bin_] for bin_ in range(max(self._bins, default=0) + 1)),
            ),
            names=names,
        )


def _count(counts: Counter[int], values: NDArray[Any], times: int = 1) -> None:
    found, numbers = np.unique(values, return_counts=True)
    for value, number in zip(found.tolist(), numbers.tolist(), strict=True):
        counts[value] += number * times
