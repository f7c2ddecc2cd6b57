"""What the labels of a store look like: classes, agreement with the truth, spread over views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.classes import class_text
from pipeline.columns import COLUMNS, SHARE_STEPS
from pipeline.records import PartRows
from pipeline.store import Agreement, LabelStore
from pipeline.store.card import first_lines, markdown_table, share
from pipeline.tools.target import ShowProgress

__all__ = [
    "ClassStats",
    "ConfusedPair",
    "EntropyStats",
    "ShardLabels",
    "ShareStats",
    "StoreStats",
    "ViewStats",
    "store_stats",
]

ENTROPY_STEP = 0.5
"""Width of the bins of the entropies' histogram, in bits."""

SHARE_STEP = 16
"""Width of the bins of confidence and margin, in 255ths of a probability."""

_LISTED = 40  # classes and views in the text; JSON has all
_CONFUSED = 200  # pairs of classes in JSON
_PENDING = 1 << 20  # pairs of classes that are counted before they are added up


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
class ConfusedPair:
    """Views of one true class that the teacher calls another."""

    target: int
    label: int
    views: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareStats:
    """The labels whose confidence or margin lies in one bin."""

    low: int  # smallest of the bin, in 255ths
    labels: int
    truth: Agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLabels:
    """All labels of one shard, of N samples at V views."""

    parts: tuple[PartRows, ...]  # in the order of views
    label: NDArray[np.uint16]  # (N, V)
    entropy: NDArray[np.float64]  # (N,) of a sample's labels over its views, in bits


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """All labels of a store, counted."""

    store: str
    labels: int
    truth: Agreement
    classes: tuple[ClassStats, ...]  # those that are a label or a target, by number
    views: tuple[ViewStats, ...]  # by number
    entropy: EntropyStats
    confused: tuple[ConfusedPair, ...]  # the most frequent ones first
    confidence: tuple[ShareStats, ...]  # empty where none is stored
    margin: tuple[ShareStats, ...]
    names: tuple[str, ...] | None  # of all classes, if the store has them

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain JSON values."""
        return {
            **asdict(self),
            "entropy_step_bits": ENTROPY_STEP,
            "share_step": SHARE_STEP,
        }

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
            + "\n## Labels other than the true class (of a mixed view, maybe the partner's)\n\n"
            + _cut(
                markdown_table(
                    ("true class", "the teacher's", "views"),
                    [
                        (
                            class_text(one.target, self.names),
                            class_text(one.label, self.names),
                            one.views,
                        )
                        for one in self.confused
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


def store_stats(
    store: LabelStore,
    *,
    watch: Callable[[ShardLabels], None] = lambda labels: None,
    show: ShowProgress = lambda done, total: None,
) -> StoreStats:
    """Count the labels of a store, reading each part once.

    Holds the labels of one shard in memory, and 16 bytes for each pair of classes that occurs.
    ``watch`` is given the labels of each shard. Raises ``ChecksumError`` for a damaged part.

    >>> stats = store_stats(open_store("teacher.parquet"))
    >>> stats.labels, stats.truth.known
    (210, 210)
    """
    counts, done = _Counts(), 0
    for shard in store.manifest.shards:
        parts: list[PartRows] = []
        for entry in store.manifest.parts_of_shard(shard.number):
            parts.append(store.read_part(entry))
            done += 1
            show(done, len(store.manifest.parts))
        if parts:
            label = np.concatenate([rows.label for rows in parts], axis=1)
            labels = ShardLabels(parts=tuple(parts), label=label, entropy=label_entropies(label))
            counts.add(labels)
            watch(labels)
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


def _shares_of(rows: PartRows, name: str) -> NDArray[np.uint8] | None:
    """Return what a part stores of the ``confidence`` or ``margin``, (N, V), in 255ths.

    The probability of the likeliest of the classes that are kept is a confidence too.
    """
    if name in rows.columns:
        return rows.columns[name]
    if name == "margin" or "topk_logprob" not in rows.columns:
        return None
    first = COLUMNS["topk_logprob"].read(rows.columns["topk_logprob"][..., 0])
    found: NDArray[np.uint8] = np.rint(np.exp(first) * SHARE_STEPS).astype(np.uint8)
    return found


class _Counts:
    """Sums over shards."""

    def __init__(self) -> None:
        self._pairs = _PairCounts()
        self._views: dict[int, Agreement] = {}
        self._view_labels: Counter[int] = Counter()
        self._bins: Counter[int] = Counter()
        self._bits = 0.0
        # by column: labels, those whose class is known, and those that are right, by bin
        bins = SHARE_STEPS // SHARE_STEP + 1
        self._shares = {name: np.zeros((3, bins), np.int64) for name in ("confidence", "margin")}
        self._shares_there: set[str] = set()

    def add(self, labels: ShardLabels) -> None:
        """Count one shard."""
        for rows in labels.parts:
            known = rows.target >= 0
            right = rows.label == rows.target[:, None]
            self._pairs.add(rows.target, rows.label)
            self._add_views(rows, known, right)
            for name in self._shares:
                self._add_shares(name, rows, known, right)
        bits = labels.entropy
        self._bits += float(bits.sum())
        # Sums of logarithms end a little below or above a bin's edge.
        bins = np.floor(bits / ENTROPY_STEP + 1e-9).astype(np.int64)
        for value, count in enumerate(np.bincount(bins).tolist()):
            self._bins[value] += count

    def _add_views(
        self, rows: PartRows, known: NDArray[np.bool_], right: NDArray[np.bool_]
    ) -> None:
        for column, equal in enumerate(right[known].sum(axis=0).tolist()):
            view = rows.part.first_view + column
            self._view_labels[view] += len(rows.label)
            found = Agreement(known=int(known.sum()), equal=equal)
            before = self._views.get(view)
            self._views[view] = found if before is None else Agreement.total([before, found])

    def _add_shares(
        self, name: str, rows: PartRows, known: NDArray[np.bool_], right: NDArray[np.bool_]
    ) -> None:
        shares = _shares_of(rows, name)
        if shares is None:
            return
        self._shares_there.add(name)
        sums, bins = self._shares[name], shares // SHARE_STEP
        masks = (np.ones_like(right), np.broadcast_to(known[:, None], right.shape), right)
        for row, mask in enumerate(masks):
            sums[row] += np.bincount(bins[mask], minlength=sums.shape[1])

    def report(self, store: str, names: tuple[str, ...] | None) -> StoreStats:
        """Return the sums."""
        samples = self._bins.total()
        pairs = self._pairs.counted()
        return StoreStats(
            store=store,
            labels=self._view_labels.total(),
            truth=Agreement.total(self._views.values()),
            classes=tuple(_class_stats(pairs)),
            views=tuple(
                ViewStats(view=view, labels=self._view_labels[view], truth=truth)
                for view, truth in sorted(self._views.items())
            ),
            entropy=EntropyStats(
                samples=samples,
                mean=self._bits / max(1, samples),
                histogram=tuple(self._bins[bin_] for bin_ in range(max(self._bins, default=0) + 1)),
            ),
            confused=tuple(_confused(pairs)),
            confidence=self._share_stats("confidence"),
            margin=self._share_stats("margin"),
            names=names,
        )

    def _share_stats(self, name: str) -> tuple[ShareStats, ...]:
        if name not in self._shares_there:
            return ()
        return tuple(
            ShareStats(
                low=number * SHARE_STEP, labels=labels, truth=Agreement(known=known, equal=equal)
            )
            for number, (labels, known, equal) in enumerate(self._shares[name].T.tolist())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairs:
    """How often P pairs of a true class, -1 if unknown, and a label occur."""

    target: NDArray[np.int64]  # (P,)
    label: NDArray[np.int64]  # (P,)
    count: NDArray[np.int64]  # (P,)


class _PairCounts:
    """Counts pairs of true class and label. Memory is that of the pairs that occur."""

    def __init__(self) -> None:
        self._words, self._count = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def add(self, target: NDArray[np.int32], label: NDArray[np.uint16]) -> None:
        """Count the labels, (N, V), of samples with these true classes, (N,)."""
        words = (target[:, None].astype(np.int64) + 1 << 16) | label
        self._pending.append(np.unique(words, return_counts=True))
        # Added up when they are as many as the sums, so that each is sorted a few times only.
        if sum(len(one) for one, _ in self._pending) > max(_PENDING, len(self._words)):
            self._add_up()

    def _add_up(self) -> None:
        words = np.concatenate([self._words, *(one for one, _ in self._pending)])
        counts = np.concatenate([self._count, *(one for _, one in self._pending)])
        self._words, inverse = np.unique(words, return_inverse=True)
        self._count = np.zeros(len(self._words), np.int64)
        np.add.at(self._count, inverse, counts)
        self._pending = []

    def counted(self) -> _Pairs:
        """Return all pairs, by true class and label."""
        self._add_up()
        return _Pairs(target=(self._words >> 16) - 1, label=self._words & 0xFFFF, count=self._count)


def _class_stats(pairs: _Pairs) -> list[ClassStats]:
    known, right = pairs.target >= 0, pairs.target == pairs.label
    numbers = np.union1d(pairs.target[known], pairs.label)
    sums = np.zeros((3, len(numbers)), np.int64)  # as a label, as the truth, as both
    everywhere = np.ones_like(known)
    for row, values, mask in zip(
        sums, (pairs.label, pairs.target, pairs.label), (everywhere, known, right), strict=True
    ):
        np.add.at(row, np.searchsorted(numbers, values[mask]), pairs.count[mask])
    return [
        ClassStats(number=number, labels=labels, truth=Agreement(known=truths, equal=equal))
        for number, labels, truths, equal in zip(numbers.tolist(), *sums.tolist(), strict=True)
    ]


def _confused(pairs: _Pairs) -> list[ConfusedPair]:
    """Return the pairs that occur most often, equal ones by their classes."""
    wrong = np.flatnonzero((pairs.target != pairs.label) & (pairs.target >= 0))
    order = wrong[np.argsort(-pairs.count[wrong], kind="stable")][:_CONFUSED]
    return [
        ConfusedPair(target=target, label=label, views=views)
        for target, label, views in zip(
            *(one[order].tolist() for one in (pairs.target, pairs.label, pairs.count)), strict=True
        )
    ]
