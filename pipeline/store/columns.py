"""The optional columns of a part, as Arrow and Parquet have them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.columns import COLUMNS, ColumnConfig, Columns
from pipeline.identity import StoreIdentity

__all__ = ["bytes_per_label", "column_fields", "from_arrow", "storage_options", "to_arrow"]


def column_fields(columns: ColumnConfig) -> list[pa.Field]:
    """Return the Arrow fields of the columns: integers, or lists of k of them."""
    return [
        pa.field(name, _list(_element(name), *shape) if shape else _element(name), nullable=False)
        for name, shape in columns.shapes().items()
    ]


def _element(name: str) -> pa.DataType:
    return pa.type_for_alias(COLUMNS[name].dtype)


def _list(element: pa.DataType, length: int) -> pa.DataType:
    return pa.list_(pa.field("element", element, nullable=False), length)


def to_arrow(columns: Columns) -> list[pa.Array]:
    """Return the optional columns of a part as Arrow arrays of N * V rows."""
    found = []
    for field in column_fields(columns.config):
        values = pa.array(columns[field.name].reshape(-1))
        if pa.types.is_nested(field.type):
            values = pa.FixedSizeListArray.from_arrays(values, type=field.type)
        found.append(values)
    return found


def from_arrow(table: pa.Table, kept: ColumnConfig, shape: tuple[int, int]) -> Columns:
    """Return the optional columns of a part, (N, V) or (N, V, k); raises ``ValueError``."""
    return Columns(
        {
            name: _values(table[name].combine_chunks(), name, width).reshape(*shape, *width)
            for name, width in kept.shapes().items()
        }
    )


def _values(values: Any, name: str, width: tuple[int, ...]) -> Any:
    if width:
        if not pa.types.is_fixed_size_list(values.type):
            # A file that was written anew may have lost the lists' fixed length.
            values = values.cast(pa.list_(values.type.value_type, *width))
        values = values.flatten()
    if values.null_count or values.type != _element(name):
        raise ValueError(f"{name} has {values.null_count} nulls and type {values.type}")
    return values.to_numpy(zero_copy_only=False)


def storage_options(columns: ColumnConfig) -> Mapping[str, str]:
    """Return the Parquet encoding of each optional column, by the path of its leaf."""
    return {
        f"{name}.list.element" if shape else name: COLUMNS[name].encoding
        for name, shape in columns.shapes().items()
    }


def bytes_per_label(identity: StoreIdentity) -> float:
    """Return about how many bytes a view of such a store takes, at 150 views a part.

    Measured by ``benchmarks/store.py`` on made-up labels of 1,000 classes.
    """
    mixed = identity.mix.probability > 0
    return (1.20 if mixed else 0.63) + sum(
        math.prod(shape) * COLUMNS[name].bytes_per_value[mixed]
        for name, shape in identity.columns.shapes().items()
    )
