"""Mends a store that jobs have cut in two ways: of parts that overlap, some are removed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from pipeline.errors import ChecksumError, StoreError
from pipeline.files.local import Folder, open_folder
from pipeline.records import PartKey
from pipeline.store import (
    decode_part,
    find_parts,
    listed_parts,
    lost_views,
    named_views,
    parts_root,
)
from pipeline.store.manifest import IDENTITY_PATH
from pipeline.telling import told

__all__ = ["RepairReport", "repair_store"]

_LISTED_FIRST = 1 << 40  # views: more than any part has


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """What was removed from a store so that none of its parts overlap."""

    store: str
    parts: int  # that are left
    removed: tuple[str, ...]
    missing: str  # views that only removed parts had, in words

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return the report as lines of text."""
        lines = [f"removed {path}" for path in self.removed]
        lines.append(f"{self.store}: {len(self.removed)} parts removed, {self.parts} left")
        if self.missing:
            lines.append(f"not labelled any more: {self.missing}; the label job does them again")
        return "\n".join(lines) + "\n"


def repair_store(path: str) -> RepairReport:
    """Remove parts until none overlap, and as many views as possible stay labelled.

    Parts that a manifest lists stay. No job may add to the store meanwhile. Raises ``StoreError``
    if overlapping parts do not hold the same labels: none can be told to be the right one; and
    for a part that cannot be read now, or is listed and damaged. Nothing is removed then.

    >>> repair_store("teacher.parquet").removed
    ()
    """
    folder = open_folder(parts_root(path))
    folder.require_writable()
    if not folder.exists(IDENTITY_PATH):
        raise StoreError(f"{folder} is no store of parts; give the path of a Parquet directory")
    parts, listed = find_parts(folder), listed_parts(folder)
    kept: list[PartKey] = []
    for _, group in groupby(parts, key=attrgetter("shard")):
        kept += _mend(folder, list(group), listed)
    removed = sorted(set(parts) - set(kept))
    for part in removed:
        folder.remove(part.path)
    return RepairReport(
        store=str(folder),
        parts=len(kept),
        removed=tuple(part.path for part in removed),
        missing=named_views(lost_views(removed, kept)),
    )


def _mend(folder: Folder, parts: Sequence[PartKey], listed: Collection[PartKey]) -> list[PartKey]:
    """Return which parts of a shard to keep."""
    overlapping = [
        one for one in parts if any(other != one and _overlap(one, other) for other in parts)
    ]
    if not overlapping:
        return list(parts)
    sound = _sound(folder, overlapping, listed)
    weights = {one: one.views + _LISTED_FIRST * (one in listed) for one in sound}
    return [one for one in parts if one not in overlapping] + _heaviest(weights)


def _overlap(ours: PartKey, theirs: PartKey) -> bool:
    return ours.first_view < theirs.end_view and theirs.first_view < ours.end_view


def _sound(folder: Folder, parts: Sequence[PartKey], listed: Collection[PartKey]) -> list[PartKey]:
    """Return the parts that are not damaged; raise ``StoreError`` if two of them disagree."""
    rows = {}
    for part in told(parts, "reading parts that overlap", "parts", len(parts)):
        data = folder.read_bytes(part.path)  # a disk or network that fails shows no damage
        try:
            rows[part] = decode_part(data, part, folder.at(part.path))
        except ChecksumError:
            if part in listed:
                raise
    for one, mine in rows.items():
        for other, theirs in rows.items():
            first, end = max(one.first_view, other.first_view), min(one.end_view, other.end_view)
            ours = mine.label[:, first - one.first_view : end - one.first_view]
            others = theirs.label[:, first - other.first_view : end - other.first_view]
            if first < end and (mine.keys != theirs.keys or (ours != others).any()):
                raise StoreError(
                    f"{folder}: {one.path} and {other.path} overlap, and have other labels for "
                    "the same views; find out by `verify_store` which one is right, and delete "
                    "the other"
                )
    return list(rows)


def _heaviest(weights: dict[PartKey, int]) -> list[PartKey]:
    """Return parts that do not overlap, of the greatest weight together."""
    parts = sorted(weights, key=attrgetter("end_view"))
    ends = [one.end_view for one in parts]
    best: list[tuple[int, list[PartKey]]] = [(0, [])]
    for index, one in enumerate(parts):
        weight, chosen = best[bisect_right(ends, one.first_view, hi=index)]
        # With as many views, the fewer parts.
        taken = (weight + weights[one], [*chosen, one])
        best.append(max(best[-1], taken, key=lambda found: (found[0], -len(found[1]))))
    return best[-1][1]
