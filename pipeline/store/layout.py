"""How a store lies in Zarr v3: its arrays, and where every inner chunk is.

The reader and the writer both follow this module. Shapes follow from the manifest alone, so
nothing that an array's metadata claims is believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.columns import COLUMNS
from pipeline.errors import StoreError
from pipeline.identity import read_json
from pipeline.records import ShardInfo
from pipeline.store.manifest import MAX_COMPANION_BYTES, Manifest

__all__ = [
    "FILL_LABEL",
    "GROUP_METADATA",
    "MAX_KEY_BYTES",
    "ArraySpec",
    "ChunkRange",
    "FileEntry",
    "Layout",
    "array_specs",
    "check_array_metadata",
    "chunks_of",
    "first_samples",
    "index_bytes",
]

FILL_LABEL = 65535
"""No teacher has this class: labels go to 65534. A label that reads as this is missing."""
GROUP_METADATA = "zarr.json"
MAX_KEY_BYTES = 4096
_KEYS_BYTES = 1 << 30  # of a shard's keys, which are read together

_MOST_ZERO_DIGESTS = 1 << 12
"""One in four billion is 0 by chance; they are gone through at every read."""

_ROWS = 1000  # samples of a chunk
_VIEWS = 50  # views of a chunk
_SHARD_VIEWS = 300  # views of a shard file
_SHARD_ROWS = 100_000  # samples of a shard file of arrays without views


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """One array: files hold ``shard`` elements each, in chunks that are read alone."""

    name: str
    dtype: str
    fill: int
    dimensions: tuple[str, ...]
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]

    @property
    def metadata_path(self) -> str:
        """Where the array's metadata lies in the store."""
        return f"{self.name}/zarr.json"

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk, decoded."""
        return math.prod(self.chunk) * np.dtype(self.dtype).itemsize

    @property
    def chunks_per_shard(self) -> tuple[int, ...]:
        """Inner chunks of a file, along each dimension."""
        return tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    def locate(self, chunk: tuple[int, ...]) -> tuple[str, int]:
        """Return the file of a chunk, and the chunk's number in it, last dimension fastest."""
        per_shard = self.chunks_per_shard
        file = (str(at // n) for at, n in zip(chunk, per_shard, strict=True))
        number = 0
        for at, n in zip(chunk, per_shard, strict=True):
            number = number * n + at % n
        return f"{self.name}/c/" + "/".join(file), number

    def has_file(self, path: str) -> bool:
        """Return whether this is the path of one of the array's files."""
        names = path.split("/")[2:]
        limits = [-(-size // shard) for size, shard in zip(self.shape, self.shard, strict=True)]
        return (
            path.startswith(f"{self.name}/c/")
            and len(names) == len(limits)
            and all(
                name.isdecimal() and name == str(int(name[:12])) and int(name) < limit
                for name, limit in zip(names, limits, strict=True)
            )
        )


def array_specs(manifest: Manifest, key_bytes: int) -> Mapping[str, ArraySpec]:
    """Return the arrays of a store by name; ``key_bytes`` is the length of its longest key."""
    samples = sum(shard.samples for shard in manifest.shards)
    views = max((entry.part.end_view for entry in manifest.parts), default=0)

    def of_views(name: str, dtype: str, fill: int, *ranks: int) -> ArraySpec:
        return ArraySpec(
            name=name,
            dtype=dtype,
            fill=fill,
            dimensions=("sample", "view", "rank")[: 2 + len(ranks)],
            shape=(samples, views, *ranks),
            chunk=(_ROWS, _VIEWS, *ranks),
            shard=(_ROWS, _SHARD_VIEWS, *ranks),
        )

    def of_samples(name: str, dtype: str, fill: int, *width: int) -> ArraySpec:
        return ArraySpec(
            name=name,
            dtype=dtype,
            fill=fill,
            dimensions=("sample", "byte")[: 1 + len(width)],
            shape=(samples, *width),
            chunk=(_ROWS, *width),
            shard=(_SHARD_ROWS, *width),
        )

    specs = [
        of_samples("key", "uint8", 0, key_bytes),
        of_samples("target", "int32", -1),
        of_samples("seed", "int64", -1),
        of_views("label", "uint16", FILL_LABEL),
        of_views("digest", "uint32", 0),
        of_views("mixed_digest", "uint32", 0),
    ]
    for name, width in manifest.identity.columns.shapes().items():
        specs.append(of_views(name, COLUMNS[name].dtype, COLUMNS[name].fill, *width))
    return {spec.name: spec for spec in specs}


def first_samples(shards: tuple[ShardInfo, ...]) -> dict[int, int]:
    """Return the row of each shard's first sample, by shard number."""
    ends = np.cumsum([shard.samples for shard in shards]).tolist()
    return {shard.number: end - shard.samples for shard, end in zip(shards, ends, strict=True)}


@dataclass(frozen=True, slots=True)
class ChunkRange:
    """Where an encoded chunk lies in its file."""

    offset: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file of the store. One with chunks is nothing but them and, last, their index."""

    path: str
    bytes: int
    sha256: str
    chunks: tuple[ChunkRange | None, ...] = ()  # by number; None where all is the fill value
    index: ChunkRange | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; ``from_json`` is the inverse."""
        values: dict[str, Any] = {"path": self.path, "bytes": self.bytes, "sha256": self.sha256}
        if self.index is not None:
            values["chunks"] = [_range_to_json(one) for one in self.chunks]
            values["index"] = _range_to_json(self.index)
        return values

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> FileEntry:
        """Build an entry from ``to_json``'s values."""
        return FileEntry(
            path=str(values["path"]),
            bytes=_count(values["bytes"]),
            sha256=str(values["sha256"]),
            chunks=tuple(_range_from_json(one) for one in values.get("chunks", ())),
            index=_range_from_json(values.get("index")),
        )


def _range_to_json(span: ChunkRange | None) -> list[Any] | None:
    return None if span is None else [span.offset, span.bytes, span.sha256]


def _range_from_json(values: Any) -> ChunkRange | None:
    if values is None:
        return None
    offset, size, digest = values
    return ChunkRange(_count(offset), _count(size), str(digest))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r} is no number of bytes")
    return value


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the manifest of a Zarr store says beside the labels' own."""

    key_bytes: int
    files: Mapping[str, FileEntry]
    zero_digests: frozenset[tuple[int, int]]  # (row, view) whose digest happens to be 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; ``from_json`` is the inverse."""
        return {
            "key_bytes": self.key_bytes,
            "files": [self.files[path].to_json() for path in sorted(self.files)],
            "zero_digests": sorted(list(cell) for cell in self.zero_digests),
        }

    @staticmethod
    def from_json(values: Any, manifest: Manifest, name: str) -> Layout:
        """Build a layout from ``to_json``'s values and hold it against the manifest.

        Raises ``StoreError`` if it is malformed or claims what no store of this manifest has.
        """
        try:
            if len(values["zero_digests"]) > _MOST_ZERO_DIGESTS:
                raise ValueError(f"{len(values['zero_digests'])} digests that are 0")
            layout = Layout(
                key_bytes=_count(values["key_bytes"]),
                files={one.path: one for one in map(FileEntry.from_json, values["files"])},
                zero_digests=frozenset(
                    (int(row), int(view)) for row, view in values["zero_digests"]
                ),
            )
            layout._check(manifest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(
                f"{name}: what it says of Zarr is malformed: {error}; export the store again"
            ) from error
        return layout

    def _check(self, manifest: Manifest) -> None:
        if not 1 <= self.key_bytes <= MAX_KEY_BYTES:
            raise ValueError(f"keys of {self.key_bytes} bytes")
        samples = max((shard.samples for shard in manifest.shards), default=0)
        if samples * self.key_bytes > _KEYS_BYTES:
            raise ValueError(f"a shard of {samples} keys, each in {self.key_bytes} bytes")
        specs = array_specs(manifest, self.key_bytes)
        metadata = {GROUP_METADATA, *(spec.metadata_path for spec in specs.values())}
        if missing := metadata - set(self.files):
            raise ValueError(f"no {min(missing)} is listed")
        for entry in self.files.values():
            if entry.path in metadata:
                if entry.index is not None or entry.bytes > MAX_COMPANION_BYTES:
                    raise ValueError(f"{entry.path} has {entry.bytes} bytes, or chunks")
                continue
            spec = specs.get(entry.path.split("/")[0])
            if spec is None or not spec.has_file(entry.path):
                raise ValueError(f"no file of this store is called {entry.path!r}")
            _check_chunks(entry, spec)


def _check_chunks(entry: FileEntry, spec: ArraySpec) -> None:
    """Raise ``ValueError`` unless chunks and index make up the whole file, in sane sizes."""
    if len(entry.chunks) != math.prod(spec.chunks_per_shard) or entry.index is None:
        raise ValueError(f"{entry.path} lists {len(entry.chunks)} chunks")
    end = 0
    for chunk in sorted(filter(None, entry.chunks), key=lambda chunk: chunk.offset):
        # What does not shrink grows by a frame's header and checksum alone.
        if chunk.offset != end or not 0 < chunk.bytes <= spec.chunk_bytes + 1024:
            raise ValueError(f"{entry.path} has a chunk of {chunk.bytes} bytes at {chunk.offset}")
        end += chunk.bytes
    size = index_bytes(len(entry.chunks))
    if (entry.index.offset, entry.index.bytes, entry.bytes) != (end, size, end + size):
        raise ValueError(f"{entry.path} has {entry.bytes} bytes, of which {end} are chunks")


def index_bytes(chunks: int) -> int:
    """Return the bytes of a file's index: offset and size of each chunk, and a CRC-32C."""
    return 16 * chunks + 4


def check_array_metadata(data: bytes, spec: ArraySpec) -> None:
    """Raise ``ValueError`` if an array's metadata is not that of this layout."""
    values = read_json(data)
    outer, inner = values["codecs"][0], values["codecs"][0]["configuration"]
    found = {
        "zarr_format": values["zarr_format"],
        "node_type": values["node_type"],
        "data_type": values["data_type"],
        "shape": values["shape"],
        "fill_value": values["fill_value"],
        "shard": values["chunk_grid"]["configuration"]["chunk_shape"],
        "chunk": inner["chunk_shape"],
        "codecs": [outer["name"], *(codec["name"] for codec in inner["codecs"])],
        "index": inner["index_location"],
    }
    expected = {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": spec.dtype,
        "shape": list(spec.shape),
        "fill_value": spec.fill,
        "shard": list(spec.shard),
        "chunk": list(spec.chunk),
        "codecs": ["sharding_indexed", "bytes", "zstd", "crc32c"],
        "index": "end",
    }
    for name, value in expected.items():
        if found[name] != value or len(values["codecs"]) != 1:
            raise ValueError(f"its {name} is {found[name]!r}, not {value!r}")


def chunks_of(first: int, end: int, size: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield the chunks that hold elements ``first`` to ``end``.

    Each comes with the elements' indices in the chunk, and in what is asked for.
    """
    for chunk in range(first // size, -(-end // size)):
        start, stop = max(first, chunk * size), min(end, (chunk + 1) * size)
        yield (
            chunk,
            slice(start - chunk * size, stop - chunk * size),
            slice(start - first, stop - first),
        )
