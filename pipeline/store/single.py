"""The store as one Parquet file: a row group for each part, the manifest in its footer.

A seal lies before the footer, and is checked before PyArrow sees it. The manifest in the footer has
the SHA-256 of each row group.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ChecksumError, StoreError
from pipeline.files.folder import MAX_FILE_BYTES, check_size
from pipeline.files.local import Folder, sha256
from pipeline.identity import MUCH_JSON, canonical_json, read_json
from pipeline.records import PartRows
from pipeline.store.contract import HeaderCheck, LabelStore, header_of, require_classes
from pipeline.store.footer import Footer
from pipeline.store.manifest import (
    UNREAD_FIELDS,
    Manifest,
    PartEntry,
    check_companion_paths,
    companion_limit,
    most_bytes,
    seal,
    unseal,
)
from pipeline.store.pages import check_pages
from pipeline.store.parquet import (
    ParquetStore,
    leaf_names,
    part_schema,
    require_schema,
    rows_of_table,
    table_of,
    write_options,
)
from pipeline.store.sealing import (
    FOOTER_BYTES,
    SEAL_BYTES,
    check_footer,
    footer_offset,
    seal_footer,
)
from pipeline.telling import told

__all__ = ["SingleFileStore", "open_single_file", "write_single_file"]

_MANIFEST = b"teacher_labels.manifest"
_COMPANIONS = b"teacher_labels.files"
_MAGIC = b"PAR1"
_SHARD = pa.field("shard", pa.int32(), nullable=False)
_FILE = ""  # the path of a folder that is a file, in itself
_CURE = "fetch the file again, or export the store again"
_MOST_FOOTER_BYTES = 1 << 29
"""Arrow reads no text of more than 100 MB, and the manifest is one, its companions another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """Where the row group of a part lies in the file."""

    offset: int
    bytes: int
    sha256: str


def open_single_file(root: Folder) -> SingleFileStore:
    """Open a store in one file; reads its footer alone.

    Raises ``ChecksumError`` if the footer was changed or has no seal, as that of no store.
    """
    size = root.size(_FILE)
    tail = root.read_range(_FILE, max(0, size - FOOTER_BYTES), FOOTER_BYTES)
    try:
        start = footer_offset(tail, size) - SEAL_BYTES
        if root.read_range(_FILE, 0, len(_MAGIC)) != _MAGIC or start < len(_MAGIC):
            raise ValueError("it does not begin as a Parquet file with a seal")
    except ValueError as error:
        raise ChecksumError(f"{root} is no whole file of {size} bytes: {error}; {_CURE}") from error
    check_size(f"{root}, footer", size - start, _MOST_FOOTER_BYTES)
    store = _opened(root, root.read_range(_FILE, start, size - start))
    if store.stored_bytes != size:
        raise ChecksumError(
            f"{root} has {size} bytes, its manifest says {store.stored_bytes}; {_CURE}"
        )
    return store


def _opened(root: Folder, data: bytes) -> SingleFileStore:
    """Return the store whose file ends with ``data``: a seal and its footer."""
    try:
        footer = check_footer(data)
    except ValueError as error:
        raise ChecksumError(f"{root}: {error}; {_CURE}") from error
    try:
        groups = Footer(footer)
        metadata = pq.read_metadata(pa.BufferReader(data))  # from its end
        values = unseal(metadata.metadata[_MANIFEST], str(root), UNREAD_FIELDS)
        manifest = Manifest.from_json(values, str(root))
        read = _Footer(manifest, metadata, groups, values["file"], data)
        check_companion_paths(read.companions, str(root))
        return SingleFileStore(root, manifest, read)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{root}: its footer is malformed: {error}; {_CURE}") from error


class _Footer:
    """What the footer says of the row groups, held against the manifest in it."""

    def __init__(
        self,
        manifest: Manifest,
        metadata: Any,
        pages: Footer,
        values: Mapping[str, Any],
        data: bytes,
    ) -> None:
        self.metadata, self.pages, self.data = metadata, pages, data
        named = [RowGroup(**one) for one in values["row_groups"]]
        self.groups = {
            entry.part: (number, group)
            for number, (entry, group) in enumerate(zip(manifest.parts, named, strict=True))
        }
        self.companions = {
            path: _companion(path, text)
            for path, text in read_json(metadata.metadata[_COMPANIONS], MUCH_JSON).items()
        }
        self.start = len(_MAGIC)
        rows = np.array([entry.rows for entry in manifest.parts], np.int64)
        most = most_bytes(rows, manifest.identity.columns).tolist()
        for group, limit in zip(named, most, strict=True):
            whole = type(group.offset) is type(group.bytes) is int
            if not whole or group.offset != self.start or not 0 <= group.bytes <= limit:
                raise ValueError(f"a row group of {group.bytes} bytes at {group.offset}")
            self.start += group.bytes
        if not len(pages) == metadata.num_row_groups == len(named):
            raise ValueError(f"{len(pages)} row groups for {len(named)} parts")
        require_schema(metadata.schema.to_arrow_schema(), _schema(manifest))

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.start + len(self.data)


def _schema(manifest: Manifest) -> pa.Schema:
    return pa.schema([_SHARD, *part_schema(manifest.identity.columns)])


def _companion(path: str, text: Any) -> bytes:
    data = text.encode() if isinstance(text, str) else None
    if data is None or len(data) > companion_limit(path):
        raise ValueError(f"{path!r} is no text of at most {companion_limit(path)} bytes")
    return data


class SingleFileStore(ParquetStore):
    """A finished store in one file. A part is one ranged read."""

    def __init__(self, file: Folder, manifest: Manifest, footer: _Footer) -> None:
        super().__init__(_FileFolder(file, footer.companions), manifest)
        self._place = file
        self._footer = footer

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self._place, self._footer.data)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the file."""
        return self._footer.file_bytes

    def read_file(self, entry: PartEntry) -> bytes | None:
        """Return None: a row group is no file."""
        return None

    def _read(self, entry: PartEntry, *, trusted: bool) -> PartRows:
        """Read a part's row group and check it against the manifest, as a part's file is."""
        number, group = self._footer.groups[entry.part]
        name = f"{self.root}, row group {number}"
        try:
            data = self._place.read_range(_FILE, group.offset, group.bytes)
        except FileNotFoundError as error:
            raise ChecksumError(f"{self.root} is missing; {_CURE}") from error
        actual = sha256(data)
        if actual != group.sha256:
            raise ChecksumError(
                f"{name}: sha256 is {actual}, the manifest says {group.sha256}; {_CURE}"
            )
        metadata = self._footer.metadata
        try:
            leaves = leaf_names(_schema(self.manifest))
            check_pages(data, group.offset, self._footer.pages[number], entry.rows, leaves)
            window = _Window(data, group.offset, self.stored_bytes)
            file = pq.ParquetFile(
                pa.PythonFile(window, "r"),
                metadata=metadata,
                read_dictionary=["key"],
                page_checksum_verification=not trusted,
                pre_buffer=False,
            )
            names = part_schema(self.identity.columns).names
            names = [one for one in names if one != "view"] if trusted else [_SHARD.name, *names]
            table = _with_shard(part_schema(self.identity.columns).empty_table(), 0)
            if entry.rows:  # or there are no pages whose claims could be checked
                table = file.read_row_group(number, columns=names, use_threads=False)
            if (
                not trusted
                and (table["shard"].combine_chunks().to_numpy() != entry.part.shard).any()
            ):
                raise ValueError(f"it is not of shard {entry.part.shard}")
            header = header_of(self.manifest, entry.part)
            rows = rows_of_table(table, self.identity.columns, header)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise ChecksumError(f"{name} is damaged ({error}); {_CURE}") from error
        require_classes(rows, self.identity.teacher.classes, name)
        return rows

    def check_names(self) -> None:
        """Do nothing: names in the footer were checked when it was opened."""

    def check_files(self) -> None:
        """Do nothing: a file has no strays, and footer and row groups are all there is."""


class _FileFolder(Folder):
    """A store's one file as a folder: the file itself, and the small files in its footer."""

    def __init__(self, file: Folder, companions: Mapping[str, bytes]) -> None:
        super().__init__(file.name)
        self._file = file
        self._companions = companions

    def is_a_file(self) -> bool:
        """Return True."""
        return True

    def read_bytes(self, path: str, at_most: int = MAX_FILE_BYTES) -> bytes:
        """Return one of the small files; see ``Folder``."""
        if path not in self._companions:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.at(path))
        return self._companions[path]

    def exists(self, path: str = "") -> bool:
        """Return whether this small file is there; see ``Folder``."""
        return path in self._companions if path else self._file.exists()

    def sizes(self, prefix: str = "") -> Mapping[str, int]:
        """Return the paths of the small files, with their bytes; see ``Folder``."""
        found = self._companions.items()
        return {path: len(data) for path, data in found if path.startswith(prefix)}

    def _refuse(self, path: str, data: bytes = b"") -> NoReturn:
        """Raise ``StoreError``: nothing is added to a file."""
        raise StoreError(f"{self.name} is one file, which cannot be added to; export it first")

    commit_new = write_file = replace = _refuse


class _Window(io.RawIOBase):
    """The verified bytes of a row group, at their offset in a file that is not read again."""

    def __init__(self, data: bytes, offset: int, size: int) -> None:
        super().__init__()
        self._data, self._offset, self._size, self._place = data, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        start = self._place - self._offset
        if size < 0 or start < 0 or start + size > len(self._data):
            raise ValueError(f"{size} bytes at {self._place} are not in the row group")
        self._place += size
        return self._data[start : start + size]


def write_single_file(source: LabelStore, path: Path) -> None:
    """Write the store ``source`` to the new file ``path``, one part in memory at a time."""
    manifest, companions = source.manifest, source.companions()
    headers = HeaderCheck(source)
    groups: list[RowGroup] = []
    with path.open("x+b") as file:
        sink = _Hashing(file)
        options = write_options(manifest.identity.columns)
        options["use_dictionary"] = ["shard", *options["use_dictionary"]]
        with pq.ParquetWriter(sink, _schema(manifest), **options) as writer:
            sink.take()  # the magic bytes belong to no row group
            for entry in told(manifest.parts, "writing", "parts", len(manifest.parts)):
                rows = source.read_part(entry)
                headers.add(rows)
                table = _with_shard(table_of(rows), entry.part.shard)
                offset = sink.bytes
                writer.write_table(table, row_group_size=max(1, len(table)))
                groups.append(
                    RowGroup(offset=offset, bytes=sink.bytes - offset, sha256=sink.take())
                )
            values = {
                **manifest.to_json(),
                "file": {"row_groups": [asdict(group) for group in groups]},
            }
            texts = {name: _text_of(name, data, source) for name, data in companions.items()}
            writer.add_key_value_metadata(
                {_MANIFEST: seal(values), _COMPANIONS: canonical_json(texts)}
            )
        seal_footer(file)


def _text_of(name: str, data: bytes, source: LabelStore) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise StoreError(
            f"{source.root.at(name)} is no text ({error}), so no footer can hold it; restore the "
            "file, or remove it"
        ) from error


def _with_shard(table: pa.Table, shard: int) -> pa.Table:
    return table.add_column(0, _SHARD, pa.array(np.full(len(table), shard, np.int32)))


class _Hashing(io.RawIOBase):
    """Passes bytes on to a file, and hashes them."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file, self._hash, self.bytes = file, new_sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.bytes

    def take(self) -> str:
        """Return the SHA-256 of what was written since the last call."""
        digest, self._hash = self._hash.hexdigest(), new_sha256()
        return digest
