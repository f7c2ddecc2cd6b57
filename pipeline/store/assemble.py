"""Writes a Zarr store from the parts of another: one writer, file after file.

Workers never write here. A file of labels holds the views of several parts, so workers that
share it would overwrite each other's labels without a message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StoreError, require_package
from pipeline.files.local import open_folder, sha256
from pipeline.identity import FORMAT_VERSION
from pipeline.records import PartRows, spread
from pipeline.store.contract import HeaderCheck, LabelStore
from pipeline.store.layout import (
    GROUP_METADATA,
    MAX_KEY_BYTES,
    ArraySpec,
    ChunkRange,
    FileEntry,
    Layout,
    array_specs,
    chunks_of,
    first_samples,
    index_bytes,
)
from pipeline.store.manifest import MANIFEST_PATH, Manifest, PartEntry, seal
from pipeline.telling import told

__all__ = ["write_zarr"]

_LEVEL = 9
_CACHED_PARTS = 8


def write_zarr(source: LabelStore, root: Path) -> None:
    """Write the store ``source`` to the new directory ``root``, its manifest last.

    Memory holds a few parts and one file of each array at a time. Raises ``StoreError`` for
    what Zarr cannot hold: a label of 65535, a key with a NUL or of more than 4096 bytes.
    """
    parts = _Parts(source)
    specs = array_specs(source.manifest, parts.key_bytes)
    zero_digests = _write_arrays(parts, specs, root)
    files = {spec.metadata_path: _whole_file(root, spec.metadata_path) for spec in specs.values()}
    files[GROUP_METADATA] = _whole_file(root, GROUP_METADATA)
    for spec in specs.values():
        for file in sorted((root / spec.name / "c").rglob("*")):
            if file.is_file():
                entry = _chunked_file(root, file.relative_to(root).as_posix(), spec)
                files[entry.path] = entry
    layout = Layout(
        key_bytes=parts.key_bytes,
        files=files,
        zero_digests=frozenset(zero_digests),
    )
    folder = open_folder(root)
    for path, data in source.companions().items():
        folder.replace(path, data)
    folder.replace(MANIFEST_PATH, seal({**source.manifest.to_json(), "zarr": layout.to_json()}))


class _Parts:
    """Reads a store's parts, after checking that Zarr can hold all of them."""

    def __init__(self, source: LabelStore) -> None:
        self.source = source
        self.manifest: Manifest = source.manifest
        self.first = first_samples(self.manifest.shards)
        self.read = lru_cache(maxsize=_CACHED_PARTS)(source.read_part)
        self.key_bytes = 1
        headers = HeaderCheck(source)
        parts = self.manifest.parts
        for entry in told(parts, "reading", "parts", len(parts)):
            rows = source.read_part(entry)
            headers.add(rows)
            for key in (*rows.keys, *(one.key for one in rows.rejections)):
                self.key_bytes = max(self.key_bytes, self._key_bytes(key))

    def _key_bytes(self, key: str) -> int:
        size = len(key.encode())
        if "\0" in key or size > MAX_KEY_BYTES:
            raise StoreError(
                f"{self.source.root}: the key {key[:40]!r} has a NUL or {size} bytes, which Zarr "
                f"stores cannot hold (at most {MAX_KEY_BYTES}); export to Parquet instead"
            )
        return size

    def in_rows(self, rows: range) -> Iterator[tuple[int, range]]:
        """Yield the shards that have samples in a range of rows, each with all its rows."""
        for shard in self.manifest.shards:
            first = self.first[shard.number]
            if first < rows.stop and first + shard.samples > rows.start:
                yield shard.number, range(first, first + shard.samples)


def _write_arrays(
    parts: _Parts, specs: Mapping[str, ArraySpec], root: Path
) -> list[tuple[int, int]]:
    """Write all arrays; return (row, view) of the digests that are 0."""
    require_package("zarr", "zarr", f"{root}: writing a store in Zarr")
    # It takes a fifth of a second to import, so only who writes Zarr waits for it.
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

    manifest = parts.manifest
    group = zarr.open_group(root, mode="w-", zarr_format=3)
    group.update_attributes(
        {
            "teacher_labels": {
                "format_version": FORMAT_VERSION,
                "identity": manifest.identity.digest,
                "shards": [
                    {
                        "number": shard.number,
                        "name": shard.name,
                        "first_sample": parts.first[shard.number],
                        "samples": shard.samples,
                    }
                    for shard in manifest.shards
                ],
            }
        }
    )
    arrays = {
        spec.name: group.create_array(
            spec.name,
            shape=spec.shape,
            dtype=spec.dtype,
            shards=spec.shard,
            chunks=spec.chunk,
            fill_value=spec.fill,
            filters=(),
            serializer=BytesCodec(endian="little"),
            compressors=(ZstdCodec(level=_LEVEL), Crc32cCodec()),
            dimension_names=spec.dimensions,
            config={"write_empty_chunks": False},
        )
        for spec in specs.values()
    }
    _write_samples(parts, specs, arrays)
    return _write_views(parts, specs, arrays)


def _write_samples(
    parts: _Parts, specs: Mapping[str, ArraySpec], arrays: Mapping[str, Any]
) -> None:
    """Write keys, targets and seeds; those of shards without parts stay fill values."""
    spec = specs["seed"]
    first_parts: dict[int, PartEntry] = {}
    for entry in parts.manifest.parts:
        first_parts.setdefault(entry.part.shard, entry)
    for _, _, rows in chunks_of(0, spec.shape[0], spec.shard[0]):
        blocks = {
            name: np.full(
                (rows.stop - rows.start, *specs[name].shape[1:]),
                specs[name].fill,
                specs[name].dtype,
            )
            for name in ("key", "target", "seed")
        }
        for number, own in parts.in_rows(range(rows.start, rows.stop)):
            if number not in first_parts:
                continue
            part = parts.read(first_parts[number])
            values: dict[str, NDArray[Any]] = {
                "key": _packed_keys(part, parts.key_bytes),
                "target": spread(part.target, part.accepted, specs["target"].fill),
                "seed": spread(part.seed, part.accepted, specs["seed"].fill),
            }
            inside, into = _overlap(own, range(rows.start, rows.stop))
            for name, block in blocks.items():
                block[into] = values[name][inside]
        for name, block in blocks.items():
            arrays[name][rows] = block


def _write_views(
    parts: _Parts, specs: Mapping[str, ArraySpec], arrays: Mapping[str, Any]
) -> list[tuple[int, int]]:
    """Write what differs from view to view, one file of each array at a time."""
    names = [name for name, spec in specs.items() if spec.dimensions[1:2] == ("view",)]
    spec, zeros = specs["label"], []
    chunks = list(chunks_of(0, spec.shape[0], spec.shard[0]))
    for _, _, rows in told(chunks, "writing", "rows of files", len(chunks)):
        of_shards = list(parts.in_rows(range(rows.start, rows.stop)))
        for views in _labelled_files(parts, [number for number, _ in of_shards], spec):
            blocks = {
                name: np.full(
                    (rows.stop - rows.start, len(views), *specs[name].shape[2:]),
                    specs[name].fill,
                    specs[name].dtype,
                )
                for name in names
            }
            for number, own in of_shards:
                inside, into = _overlap(own, range(rows.start, rows.stop))
                for entry in parts.manifest.parts_of_shard(number):
                    covered = range(entry.part.first_view, entry.part.end_view)
                    if covered.stop <= views.start or covered.start >= views.stop:
                        continue
                    part = parts.read(entry)
                    arrays_of_part, accepted = part.arrays(), part.accepted
                    columns, to = _overlap(covered, views)
                    for name in names:
                        block = spread(arrays_of_part[name], accepted, specs[name].fill)
                        blocks[name][into, to] = block[inside, columns]
                    zero = spread(part.has_digest & (part.digest == 0), accepted)
                    for row, column in np.argwhere(zero[inside, columns]).tolist():
                        zeros.append(
                            (
                                own.start + inside.start + row,
                                covered.start + columns.start + column,
                            )
                        )
            for name in names:
                arrays[name][rows, views.start : views.stop] = blocks[name]
    return zeros


def _labelled_files(parts: _Parts, shards: list[int], spec: ArraySpec) -> list[range]:
    """Return the ranges of views of those files that hold labels of any of these shards."""
    files: set[int] = set()
    size = spec.shard[1]
    for number in shards:
        for entry in parts.manifest.parts_of_shard(number):
            part = entry.part
            files.update(range(part.first_view // size, -(-part.end_view // size)))
    return [range(one * size, min((one + 1) * size, spec.shape[1])) for one in sorted(files)]


def _overlap(own: range, window: range) -> tuple[slice, slice]:
    """Return where two ranges meet: as indices into ``own``, and into ``window``."""
    first, end = max(own.start, window.start), min(own.stop, window.stop)
    return slice(first - own.start, end - own.start), slice(
        first - window.start, end - window.start
    )


def _packed_keys(part: PartRows, width: int) -> NDArray[np.uint8]:
    """Return all keys in UTF-8, padded with zeros, (N, width)."""
    packed = np.array([key.encode() for key in part.all_keys], f"S{width}")
    return packed.view(np.uint8).reshape(part.samples, width)


def _whole_file(root: Path, path: str) -> FileEntry:
    data = (root / path).read_bytes()
    return FileEntry(path=path, bytes=len(data), sha256=sha256(data))


def _chunked_file(root: Path, path: str, spec: ArraySpec) -> FileEntry:
    """Return a file's entry, with the ranges of its chunks from the index at its end."""
    data = (root / path).read_bytes()
    count = int(np.prod(spec.chunks_per_shard))
    start = len(data) - index_bytes(count)
    index = np.frombuffer(data, "<u8", 2 * count, start).reshape(count, 2)
    empty = np.iinfo(np.uint64).max  # the format's mark of a chunk that is not stored

    def chunk(offset: int, size: int) -> ChunkRange:
        return ChunkRange(offset, size, sha256(data[offset : offset + size]))

    return FileEntry(
        path=path,
        bytes=len(data),
        sha256=sha256(data),
        chunks=tuple(
            None if offset == empty else chunk(int(offset), int(size)) for offset, size in index
        ),
        index=chunk(start, len(data) - start),
    )
