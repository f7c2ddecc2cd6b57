"""Joins stores of one identity that hold other shards or other views."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from pipeline.errors import ConfigError, IdentityError, RejectionError, StoreError
from pipeline.files.local import Location
from pipeline.identity import different_fields
from pipeline.records import PartKey, ShardInfo
from pipeline.store import LabelStore, PartEntry, copy_part, different_column
from pipeline.store.card import first_lines, markdown_table
from pipeline.tools.target import (
    ShowProgress,
    agreed_classes,
    check_sources,
    check_target,
    copy_companions,
    finish_target,
)
from pipeline.views.fingerprints import different_fingerprints, what_they_watch

__all__ = ["MergeReport", "merge_stores"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """A store that was joined from others."""

    out: str
    stores: tuple[str, ...]
    shards: int
    parts: int
    labels: int
    bytes: int
    renumbered: tuple[str, ...]  # store, shard: its number there and in the result

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        rows = [
            ("store", self.out),
            ("joined from", ", ".join(self.stores)),
            ("shards", self.shards),
            ("parts", self.parts),
            ("labels", self.labels),
            ("bytes", self.bytes),
        ]
        moved = "".join(f"- {line}\n" for line in first_lines(self.renumbered, 20))
        return markdown_table(("", ""), rows) + (
            f"\nShards with another number than in their store:\n\n{moved}" if moved else ""
        )


def merge_stores(
    stores: Sequence[LabelStore], out: Location, show: ShowProgress = lambda done, total: None
) -> MergeReport:
    """Join stores of one identity into a store at ``out``, part by part, byte for byte.

    A shard keeps its number unless an earlier store uses it for another shard; it then takes
    the smallest that is free. Parts that two stores have with the same rows are taken from the
    first. All is checked before anything is written, and the manifest is written last, so a
    merge that was interrupted can be run again.

    Raises ``IdentityError`` for stores of other identities, fingerprints or shard contents,
    ``ClassesError`` for other names of classes,
    ``StoreError`` for parts that differ or overlap, ``RejectionError`` if two stores disagree
    about which images decode.
    """
    plan = _plan(stores)
    first = stores[0]
    parts = {copy.part for copy in plan.copies}
    check_sources(stores)
    target = check_target(out, first.identity, first.manifest.fingerprints, parts)
    for store in stores:
        copy_companions(target, store)
    for done, copy in enumerate(plan.copies, start=1):
        copy_part(target, copy.store, copy.entry, copy.part)
        show(done, len(plan.copies))
    names = tuple(store.root.name for store in stores)
    run = {"command": "merge", "stores": names}
    manifest = finish_target(target, stores, first.identity, plan.shards, parts, run)
    return MergeReport(
        out=target.name,
        stores=names,
        shards=len(manifest.shards),
        parts=len(manifest.parts),
        labels=manifest.rows,
        bytes=manifest.bytes,
        renumbered=tuple(plan.renumbered),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """A part of a source, and what it becomes."""

    store: LabelStore
    entry: PartEntry
    part: PartKey

    @property
    def name(self) -> str:
        return self.store.root.at(self.entry.part.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A shard as the first store knows it, and its number in the result."""

    store: LabelStore
    shard: ShardInfo
    number: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a merge will copy."""

    shards: tuple[ShardInfo, ...]
    copies: tuple[_Copy, ...]
    renumbered: list[str] = field(default_factory=list)


def _plan(stores: Sequence[LabelStore]) -> _Plan:
    """Check that stores fit and say what to copy; reads no more parts than it must."""
    if len(stores) < 2:
        raise ConfigError("`stores` names fewer than two; give two or more to join")
    for other in stores[1:]:
        _require_one_identity(stores[0], other)
    agreed_classes(*stores)
    known: dict[str, _Known] = {}  # by key hash
    taken: set[int] = set()
    copies: dict[PartKey, _Copy] = {}
    renumbered = []
    for store in stores:
        for shard in store.manifest.shards:
            if shard.key_hash in known:
                _require_same_shard(known[shard.key_hash], store, shard)
            else:
                number = _free_number(shard.number, taken)
                taken.add(number)
                known[shard.key_hash] = _Known(store=store, shard=shard, number=number)
            number = known[shard.key_hash].number
            if number != shard.number:
                renumbered.append(f"{store.root.name}, {shard.name}: {shard.number} to {number}")
            for entry in store.manifest.parts_of_shard(shard.number):
                copy = _Copy(store=store, entry=entry, part=replace(entry.part, shard=number))
                _require_same_rows(copies.setdefault(copy.part, copy), copy)
    _require_no_overlap(copies.values())
    return _Plan(
        tuple(
            replace(one.shard, number=one.number)
            for one in sorted(known.values(), key=lambda one: one.number)
        ),
        tuple(copy for _, copy in sorted(copies.items())),
        renumbered,
    )


def _free_number(wanted: int, taken: set[int]) -> int:
    if wanted not in taken:
        return wanted
    return next(number for number in range(len(taken) + 1) if number not in taken)


def _require_one_identity(first: LabelStore, other: LabelStore) -> None:
    fields = different_fields(first.identity.to_json(), other.identity.to_json())
    if fields:
        raise IdentityError(
            f"{first.root} and {other.root} have other identities (the first's / the second's):"
            "\n  " + "\n  ".join(fields) + "\n  cure: only stores of one identity can be joined; "
            "thin them to take columns away, or compare the teachers with a diff"
        )
    missing = sorted(first.manifest.fingerprints.keys() - other.manifest.fingerprints)
    if missing:
        raise IdentityError(
            f"{other.root} has no fingerprint {', '.join(map(repr, missing))}, which {first.root} "
            "has, so nothing shows that they were labelled alike; name the former first"
        )
    prints = different_fingerprints(first.manifest.fingerprints, other.manifest.fingerprints)
    if prints:
        raise IdentityError(
            f"{first.root} and {other.root} were labelled where these give other pixels: "
            f"{what_they_watch(first.identity, prints)}; label one of them again with "
            "the versions of the other, which its _meta/runs name"
        )


def _require_same_shard(known: _Known, store: LabelStore, shard: ShardInfo) -> None:
    """Refuse a shard whose keys are those of another store's, but not all else."""
    before, old = known.store, known.shard
    images = (
        before.manifest.image_hashes.get(old.number),
        store.manifest.image_hashes.get(shard.number),
    )
    if old.content_hash != shard.content_hash or (None not in images and images[0] != images[1]):
        raise IdentityError(
            f"{old.name} of {before.root} and {shard.name} of {store.root} have the same keys, "
            "but their images or targets differ; label the shards anew with one of the two"
        )
    if before.manifest.omitted.get(old.number) != store.manifest.omitted.get(shard.number):
        raise StoreError(
            f"{before.root} and {store.root} omit other samples of {shard.name}, so they are not "
            "of one subset; thin the whole store once, to all that is wanted"
        )
    ours, theirs = (
        {rejection.key for rejection in of.manifest.rejections.get(number, ())}
        for of, number in ((before, old.number), (store, shard.number))
    )
    if ours != theirs:
        raise RejectionError(
            f"{before.root} and {store.root} disagree whether {min(ours ^ theirs)!r} of "
            f"{shard.name} decodes; label again where the decoder is wrong"
        )


def _require_same_rows(first: _Copy, other: _Copy) -> None:
    """Refuse one part with two contents; files of two releases may differ all the same."""
    if first.entry.sha256 == other.entry.sha256:
        return
    ours, theirs = (copy.store.read_part(copy.entry) for copy in (first, other))
    column = "keys" if ours.keys != theirs.keys else different_column(ours, theirs)
    if column:
        raise StoreError(
            f"{first.name} and {other.name} are the same part with other rows: {column}; "
            "verify both with their shards to see which is right, and leave the other out"
        )


def _require_no_overlap(copies: Iterable[_Copy]) -> None:
    ordered = sorted(copies, key=lambda copy: copy.part)
    for one, other in pairwise(ordered):
        if one.part.shard == other.part.shard and one.part.end_view > other.part.first_view:
            raise StoreError(
                f"{one.name} and {other.name} overlap; thin one of the stores first, so that "
                "each view is in one of them"
            )
