"""How a store's views are cut into parts: settled for each view by the first job that plans it.

Two jobs that cut the same views in two ways would commit parts that overlap. So each job claims
the cut of its views before it commits: one file for each claim, numbered, and only one job can
write the next number. The files are hidden: nobody needs them to read labels, and copies and
exports leave them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import StoreError, TryAgainError
from pipeline.files.local import Location, open_folder
from pipeline.growth import convert
from pipeline.identity import canonical_json, read_json
from pipeline.store.manifest import MAX_COMPANION_BYTES, META_PREFIX

__all__ = ["Claim", "Cut", "claim_cut", "cut_views", "runs_without"]

CUTS_PATH = META_PREFIX + ".jobs/cut-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The ranges of views that one job makes parts of, for each shard the same."""

    views_per_part: int
    cells: tuple[range, ...]

    def to_bytes(self) -> bytes:
        """Return the file's bytes."""
        cells = [[cell.start, cell.stop] for cell in self.cells]
        return canonical_json({"cells": cells, "views_per_part": self.views_per_part}) + b"\n"

    @staticmethod
    def from_bytes(data: bytes, name: str) -> Claim:
        """Read what ``to_bytes`` gives; raises ``StoreError`` for anything else."""
        try:
            values = read_json(data)
            cells = convert(values["cells"], list[tuple[int, int]], "cells")
            views = convert(values["views_per_part"], int, "views_per_part")
            if not all(0 <= first < end for first, end in cells):
                raise ValueError(f"cells {cells}")
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{name} is damaged ({error!r}); remove it, and let one job at a time add to the "
                "store"
            ) from error
        return Claim(views_per_part=views, cells=tuple(range(*cell) for cell in cells))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How the views of a job are cut: as others have settled it, and the rest as it wants."""

    settled: tuple[Claim, ...]  # of the store, the first first
    new: Claim

    def cells_of(self, views: range) -> list[range]:
        """Return the ranges that hold some of these views, sorted."""
        cells = [cell for claim in (*self.settled, self.new) for cell in claim.cells]
        found = [cell for cell in cells if _meet(cell, views)]
        return sorted(found, key=lambda cell: cell.start)

    def require_agreement(self, location: Location, views: range, missing: Sequence[range]) -> None:
        """Raise ``StoreError`` if views are missing where another job has cut them otherwise.

        ``views`` are those that this job wants.
        """
        wanted = self.new.views_per_part
        for claim in self.settled:
            hit = [cell for cell in claim.cells if any(_meet(cell, one) for one in missing)]
            if not hit:
                continue
            span = f"views {hit[0].start}..{hit[-1].stop - 1}"
            if claim.views_per_part != wanted:
                raise StoreError(
                    f"{location}: another job has cut {span} into parts of {claim.views_per_part}, "
                    f"and `views_per_part` is {wanted}: parts would overlap; use `views_per_part` "
                    f"{claim.views_per_part}, or another `out`"
                )
            if hit[0].start < views.start or hit[-1].stop > views.stop:
                raise StoreError(
                    f"{location}: another job makes parts of {span}, and this one wants "
                    f"{views.start}..{views.stop - 1}, which is not all of one of them: parts "
                    "would overlap; give `first_view` and `views` that are, or another `out`"
                )


def _meet(ours: range, theirs: range) -> bool:
    return ours.start < theirs.stop and theirs.start < ours.stop


def cut_views(root: Location, views: range, views_per_part: int) -> Cut:
    """Return how a job that wants ``views`` has to cut them; writes nothing."""
    settled = _read_claims(root)
    taken = {
        view
        for claim in settled
        for cell in claim.cells
        for view in range(max(cell.start, views.start), min(cell.stop, views.stop))
    }
    cells = [
        cell
        for start in range(views.start, views.stop, views_per_part)
        for cell in runs_without(taken, range(start, min(start + views_per_part, views.stop)))
    ]
    return Cut(settled=settled, new=Claim(views_per_part=views_per_part, cells=tuple(cells)))


def runs_without(taken: set[int], views: range) -> list[range]:
    """Return the runs of views that are not taken."""
    runs: list[range] = []
    for view in views:
        if view in taken:
            continue
        if runs and runs[-1].stop == view:
            runs[-1] = range(runs[-1].start, view + 1)
        else:
            runs.append(range(view, view + 1))
    return runs


def claim_cut(root: Location, cut: Cut) -> None:
    """Settle what is new in a cut; raises ``TryAgainError`` if another job was faster."""
    if not cut.new.cells:
        return
    folder, path = open_folder(root), _path(len(cut.settled))
    if not folder.commit_new(path, cut.new.to_bytes()):
        if folder.read_bytes(path, MAX_COMPANION_BYTES) == cut.new.to_bytes():
            return  # with the same cut
        raise TryAgainError(
            f"{folder}: another job began to add to it at the same moment; run the same command "
            "again"
        )


def _read_claims(root: Location) -> tuple[Claim, ...]:
    folder = open_folder(root)
    claims: list[Claim] = []
    while True:
        path = _path(len(claims))
        try:
            data = folder.read_bytes(path, MAX_COMPANION_BYTES)
        except FileNotFoundError:
            return tuple(claims)
        claims.append(Claim.from_bytes(data, folder.at(path)))


def _path(number: int) -> str:
    return f"{CUTS_PATH}{number:05d}.json"
