"""Proves that a store is whole, and that its labels belong to the pixels that replay gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import columns_fit
from pipeline.errors import ChecksumError, DecodeError, IdentityError, ShardError
from pipeline.files.cache import CacheConfig
from pipeline.files.local import Location, expand_shards
from pipeline.labelling.probe import crashes_decoder
from pipeline.labelling.redraw import Mismatch, mixed_mask, redraw, sample_cells
from pipeline.records import PartRows
from pipeline.shards.index import Shard, match_shards, open_known_shard
from pipeline.store import Agreement, LabelStore, open_store
from pipeline.store.contract import header_of
from pipeline.store.provenance import version_differences
from pipeline.views.apply import decode
from pipeline.views.draw import has_digest
from pipeline.views.fingerprints import BITS, different_fingerprints, what_they_watch

if TYPE_CHECKING:
    import torch

__all__ = [
    "Mismatch",
    "VerifyReport",
    "check_fingerprints",
    "other_rejections",
    "verify_store",
]

SAMPLED_DIGESTS = 512
"""Digests that are redrawn unless all are asked for, spread over all parts."""


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
    without_digest: int  # labelled samples none of whose views has a digest
    redrawn: int  # of them
    mixed_digests: int  # of mixed images, in the store
    mixed_redrawn: int  # of them
    same_floats: bool  # whether this machine's are the teacher's, to the last bit
    left_out: str  # of the shards, in words, if only some were given
    mismatches: tuple[Mismatch, ...]
    unwatched: tuple[str, ...]  # people's files beside the labels: no checksum knows them

    def in_words(self) -> tuple[str, ...]:
        """Return what was looked at, and found right unless it is a mismatch, in sentences."""
        omitted = f" + {self.omitted} omitted" if self.omitted else ""
        labelled = self.samples - self.rejected - self.omitted
        lines = [
            f"{self.parts} part{'s' * (self.parts != 1)}, {self.labels} labels, {self.bytes} "
            "bytes: all checksums are right",
            f"{self.samples} samples = {labelled} labelled + {self.rejected} rejected{omitted}",
            f"{self.digests} views have a digest of their pixels: {self._redrawn()}",
            f"{self.mixed_digests} of them have one of the mixed image too, "
            + (
                f"{self.mixed_redrawn} were redone"
                if self.same_floats
                else "which cannot be redone here: this machine's floats differ in their last bits"
            ),
            f"{self.without_digest} labelled samples have no digest at any view",
        ]
        if self.left_out:
            lines.append(
                f"warning: the shards given are {self.left_out}: nothing of those was redrawn"
            )
        lines += [f"{path} is watched by nothing: no checksum knows it" for path in self.unwatched]
        return tuple(lines)

    def _redrawn(self) -> str:
        if not self.redrawn:
            return "none was compared, for which shards are needed"
        how = "redrawn from the shards and compared"
        if self.redrawn == self.digests:
            return f"all were {how}"
        if self.left_out:
            return f"of the shards given, {self.redrawn} were {how}"
        return f"a sample of {self.redrawn}, spread over the parts, was {how}"


def verify_store(
    location: Location | LabelStore,
    shards: Sequence[str] = (),
    *,
    every_digest: bool = False,
    subset: bool = False,
    cache: CacheConfig | None = None,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> VerifyReport:
    """Check every file of a store, and with shards redraw views that have a digest.

    Without shards: the manifest, the card, the identity, and each part's SHA-256, page
    checksums, rows and identity. With shards: every byte of their images too, and digests
    redrawn from them, a spread sample or all, those of mixed images on the CPU; rejected images
    must still not decode if all are asked for. With ``subset`` some of the store's shards are
    enough: views of the others are not redrawn. ``cache`` is where shards from object storage are
    kept, and ``show`` is called with the labels that were looked at.

    Raises ``StoreError`` for damage, ``ShardError`` for other shards, ``IdentityError`` if
    this machine's fingerprints differ. Views that differ are reported, not raised. Where floats
    differ in their last bits alone, digests of mixed images are not redone, and the report says so.

    >>> verify_store("teacher.parquet", ["digits-{0..1}.tar"], every_digest=True).mismatches
    ()
    """
    store = location if isinstance(location, LabelStore) else open_store(location)
    store.check_files()
    store.check_companions()
    unwatched = tuple(store.user_files())
    paths, same_floats = {}, True
    if shards:
        same_floats = check_fingerprints(store)
        given = expand_shards(shards, cache)
        paths = match_shards(store.manifest.shards, given, subset=subset)
    digests = redrawn = mixed_digests = mixed_redrawn = 0
    mismatches: list[Mismatch] = []
    hashed: set[int] = set()
    digested: dict[int, NDArray[np.bool_]] = {}  # by shard: which labelled samples have a digest
    agreements: list[Agreement] = []
    quota = -(-SAMPLED_DIGESTS // max(1, len(store.manifest.parts)))
    done = 0
    for entry in store.manifest.parts:
        show(done, store.manifest.rows)
        done += entry.rows
        rows = store.read_part(entry)
        _check_part(store, rows)
        _check_digests_are_due(store, rows)
        agreements.append(Agreement.of_rows(rows))
        mixed = mixed_mask(rows)
        digests += int(rows.has_digest.sum())
        known = digested.setdefault(entry.part.shard, np.zeros(len(rows.keys), np.bool_))
        known |= rows.has_digest.any(axis=1)
        mixed_digests += int(mixed.sum())
        if entry.part.shard not in paths:
            continue
        shard = open_known_shard(paths[entry.part.shard], store.manifest.by_shard[entry.part.shard])
        if shard.info.number not in hashed:
            hashed.add(shard.info.number)
            _check_images(store, shard)
        drawn = np.argwhere(rows.has_digest) if every_digest else sample_cells(rows, quota)
        redrawn += len(drawn)
        mixed_redrawn += int(mixed[drawn[:, 0], drawn[:, 1]].sum()) if same_floats else 0
        mismatches += redraw(store.identity, shard, rows, drawn, floats=same_floats)
        if every_digest:
            mismatches += other_rejections(shard, rows, store.identity.augment.max_pixels)
    show(done, store.manifest.rows)
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
        without_digest=sum(int((~one).sum()) for one in digested.values()),
        redrawn=redrawn,
        mixed_digests=mixed_digests,
        mixed_redrawn=mixed_redrawn,
        same_floats=same_floats,
        left_out=store.manifest.left_out(paths) if shards else "",
        mismatches=tuple(mismatches),
        unwatched=unwatched,
    )


def check_fingerprints(store: LabelStore, device: torch.device | str = "cpu") -> bool:
    """Refuse a store whose views this machine would not replay, normalize and mix alike.

    Decoding is compared for the image formats that its shards hold. Returns whether the device's
    floats are those of the teacher's to the last bit, so that digests of them can be compared.

    Raises ``IdentityError`` naming what differs and the versions on both sides.
    """
    from pipeline.views.floats import fingerprints_on  # needs PyTorch, a second to load

    prints, stored = fingerprints_on(store.identity, device), store.manifest.fingerprints
    if not prints.keys() & stored:
        raise IdentityError(
            f"{store.root} has no fingerprint that this release knows, so nothing shows that its "
            "views come out here as they were labelled; install the release that wrote it"
        )
    formats = {name for names in store.manifest.formats.values() for name in names}
    different = different_fingerprints(prints, stored, formats)
    refused = [name for name in different if not name.endswith(BITS)]
    if refused:
        raise IdentityError(
            f"{store.root}: this machine makes other pixels than the one that labelled, in "
            f"{what_they_watch(store.identity, refused)}; install the versions of the store "
            f"({version_differences(store.root)})"
        )
    return not different


def _check_part(store: LabelStore, rows: PartRows) -> None:
    fits = columns_fit(rows.label, rows.columns, store.identity.teacher.classes)
    if not fits or rows.header != header_of(store.manifest, rows.part):
        raise ChecksumError(
            f"{store.root.at(rows.part.path)} does not fit its manifest; delete the file and run "
            "the label job again, it will redo only this part"
        )


def _check_digests_are_due(store: LabelStore, rows: PartRows) -> None:
    views = np.arange(rows.part.first_view, rows.part.end_view)
    other = np.argwhere(rows.has_digest != has_digest(rows.seed[:, None], views))
    if len(other):
        row, column = other[0].tolist()
        what = "has one" if rows.has_digest[row, column] else "lacks one"
        raise ChecksumError(
            f"{store.root.at(rows.part.path)}: digests are not where they belong, view "
            f"{views[column]} of {rows.keys[row]!r} {what}; delete the file and run the label job "
            "again, it will redo only this part"
        )


def _check_images(store: LabelStore, shard: Shard) -> None:
    """Compare every byte of a shard's images with those that were labelled."""
    if shard.contents.image_hash != store.manifest.image_hashes.get(shard.info.number):
        raise ShardError(
            f"{shard.path}: the bytes of its images are not those that were labelled, though "
            "keys, targets and lengths are; fetch the shard again, it is damaged or changed"
        )


def other_rejections(shard: Shard, rows: PartRows, max_pixels: int) -> Iterator[Mismatch]:
    """Yield the rejected images that decode here, or are rejected for another reason."""
    for rejection in rows.rejections:
        data = shard.image_bytes(rejection.index)
        if rejection.reason == "crashes-decoder" and crashes_decoder(bytes(data), max_pixels):
            continue
        try:
            decode(data, rejection.key, max_pixels)
            found = "decodes"
        except DecodeError as error:
            found = f"rejected ({error.reason})"
        stored = f"rejected ({rejection.reason})"
        if found != stored:
            yield Mismatch(
                shard=shard.info.name,
                key=rejection.key,
                view=rows.part.first_view,
                column="rejection",
                stored=stored,
                found=found,
            )
