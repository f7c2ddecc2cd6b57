"""Writes how each view of a store was drawn and mixed as a table, so that it can be queried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, StoreError
from pipeline.files.cache import CacheConfig
from pipeline.files.local import LocalFolder, expand_shards, real_path
from pipeline.identity import StoreIdentity
from pipeline.records import (
    FIXED_ONE,
    NO_PARTNER,
    Box,
    MixKind,
    MixParams,
    PartRows,
    ViewParams,
)
from pipeline.shards.index import Shard, match_shards, open_known_shard
from pipeline.store import LabelStore
from pipeline.store.card import markdown_table
from pipeline.store.views_table import VIEW_COLUMNS, writing_views
from pipeline.tools.target import ShowProgress
from pipeline.views.apply import read_size
from pipeline.views.draw import draw_view
from pipeline.views.pairing import Pairing

__all__ = ["ViewsReport", "write_views"]

_PIECE = 1 << 14  # rows that are in memory as Python objects


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewsReport:
    """A table of views that was written."""

    out: str
    store: str
    rows: int
    bytes: int
    left_out: str  # of the shards, in words, if only some were given

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        rows = [("table", self.out), ("views of", self.store), ("rows", self.rows)]
        rows += [("bytes", self.bytes)]
        rows += [("shards", self.left_out)] if self.left_out else []
        return markdown_table(("", ""), rows)


def write_views(
    store: LabelStore,
    shards: Sequence[str],
    out: str | Path,
    *,
    views: range | None = None,
    subset: bool = False,
    cache: CacheConfig | None = None,
    show: ShowProgress = lambda done, total: None,
) -> ViewsReport:
    """Write a Parquet file with a row for each label: how its view was made, and of what.

    Partner, mixing, crop, flip, operations and erased box are drawn again from the seeds; of the
    images only headers are read. A row group is a part of the store, or its views among ``views``.
    With ``subset`` some of the store's shards are enough. The file appears whole or not at all.

    Raises ``ConfigError`` for views that no part has, ``StoreError`` if there is something at
    ``out``, or it lies in the store, ``ShardError`` for other shards.

    >>> store = open_store("teacher.parquet")
    >>> write_views(store, ["digits-{0..1}.tar"], "views.parquet").rows == store.manifest.rows
    True
    """
    path = Path(out).expanduser()
    root = store.root
    if isinstance(root, LocalFolder) and real_path(path).is_relative_to(real_path(root.path)):
        raise StoreError(f"`out` {path} lies in the store; give a path outside of it")
    files = match_shards(store.manifest.shards, expand_shards(shards, cache), subset=subset)
    parts = [
        entry
        for entry in store.manifest.of_shards(files).parts
        if views is None or _common(range(entry.part.first_view, entry.part.end_view), views)
    ]
    if not parts:
        raise ConfigError(f"`views` names none that {root} has; see its card for those it has")
    rows, shard = 0, None
    with writing_views(path) as table:
        for done, entry in enumerate(parts, start=1):
            number = entry.part.shard
            if shard is None or shard.info.number != number:
                shard = open_known_shard(files[number], store.manifest.by_shard[number])
            for columns in _drawn(store.identity, shard, store.read_part(entry), views):
                rows += len(columns["key"])
                table.add(columns)
            table.end_part()
            show(done, len(parts))
    return ViewsReport(
        out=str(path),
        store=root.name,
        rows=rows,
        bytes=path.stat().st_size,
        left_out=store.manifest.left_out(files),
    )


def _drawn(
    identity: StoreIdentity, shard: Shard, rows: PartRows, views: range | None
) -> Iterator[dict[str, list[Any]]]:
    """Yield the rows of a part at some of its views, by column, a piece at a time."""
    pairing = Pairing(
        root_seed=identity.root_seed,
        shard=shard.info,
        rejected=frozenset(one.index for one in rows.rejections),
        config=identity.mix,
    )
    partners_at = lru_cache(maxsize=None)(pairing.of_shard)  # of the part's views
    indices = np.flatnonzero(rows.accepted).tolist()
    shard.require_labelled(indices, rows.keys, rows.target.tolist())
    there = range(rows.part.first_view, rows.part.end_view)
    columns: dict[str, list[Any]] = {name: [] for name in VIEW_COLUMNS}
    for row, (index, key) in enumerate(zip(indices, rows.keys, strict=True)):
        size = read_size(shard.image_bytes(index), shard.samples[index].image_name)
        for view in there if views is None else _common(there, views):
            partner = partners_at(view).get(index, NO_PARTNER)
            mix = pairing.draw_mix(view, (index, partner), identity.augment.image_size)
            mixed = None if mix.kind is MixKind.NONE else shard.samples[partner]
            column = view - there.start
            values = {
                "shard": shard.info.number,
                "sample": index,
                "key": key,
                "view": view,
                "target": int(rows.target[row]),
                "label": int(rows.label[row, column]),
                "partner": mixed.key if mixed else None,
                "partner_target": mixed.target if mixed else None,
                **_mixing(mix),
                **_parameters(draw_view(int(rows.seed[row]), view, size, identity.augment)),
                "digest": int(rows.digest[row, column]) if rows.has_digest[row, column] else None,
            }
            for name in VIEW_COLUMNS:
                columns[name].append(values[name])
        if len(columns["key"]) >= _PIECE:
            yield columns
            columns = {name: [] for name in VIEW_COLUMNS}
    yield columns


def _common(there: range, views: range) -> range:
    return range(max(there.start, views.start), min(there.stop, views.stop))


def _mixing(mix: MixParams) -> dict[str, Any]:
    return {"mix": mix.kind.value, "lam": mix.lam / FIXED_ONE, "mix_box": _box(mix.box)}


def _parameters(drawn: ViewParams) -> dict[str, Any]:
    return {
        "crop_box": _box(drawn.crop),
        "hflip": drawn.hflip,
        "ops": [{"op": one.op, "argument": one.argument} for one in drawn.ops],
        "erase_box": _box(drawn.erase),
    }


def _box(box: Box | None) -> dict[str, int] | None:
    return None if box is None else asdict(box)
