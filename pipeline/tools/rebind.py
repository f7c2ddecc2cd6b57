"""Binds a store to shards of other bytes and the same pixels, as lossless packing makes them.

A store knows its shards by hashes of their bytes. Seeds, pairs and labels follow from keys and
pixels alone. So where both are proven to be the same, the labels are those of the new shards too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import count, islice
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, DecodeError, ShardError
from pipeline.files.cache import CacheConfig, ShardFile
from pipeline.files.local import Location, expand_shards
from pipeline.labelling.redraw import redraw
from pipeline.records import PartRows, Pixels, ShardInfo
from pipeline.shards.index import Shard, match_shards, open_known_shard, open_shard
from pipeline.store import LabelStore, commit_part
from pipeline.store.card import markdown_table
from pipeline.tools.target import (
    ShowProgress,
    check_sources,
    check_target,
    copy_companions,
    finish_target,
)
from pipeline.tools.verify import check_fingerprints, other_rejections
from pipeline.views.apply import decode

__all__ = ["RebindReport", "rebind_store"]

_NAMED = 8  # of the samples that differ


@dataclass(frozen=True, slots=True, kw_only=True)
class RebindReport:
    """A store that was bound to other shards, and what that rests on."""

    out: str
    store: str
    shards: int
    digests: int  # views that were redrawn from the new shards
    images: int  # of which all pixels were compared with the originals'; 0 without these

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        proof = f"{self.images} images" if self.images else "none: `originals` were not given"
        return markdown_table(
            ("", ""),
            [
                ("store", self.out),
                ("bound anew from", self.store),
                ("shards", self.shards),
                ("digests redrawn", self.digests),
                ("all pixels compared", proof),
            ],
        )


def rebind_store(
    store: LabelStore,
    shards: Sequence[str],
    out: Location,
    *,
    originals: Sequence[str] = (),
    cache: CacheConfig | None = None,
    show: ShowProgress = lambda done, total: None,
) -> RebindReport:
    """Write a store at ``out`` with the labels of ``store``, for shards of the same pixels.

    Every digest is redrawn from the new shards, and every rejected image must be rejected again.
    With ``originals``, the shards that were labelled, all images are decoded from both and
    compared pixel by pixel. Without, a pixel that no digested view shows is not looked at; so a
    subset, which has no digests of what it omits, needs them. Nothing is written before all is
    proven. ``show`` is called with the shards compared and the parts redrawn and written.

    Raises ``ShardError`` naming the samples whose views, pixels or targets differ, or shards that
    are not those of the store; ``IdentityError`` if this machine's fingerprints differ.

    >>> store = open_store("teacher.parquet")
    >>> report = rebind_store(store, ["digits-{0..1}.tar"], "marked.parquet")
    >>> report.shards
    2
    """
    if store.manifest.subset_of and not originals:
        raise ConfigError(
            f"{store.root} is a subset, and has no digests of the samples that it omits: give "
            "`originals`, the shards that were labelled"
        )
    floats = check_fingerprints(store)
    check_sources([store])
    files = _with_the_same_keys(store, expand_shards(shards, cache))
    infos = [info for _, info in files.values()]
    # One at a time: a mapped shard keeps a file open.
    open_new = lru_cache(maxsize=1)(lambda number: open_known_shard(*files[number]))
    entries = store.manifest.parts
    steps = len(infos) * bool(originals) + 2 * len(entries)
    done = count(1)
    images = digests = 0
    if originals:
        given = expand_shards(originals, cache)
        known = match_shards(store.manifest.shards, given, "originals", subset=None)
        for info in store.manifest.shards:
            labelled = open_known_shard(known[info.number], info)
            _refuse(_other_pixels(store, labelled, open_new(info.number)))
            images += info.samples - len(store.manifest.rejections.get(info.number, ()))
            show(next(done), steps)
    for entry in entries:
        rows = store.read_part(entry)
        _refuse(_other_views(store, open_new(entry.part.shard), rows, floats=floats))
        digests += int(rows.has_digest.sum())
        show(next(done), steps)
    target = check_target(
        out, store.identity, store.manifest.fingerprints, {one.part for one in entries}
    )
    copy_companions(target, store)
    for entry in entries:
        shard = open_new(entry.part.shard)
        rows = replace(
            store.read_part(entry),
            content_hash=shard.info.content_hash,
            image_hash=shard.contents.image_hash,
            formats=shard.contents.formats,
        )
        commit_part(target, rows)
        show(next(done), steps)
    run = {
        "command": "rebind",
        "stores": [store.root.name],
        "shards": list(shards),
        "originals": list(originals),
        "images": images,
        "digests": digests,
    }
    finish_target(target, [store], store.identity, infos, {one.part for one in entries}, run)
    return RebindReport(
        out=target.name,
        store=store.root.name,
        shards=len(infos),
        digests=digests,
        images=images,
    )


def _with_the_same_keys(
    store: LabelStore, paths: Sequence[ShardFile]
) -> dict[int, tuple[ShardFile, ShardInfo]]:
    """Return the new file of each of a store's shards, by number, whatever the files are called."""
    by_keys: dict[str, tuple[ShardFile, ShardInfo]] = {}
    for path in paths:
        info = open_shard(path, 0).info
        first, _ = by_keys.setdefault(info.key_hash, (path, info))
        if first != path:
            raise ShardError(f"{first} and {path} have the same keys; give `shards` one of them")
    found = {}
    for known in store.manifest.shards:
        if known.key_hash in by_keys:
            path, info = by_keys.pop(known.key_hash)
            found[known.number] = path, replace(info, number=known.number)
    missing = [one.name for one in store.manifest.shards if one.number not in found]
    if missing or by_keys:
        others = [str(path) for path, _ in by_keys.values()]
        raise ShardError(
            f"`shards` has not the samples of {store.root}, in their order: "
            + ", ".join(
                [f"none has those of {name}" for name in missing[:_NAMED]]
                + [f"{name} has others" for name in others[:_NAMED]]
            )
            + "; pack the same images with the same settings and seed as the labelled ones"
        )
    return found


def _other_pixels(store: LabelStore, labelled: Shard, shard: Shard) -> Iterator[str]:
    """Yield the samples whose target or decoded pixels are not those that were labelled."""
    max_pixels, rejections = store.identity.augment.max_pixels, store.manifest.rejections
    rejected = {one.index for one in rejections.get(labelled.info.number, ())}
    for index, (ours, theirs) in enumerate(zip(labelled.samples, shard.samples, strict=True)):
        if ours.target != theirs.target:
            yield f"{ours.key!r} has target {theirs.target}, and had {ours.target}"
        if index in rejected:  # looked at part by part, for one may end its decoder
            continue
        outcomes = [
            _decoded(one.image_bytes(index), ours.image_name, max_pixels)
            for one in (labelled, shard)
        ]
        if not np.array_equal(outcomes[0], outcomes[1]):
            yield f"{ours.key!r} decodes to other pixels"


def _decoded(data: memoryview, name: str, max_pixels: int) -> Pixels | str:
    """Return an image's pixels, or why it has none."""
    try:
        return decode(data, name, max_pixels)
    except DecodeError as error:
        return error.reason


def _other_views(store: LabelStore, shard: Shard, rows: PartRows, *, floats: bool) -> Iterator[str]:
    """Yield the samples of a part whose views or rejection the shard does not give.

    Raises ``ShardError`` for other targets.
    """
    cells = np.argwhere(rows.has_digest)
    found = redraw(store.identity, shard, rows, cells, floats=floats)
    for one in (*found, *other_rejections(shard, rows, store.identity.augment.max_pixels)):
        yield f"{one.key!r}: {one.column} of view {one.view} is {one.found}, and was {one.stored}"


def _refuse(differences: Iterator[str]) -> None:
    """Raise ``ShardError`` naming what differs, if something does."""
    found = list(islice(differences, _NAMED + 1))
    if found:
        more = "\n  and more" if len(found) > _NAMED else ""
        raise ShardError(
            "these shards have not the pixels that were labelled:"
            + "".join(f"\n  {one}" for one in found[:_NAMED])
            + more
            + "\n  cure: pack the labelled images anew with `lossless`, or label these shards"
        )
