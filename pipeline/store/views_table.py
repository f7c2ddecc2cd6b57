"""A Parquet file that says how each view was made, for DuckDB and pandas. No part of a store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.files.local import publish, writing

__all__ = ["VIEW_COLUMNS", "ViewsTable", "writing_views"]

_BOX = pa.struct(
    [pa.field(name, pa.int32(), nullable=False) for name in ("top", "left", "height", "width")]
)
_OPERATION = pa.struct(
    [
        pa.field("op", pa.string(), nullable=False),
        pa.field("argument", pa.int64(), nullable=False),
    ]
)
_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("view", pa.uint32(), nullable=False),
        pa.field("target", pa.int32(), nullable=False),
        pa.field("label", pa.uint16(), nullable=False),
        pa.field("partner", pa.string()),
        pa.field("partner_target", pa.int32()),
        pa.field("mix", pa.string(), nullable=False),
        pa.field("lam", pa.float64(), nullable=False),
        pa.field("mix_box", _BOX),
        pa.field("crop_box", _BOX, nullable=False),
        pa.field("hflip", pa.bool_(), nullable=False),
        pa.field("ops", pa.list_(_OPERATION), nullable=False),
        pa.field("erase_box", _BOX),
        pa.field("digest", pa.uint32()),
    ]
)
VIEW_COLUMNS = tuple(_SCHEMA.names)
"""The table's columns, in order."""


class ViewsTable:
    """Takes the rows of a part in pieces, and writes them as one row group."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._pieces: list[pa.RecordBatch] = []

    def add(self, columns: Mapping[str, list[Any]]) -> None:
        """Take some rows, by column."""
        arrays = [pa.array(columns[field.name], field.type) for field in _SCHEMA]
        self._pieces.append(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))

    def end_part(self) -> None:
        """Write what was taken since the last part ended."""
        table = pa.Table.from_batches(self._pieces, _SCHEMA)
        self._writer.write_table(table, row_group_size=max(1, len(table)))
        self._pieces.clear()


@contextmanager
def writing_views(path: Path) -> Iterator[ViewsTable]:
    """Open a new table, which gets its name when all is written; nothing is left if that fails.

    Raises ``StoreError`` if there is something at ``path``.
    """
    if os.path.lexists(path):
        raise StoreError(f"{path} exists already; give another path, or remove it")
    aside = path.with_name(f".{os.getpid()}-{os.urandom(4).hex()}.{path.name}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with pq.ParquetWriter(aside, _SCHEMA, compression="zstd") as writer:
                yield ViewsTable(writer)
        publish(aside, path)
    finally:
        aside.unlink(missing_ok=True)
