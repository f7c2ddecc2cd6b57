"""Where a label job commits its parts, and how they become the store that was asked for.

A Parquet directory is both. For a Zarr store, parts lie in a Parquet directory beside it until
all are there; then one process writes the Zarr store, compares it, and removes the parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from pipeline.errors import ChecksumError, IncompleteStoreError, StoreError, require_package
from pipeline.files.local import open_folder, publish
from pipeline.identity import StoreIdentity
from pipeline.records import PartKey, PartRows, ShardInfo
from pipeline.store.assemble import write_zarr
from pipeline.store.commit import (
    check_root,
    check_store,
    list_parts,
    lost_views,
    named_views,
    read_begun,
    read_entries,
    require_all_shards,
    require_identity,
    require_shard,
    seen_parts,
)
from pipeline.store.committed import Committed, CommittedParts, ShardImages
from pipeline.store.contract import LabelStore, header_of
from pipeline.store.export import export_store, written_aside
from pipeline.store.manifest import Agreement, PartEntry, listed_manifest
from pipeline.store.opening import open_store, parts_root
from pipeline.store.parquet import decode_part
from pipeline.store.parts import PartEntries, PartKeys, codes, distinct
from pipeline.store.receipts import read_receipts

__all__ = [
    "begun_classes",
    "begun_fingerprints",
    "begun_identity",
    "check_out",
    "committed_parts",
    "pack_store",
    "packed_store",
    "read_committed",
    "require_listed",
    "require_no_subset",
    "unpack_store",
]


def _is_packed(out: str | Path) -> bool:
    """Return whether a store's parts are not the store itself."""
    return parts_root(out) != str(out).rstrip("/")


def check_out(out: str | Path) -> None:
    """Raise ``StoreError`` unless a job can write or continue a store at ``out``."""
    if _is_packed(out):
        if "://" in str(out):
            raise StoreError(
                f"`out` is {out}: a Zarr store is assembled on a file system; give a path, or "
                "label to .parquet and export that"
            )
        require_package("zarr", "zarr", f"`out` is {out}: writing that")
        if Path(out).exists() and not Path(parts_root(out)).exists():
            open_store(out)
    elif not str(out).rstrip("/").endswith(".parquet"):
        raise StoreError(f"`out` is {out}: the name of a store must end in .parquet or .zarr")
    check_root(parts_root(out))


def packed_store(out: str | Path) -> LabelStore | None:
    """Return the finished Zarr store at ``out`` that no job is adding to, None without one."""
    root = parts_root(out)
    if not _is_packed(out) or open_folder(root).exists() or not open_folder(out).exists():
        return None
    return open_store(out)


def begun_fingerprints(out: str | Path, identity: StoreIdentity) -> Mapping[str, int] | None:
    """Return the fingerprints of the store at ``out``; see ``check_store``. Writes nothing."""
    store = packed_store(out)
    if store is None:
        return check_store(parts_root(out), identity)
    require_identity(out, identity, store.identity.to_json())
    return store.manifest.fingerprints


def begun_identity(out: str | Path) -> StoreIdentity | None:
    """Return the identity of the store at ``out``, None if there is none yet."""
    store = packed_store(out)
    if store is not None:
        return store.identity
    begun = read_begun(parts_root(out))
    return None if begun is None else begun.identity


def begun_classes(out: str | Path) -> tuple[str, ...] | None:
    """Return the names of classes that the store at ``out`` has, None without any."""
    store = packed_store(out)
    manifest = listed_manifest(parts_root(out)) if store is None else store.manifest
    return None if manifest is None else manifest.classes


def committed_parts(
    out: str | Path, identity: StoreIdentity, shards: Mapping[int, ShardInfo]
) -> CommittedParts:
    """Return what all committed parts say of themselves, by their receipts or by their files.

    Raises ``ChecksumError`` if one was damaged after a manifest listed it, ``IdentityError``
    if it belongs to another store or shard, ``IncompleteStoreError`` if ``shards`` lacks one.
    """
    digest = identity.digest
    store = packed_store(out)
    if store is not None:
        return _packed_parts(store, shards)
    root = parts_root(out)
    sizes, before = list_parts(root), listed_manifest(root)
    require_all_shards(root, sizes.parts, shards)
    found = seen_parts(read_receipts(root, digest, shards), sizes)
    unread = sizes.parts[~sizes.parts.isin(found.parts)]
    read = CommittedParts.of(read_entries(root, unread, digest, shards))
    found = CommittedParts.joined(found, read).in_order()
    if before is not None:
        _require_listed_bytes(root, found.entries, PartEntries.of(before.parts))
    return found


def _require_listed_bytes(root: str, found: PartEntries, listed: PartEntries) -> None:
    """Raise ``ChecksumError`` for a part that has other bytes than a manifest lists."""
    ours, theirs = codes(found.parts, listed.parts)  # both are in order
    _, here, there = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
    different = (found.sha256[here] != listed.sha256[there]).any(axis=1)
    for index in np.flatnonzero(different).tolist():
        entry, said = found[int(here[index])], listed[int(there[index])].sha256
        raise ChecksumError(
            f"{open_folder(root).at(entry.part.path)}: sha256 is {entry.sha256}, the manifest "
            f"says {said}; delete the file and run again, only this part will be redone"
        )


def _packed_parts(store: LabelStore, shards: Mapping[int, ShardInfo]) -> CommittedParts:
    """Return what the manifest of a Zarr store says of its parts; none is read.

    How many labels of each part are right it does not say, nor does anybody ask before the store
    is taken apart.
    """
    manifest, nothing = store.manifest, Agreement(known=0, equal=0)
    require_all_shards(str(store.root), manifest.part_keys, shards)
    images = {}
    for shard in distinct(manifest.part_keys.shard).tolist():
        header = header_of(manifest, manifest.parts_of_shard(shard)[0].part)
        require_shard(header, shards[shard], str(store.root))
        images[shard] = ShardImages.of(header)
    return CommittedParts.of(
        Committed(entry=entry, images=images[entry.part.shard], agreement=nothing)
        for entry in manifest.parts
    )


def read_committed(out: str | Path, entry: PartEntry) -> PartRows:
    """Read one of a job's committed parts; raises what ``LabelStore.read_part`` does."""
    store = packed_store(out)
    if store is not None:
        return store.read_part(entry)
    folder = open_folder(parts_root(out))
    path = entry.part.path
    return decode_part(folder.read_bytes(path), entry.part, folder.at(path))


def require_no_subset(out: str | Path, done: CommittedParts) -> None:
    """Raise ``StoreError`` if the store at ``out`` is a subset, to which no job adds.

    What is ``done`` there may omit samples although no manifest says so yet.
    """
    packed = packed_store(out)
    listed = packed.manifest if packed else listed_manifest(parts_root(out))
    if (listed and listed.subset_of) or any(one.omitted for one in done.images):
        raise StoreError(
            f"{out} is a subset of another store, and views that a job adds would not be of it: "
            "extend the store that it was taken from, and thin that again"
        )


def require_listed(out: str | Path, parts: Iterable[PartKey]) -> None:
    """Raise ``IncompleteStoreError`` if the manifest lists views that ``parts`` do not hold.

    A job would else leave them out of the manifest that it writes.
    """
    before, replaced = listed_manifest(parts_root(out)), _replaced_parts(out)
    listed = replaced if before is None else PartKeys.joined(replaced, before.part_keys)
    lost = lost_views(listed, parts)
    if lost:
        first, end = min(p.first_view for p in lost), max(p.end_view for p in lost)
        raise IncompleteStoreError(
            f"{out}: parts that its manifest lists are gone, and the job does not "
            f"label their views: {named_views(lost)}; restore them, or run the job with "
            f"first_view={first} and views={end - first} first"
        )


def _replaced_parts(out: str | Path) -> PartKeys:
    """Return the parts of the Zarr store that a job is about to replace."""
    if not _is_packed(out) or not open_folder(out).exists():
        return PartKeys.of(())
    try:
        return open_store(out).manifest.part_keys
    except StoreError:
        return PartKeys.of(())  # damaged, and written anew


def unpack_store(out: str | Path) -> None:
    """Write the parts of a finished Zarr store beside it, to add more to them."""
    if packed_store(out) is not None:
        export_store(out, parts_root(out))


def pack_store(out: str | Path) -> None:
    """Make the store at ``out`` from its finished parts, over an older one with fewer.

    Does nothing where the parts are the store. Parts are removed last: whoever is killed on
    the way leaves them whole, and the next job does this again.
    """
    if not _is_packed(out):
        return
    root, path = Path(parts_root(out)), Path(out)
    with written_aside(open_store(root), path, write_zarr) as aside:
        if path.exists():
            path.rename(aside.with_name("older"))
        publish(aside, path)
        # In one step, so that no job takes the rest of a half-removed directory for its parts.
        root.rename(aside.with_name("parts"))
