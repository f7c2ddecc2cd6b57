"""Makes a smaller store of one that exists: fewer views, columns, shards or samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import ColumnConfig
from pipeline.errors import ConfigError
from pipeline.files.local import Folder, Location, sha256
from pipeline.growth import require, settle
from pipeline.identity import StoreIdentity
from pipeline.records import PartKey, PartRows
from pipeline.store import LabelStore, PartEntry, commit_part, copy_part
from pipeline.store.card import markdown_table
from pipeline.store.subset import SubsetOf, number_ranges
from pipeline.tools.target import (
    ShowProgress,
    check_sources,
    check_target,
    copy_companions,
    finish_target,
)
from pipeline.views.rng import sample_share

__all__ = ["KeptSamples", "ThinReport", "thin_store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSamples:
    """Which samples a thinned store keeps; all that is given must hold.

    >>> KeptSamples(classes=(0, 7), sample_share=0.1).sample_seed
    0
    """

    shard_numbers: tuple[int, ...] | None = None
    classes: tuple[int, ...] | None = None  # true classes
    keys: tuple[str, ...] | None = None
    sample_share: float | None = None  # by a hash of the seed and the key: 0.01 lies in 0.1
    sample_seed: int = 0

    def __post_init__(self) -> None:
        settle(self)
        for name in ("shard_numbers", "classes", "keys"):
            value = getattr(self, name)
            require(self, name, value is None or len(value) > 0, "name one at least")
        share = self.sample_share
        require(self, "sample_share", share is None or 0 < share <= 1, "use more than 0, at most 1")

    @property
    def of_samples(self) -> bool:
        """Whether more is asked of a sample than its shard."""
        return any(one is not None for one in (self.classes, self.keys, self.sample_share))

    def record(self, store: LabelStore) -> SubsetOf:
        """Return what the subset says of its source."""
        shards, classes, share = self.shard_numbers, self.classes, self.sample_share
        return SubsetOf(
            identity=store.identity.digest,
            manifest=store.manifest.digest,
            samples=store.manifest.counts.labelled,
            shards=None if shards is None else number_ranges(shards),
            classes=None if classes is None else number_ranges(classes),
            keys=None if self.keys is None else _keys_digest(self.keys),
            share=share,
            share_seed=None if share is None else self.sample_seed,
        )


def _keys_digest(keys: Sequence[str]) -> str:
    return sha256("".join(f"{key}\n" for key in sorted(set(keys))).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinReport:
    """A store that was thinned from another."""

    out: str
    store: str
    first_view: int
    end_view: int
    dropped: tuple[str, ...]
    shards: int
    samples: int  # labelled
    samples_before: int
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
                ("shards", self.shards),
                ("labelled samples", f"{self.samples} of {self.samples_before}"),
                ("parts", self.parts),
                ("labels", self.labels),
                ("bytes", f"{self.bytes} of {self.bytes_before}"),
            ],
        )


def thin_store(
    store: LabelStore,
    out: Location,
    *,
    views: range | None = None,
    drop: Sequence[str] = (),
    kept: KeptSamples | None = None,
    show: ShowProgress = lambda done, total: None,
) -> ThinReport:
    """Write a store of some views, columns and samples of ``store`` at ``out``.

    Of some views and columns, the result has the bytes of one labelled with these settings, if
    its parts are cut at the same views: whole parts that keep their columns are copied, others
    are encoded anew. With ``kept`` it is a subset, and says of what: shards without a sample that
    is kept are left out, other samples are omitted, and their images still mixed in. An
    interrupted run can be run again. Raises ``ConfigError`` for views, columns, shards, classes or
    keys that the store does not have.

    >>> report = thin_store(open_store("teacher.parquet"), "first.parquet", views=range(3))
    >>> open_store("first.parquet").manifest.view_range
    range(0, 3)
    """
    wanted = _require_views(store, views)
    identity = _without(store.identity, drop)
    mask = _kept_masks(store, kept)
    parts = [
        (entry, part)
        for entry in store.manifest.parts
        if entry.part.shard in mask and (part := _overlap(entry.part, wanted)) is not None
    ]
    keys = {part for _, part in parts}
    check_sources([store])
    target = check_target(out, identity, store.manifest.fingerprints, keys)
    copy_companions(target, store)
    for done, (entry, part) in enumerate(parts, start=1):
        _write(target, store, entry, part, identity, mask[part.shard])
        show(done, len(parts))
    subset = () if kept is None else (kept.record(store),)
    run = {
        "command": "thin",
        "stores": [store.root.name],
        "views": [wanted.start, wanted.stop],
        "drop": list(drop),
        "kept": [asdict(one) for one in subset],
    }
    shards = [shard for shard in store.manifest.shards if shard.number in mask]
    manifest = finish_target(target, [store], identity, shards, keys, run, subset_of=subset)
    return ThinReport(
        out=target.name,
        store=store.root.name,
        first_view=wanted.start,
        end_view=wanted.stop,
        dropped=tuple(drop),
        shards=len(manifest.shards),
        samples=manifest.counts.labelled,
        samples_before=store.manifest.counts.labelled,
        parts=len(manifest.parts),
        labels=manifest.rows,
        bytes=manifest.bytes,
        bytes_before=store.manifest.bytes,
    )


def _kept_masks(
    store: LabelStore, kept: KeptSamples | None
) -> Mapping[int, NDArray[np.bool_] | None]:
    """Return the shards that are kept, each with which of its labelled samples, None for all."""
    there = store.manifest.by_shard
    if kept is None:
        return dict.fromkeys(there)
    wanted = set(there if kept.shard_numbers is None else kept.shard_numbers)
    _require_known("shard_numbers", wanted - there.keys(), store)
    numbers = [number for number in there if number in wanted]
    if not kept.of_samples:
        return dict.fromkeys(numbers)
    named = frozenset(kept.keys or ())
    keys, classes = set(named), set(kept.classes or ())
    found: dict[int, NDArray[np.bool_] | None] = {}
    for number in numbers:
        entries = store.manifest.parts_of_shard(number)
        if not entries:
            continue
        rows = store.read_part(entries[0])  # all parts of a shard have the same samples
        keys -= {*rows.keys, *(one.key for one in rows.rejections)}
        classes -= set(rows.target.tolist())
        mask = _kept_mask(kept, named, rows)
        if mask.any():
            found[number] = None if mask.all() else mask
    _require_known("keys", keys, store)
    _require_known("classes", classes, store)
    if not found:
        raise ConfigError(f"no sample of {store.root} is kept; ask for more of them")
    return found


def _kept_mask(kept: KeptSamples, named: frozenset[str], rows: PartRows) -> NDArray[np.bool_]:
    """Return which of a part's labelled samples are kept, (N,); ``named`` are the keys to keep."""
    mask = np.ones(len(rows.keys), np.bool_)
    if kept.classes is not None:
        mask &= np.isin(rows.target, kept.classes)
    if kept.keys is not None:
        mask &= np.fromiter((key in named for key in rows.keys), np.bool_, len(mask))
    if kept.sample_share is not None:
        for index in np.flatnonzero(mask):
            mask[index] = sample_share(kept.sample_seed, rows.keys[index]) < kept.sample_share
    return mask


def _require_known(name: str, unknown: set[Any], store: LabelStore) -> None:
    if unknown:
        raise ConfigError(
            f"`{name}` has {len(unknown)} that {store.root} has no labels of, the first is "
            f"{min(unknown)!r}; name what it has, which its card and rows list"
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
    target: Folder,
    store: LabelStore,
    entry: PartEntry,
    part: PartKey,
    identity: StoreIdentity,
    mask: NDArray[np.bool_] | None,
) -> None:
    if part == entry.part and identity == store.identity and mask is None:
        copy_part(target, store, entry, part)
        return
    rows = store.read_part(entry)
    if mask is not None:
        rows = rows.omit(mask)
    commit_part(target, _thinned(rows, part, identity))


def _thinned(rows: PartRows, part: PartKey, identity: StoreIdentity) -> PartRows:
    rows = rows.cut(part)
    kept = rows.columns.only(identity.columns)
    return replace(rows, identity=identity.digest, columns=kept)
