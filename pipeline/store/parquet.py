"""The Parquet store: one file per part, readable by pandas, PyArrow and DuckDB as it is."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.columns import ColumnConfig
from pipeline.errors import ChecksumError, ConfigError, StoreError
from pipeline.files.local import Folder
from pipeline.growth import from_plain, to_plain
from pipeline.identity import FORMAT_VERSION, canonical_json, check_version, read_json
from pipeline.records import PartHeader, PartKey, PartRows, ShardView
from pipeline.store.columns import column_fields, from_arrow, storage_options, to_arrow
from pipeline.store.contract import LabelStore, require_classes
from pipeline.store.footer import Footer
from pipeline.store.manifest import (
    MAX_PART_VIEWS,
    MAX_ROWS,
    Agreement,
    Manifest,
    PartEntry,
    most_rows,
)
from pipeline.store.pages import check_pages
from pipeline.store.part_views import PartViews
from pipeline.store.sealing import footer_offset, read_sealed, sealed
from pipeline.views.draw import has_mixed_digest

__all__ = [
    "ParquetStore",
    "PartClaims",
    "decode_part",
    "encode_part",
    "leaf_names",
    "part_schema",
    "read_claims",
    "require_schema",
    "rows_of_table",
    "table_of",
    "write_options",
]

_METADATA = b"teacher_labels"
_NOT_OF_HEADER = ("format_version", "columns", "agreement", "first_view", "views")
_CURE = "delete the file and run the label job again, it will redo only this part"
_MOST_OF_A_LIST = 256  # of records in a footer, which has one row group and a dozen columns
_CACHED_PARTS = 24  # about a megabyte each

_FIELDS = (
    pa.field("key", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    pa.field("view", pa.uint32(), nullable=False),
    pa.field("target", pa.int32(), nullable=False),
    pa.field("seed", pa.int64(), nullable=False),
    pa.field("label", pa.uint16(), nullable=False),
    pa.field("digest", pa.uint32(), nullable=True),
    pa.field("mixed_digest", pa.uint32(), nullable=True),
)


def table_of(rows: PartRows) -> pa.Table:
    """Return the columns of a part as a table, without metadata."""
    samples, views = rows.label.shape
    keys = pa.DictionaryArray.from_arrays(
        pa.array(np.repeat(np.arange(samples, dtype=np.int32), views)),
        pa.array(rows.keys, pa.string()),
    )
    view = np.arange(rows.part.first_view, rows.part.end_view, dtype=np.uint32)
    mixed = has_mixed_digest(rows.has_digest, rows.seed[:, None], view.astype(np.int64))
    columns = [
        keys,
        pa.array(np.tile(view, samples)),
        pa.array(np.repeat(rows.target.astype(np.int32), views)),
        pa.array(np.repeat(rows.seed.astype(np.int64), views)),
        pa.array(rows.label.reshape(-1).astype(np.uint16)),
        pa.array(rows.digest.reshape(-1).astype(np.uint32), mask=~rows.has_digest.reshape(-1)),
        pa.array(rows.mixed_digest.reshape(-1).astype(np.uint32), mask=~mixed.reshape(-1)),
        *to_arrow(rows.columns),
    ]
    return pa.Table.from_arrays(columns, schema=part_schema(rows.columns.config))


def write_options(kept: ColumnConfig) -> dict[str, Any]:
    """Return how columns are encoded, as arguments of PyArrow's writers."""
    return {
        "version": "2.6",
        "compression": "zstd",
        "compression_level": 9,
        # The same for all views of a sample: they cost next to nothing. Labels and digests look
        # random, and gain from no dictionary.
        "use_dictionary": ["key", "seed", "target"],
        "column_encoding": {
            "view": "DELTA_BINARY_PACKED",
            "label": "PLAIN",
            "digest": "PLAIN",
            "mixed_digest": "PLAIN",
            **storage_options(kept),
        },
        # For readers that know nothing of the seal.
        "write_page_checksum": True,
        "data_page_size": 1 << 20,
        # PyArrow's 20,000 would make pages of a few kilobytes, larger and slower to read.
        "max_rows_per_page": MAX_ROWS,
    }


def encode_part(rows: PartRows) -> bytes:
    """Return the part's file: the same bytes for the same rows, with one PyArrow release."""
    most = most_rows(rows.columns.config)
    if rows.label.size > most or rows.part.views > MAX_PART_VIEWS:
        raise StoreError(
            f"{rows.part.path} would have {rows.label.size} rows, and a part has at most "
            f"{most}, of {MAX_PART_VIEWS} views at most; make `views_per_part` smaller"
        )
    kept = rows.columns.config
    header = canonical_json(_header_json(rows, kept))
    table = table_of(rows).replace_schema_metadata({_METADATA: header})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=max(1, len(table)), **write_options(kept))
    return sealed(sink.getvalue().to_pybytes())


def _header_json(rows: PartRows, kept: ColumnConfig) -> dict[str, Any]:
    """Return what a part's file says of itself; its shard's number is in its path alone."""
    values = to_plain(rows.header)
    part = values.pop("part")
    return {
        **values,
        **{name: part[name] for name in ("first_view", "views")},
        "format_version": FORMAT_VERSION,
        "columns": to_plain(kept),
        "agreement": to_plain(Agreement.of_rows(rows)),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class PartClaims:
    """What a part's file says of itself."""

    header: PartHeader
    columns: ColumnConfig
    agreement: Agreement

    @staticmethod
    def from_json(values: Mapping[str, Any], part: PartKey, name: str) -> PartClaims:
        """Read what ``_header_json`` gives of ``part``."""
        own = {one: value for one, value in values.items() if one not in _NOT_OF_HEADER}
        return PartClaims(
            header=from_plain(PartHeader, {**own, "part": to_plain(part)}, name),
            columns=from_plain(ColumnConfig, values["columns"], f"{name}: columns"),
            agreement=from_plain(Agreement, values["agreement"], f"{name}: agreement"),
        )


def decode_part(data: bytes, part: PartKey, name: str, *, trusted: bool = False) -> PartRows:
    """Return what a part file holds, after checking its seal, its columns and its rows.

    ``trusted`` bytes have a SHA-256 that a manifest vouches for, and a seal, which were checked:
    neither it, nor page checksums, nor the order of rows are checked again. Raises ``StoreError``
    if this is not the part that its path says, ``ChecksumError`` if it is damaged; ``name`` is for
    messages.
    """
    fault = None if trusted else read_sealed(data)[1]
    if fault is not None:
        raise _damaged(name, fault)
    file, claims = _open_part(data, part, name, trusted=trusted)
    columns, count = claims.columns, file.metadata.num_rows
    try:
        schema = part_schema(columns)
        for group in Footer(data[footer_offset(data, len(data)) :]):
            check_pages(data, 0, group, count, leaf_names(schema))
        names = schema.names
        if trusted:
            # It follows from the rows' order, which the manifest's SHA-256 vouches for.
            names.remove("view")
        # Without rows there are no pages whose claims could be checked.
        table = file.read(columns=names, use_threads=False) if count else schema.empty_table()
        rows = rows_of_table(table, columns, claims.header)
        if not trusted and (found := Agreement.of_rows(rows)) != claims.agreement:
            raise ValueError(f"its labels have {found}, it says {claims.agreement}")
        return rows
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise _damaged(name, error) from error


def read_claims(data: bytes, part: PartKey, name: str) -> tuple[str, PartClaims]:
    """Return the SHA-256 of a part's file and what it says of itself, without its rows.

    The seal is of all bytes, so they are those of whoever wrote the part, and so is what it
    says. Raises what ``decode_part`` does.
    """
    digest, fault = read_sealed(data)
    if fault is not None:
        raise _damaged(name, fault)
    return digest, _open_part(data, part, name, trusted=True)[1]


def _damaged(name: str, fault: object) -> ChecksumError:
    return ChecksumError(f"{name} is damaged ({fault}); {_CURE}")


def require_schema(found: pa.Schema, expected: pa.Schema) -> None:
    """Raise ``ValueError`` unless columns, their types and what may be null are as expected."""
    if not found.equals(expected):
        ours, theirs = (", ".join(map(str, schema)) for schema in (expected, found))
        raise ValueError(f"its columns are {theirs}, not {ours}")


def rows_of_table(table: pa.Table, columns: ColumnConfig, header: PartHeader) -> PartRows:
    """Return a part's rows; the header says how many.

    Raises ``ValueError`` if the number of rows does not fit. If the table has the numbers of
    the views, the order of its rows is checked as well.
    """
    part = header.part
    shape = (int(header.accepted.sum()), part.views)
    nulls = {name for name in table.column_names if table[name].null_count}
    if nulls := nulls - {"digest", "mixed_digest"}:
        raise ValueError(f"{min(nulls)} has nulls")
    key, digest, mixed = (_whole(table, name) for name in ("key", "digest", "mixed_digest"))
    has_digest, has_mixed = (_are_there(one).reshape(shape) for one in (digest, mixed))
    indices = key.indices.to_numpy().reshape(shape)
    keys = key.dictionary.to_pylist()
    # Arrow takes indices as they are in the file.
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < len(keys):
        raise ValueError("a row has a key that the part does not list")
    target, seed = (_numbers(table, name).reshape(shape) for name in ("target", "seed"))
    if "view" in table.column_names:
        expected = np.arange(part.first_view, part.end_view, dtype=np.uint32)
        if (_numbers(table, "view").reshape(shape) != expected).any():
            raise ValueError("views are out of order")
        if any((one != one[:, :1]).any() for one in (indices, target, seed)):
            raise ValueError("rows of one sample are not together")
        due = has_mixed_digest(has_digest, seed, expected.astype(np.int64))
        if (has_mixed != due).any():
            raise ValueError("digests of mixed images are not where they should be")
    return PartRows(
        **header.header_values(),
        keys=tuple(keys[index] for index in indices[:, 0].tolist()),
        target=target[:, 0].copy(),
        seed=seed[:, 0].copy(),
        label=_numbers(table, "label").reshape(shape),
        digest=np.where(has_digest, _under_nulls(digest).reshape(shape), np.uint32(0)),
        has_digest=has_digest,
        mixed_digest=np.where(has_mixed, _under_nulls(mixed).reshape(shape), np.uint32(0)),
        columns=from_arrow(table, columns, shape),
    )


def part_schema(columns: ColumnConfig) -> pa.Schema:
    """Return the columns of a part, in order, without metadata."""
    return pa.schema([*_FIELDS, *column_fields(columns)])


def leaf_names(schema: pa.Schema) -> list[str]:
    """Return what Parquet calls the columns of a schema: a list by its elements."""
    return [
        f"{one.name}.list.element" if pa.types.is_nested(one.type) else one.name for one in schema
    ]


def _open_part(
    data: bytes, part: PartKey, name: str, *, trusted: bool
) -> tuple[pq.ParquetFile, PartClaims]:
    """Open a part, and return it with what it says of itself, which fits its rows and columns."""
    try:
        file = pq.ParquetFile(
            pa.BufferReader(data),
            page_checksum_verification=not trusted,
            read_dictionary=["key"],
            thrift_container_size_limit=_MOST_OF_A_LIST,
        )
        header = read_json((file.metadata.metadata or {})[_METADATA])
        version, views = header["format_version"], (header["first_view"], header["views"])
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise StoreError(
            f"{name} is not a part of a label store ({error}); delete the file and run the "
            "label job again, it will redo only this part"
        ) from error
    check_version(version, name)
    if views != (part.first_view, part.views):
        raise StoreError(f"{name} holds views {views}, not those of its name; rename it back")
    try:
        claims = PartClaims.from_json(header, part, name)
        rows = claims.header.labelled * part.views
        if part.views > MAX_PART_VIEWS:
            raise ValueError(f"it has {part.views} views, and may have {MAX_PART_VIEWS}")
        if rows > most_rows(claims.columns):
            raise ValueError(f"it has {rows} rows, and may have {most_rows(claims.columns)}")
        if file.metadata.num_rows != rows:
            raise ValueError(f"it has {file.metadata.num_rows} rows, not {rows}")
        require_schema(file.schema_arrow, part_schema(claims.columns))
    except (pa.ArrowException, ValueError, KeyError, TypeError, ConfigError) as error:
        raise _damaged(name, error) from error
    return file, claims


def _numbers(table: pa.Table, name: str) -> Any:
    return _whole(table, name).to_numpy(zero_copy_only=False)


def _whole(table: pa.Table, name: str) -> Any:
    """Return a column as one array, without a copy if it is one."""
    column = table[name]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _under_nulls(values: pa.Array) -> NDArray[np.uint32]:
    """Return the values of a uint32 array; those that are null are arbitrary."""
    numbers = np.frombuffer(values.buffers()[1], np.uint32) if len(values) else np.empty(0, "u4")
    return numbers[values.offset : values.offset + len(values)]


def _are_there(values: pa.Array) -> NDArray[np.bool_]:
    """Return which values are not null: several times faster than ``is_valid``."""
    bitmap = values.buffers()[0]
    if bitmap is None:
        return np.ones(len(values), np.bool_)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    return bits[values.offset : values.offset + len(values)].view(np.bool_)


class ParquetStore(LabelStore):
    """A finished Parquet directory. Decoded parts are kept, the least used go first."""

    def __init__(self, root: Folder, manifest: Manifest) -> None:
        super().__init__(root, manifest)
        self._digest = manifest.identity_digest
        self._parts: OrderedDict[PartKey, PartViews] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> Mapping[str, Any]:
        return {"root": self.root, "manifest": self.manifest}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["root"], state["manifest"])  # type: ignore[misc]

    def read_view(self, shard: int, view: int) -> ShardView:
        """Return the labels of one shard at one view; see ``LabelStore``."""
        return self._opened(self.manifest.find_part(shard, view)).at(view)

    def read_part(self, entry: PartEntry) -> PartRows:
        """Read a part and check it against the manifest: size, SHA-256, pages, identity."""
        return self._read(entry, trusted=False)

    def read_file(self, entry: PartEntry) -> bytes | None:
        """Return a part's file, whose SHA-256 is the manifest's; see ``LabelStore``."""
        return self._file(entry)

    def _file(self, entry: PartEntry) -> bytes:
        path = self.root.at(entry.part.path)
        try:
            # No more than a byte over what is expected, whatever lies there.
            data = self.root.read_range(entry.part.path, 0, entry.bytes + 1)
        except FileNotFoundError as error:
            raise ChecksumError(f"{path} is missing; run the label job again") from error
        if len(data) > entry.bytes:
            raise ChecksumError(f"{path} has more than the manifest's {entry.bytes} bytes; {_CURE}")
        actual, fault = read_sealed(data)
        if actual != entry.sha256:
            raise ChecksumError(
                f"{path}: sha256 is {actual}, the manifest says {entry.sha256}; {_CURE}"
            )
        if fault is not None:
            raise _damaged(path, fault)
        return data

    def _read(self, entry: PartEntry, *, trusted: bool) -> PartRows:
        path = self.root.at(entry.part.path)
        rows = decode_part(self._file(entry), entry.part, path, trusted=trusted)
        if rows.identity != self._digest or rows.columns.config != self.identity.columns:
            raise ChecksumError(f"{path} belongs to another store; {_CURE}")
        require_classes(rows, self.identity.teacher.classes, path)
        return rows

    def check_files(self) -> None:
        """Find parts that the manifest does not list; ``read_part`` reads all of the others."""
        self.check_names()
        listed = {entry.part.path for entry in self.manifest.parts}
        stray = [path for path in self.root.list_if_allowed("shard=") if path not in listed]
        if stray:
            raise StoreError(
                f"{self.root}: {len(stray)} parts are not in the manifest, the first is "
                f"{stray[0]!r}; a label job that adds to the store has not finished: run it again"
            )

    def _opened(self, entry: PartEntry) -> PartViews:
        with self._lock:
            if entry.part in self._parts:
                self._parts.move_to_end(entry.part)
            else:
                self._parts[entry.part] = PartViews(self._read(entry, trusted=True))
                if len(self._parts) > _CACHED_PARTS:
                    self._parts.popitem(last=False)
            return self._parts[entry.part]
