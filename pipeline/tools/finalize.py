"""Writes the manifest of a store whose parts are all there; no teacher, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import RejectionError, StoreError
from pipeline.files.cache import CacheConfig
from pipeline.files.local import open_folder
from pipeline.labelling.job import index_shards
from pipeline.records import PartKey
from pipeline.store import (
    cut_views,
    find_parts,
    finish_store,
    pack_store,
    parts_root,
    read_begun,
    read_entries,
    read_receipts,
)
from pipeline.store.card import card_text
from pipeline.store.commit import require_all_shards
from pipeline.store.provenance import record_run

__all__ = ["FinalizeReport", "finalize_store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalizeReport:
    """What a store holds whose manifest was written."""

    store: str
    parts: int
    labels: int
    samples: int
    rejected: int

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return the report as lines of text."""
        return (
            f"{self.store}: {self.parts} parts, {self.labels} labels of {self.samples} samples, "
            f"{self.rejected} rejected; the store is whole\n"
        )


def finalize_store(
    path: str,
    shards: Sequence[str],
    *,
    classes: str | None = None,
    max_rejected: float = 0.01,
    cache: CacheConfig | None = None,
) -> FinalizeReport:
    """Write the manifest over parts that are all there, as the label job would have.

    Which views are wanted is what the store's jobs have settled: each of them must be there for
    each shard. Raises ``IncompleteStoreError`` naming those that are not, ``RejectionError`` if
    more than a share of ``max_rejected`` of the images do not decode.

    >>> finalize_store("teacher.parquet", ["shards/*.tar"]).rejected
    0
    """
    root = parts_root(path)
    folder = open_folder(root)
    folder.require_writable()
    begun = read_begun(folder)
    if begun is None:
        raise StoreError(f"{folder}: no label job has begun a store there; check the path")
    identity, fingerprints = begun.identity, begun.fingerprints
    indexed = index_shards(shards, cache, classes)
    infos = {info.number: info for info in indexed.infos}
    parts = sorted(find_parts(folder))
    require_all_shards(root, parts, infos)
    first = {part.shard: part for part in reversed(parts)}
    seen = read_entries(folder, sorted(first.values()), identity.digest, infos)
    rejected = sum(len(one.rejections) for one in seen)
    if rejected > max_rejected * indexed.samples:
        raise RejectionError(
            f"{rejected} of {indexed.samples} images do not decode, more than `max_rejected` "
            f"{max_rejected:g} allows"
        )
    cells = {cell for claim in cut_views(root, range(0), 1).settled for cell in claim.cells}
    cells |= {range(part.first_view, part.end_view) for part in parts}
    planned = [
        PartKey(shard=number, first_view=cell.start, views=len(cell))
        for number in infos
        for cell in cells
    ]
    manifest = finish_store(
        root,
        identity,
        fingerprints,
        indexed.infos,
        card_text,
        planned,
        known=read_receipts(root, identity.digest, infos),
        classes=None if indexed.classes is None else indexed.classes.names,
    )
    record_run(folder, "label-store finalize", {})
    pack_store(path)
    return FinalizeReport(
        store=path,
        parts=len(manifest.parts),
        labels=manifest.rows,
        samples=manifest.counts.indexed,
        rejected=manifest.counts.rejected,
    )
