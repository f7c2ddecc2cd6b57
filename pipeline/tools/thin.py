"""Makes a smaller store of one that exists: fewer views, or fewer columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.columns import ColumnConfig
from pipeline.errors import ConfigError
from pipeline.files.local import Folder, Place
from pipeline.identity import StoreIdentity
from pipeline.records import PartKey, PartRows
from pipeline.store import LabelStore, PartEntry, commit_part, copy_part
from pipeline.store.card import markdown_table
from pipeline.tools.target import ShowProgress, check_target, copy_runs, finish_target

__all__ = ["ThinReport", "thin_store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinReport:
    """A store that was thinned from another."""

    out: str
    store: str
    first_view: int
    end_view: int
    dropped: tuple[str, ...]
    parts: int
    labels: int
    bytes: int
    bytes_before: int

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        return markdown_table(
            ("", ""),
            [
                ("store", self.out),
                ("thinned from", self.store),
                ("views", f"{self.first_view}..{self.end_view - 1}"),
                ("columns dropped", ", ".join(self.dropped) or "none"),
                ("parts", self.parts),
                ("labels", self.labels),
                ("bytes", f"{self.bytes} of {self.bytes_before}"),
            ],
        )


def thin_store(
    store: LabelStore,
    out: Place,
    *,
    views: range | None = None,
    drop: Sequence[str] = (),
    show: ShowProgress = lambda done, total: None,
) -> ThinReport:
    """Write a store of some views and columns of ``store`` at ``out``.

    The result has the bytes of one labelled with these settings, if its parts are cut at the
    same views: whole parts that keep their columns are copied, others are encoded anew. An
    interrupted run can be run again. Raises ``ConfigError`` for views or columns that the store
    does not have.

    >>> report = thin_store(open_store("teacher.parquet"), "first.parquet", views=range(3))
    >>> open_store("first.parquet").manifest.view_range
    range(0, 3)
    """
    kept = _require_views(store, views)
    identity = _without(store.identity, drop)
    parts = [
        (entry, part)
        for entry in store.manifest.parts
        if (part := _overlap(entry.part, kept)) is not None
    ]
    keys = {part for _, part in parts}
    target = check_target(out, identity, store.manifest.fingerprints, keys)
    copy_runs(target, store)
    for done, (entry, part) in enumerate(parts, start=1):
        _write(target, store, entry, part, identity)
        show(done, len(parts))
    run = {
        "command": "thin",
        "stores": [store.root.name],
        "views": [kept.start, kept.stop],
        "drop": list(drop),
    }
    manifest = finish_target(target, [store], identity, store.manifest.shards, keys, run)
    return ThinReport(
        out=target.name,
        store=store.root.name,
        first_view=kept.start,
        end_view=kept.stop,
        dropped=tuple(drop),
        parts=len(manifest.parts),
        labels=manifest.rows,
        bytes=manifest.bytes,
        bytes_before=store.manifest.bytes,
    )


def _require_views(store: LabelStore, views: range | None) -> range:
    there = store.manifest.view_range
    if views is None:
        parts = [entry.part for entry in store.manifest.parts]
        return range(
            min((part.first_view for part in parts), default=0),
            max((part.end_view for part in parts), default=0),
        )
    if not views or views.start < there.start or views.stop > there.stop:
        raise ConfigError(
            f"`views` is {views.start}:{views.stop}: {store.root} has the views "
            f"{there.start}:{there.stop} of all shards; ask for a range within"
        )
    return views


def _without(identity: StoreIdentity, drop: Sequence[str]) -> StoreIdentity:
    """Return the identity of a store that was labelled without some columns."""
    words = ColumnConfig.words()
    for name in drop:
        if name not in words:
            raise ConfigError(f"`drop` names {name!r}: use some of {', '.join(words)}")
        if not getattr(identity.columns, name):
            kept = [word for word in words if getattr(identity.columns, word)]
            raise ConfigError(
                f"`drop` names {name!r}, which the store does not have; it has "
                f"{', '.join(kept) or 'no optional columns'}"
            )
    nothing = ColumnConfig()
    fewer = replace(identity.columns, **{name: getattr(nothing, name) for name in drop})
    return replace(identity, columns=fewer)


def _overlap(part: PartKey, views: range) -> PartKey | None:
    first, end = max(part.first_view, views.start), min(part.end_view, views.stop)
    return replace(part, first_view=first, views=end - first) if first < end else None


def _write(
    target: Folder, store: LabelStore, entry: PartEntry, part: PartKey, identity: StoreIdentity
) -> None:
    if part == entry.part and identity == store.identity:
        copy_part(target, store, entry, part)
    else:
        commit_part(target, _thinned(store.read_part(entry), part, identity))


def _thinned(rows: PartRows, part: PartKey, identity: StoreIdentity) -> PartRows:
    rows = rows.cut(part)
    kept = rows.columns.only(identity.columns)
    return replace(rows, identity=identity.digest, columns=kept)
