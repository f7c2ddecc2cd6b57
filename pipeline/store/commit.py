"""Writing a store: claim a directory, commit parts, finish with the manifest.

Any number of processes may commit parts of one store at a time. A part appears whole or
not at all, and never changes afterwards; ``finish_store`` alone writes the manifest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IdentityError, IncompleteStoreError, RejectionError, StoreError
from pipeline.files.local import Folder, Location, open_folder, sha256
from pipeline.identity import StoreIdentity, different_fields, read_json
from pipeline.records import PartHeader, PartKey, PartRows, Rejection, ShardInfo
from pipeline.store.committed import Committed, CommittedParts, ShardImages
from pipeline.store.contract import LabelStore
from pipeline.store.manifest import (
    CARD_PATH,
    IDENTITY_PATH,
    MAX_COMPANION_BYTES,
    Manifest,
    check_claims,
    identity_bytes,
    listed_manifest,
    parts_of_paths,
    require_own_files,
    write_manifest,
)
from pipeline.store.parquet import decode_part, encode_part, read_claims
from pipeline.store.parts import PartEntry, PartKeys, codes, covered_views, distinct
from pipeline.store.subset import SubsetOf
from pipeline.telling import told

__all__ = [
    "Begun",
    "FoundParts",
    "check_root",
    "check_store",
    "claim_store",
    "commit_part",
    "copy_part",
    "different_column",
    "find_parts",
    "finish_store",
    "list_parts",
    "lost_views",
    "named_views",
    "read_begun",
    "read_entries",
    "require_all_shards",
    "require_identity",
    "require_planned",
    "require_shard",
    "seen_parts",
]

_NAMED = 8  # ranges of views in an error
_READS = 16  # of parts at a time: in object storage each takes a round trip


def claim_store(
    root: Location, identity: StoreIdentity, fingerprints: Mapping[str, int]
) -> Mapping[str, int]:
    """Make ``root`` a store of this identity, or check that it is one.

    Returns the fingerprints that the store was begun with; raises what ``check_store`` does.
    """
    folder = open_folder(root)
    if check_store(folder, identity) is None:
        folder.commit_new(IDENTITY_PATH, identity_bytes(identity, fingerprints))
    claimed = check_store(folder, identity)  # another job may have been faster
    if claimed is None:
        raise StoreError(f"{folder.at(IDENTITY_PATH)} vanished; does another job delete {folder}?")
    # The same bytes again, which must be refused: else parts could be overwritten unseen.
    if folder.commit_new(IDENTITY_PATH, folder.read_bytes(IDENTITY_PATH)):
        raise StoreError(
            f"{folder}: this storage writes over what is there although it is asked not to "
            "(If-None-Match: *), so jobs could overwrite each other's parts; use a server with "
            "conditional writes, as S3, R2 and MinIO have them, or a file system"
        )
    return claimed


def check_root(root: Location) -> None:
    """Raise ``StoreError`` unless a store is at ``root``, or could be made there."""
    folder = open_folder(root)
    folder.require_writable()
    if not folder.name.endswith(".parquet"):
        raise StoreError(f"`out` is {folder}: the name of a store must end in .parquet")
    if folder.is_a_file():
        raise StoreError(
            f"`out` is {folder}, a file; give the path of a new or existing directory (export a "
            "store in one file to a directory first, and add to that)"
        )
    if not folder.exists(IDENTITY_PATH) and folder.list():
        raise StoreError(
            f"`out` is {folder}, which is not empty and is no label store; give another path"
        )


def check_store(root: Location, identity: StoreIdentity) -> Mapping[str, int] | None:
    """Return the fingerprints of the store at ``root``, None if there is none yet.

    Writes nothing. Raises ``IdentityError`` naming the fields in which its identity
    differs, ``StoreError`` if ``root`` holds something else or has the wrong suffix.
    """
    check_root(root)
    folder = open_folder(root)
    path = folder.at(IDENTITY_PATH)
    try:
        theirs = read_json(folder.read_bytes(IDENTITY_PATH, MAX_COMPANION_BYTES))
        their_fields, their_prints = dict(theirs["identity"]), dict(theirs["fingerprints"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged ({error!r}); give another path") from error
    require_identity(folder, identity, their_fields)
    return their_prints


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What a store was begun with."""

    identity: StoreIdentity
    fingerprints: Mapping[str, int]


def read_begun(root: Location) -> Begun | None:
    """Return what the store at ``root`` was begun with, None if there is none."""
    folder = open_folder(root)
    try:
        values = read_json(folder.read_bytes(IDENTITY_PATH, MAX_COMPANION_BYTES))
        prints = {str(name): int(one) for name, one in values["fingerprints"].items()}
        identity = StoreIdentity.from_json(values["identity"], str(values["needs"]))
        return Begun(identity=identity, fingerprints=prints)
    except FileNotFoundError:
        return None
    except StoreError as error:
        raise StoreError(f"{folder.at(IDENTITY_PATH)}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{folder.at(IDENTITY_PATH)} is damaged ({error!r}); give another path"
        ) from error


def require_identity(
    location: Location, identity: StoreIdentity, theirs: Mapping[str, object]
) -> None:
    """Raise ``IdentityError`` naming the fields in which a store's identity differs."""
    different = different_fields(identity.to_json(), theirs)
    if different:
        raise IdentityError(
            f"{location} holds labels of another identity (ours / the store's):\n  "
            + "\n  ".join(different)
            + "\n  cure: use the store's settings to add to it, or give another path"
        )


def commit_part(root: Location, rows: PartRows) -> Committed:
    """Commit a part. One that is there already with the same rows is left as it is.

    Raises ``StoreError`` if it is there with other rows.
    """
    return _commit(open_folder(root), rows, encode_part(rows))


def copy_part(root: Location, source: LabelStore, entry: PartEntry, part: PartKey) -> Committed:
    """Commit a part of another store as ``part``, which may have another shard's number.

    A part that the source keeps as a file is copied byte for byte, after verification.
    Raises what ``commit_part`` and ``LabelStore.read_part`` do.
    """
    data = source.read_file(entry)
    if data is None:
        rows = dataclasses.replace(source.read_part(entry), part=part)
        return commit_part(root, rows)
    rows = decode_part(data, entry.part, source.root.at(entry.part.path))
    return _commit(open_folder(root), dataclasses.replace(rows, part=part), data)


def _commit(folder: Folder, rows: PartRows, data: bytes) -> Committed:
    path = rows.part.path
    if not folder.commit_new(path, data):
        # By another process, or by this one if the answer to an earlier try was lost. Another
        # release of PyArrow may have written the same rows in other bytes.
        committed = folder.read_bytes(path)
        if committed != data:
            name = folder.at(path)
            _require_same_rows(rows, decode_part(committed, rows.part, name), name)
            data = committed
    return _committed(rows, data)


def _require_same_rows(ours: PartRows, theirs: PartRows, path: str) -> None:
    if ours.omitted != theirs.omitted:
        raise StoreError(
            f"{path}: committed with other samples left out than now, so it is of another subset "
            "of its store; give another path"
        )
    if ours.rejections != theirs.rejections or ours.keys != theirs.keys:
        raise RejectionError(
            f"{path}: committed with the rejections {_keys(theirs.rejections)}, now it is "
            f"{_keys(ours.rejections)}; the shard or the decoder changed in between"
        )
    different = different_column(ours, theirs)
    if different:
        raise StoreError(
            f"{path}: committed with another {different} than this run's; two machines do not "
            "agree: verify the store, and label with one kind of hardware"
        )


def different_column(ours: PartRows, theirs: PartRows) -> str | None:
    """Return the first column in which rows of the same samples differ, and in how many."""
    mine, other = _comparable(ours), _comparable(theirs)
    for name in sorted(mine.keys() ^ other.keys()):
        return f"{name} (only one of them has it)"
    for name, values in mine.items():
        if not np.array_equal(values, other[name]):
            return f"{name} ({int((values != other[name]).sum())} of {values.size} values differ)"
    return None


def _comparable(rows: PartRows) -> dict[str, NDArray[Any]]:
    """Return by name what parts of the same samples and views have in common."""
    hashes = ("identity", "content_hash", "image_hash")
    return {**{name: np.asarray(getattr(rows, name)) for name in hashes}, **rows.arrays()}


def _keys(rejections: Sequence[Rejection]) -> str:
    return ", ".join(repr(one.key) for one in rejections) or "none"


def _committed(rows: PartRows, data: bytes) -> Committed:
    entry = PartEntry(part=rows.part, bytes=len(data), sha256=sha256(data), rows=rows.label.size)
    return Committed.of_rows(entry, rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundParts:
    """Part files that are there, by (shard, view)."""

    parts: PartKeys
    bytes: NDArray[np.int64]  # (N,)


def list_parts(root: Location) -> FoundParts:
    """Return the parts that are committed; raises what ``find_parts`` does."""
    folder = open_folder(root)
    sizes = folder.sizes()
    paths = list(sizes)
    parts, known = parts_of_paths(paths)
    others = [paths[index] for index in np.flatnonzero(~known).tolist()]
    require_own_files(others, lambda _: False, str(folder))
    order = np.argsort(codes(parts)[0])
    found = np.fromiter(sizes.values(), np.int64, len(sizes))[known]
    return FoundParts(parts=parts[order], bytes=found[order])


def find_parts(root: Location) -> PartKeys:
    """Return the parts that are committed, by (shard, view).

    Raises ``StoreError`` for files at ``root`` that are none of a store's.
    """
    return list_parts(root).parts


def read_entries(
    root: Location, parts: Iterable[PartKey], identity: str, shards: Mapping[int, ShardInfo]
) -> list[Committed]:
    """Read committed parts, and check that each is whole, and of this store and its shard.

    Seals vouch for rows, which are not decoded: that is for verification. Parts are returned in
    their order; one that is not there is left out, since others may delete it at any time.
    """
    folder, parts = open_folder(root), list(parts)

    def read(part: PartKey) -> Committed | None:
        try:
            return _read_entry(folder, part, identity, shards[part.shard])
        except FileNotFoundError:
            return None  # callers compare what they get with what they need

    with ThreadPoolExecutor(_READS) as pool:
        found = told(pool.map(read, parts), "reading what is there", "parts", len(parts))
        return [one for one in found if one is not None]


def _read_entry(folder: Folder, part: PartKey, identity: str, shard: ShardInfo) -> Committed:
    path = folder.at(part.path)
    data = folder.read_bytes(part.path)
    digest, claims = read_claims(data, part, path)
    header = claims.header
    if header.identity != identity:
        raise IdentityError(f"{path} belongs to another store; move it away and run again")
    require_shard(header, shard, path)
    rows = header.labelled * part.views
    return Committed(
        entry=PartEntry(part=part, bytes=len(data), sha256=digest, rows=rows),
        images=ShardImages.of(header),
        agreement=claims.agreement,
    )


def require_shard(header: PartHeader, shard: ShardInfo, name: str) -> None:
    """Raise ``IdentityError`` if a part was labelled from another shard than this."""
    if (header.key_hash, header.content_hash) != (shard.key_hash, shard.content_hash):
        raise IdentityError(
            f"{name} was labelled from another shard {shard.number} than {shard.name}: the shards "
            "were renumbered, packed again or relabelled; give `shards` in the order of the first "
            "run, or another path"
        )


def seen_parts(known: CommittedParts, found: FoundParts) -> CommittedParts:
    """Return those of the known parts of which a file of their size was found."""
    if not len(found.parts):
        return known[:0]
    theirs, ours = codes(found.parts, known.parts)  # found ones are in order
    index = np.searchsorted(theirs, ours).clip(max=len(theirs) - 1)
    same: NDArray[np.bool_] = found.bytes[index] == known.entries.bytes
    same &= theirs[index] == ours
    return known[same]


def require_all_shards(
    root: Location, parts: Iterable[PartKey], shards: Mapping[int, ShardInfo]
) -> None:
    """Raise ``IncompleteStoreError`` if a store has parts of shards that are not given."""
    foreign = sorted(set(distinct(PartKeys.of(parts).shard).tolist()) - set(shards))
    if foreign:
        raise IncompleteStoreError(
            f"{open_folder(root)} has parts of shards {foreign[:8]} that are not among `shards`; "
            "give all shards of the store, in the order of the first run"
        )


def lost_views(wanted: Iterable[PartKey], there: Iterable[PartKey]) -> list[PartKey]:
    """Return the ranges of views in ``wanted`` that no part of ``there`` has, sorted."""
    asked, known = PartKeys.of(wanted), PartKeys.of(there)
    gone = sorted(set(asked[~asked.isin(known)]))
    if not gone:
        return []
    asked_views = range(min(one.first_view for one in gone), max(one.end_view for one in gone))
    covered = covered_views(known[np.isin(known.shard, [p.shard for p in gone])], asked_views)
    lost = []
    for part in gone:
        there_too = covered.get(part.shard, set())
        views = [v for v in range(part.first_view, part.end_view) if v not in there_too]
        if views:
            span = views[-1] + 1 - views[0]
            lost.append(dataclasses.replace(part, first_view=views[0], views=span))
    return lost


def require_planned(root: Location, planned: Iterable[PartKey], there: Iterable[PartKey]) -> None:
    """Raise ``IncompleteStoreError`` naming the planned views that no part has."""
    lost = lost_views(planned, there)
    if lost:
        raise IncompleteStoreError(
            f"{open_folder(root)} lacks {len(lost)} of the parts that were planned: "
            f"{named_views(lost)}; no manifest was written. They were deleted, or lie on another "
            "machine's disk. Run the same command again, it does what is missing; on several "
            "machines, with a path that all of them share, or in object storage"
        )


def named_views(parts: Sequence[PartKey]) -> str:
    """Return ranges of views in words, for messages."""
    named = [f"shard {p.shard}, views {p.first_view}..{p.end_view - 1}" for p in parts[:_NAMED]]
    more = len(parts) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")


def finish_store(
    root: Location,
    identity: StoreIdentity,
    fingerprints: Mapping[str, int],
    shards: Sequence[ShardInfo],
    card: Callable[[Manifest], str],
    planned: Iterable[PartKey] = (),
    *,
    known: Iterable[Committed] = (),
    notes: Mapping[str, Any] | None = None,
    subset_of: tuple[SubsetOf, ...] | None = None,
    classes: tuple[str, ...] | None = None,
) -> Manifest:
    """Check all parts of these shards, write the card, and last the manifest.

    ``planned`` are the parts that the caller knows to be committed; their views, and those of
    the manifest that is there, must all be found again. Those that are ``known`` are not read
    if a file of their size is there, all others are: see ``read_entries``. ``notes``,
    ``subset_of`` and the names of ``classes`` are kept in the manifest; by default those of the
    one that is there.

    Raises ``RejectionError`` if parts of a shard disagree about which images decode,
    ``IncompleteStoreError`` if the store has parts of other shards than these, or lacks some.
    """
    folder = open_folder(root)
    by_number = {shard.number: shard for shard in shards}
    found, wanted = list_parts(folder), PartKeys.of(planned)
    seen = seen_parts(CommittedParts.of(known), found)
    # Planned ones are opened too: a network file system may list a directory as it was before.
    unread = PartKeys.joined(found.parts, wanted)
    unread = PartKeys.of(sorted(set(unread[~unread.isin(seen.parts)])))
    require_all_shards(folder, found.parts, by_number)
    read = read_entries(folder, unread, identity.digest, by_number)
    committed = CommittedParts.joined(seen, CommittedParts.of(read)).in_order()
    before = listed_manifest(folder)
    listed = wanted if before is None else PartKeys.joined(wanted, before.part_keys)
    require_planned(folder, listed, committed.parts)
    images = _agreed_images(folder, committed)
    if before is not None:
        subset_of = before.subset_of if subset_of is None else subset_of
        notes = before.notes if notes is None else notes
        classes = before.classes if classes is None else classes
    manifest = Manifest(
        identity=identity,
        fingerprints=fingerprints,
        shards=tuple(sorted(shards, key=lambda shard: shard.number)),
        image_hashes={shard: one.hash for shard, one in images.items()},
        formats={shard: one.formats for shard, one in images.items()},
        rejections={shard: one.rejections for shard, one in images.items() if one.rejections},
        parts=committed.entries,
        agreement=committed.total,
        notes=notes or {},
        omitted={shard: one.omitted for shard, one in images.items() if one.omitted},
        subset_of=subset_of or (),
        classes=classes,
    )
    check_claims(manifest)  # labels and rejections add up to samples x views
    text = card(manifest).encode()
    # The card first: once there is a manifest, all that it vouches for is there.
    folder.replace(CARD_PATH, text)
    manifest = dataclasses.replace(manifest, card=sha256(text))
    write_manifest(folder, manifest)
    return manifest


def _agreed_images(root: Folder, committed: CommittedParts) -> dict[int, ShardImages]:
    """Return what was found of each shard; all its parts must come from the same images.

    Parts are in order, and may not overlap.
    """
    shard = committed.parts.shard
    index = np.flatnonzero(np.diff(shard, prepend=-1))
    firsts = np.repeat(index, np.diff([*index, len(committed)]))
    for other in np.flatnonzero(committed.image != committed.image[firsts]).tolist():
        _require_same_images(root, committed[int(firsts[other])], committed[other])
    parts = committed.parts
    overlap = (parts.shard[1:] == parts.shard[:-1]) & (parts.end_view[:-1] > parts.first_view[1:])
    for number in np.flatnonzero(overlap).tolist():
        before, after = parts[number].path, parts[number + 1].path
        raise StoreError(f"{root}: {before} and {after} overlap; delete one of them")
    images = committed.image[index].tolist()
    return dict(zip(shard[index].tolist(), map(committed.images.__getitem__, images), strict=True))


def _require_same_images(root: Folder, known: Committed, one: Committed) -> None:
    ours, theirs = known.entry.part, one.entry.part
    if known.images.hash != one.images.hash:
        raise StoreError(
            f"{root}: {ours.path} and {theirs.path} were labelled from different image bytes of "
            "one shard; delete the part whose shard was damaged, mend the shard, and run again"
        )
    if known.images.omitted != one.images.omitted:
        raise StoreError(
            f"{root}: {ours.path} and {theirs.path} leave out other samples of one shard, so they "
            "are not of one subset; delete one of them"
        )
    if known.rejections != one.rejections:
        said = ({(r.key, r.reason) for r in x.rejections} for x in (one, known))
        key, _ = min(set.symmetric_difference(*said))
        raise RejectionError(
            f"{root}: parts of shard {ours.shard} disagree how {key!r} decodes ({ours.path} and "
            f"{theirs.path}); delete the part made by the machine whose decoder is wrong and run "
            "again"
        )
