"""Proves that a store is whole, and that its labels belong to the pixels that replay gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import columns_fit
from pipeline.errors import ChecksumError, DecodeError, IdentityError, ShardError
from pipeline.files.cache import CacheConfig
from pipeline.files.local import Folder, Place, expand_shards
from pipeline.records import NO_PARTNER, PartRows, Pixels
from pipeline.shards.index import Shard, match_shards, open_known_shard
from pipeline.store import Agreement, LabelStore, open_store
from pipeline.store.contract import header_of
from pipeline.store.provenance import read_runs, versions
from pipeline.views.apply import decode
from pipeline.views.fingerprints import different_fingerprints, fingerprints, what_they_watch
from pipeline.views.make import ShardViews
from pipeline.views.pairing import Pairing

__all__ = ["Mismatch", "VerifyReport", "check_fingerprints", "verify_store"]

SAMPLED_DIGESTS = 512
"""Digests that are redrawn unless all are asked for, spread over all parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A view that is not what the teacher labelled."""

    shard: str
    key: str
    view: int
    stored: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a verification looked at and found; it passed if there are no mismatches."""

    parts: int
    labels: int
    bytes: int
    samples: int
    rejected: int
    omitted: int  # by a subset
    digests: int  # in the store
    redrawn: int  # of them
    left_out: str  # of the shards, in words, if only some were given
    mismatches: tuple[Mismatch, ...]


def verify_store(
    place: Place,
    shards: Sequence[str] = (),
    *,
    every_digest: bool = False,
    subset: bool = False,
    cache: CacheConfig | None = None,
) -> VerifyReport:
    """Check every file of a store, and with shards redraw views that have a digest.

    Without shards: the manifest, the card, the identity, and each part's SHA-256, page
    checksums, rows and identity. With shards: every byte of their images too, and digests
    redrawn from them, a spread sample or all; rejected images must still not decode if all
    are asked for. With ``subset`` some of the store's shards are enough: views of the others are
    not redrawn. ``cache`` is where shards from object storage are kept.

    Raises ``StoreError`` for damage, ``ShardError`` for other shards, ``IdentityError`` if
    this machine's fingerprints differ. Views that differ are reported, not raised.

    >>> verify_store("teacher.parquet", ["digits-{0..1}.tar"], every_digest=True).mismatches
    ()
    """
    store = open_store(place)
    store.check_files()
    store.check_companions()
    paths = {}
    if shards:
        check_fingerprints(store)
        given = expand_shards(shards, cache)
        paths = match_shards(store.manifest.shards, given, subset=subset)
    digests = redrawn = 0
    mismatches: list[Mismatch] = []
    hashed: set[int] = set()
    agreements: list[Agreement] = []
    quota = -(-SAMPLED_DIGESTS // max(1, len(store.manifest.parts)))
    for entry in store.manifest.parts:
        rows = store.read_part(entry)
        _check_part(store, rows)
        agreements.append(Agreement.of_rows(rows))
        drawn = np.argwhere(rows.has_digest)
        digests += len(drawn)
        if entry.part.shard not in paths:
            continue
        shard = open_known_shard(paths[entry.part.shard], store.manifest.by_shard[entry.part.shard])
        if shard.info.number not in hashed:
            hashed.add(shard.info.number)
            _check_images(store, shard)
        if not every_digest and len(drawn) > quota:
            drawn = drawn[np.linspace(0, len(drawn) - 1, quota).astype(int)]
        redrawn += len(drawn)
        mismatches += _redraw(store, shard, rows, drawn)
        if every_digest:
            mismatches += _other_rejections(shard, rows, store.identity.augment.max_pixels)
    manifest = store.manifest
    if Agreement.total(agreements) != manifest.agreement:
        raise ChecksumError(
            f"{store.root}: the labels agree with the true classes as "
            f"{Agreement.total(agreements)}, the manifest says {manifest.agreement}; run the "
            "label job again, it writes the manifest anew"
        )
    return VerifyReport(
        parts=len(manifest.parts),
        labels=manifest.rows,
        bytes=store.stored_bytes,
        samples=manifest.counts.indexed,
        rejected=manifest.counts.rejected,
        omitted=manifest.counts.omitted,
        digests=digests,
        redrawn=redrawn,
        left_out=store.manifest.left_out(paths) if shards else "",
        mismatches=tuple(mismatches),
    )


def check_fingerprints(store: LabelStore) -> None:
    """Refuse a store whose views this machine would not replay alike.

    Decoding is compared for the image formats that its shards hold.

    Raises ``IdentityError`` naming what differs and the versions on both sides.
    """
    prints, stored = fingerprints(store.identity), store.manifest.fingerprints
    if not prints.keys() & stored:
        raise IdentityError(
            f"{store.root} has no fingerprint that this release knows, so nothing shows that its "
            "views come out here as they were labelled; install the release that wrote it"
        )
    formats = {name for names in store.manifest.formats.values() for name in names}
    different = different_fingerprints(prints, stored, formats)
    if not different:
        return
    ours, theirs = versions(), _versions_of_runs(store.root)
    lines = [
        f"{name} {version} here, {theirs.get(name, 'unknown')} there"
        for name, version in ours.items()
        if theirs.get(name) != version
    ]
    raise IdentityError(
        f"{store.root}: this machine makes other pixels than the one that labelled, in "
        f"{what_they_watch(store.identity, different)}; install the versions of the store ("
        + ("; ".join(lines) or "all versions are equal: do the machines differ?")
        + ")"
    )


def _versions_of_runs(root: Folder) -> Mapping[str, str]:
    """Return the versions of the store's first run, nothing if none is recorded."""
    return next((run.versions for run in read_runs(root) if run.versions), {})


def _check_part(store: LabelStore, rows: PartRows) -> None:
    fits = columns_fit(rows.label, rows.columns, store.identity.teacher.classes)
    if not fits or rows.header != header_of(store.manifest, rows.part):
        raise ChecksumError(
            f"{store.root.at(rows.part.path)} does not fit its manifest; delete the file and run "
            "the label job again, it will redo only this part"
        )


def _check_images(store: LabelStore, shard: Shard) -> None:
    """Compare every byte of a shard's images with those that were labelled."""
    if shard.image_hash != store.manifest.image_hashes.get(shard.info.number):
        raise ShardError(
            f"{shard.path}: the bytes of its images are not those that were labelled, though "
            "keys, targets and lengths are; fetch the shard again, it is damaged or changed"
        )


def _redraw(
    store: LabelStore, shard: Shard, rows: PartRows, drawn: NDArray[np.int64]
) -> Iterator[Mismatch]:
    """Redraw views of one part, sample by sample, and yield those that differ.

    ``drawn`` is the row and column of each, (N, 2).
    """
    index_of_key = {sample.key: index for index, sample in enumerate(shard.samples)}
    identity = store.identity
    pairing = Pairing(
        root_seed=identity.root_seed,
        shard=shard.info,
        rejected=frozenset(rejection.index for rejection in rows.rejections),
        config=identity.mix,
    )
    shard_views = ShardViews(pairing=pairing, samples=shard.samples, augment=identity.augment)
    partners_at = cache(pairing.of_shard)
    last: tuple[int, Pixels] | None = None
    for row, column in drawn.tolist():
        key, view = rows.keys[row], rows.part.first_view + column
        index = index_of_key[key]
        stored = f"{int(rows.digest[row, column]):08x}"
        if last is None or last[0] != index:
            data, name = shard.image_bytes(index), shard.samples[index].image_name
            try:
                image = decode(data, name, identity.augment.max_pixels)
            except DecodeError as error:
                yield Mismatch(
                    shard=shard.info.name, key=key, view=view, stored=stored, found=str(error)
                )
                continue
            last = (index, image)
        pair = (index, partners_at(view).get(index, NO_PARTNER))
        made = shard_views.make(last[1], int(rows.seed[row]), view, pair, digest=True)
        found = f"{made.digest:08x}"
        if found != stored:
            yield Mismatch(shard=shard.info.name, key=key, view=view, stored=stored, found=found)


def _other_rejections(shard: Shard, rows: PartRows, max_pixels: int) -> Iterator[Mismatch]:
    """Yield the rejected images that decode here, or are rejected for another reason."""
    for rejection in rows.rejections:
        try:
            decode(shard.image_bytes(rejection.index), rejection.key, max_pixels)
            found = "decodes"
        except DecodeError as error:
            found = f"rejected ({error.reason})"
        stored = f"rejected ({rejection.reason})"
        if found != stored:
            yield Mismatch(
                shard=shard.info.name,
                key=rejection.key,
                view=rows.part.first_view,
                stored=stored,
                found=found,
            )
