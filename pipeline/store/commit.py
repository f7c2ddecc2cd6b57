"""Writing a store: claim a directory, commit parts, finish with the manifest.

Any number of processes may commit parts of one store at a time. A part appears whole or
not at all, and never changes afterwards; ``finish_store`` alone writes the manifest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline.config import StoreIdentity, canonical_json, different_fields
from pipeline.errors import IdentityError, IncompleteStoreError, RejectionError, StoreError
from pipeline.files import Folder, Place, open_folder, sha256
from pipeline.records import PartKey, PartRows, Rejection, ShardInfo
from pipeline.store.manifest import IDENTITY_PATH, Manifest, PartEntry, write_manifest
from pipeline.store.parquet import decode_part, encode_part

__all__ = [
    "Committed",
    "check_place",
    "check_store",
    "claim_store",
    "commit_part",
    "find_parts",
    "finish_store",
    "read_entry",
]

CARD_PATH = "_README.md"

_PART_PATH = re.compile(r"^shard=(\d+)/view-(\d{5,})-(\d{5,})\.parquet$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A part that is in the store, whether by this commit or an earlier one."""

    entry: PartEntry
    image_hash: str  # of the shard it was labelled from
    rejections: tuple[Rejection, ...]


def claim_store(
    root: Place, identity: StoreIdentity, fingerprints: Mapping[str, int]
) -> Mapping[str, int]:
    """Make ``root`` a store of this identity, or check that it is one.

    Returns the fingerprints that the store was begun with; raises what ``check_store`` does.
    """
    ours = {"identity": identity.to_json(), "fingerprints": dict(fingerprints)}
    folder = open_folder(root)
    if check_store(folder, identity) is None:
        folder.commit_new(IDENTITY_PATH, canonical_json(ours) + b"\n")
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


def check_place(root: Place) -> None:
    """Raise ``StoreError`` unless a store is at ``root``, or could be made there."""
    folder = open_folder(root)
    if not folder.name.endswith(".parquet"):
        raise StoreError(f"--out {folder}: the name of a store must end in .parquet")
    if folder.is_a_file():
        raise StoreError(f"--out {folder} is a file; give the path of a new or existing directory")
    if not folder.exists(IDENTITY_PATH) and folder.list():
        raise StoreError(f"--out {folder} is not empty and is no label store; give another path")


def check_store(root: Place, identity: StoreIdentity) -> Mapping[str, int] | None:
    """Return the fingerprints of the store at ``root``, None if there is none yet.

    Writes nothing. Raises ``IdentityError`` naming the fields in which its identity
    differs, ``StoreError`` if ``root`` holds something else or has the wrong suffix.
    """
    check_place(root)
    folder = open_folder(root)
    path = folder.at(IDENTITY_PATH)
    try:
        theirs = json.loads(folder.read_bytes(IDENTITY_PATH))
        their_fields, their_prints = theirs["identity"], dict(theirs["fingerprints"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged ({error!r}); use another --out") from error
    different = different_fields(identity.to_json(), their_fields)
    if different:
        raise IdentityError(
            f"{folder} holds labels of another identity (ours / the store's):\n  "
            + "\n  ".join(different)
            + "\nuse the store's settings to add to it, or another --out"
        )
    return their_prints


def commit_part(root: Place, rows: PartRows) -> Committed:
    """Commit a part. One that is there already with the same rows is left as it is.

    Raises ``StoreError`` if it is there with other rows.
    """
    data = encode_part(rows)
    folder, path = open_folder(root), rows.part.path
    if not folder.commit_new(path, data):
        committed = folder.read_bytes(path)
        if committed != data:
            name = folder.at(path)
            _require_same_rows(rows, decode_part(committed, rows.part, name), name)
            data = committed
    return _committed(rows, data)


def _require_same_rows(ours: PartRows, theirs: PartRows, path: str) -> None:
    if ours.rejections != theirs.rejections or ours.keys != theirs.keys:
        raise RejectionError(
            f"{path}: committed with the rejections {_keys(theirs.rejections)}, now it is "
            f"{_keys(ours.rejections)}; the shard or the decoder changed in between"
        )
    for name in ("identity", "content_hash", "image_hash", "target", "seed", "label", "digest"):
        mine, other = np.asarray(getattr(ours, name)), np.asarray(getattr(theirs, name))
        if not np.array_equal(mine, other):
            raise StoreError(
                f"{path}: committed with another {name} than this run's "
                f"({int((mine != other).sum())} of {mine.size} values differ); two machines do "
                "not agree: run `label-store verify` on the store, and label with one kind of "
                "hardware"
            )


def _keys(rejections: Sequence[Rejection]) -> str:
    return ", ".join(repr(one.key) for one in rejections) or "none"


def _committed(rows: PartRows, data: bytes) -> Committed:
    entry = PartEntry(part=rows.part, bytes=len(data), sha256=sha256(data), rows=rows.label.size)
    return Committed(entry=entry, image_hash=rows.image_hash, rejections=rows.rejections)


def find_parts(root: Place) -> list[PartKey]:
    """Return the parts that are committed, by (shard, view)."""
    parts = []
    for path in open_folder(root).list("shard="):
        match = _PART_PATH.match(path)
        if match:
            shard, first, end = (int(number) for number in match.groups())
            parts.append(PartKey(shard=shard, first_view=first, views=end - first))
    return sorted(parts)


def read_entry(root: Place, part: PartKey, identity: str, shard: ShardInfo) -> Committed:
    """Read a committed part and check that it belongs to this store and shard."""
    folder = open_folder(root)
    path = folder.at(part.path)
    data = folder.read_bytes(part.path)
    rows = decode_part(data, part, path)
    if rows.identity != identity:
        raise IdentityError(f"{path} belongs to another store; move it away and run again")
    if (rows.key_hash, rows.content_hash) != (shard.key_hash, shard.content_hash):
        raise IdentityError(
            f"{path} was labelled from another shard {part.shard} than {shard.name}: the shards "
            "were renumbered, packed again or relabelled; give --shards in the order of the "
            "first run, or use another --out"
        )
    return _committed(rows, data)


def finish_store(
    root: Place,
    identity: StoreIdentity,
    fingerprints: Mapping[str, int],
    shards: Sequence[ShardInfo],
    card: Callable[[Manifest], str],
) -> Manifest:
    """Verify all parts of these shards and write the manifest and the card, in this order.

    Raises ``RejectionError`` if parts of a shard disagree about which images decode,
    ``IncompleteStoreError`` if the store has parts of other shards than these.
    """
    folder = open_folder(root)
    by_number = {shard.number: shard for shard in shards}
    parts = find_parts(folder)
    foreign = sorted({part.shard for part in parts} - set(by_number))
    if foreign:
        raise IncompleteStoreError(
            f"{folder} has parts of shards {foreign[:8]} that --shards does not name; give all "
            "shards of the store, in the order of the first run"
        )
    committed = [read_entry(folder, part, identity.digest, by_number[part.shard]) for part in parts]
    manifest = Manifest(
        identity=identity,
        fingerprints=fingerprints,
        shards=tuple(sorted(shards, key=lambda shard: shard.number)),
        image_hashes=_agreed_images(folder, committed),
        rejections=_agreed_rejections(folder, committed),
        parts=tuple(one.entry for one in committed),
    )
    write_manifest(folder, manifest)
    folder.replace(CARD_PATH, card(manifest).encode())
    return manifest


def _agreed_images(root: Folder, committed: Sequence[Committed]) -> dict[int, str]:
    first: dict[int, Committed] = {}
    for one in committed:
        known = first.setdefault(one.entry.part.shard, one)
        if known.image_hash != one.image_hash:
            raise StoreError(
                f"{root}: {known.entry.part.path} and {one.entry.part.path} were labelled from "
                "different image bytes of one shard; delete the part whose shard was damaged, "
                "mend the shard, and run again"
            )
    return {shard: one.image_hash for shard, one in first.items()}


def _agreed_rejections(
    root: Folder, committed: Sequence[Committed]
) -> dict[int, tuple[Rejection, ...]]:
    first: dict[int, Committed] = {}
    for one in committed:
        shard = one.entry.part.shard
        known = first.setdefault(shard, one)
        ours, theirs = ({r.key for r in x.rejections} for x in (one, known))
        if ours != theirs:
            raise RejectionError(
                f"{root}: parts of shard {shard} disagree whether {min(ours ^ theirs)!r} decodes "
                f"({known.entry.part.path} and {one.entry.part.path}); delete the part made by "
                "the machine whose decoder is wrong and run again"
            )
    for before, after in pairwise(one.entry.part for one in committed):
        if before.shard == after.shard and before.end_view > after.first_view:
            raise StoreError(f"{root}: {before.path} and {after.path} overlap; delete one of them")
    return {shard: one.rejections for shard, one in first.items() if one.rejections}
