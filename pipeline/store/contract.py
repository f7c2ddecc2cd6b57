"""What every label store can do, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from pipeline.columns import are_classes
from pipeline.errors import ChecksumError, StoreError
from pipeline.files.local import Folder, sha256
from pipeline.identity import StoreIdentity
from pipeline.records import PartHeader, PartKey, PartRows, ShardView
from pipeline.store.manifest import (
    CARD_PATH,
    IDENTITY_PATH,
    MAX_COMPANION_BYTES,
    META_PREFIX,
    RUNS_PATH,
    USER_PATH,
    Manifest,
    PartEntry,
    check_companion_paths,
    companion_limit,
    identity_bytes,
    part_of_path,
    require_own_files,
)
from pipeline.store.provenance import public_record

__all__ = ["HeaderCheck", "LabelStore", "header_of"]


class LabelStore(ABC):
    """A finished store, open for reading.

    Opening reads the manifest alone. A store may be pickled to worker processes and read
    from several; all bytes that a label is read from are verified when a process first reads
    them.
    """

    def __init__(self, root: Folder, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self.public = False  # whether its companions are those that strangers may read

    @property
    def identity(self) -> StoreIdentity:
        """What the store's labels depend on."""
        return self.manifest.identity

    @property
    def stored_bytes(self) -> int:
        """Bytes of all files with labels."""
        return self.manifest.bytes

    @abstractmethod
    def read_view(self, shard: int, view: int) -> ShardView:
        """Return the labels of one shard at one view.

        Raises ``IncompleteStoreError`` if the store has none, ``ChecksumError`` if the
        bytes are not those that were committed.
        """

    @abstractmethod
    def read_part(self, entry: PartEntry) -> PartRows:
        """Read one part of the manifest and check it whole.

        Raises ``ChecksumError`` if its bytes are not those that were committed.
        """

    def read_file(self, entry: PartEntry) -> bytes | None:
        """Return a part's Parquet file, checked; None where the store keeps no such files.

        Raises what ``read_part`` does.
        """
        return None

    @abstractmethod
    def check_files(self) -> None:
        """Raise ``StoreError`` for files that the manifest does not list.

        Checks those bytes, too, that ``read_part`` does not read.
        """

    def check_names(self) -> None:
        """Raise ``StoreError`` naming a file that is none of a store's.

        Opening does not look for such files, which would take a listing.
        """
        require_own_files(self.root.list_if_allowed(), self._is_own, str(self.root))

    def _is_own(self, path: str) -> bool:
        """Return whether a store of this format has a file of labels at such a path."""
        return part_of_path(path) is not None

    def user_files(self) -> Mapping[str, bytes]:
        """Return what people have put beside the labels, by path: nothing watches it.

        Raises ``StoreError`` for what is no text.
        """
        found = {}
        for path in self._companion_paths():
            if path.startswith(USER_PATH):
                found[path] = self.root.read_unwatched(path, companion_limit(path))
                require_text(found[path], self.root.at(path))
        return found

    def companions(self) -> Mapping[str, bytes]:
        """Return the files that travel with a store, by path: card, identity, runs, and people's.

        In a ``public`` store the records of runs hold nothing of whose machine it was. Raises
        ``StoreError`` for a file beside them with another name.
        """
        files = {
            path: self.root.read_unwatched(path, companion_limit(path))
            for path in self._companion_paths()
            if self.root.exists(path)
        }
        for path in files:
            if path.startswith(USER_PATH):
                require_text(files[path], self.root.at(path))
        if not self.public:
            return files
        runs = {path for path in files if path.startswith(RUNS_PATH)}
        return {path: public_record(one) if path in runs else one for path, one in files.items()}

    def _companion_paths(self) -> list[str]:
        there = self.root.list_if_allowed(META_PREFIX)
        return check_companion_paths([CARD_PATH, *(there or [IDENTITY_PATH])], str(self.root))

    def check_companions(self) -> None:
        """Raise ``ChecksumError`` unless card and identity are those of the manifest.

        Raises ``StoreError`` for a file beside them that no release writes.
        """
        manifest = self.manifest
        self._companion_paths()
        expected = {
            CARD_PATH: manifest.card,
            IDENTITY_PATH: sha256(identity_bytes(manifest.identity, manifest.fingerprints)),
        }
        for path, checksum in expected.items():
            try:
                actual = sha256(self.root.read_bytes(path, MAX_COMPANION_BYTES))
            except FileNotFoundError:
                actual = "missing"
            if actual != checksum:
                raise ChecksumError(
                    f"{self.root.at(path)}: sha256 is {actual}, by the manifest it is {checksum}; "
                    "labels do not depend on it: restore the file"
                    + (", or run the label job again" if path == CARD_PATH else "")
                )


def require_classes(labels: PartRows | ShardView, classes: int, name: str) -> None:
    """Raise ``StoreError`` for labels or true classes beyond the teacher's.

    Students index with them, so a received store must not choose them freely.
    """
    target = labels.target
    known = int(target.min(initial=0)) >= -1 and int(target.max(initial=0)) < classes
    if not known or not are_classes(labels.label, labels.columns, classes):
        raise StoreError(
            f"{name} has classes beyond the {classes} of the store's teacher; no label job writes "
            "that: get the store anew from where it came from"
        )


def require_text(data: bytes, name: str) -> None:
    """Raise ``StoreError`` for bytes that are no text, which not every format could hold."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise StoreError(
            f"{name} is no text ({error}), so not every format could hold it; save it as UTF-8, or "
            "keep it elsewhere"
        ) from error


def header_of(manifest: Manifest, part: PartKey) -> PartHeader:
    """Return what the header of a part's own file says, for formats that have no such files."""
    shard = manifest.by_shard[part.shard]
    return PartHeader(
        part=part,
        identity=manifest.identity_digest,
        key_hash=shard.key_hash,
        content_hash=shard.content_hash,
        image_hash=manifest.image_hashes.get(part.shard, ""),
        formats=manifest.formats.get(part.shard, ()),
        samples=shard.samples,
        rejections=manifest.rejections.get(part.shard, ()),
        omitted=manifest.omitted.get(part.shard, ""),
    )


class HeaderCheck:
    """Checks part after part of a store that its manifest says all that their headers do."""

    def __init__(self, source: LabelStore) -> None:
        self._source = source
        self._samples: dict[int, tuple[object, ...]] = {}

    def add(self, rows: PartRows) -> None:
        """Check a part; raises ``StoreError`` if going over to another format would lose a bit.

        Keys, targets and seeds must be those of the shard's other parts.
        """
        manifest, part = self._source.manifest, rows.part
        samples = (rows.keys, rows.target.tobytes(), rows.seed.tobytes())
        known = self._samples.setdefault(part.shard, samples)
        if rows.header != header_of(manifest, part) or known != samples:
            raise StoreError(
                f"{self._source.root.at(part.path)} does not fit its manifest, or another part "
                "of its shard; verify the store"
            )
