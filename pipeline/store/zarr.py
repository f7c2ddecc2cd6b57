"""The Zarr store: arrays of samples x views, readable with plain ``zarr.open_group`` as well.

The zarr package writes these stores, but is not what reads them here: the manifest says where
each chunk is, so a label costs one ranged read, whose bytes are verified before they are
decoded, and whose decoded size is known before. zarr's reader checks nothing but CRCs, reads
missing files as fill values, and waits for threads that a forked data loader does not have.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.columns import Columns
from pipeline.errors import ChecksumError, StoreError
from pipeline.files.local import Folder, sha256
from pipeline.records import PartRows, ShardView
from pipeline.store.contract import LabelStore, header_of, require_classes
from pipeline.store.layout import (
    FILL_LABEL,
    ArraySpec,
    ChunkRange,
    Layout,
    array_specs,
    check_array_metadata,
    chunks_of,
    first_samples,
)
from pipeline.store.manifest import Manifest, PartEntry
from pipeline.telling import told

__all__ = ["ZarrStore"]

_CACHED_BYTES = 1 << 26
_CACHED_SHARDS = 96
_CURE = "restore it from a copy of the store, or export the store again"
_CRC_BYTES = 4


class ZarrStore(LabelStore):
    """A finished Zarr store. Decoded chunks are kept, the least used go first."""

    def __init__(self, root: Folder, manifest: Manifest, layout: Layout) -> None:
        super().__init__(root, manifest)
        self.layout = layout
        self._specs = array_specs(manifest, layout.key_bytes)
        self._first = first_samples(manifest.shards)
        self._lock = threading.RLock()
        self._chunks: OrderedDict[tuple[str, tuple[int, ...]], NDArray[Any]] = OrderedDict()
        self._cached_bytes = 0
        self._shards: OrderedDict[int, _Samples] = OrderedDict()
        self._checked: set[str] = set()  # files whose size and index were seen to be right

    def __getstate__(self) -> Mapping[str, Any]:
        return {"root": self.root, "manifest": self.manifest, "layout": self.layout}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["root"], state["manifest"], state["layout"])  # type: ignore[misc]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all files of the arrays."""
        return sum(entry.bytes for entry in self.layout.files.values())

    def read_view(self, shard: int, view: int) -> ShardView:
        """Return the labels of one shard at one view; see ``LabelStore``."""
        self.manifest.find_part(shard, view)
        samples = self._samples(shard)
        label = self._column("label", shard, view)
        self._require_labels(label[:, None], samples, view)
        digest = self._column("digest", shard, view)
        has_digest = digest != 0
        for row, zero_view in self.layout.zero_digests:
            offset = row - self._first[shard]
            if zero_view == view and 0 <= offset < len(digest):
                has_digest[offset] = True
        columns = {name: self._column(name, shard, view) for name in self.identity.columns.shapes()}
        mixed_digest = self._column("mixed_digest", shard, view)
        for values in (label, digest, has_digest, mixed_digest, *columns.values()):
            values[~samples.accepted] = 0
        found = ShardView(
            shard=shard,
            view=view,
            keys=samples.keys,
            accepted=samples.accepted.copy(),
            target=samples.target.copy(),
            seed=samples.seed.copy(),
            label=label,
            digest=digest,
            has_digest=has_digest,
            mixed_digest=mixed_digest,
            columns=Columns(columns),
        )
        require_classes(found, self.identity.teacher.classes, str(self.root))
        return found

    def read_part(self, entry: PartEntry) -> PartRows:
        """Return what the Parquet part of this name holds; see ``LabelStore``."""
        part = entry.part
        shard, samples = self.manifest.by_shard[part.shard], self._samples(part.shard)
        first, accepted = self._first[part.shard], samples.accepted

        def block(name: str) -> NDArray[Any]:
            views = range(part.first_view, part.end_view)
            return self._read(name, range(first, first + shard.samples), views)[accepted]

        label = block("label")
        self._require_labels(label, samples, part.first_view, np.flatnonzero(accepted))
        digest = block("digest")
        has_digest = digest != 0
        rows = {int(row): index for index, row in enumerate(np.flatnonzero(accepted) + first)}
        for row, view in self.layout.zero_digests:
            if row in rows and part.first_view <= view < part.end_view:
                has_digest[rows[row], view - part.first_view] = True
        found = PartRows(
            **header_of(self.manifest, part).header_values(),
            keys=tuple(np.array(samples.keys, object)[accepted]),
            target=samples.target[accepted],
            seed=samples.seed[accepted],
            label=label,
            digest=digest,
            has_digest=has_digest,
            mixed_digest=block("mixed_digest"),
            columns=Columns({name: block(name) for name in self.identity.columns.shapes()}),
        )
        require_classes(found, self.identity.teacher.classes, str(self.root))
        return found

    def check_files(self) -> None:
        """Compare every file with its SHA-256, and find files that do not belong here."""
        files = self.layout.files.values()
        for entry in told(files, "checking files", "files", len(files)):
            self._check_size(entry.path)
            self._verified(entry.path, ChunkRange(0, entry.bytes, entry.sha256))
        self.check_names()

    def _is_own(self, path: str) -> bool:
        return path in self.layout.files

    def _samples(self, shard: int) -> _Samples:
        """Return keys, seeds and targets of a shard's indexed samples."""
        with self._lock:
            if shard in self._shards:
                self._shards.move_to_end(shard)
                return self._shards[shard]
            self._check_metadata()
            first, size = self._first[shard], self.manifest.by_shard[shard].samples
            read = {name: self._read(name, range(first, first + size)) for name in _OF_SAMPLES}
            accepted = self.manifest.accepted(shard)
            packed = read["key"].view(f"S{self.layout.key_bytes}").reshape(-1).tolist()
            try:
                keys = tuple(key.decode() for key in packed)
            except UnicodeDecodeError as error:
                raise ChecksumError(
                    f"{self.root.at('key')} is damaged ({error}); {_CURE}"
                ) from error
            for one in self.manifest.rejections.get(shard, ()):
                if keys[one.index] != one.key:
                    raise ChecksumError(
                        f"{self.root.at('key')}: sample {one.index} of shard {shard} is "
                        f"{keys[one.index]!r}, the manifest says {one.key!r}; {_CURE}"
                    )
            samples = _Samples(keys, accepted, read["target"], read["seed"])
            samples.target[~accepted] = 0
            samples.seed[~accepted] = 0
            self._shards[shard] = samples
            if len(self._shards) > _CACHED_SHARDS:
                self._shards.popitem(last=False)
            return samples

    def _column(self, name: str, shard: int, view: int) -> NDArray[Any]:
        """Return one view of a shard's indexed samples, (N,) or (N, k)."""
        first, size = self._first[shard], self.manifest.by_shard[shard].samples
        return self._read(name, range(first, first + size), range(view, view + 1))[:, 0]

    def _read(self, name: str, rows: range, views: range | None = None) -> NDArray[Any]:
        """Return a copy of rows of an array, at some of its views where it has any."""
        spec = self._specs[name]
        width = spec.shape[1:] if views is None else (len(views), *spec.shape[2:])
        found = np.empty((len(rows), *width), spec.dtype)
        for row_chunk, row_in, row_out in chunks_of(rows.start, rows.stop, spec.chunk[0]):
            if views is None:
                chunk = (row_chunk, *(0 for _ in spec.shape[1:]))
                found[row_out] = self._chunk(spec, chunk)[row_in]
                continue
            for view_chunk, view_in, view_out in chunks_of(views.start, views.stop, spec.chunk[1]):
                chunk = (row_chunk, view_chunk, *(0 for _ in spec.shape[2:]))
                found[row_out, view_out] = self._chunk(spec, chunk)[row_in, view_in]
        return found

    def _chunk(self, spec: ArraySpec, chunk: tuple[int, ...]) -> NDArray[Any]:
        """Return a decoded chunk; it must not be written to."""
        with self._lock:
            if (spec.name, chunk) in self._chunks:
                self._chunks.move_to_end((spec.name, chunk))
                return self._chunks[spec.name, chunk]
            path, number = spec.locate(chunk)
            entry = self.layout.files.get(path)
            found = entry.chunks[number] if entry is not None else None
            if entry is None or entry.index is None or found is None:
                return np.broadcast_to(np.array(spec.fill, spec.dtype), spec.chunk)
            if path not in self._checked:
                self._check_size(path)
                self._verified(path, entry.index)
                self._checked.add(path)
            values = self._decode(spec, path, self._verified(path, found))
            self._chunks[spec.name, chunk] = values
            self._cached_bytes += values.nbytes
            while self._cached_bytes > _CACHED_BYTES and len(self._chunks) > 1:
                self._cached_bytes -= self._chunks.popitem(last=False)[1].nbytes
            return values

    def _decode(self, spec: ArraySpec, path: str, data: bytes) -> NDArray[Any]:
        try:
            # Fails unless the frame holds exactly as many bytes as the chunk has.
            raw = pa.Codec("zstd").decompress(data[:-_CRC_BYTES], spec.chunk_bytes)
            values: NDArray[Any] = np.frombuffer(raw, np.dtype(spec.dtype).newbyteorder("<"))
            return values.reshape(spec.chunk)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ChecksumError(
                f"{self.root.at(path)} is damaged, though as its manifest says ({error}); {_CURE}"
            ) from error

    def _check_metadata(self) -> None:
        """Check, once, that the arrays' metadata is that of a store with this manifest."""
        for path, entry in self.layout.files.items():
            if entry.index is not None or path in self._checked:
                continue
            self._check_size(path)
            data = self._verified(path, ChunkRange(0, entry.bytes, entry.sha256))
            name = path.partition("/")[0]
            if name in self._specs:
                try:
                    check_array_metadata(data, self._specs[name])
                except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
                    raise StoreError(
                        f"{self.root.at(path)} does not fit the store's manifest: {error}; {_CURE}"
                    ) from error
            self._checked.add(path)

    def _check_size(self, path: str) -> None:
        expected = self.layout.files[path].bytes
        try:
            actual = self.root.size(path)
        except FileNotFoundError as error:
            raise ChecksumError(f"{self.root.at(path)} is missing; {_CURE}") from error
        if actual != expected:
            raise ChecksumError(
                f"{self.root.at(path)} has {actual} bytes, the manifest says {expected}; {_CURE}"
            )

    def _verified(self, path: str, chunk: ChunkRange) -> bytes:
        """Read bytes of a file whose size was checked, and compare them with the manifest."""
        try:
            data = self.root.read_range(path, chunk.offset, chunk.bytes)
        except FileNotFoundError as error:
            raise ChecksumError(f"{self.root.at(path)} is missing; {_CURE}") from error
        actual = sha256(data)
        if actual != chunk.sha256:
            raise ChecksumError(
                f"{self.root.at(path)}: sha256 of {chunk.bytes} bytes from {chunk.offset} on is "
                f"{actual}, the manifest says {chunk.sha256}; {_CURE}"
            )
        return data

    def _require_labels(
        self,
        label: NDArray[np.uint16],
        samples: _Samples,
        first_view: int,
        indices: NDArray[np.int64] | None = None,
    ) -> None:
        """Refuse labels (N, V) that read as the fill value: their chunks were never written."""
        missing = label == FILL_LABEL
        if indices is None:
            missing[~samples.accepted] = False
        if missing.any():
            row, view = (int(at) for at in np.argwhere(missing)[0])
            key = samples.keys[row if indices is None else int(indices[row])]
            raise ChecksumError(
                f"{self.root.at('label')} has no label of {key!r} at view {first_view + view}: it "
                f"reads as the fill value {FILL_LABEL}; {_CURE}"
            )


_OF_SAMPLES = ("key", "target", "seed")


@dataclass(frozen=True, slots=True)
class _Samples:
    """What does not change from view to view, of a shard's indexed samples."""

    keys: tuple[str, ...]
    accepted: NDArray[np.bool_]
    target: NDArray[np.int32]
    seed: NDArray[np.int64]
