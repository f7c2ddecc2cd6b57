"""Compares the labels of two stores, view by view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.classes import class_text
from pipeline.errors import IdentityError, IncompleteStoreError, ReplayError
from pipeline.identity import StoreIdentity, different_fields
from pipeline.records import PartRows
from pipeline.store import LabelStore
from pipeline.store.card import first_lines, markdown_table, share
from pipeline.telling import told
from pipeline.tools.target import agreed_classes

__all__ = ["Disagreement", "MarginFlips", "StoreDiff", "diff_stores"]

MARGIN_STEP = 16
"""Width of the bins of margins, in 255ths of a probability."""

_LISTED = 40  # classes in the text; JSON has all


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """Of ``rows`` views that both call by a class, the number they call differently."""

    rows: int
    different: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginFlips:
    """Views by the margin that one of the stores has for its label."""

    low: int  # smallest margin of the bin, in 255ths
    flips: Disagreement


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDiff:
    """Two stores on the views that both label."""

    a: str
    b: str
    different_identity: tuple[str, ...]  # field: a's / b's, such as the teacher's weights
    shards: int  # in both
    shards_of_one: int  # in one of them alone, or with other contents
    samples_of_one: int  # of common shards: rejected in one store alone
    digests: int  # views whose pixels both stores have a digest of; all are equal
    teachers: Disagreement
    a_truth: Disagreement
    b_truth: Disagreement
    classes: Mapping[int, Disagreement]  # of the teachers, by true class
    margins_a: tuple[MarginFlips, ...]  # empty where the store has no margins
    margins_b: tuple[MarginFlips, ...]
    names: tuple[str, ...] | None  # of all classes, if a store has them

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain JSON values."""
        return {**asdict(self), "margin_step": MARGIN_STEP}

    def to_markdown(self) -> str:
        """Return the comparison as Markdown."""
        rows, same = self.teachers.rows, self.teachers.rows - self.teachers.different
        text = (
            f"# {self.a} and {self.b}\n\nA is {self.a}, B is {self.b}. They differ in:\n\n"
            + "".join(f"- {line}\n" for line in self.different_identity or ("nothing",))
            + "\n"
            + markdown_table(
                ("", ""),
                [
                    ("views that both label", rows),
                    ("same label", f"{share(same, rows)} ({same})"),
                    ("shards in both", self.shards),
                    ("shards in one alone", self.shards_of_one),
                    ("samples of common shards that one rejects", self.samples_of_one),
                    ("digests of pixels compared, all equal", self.digests),
                ],
            )
            + "\n## Disagreement\n\nShare of views that row and column call differently.\n\n"
            + self._matrix()
            + "\n## Agreement of A and B by true class, the lowest first\n\n"
            + self._classes()
        )
        for name, margins in (("A", self.margins_a), ("B", self.margins_b)):
            if margins:
                text += f"\n## Other labels by margin of {name}\n\n" + _margins(margins)
        return text

    def _matrix(self) -> str:
        none = "0"
        pairs = (self.a_truth, self.b_truth, self.teachers)
        a_truth, b_truth, teachers = (_share(one) for one in pairs)
        return markdown_table(
            ("", "truth", "A", "B"),
            [
                ("truth", none, a_truth, b_truth),
                ("A", a_truth, none, teachers),
                ("B", b_truth, teachers, none),
            ],
        )

    def _classes(self) -> str:
        worst = sorted(
            self.classes.items(), key=lambda one: (-one[1].different / one[1].rows, one[0])
        )
        rows = [
            (class_text(number, self.names), one.rows, share(one.rows - one.different, one.rows))
            for number, one in worst
        ]
        table = markdown_table(("true class", "views", "same label"), rows[:_LISTED])
        more = first_lines([""] * len(rows), _LISTED)[_LISTED:]
        return table + "".join(f"\n{line}\n" for line in more)


def _share(pair: Disagreement) -> str:
    return share(pair.different, pair.rows)


def _margins(margins: tuple[MarginFlips, ...]) -> str:
    return markdown_table(
        ("margin", "views", "other label"),
        [
            (
                f"{one.low / 255:.3f} to {min(255, one.low + MARGIN_STEP) / 255:.3f}",
                one.flips.rows,
                f"{_share(one.flips)} ({one.flips.different})",
            )
            for one in margins
        ],
    )


def diff_stores(a: LabelStore, b: LabelStore) -> StoreDiff:
    """Compare the labels that two stores have for the same views of the same shards.

    The views must be the same: raises ``IdentityError`` naming the settings that differ,
    ``ClassesError`` for other names of classes, ``IncompleteStoreError`` if no view is in both,
    ``ReplayError`` if both have a digest of a view and the digests differ. Holds one part of each
    store in memory.

    >>> report = diff_stores(open_store("teacher.parquet"), open_store("other.parquet"))
    >>> report.teachers.rows, report.teachers.different
    (210, 0)
    """
    _require_same_views(a, b)
    names = agreed_classes(a, b)
    ours = {shard.key_hash: shard for shard in a.manifest.shards}
    theirs = {shard.key_hash: shard for shard in b.manifest.shards}
    common = [
        (shard.number, theirs[key].number)
        for key, shard in ours.items()
        if key in theirs and theirs[key].content_hash == shard.content_hash
    ]
    counts = _Counts()
    for number_a, number_b in told(common, "comparing", "shards", len(common)):
        counts.samples_of_one += _rejected_by_one(a, number_a, b, number_b)
        for pair in _common_rows(a, number_a, b, number_b):
            _require_same_pixels(a, b, *pair)
            counts.add(*pair)
    if not counts.rows:
        raise IncompleteStoreError(
            f"{a.root} and {b.root} have no view of a shard in common: their shards are "
            f"{_names(a)} and {_names(b)}, their views {_views(a)} and {_views(b)}"
        )
    report = counts.report(a, b, len(common), len(ours) + len(theirs) - 2 * len(common))
    return replace(report, names=names)


def _require_same_views(a: LabelStore, b: LabelStore) -> None:
    different = different_fields(*(_views_identity(store.identity) for store in (a, b)))
    if different:
        raise IdentityError(
            f"{a.root} and {b.root} hold labels of other views ({a.root.name}'s / "
            f"{b.root.name}'s):\n  "
            + "\n  ".join(different)
            + "\n  cure: view by view only stores of one root seed, augmentation and mixing "
            "compare; the statistics of each describe it alone"
        )


def _views_identity(identity: StoreIdentity) -> dict[str, Any]:
    """Return the settings that say which views a store has labels of."""
    values = identity.to_json()
    return {name: values[name] for name in ("root_seed", "augment", "mix")}


def _names(store: LabelStore) -> str:
    return ", ".join(first_lines([shard.name for shard in store.manifest.shards], 3))


def _views(store: LabelStore) -> str:
    views = store.manifest.view_range
    return f"{views.start}..{views.stop - 1}" if views else "of each shard others"


def _rejected_by_one(a: LabelStore, number_a: int, b: LabelStore, number_b: int) -> int:
    ours = {one.key for one in a.manifest.rejections.get(number_a, ())}
    return len(ours ^ {one.key for one in b.manifest.rejections.get(number_b, ())})


def _common_rows(
    a: LabelStore, number_a: int, b: LabelStore, number_b: int
) -> Iterator[tuple[PartRows, PartRows]]:
    """Yield rows of equal keys and views, one pair of overlapping parts after the other."""
    theirs: PartRows | None = None
    for entry_a in a.manifest.parts_of_shard(number_a):
        ours: PartRows | None = None
        for entry_b in b.manifest.parts_of_shard(number_b):
            first = max(entry_a.part.first_view, entry_b.part.first_view)
            end = min(entry_a.part.end_view, entry_b.part.end_view)
            if first >= end:
                continue
            ours = ours or a.read_part(entry_a)
            if theirs is None or theirs.part != entry_b.part:
                theirs = b.read_part(entry_b)
            keys = set(ours.keys) & set(theirs.keys)
            yield _cut(ours, keys, first, end), _cut(theirs, keys, first, end)


def _cut(rows: PartRows, keys: set[str], first: int, end: int) -> PartRows:
    """Return the rows of some keys at the views first..end - 1; both stores keep one order."""
    kept = np.array([key in keys for key in rows.keys], np.bool_)
    return rows.cut(replace(rows.part, first_view=first, views=end - first), kept)


def _require_same_pixels(a: LabelStore, b: LabelStore, ours: PartRows, theirs: PartRows) -> None:
    other = (ours.digest != theirs.digest) | (ours.mixed_digest != theirs.mixed_digest)
    wrong = np.argwhere(ours.has_digest & theirs.has_digest & other).tolist()
    if wrong:
        row, column = wrong[0]
        raise ReplayError(
            f"{a.root} and {b.root} have other pixels for sample {ours.keys[row]!r}, view "
            f"{ours.part.first_view + column} (and {len(wrong) - 1} more of its part), though "
            "their settings are equal: verify every digest of both with their shards, to see "
            "which one this machine replays"
        )


class _Counts:
    """Sums over common rows."""

    def __init__(self) -> None:
        self.samples_of_one = 0
        self.rows = 0
        self._digests = 0
        self._flips = 0
        self._known = 0
        self._a_wrong = 0
        self._b_wrong = 0
        self._classes = _Flips()
        self._margins = (_Flips(), _Flips())

    def add(self, a: PartRows, b: PartRows) -> None:
        """Count the rows of one pair of parts, whose keys and views are the same."""
        flips = a.label != b.label
        known = a.target >= 0
        truth = np.broadcast_to(a.target[known, None], a.label[known].shape)
        self.rows += flips.size
        self._flips += int(flips.sum())
        self._digests += int((a.has_digest & b.has_digest).sum())
        self._known += truth.size
        self._a_wrong += int((a.label[known] != truth).sum())
        self._b_wrong += int((b.label[known] != truth).sum())
        self._classes.add(truth, flips[known])
        for margins, rows in zip(self._margins, (a, b), strict=True):
            if "margin" in rows.columns:
                margins.add(rows.columns["margin"] // MARGIN_STEP, flips)

    def report(self, a: LabelStore, b: LabelStore, shards: int, shards_of_one: int) -> StoreDiff:
        """Return the sums."""
        margins_a, margins_b = (
            tuple(
                MarginFlips(low=number * MARGIN_STEP, flips=flips)
                for number, flips in margins.by_value().items()
            )
            for margins in self._margins
        )
        return StoreDiff(
            a=a.root.name,
            b=b.root.name,
            different_identity=tuple(different_fields(a.identity.to_json(), b.identity.to_json())),
            shards=shards,
            shards_of_one=shards_of_one,
            samples_of_one=self.samples_of_one,
            digests=self._digests,
            teachers=Disagreement(rows=self.rows, different=self._flips),
            a_truth=Disagreement(rows=self._known, different=self._a_wrong),
            b_truth=Disagreement(rows=self._known, different=self._b_wrong),
            classes=self._classes.by_value(),
            margins_a=margins_a,
            margins_b=margins_b,
            names=None,
        )


class _Flips:
    """Rows and flips by a small integer of each row."""

    def __init__(self) -> None:
        self._rows: Counter[int] = Counter()
        self._flips: Counter[int] = Counter()

    def add(self, values: NDArray[Any], flips: NDArray[np.bool_]) -> None:
        """Count rows by their value."""
        for counts, chosen in ((self._rows, values), (self._flips, values[flips])):
            found, numbers = np.unique(chosen, return_counts=True)
            counts.update(dict(zip(found.tolist(), numbers.tolist(), strict=True)))

    def by_value(self) -> dict[int, Disagreement]:
        """Return the counts by value, in order."""
        return {
            value: Disagreement(rows=rows, different=self._flips[value])
            for value, rows in sorted(self._rows.items())
        }
