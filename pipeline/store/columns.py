"""The optional columns of a part: what Arrow calls them, and how Parquet encodes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from pipeline.identity import ColumnConfig, StoreIdentity
from pipeline.records import OPTIONAL_COLUMNS, PartRows, optional_columns

__all__ = [
    "bytes_per_label",
    "column_fields",
    "column_names",
    "columns_of",
    "from_arrow",
    "storage_options",
    "to_arrow",
]

_ELEMENT_TYPES = {
    "confidence": pa.uint8(),
    "margin": pa.uint8(),
    "topk_label": pa.uint16(),
    "topk_prob": pa.uint8(),
}
# Parquet keeps small integers in four bytes; split into streams, three of them are zeros and
# compress to nothing. Class numbers of one sample repeat from view to view, and zstd finds
# that only in plain order.
_ENCODINGS = {
    "confidence": "BYTE_STREAM_SPLIT",
    "margin": "BYTE_STREAM_SPLIT",
    "topk_label": "PLAIN",
    "topk_prob": "BYTE_STREAM_SPLIT",
}


def columns_of(rows: PartRows) -> ColumnConfig:
    """Return which optional columns a part's rows have."""
    return ColumnConfig(
        confidence=rows.confidence is not None,
        margin=rows.margin is not None,
        topk=0 if rows.topk_label is None else rows.topk_label.shape[-1],
    )


def column_names(columns: ColumnConfig) -> tuple[str, ...]:
    """Return the names of the columns that are asked for, in their order in a file."""
    asked = (columns.confidence, columns.margin, columns.topk, columns.topk)
    return tuple(name for name, there in zip(OPTIONAL_COLUMNS, asked, strict=True) if there)


def column_fields(columns: ColumnConfig) -> list[pa.Field]:
    """Return the Arrow fields of the columns: integers, or lists of k of them."""
    return [_field(name, columns) for name in column_names(columns)]


def _field(name: str, columns: ColumnConfig) -> pa.Field:
    kind = _ELEMENT_TYPES[name]
    if name.startswith("topk"):
        kind = pa.list_(pa.field("element", kind, nullable=False), columns.topk)
    return pa.field(name, kind, nullable=False)


def to_arrow(rows: PartRows) -> list[pa.Array]:
    """Return the optional columns of a part as Arrow arrays of N * V rows."""
    fields = column_fields(columns_of(rows))
    arrays = optional_columns(rows)
    found = []
    for field in fields:
        values = pa.array(arrays[field.name].reshape(-1))
        if pa.types.is_nested(field.type):
            values = pa.FixedSizeListArray.from_arrays(values, type=field.type)
        found.append(values)
    return found


def from_arrow(
    table: pa.Table, columns: ColumnConfig, shape: tuple[int, int]
) -> dict[str, NDArray[Any]]:
    """Return the optional columns of a part, (N, V) or (N, V, k); raises ``ValueError``."""
    found: dict[str, NDArray[Any]] = {}
    for name in column_names(columns):
        values = table[name].combine_chunks()
        whole: tuple[int, ...] = shape
        if name.startswith("topk"):
            whole = (*shape, columns.topk)
            if not pa.types.is_fixed_size_list(values.type):
                # A file that was written anew may have lost the lists' fixed length.
                values = values.cast(pa.list_(values.type.value_type, columns.topk))
            values = values.flatten()
        if values.null_count or values.type != _ELEMENT_TYPES[name]:
            raise ValueError(f"{name} has {values.null_count} nulls and type {values.type}")
        found[name] = values.to_numpy(zero_copy_only=False).reshape(whole)
    return found


def storage_options(columns: ColumnConfig) -> Mapping[str, str]:
    """Return the Parquet encoding of each optional column, by the path of its leaf."""
    return {
        f"{name}.list.element" if name.startswith("topk") else name: _ENCODINGS[name]
        for name in column_names(columns)
    }


def bytes_per_label(identity: StoreIdentity) -> float:
    """Return about how many bytes a view of such a store takes, at 150 views a part.

    Measured by ``benchmarks/store.py`` on made-up labels of 1,000 classes.
    """
    columns, mixed = identity.columns, identity.mix.probability > 0
    plain = 1.20 if mixed else 0.63
    each = plain + 0.90 * columns.confidence + 0.95 * columns.margin
    return each + columns.topk * ((1.20 if mixed else 0.90) + 0.70)
