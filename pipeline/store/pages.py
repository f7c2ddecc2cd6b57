"""What Parquet pages claim to hold, held against what they should, before memory is given.

Arrow believes a page's header, in which a few bytes may claim two gigabytes. The headers are
structs in Thrift's compact protocol; only the numbers that size memory are looked at here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.store.footer import RowGroupPages, read_number, read_varint

__all__ = ["check_pages"]

_PAGE_LIMIT = 1 << 24  # bytes of a decoded page; ours have about a megabyte
_SLACK = 1 << 24
_KEY_BYTES = 260  # in each row, where a file's keys are too long for a dictionary
_VALUE_BYTES = 10  # the widest number, and levels

_DATA_HEADERS = (5, 8)  # fields of a page's header: data page, data page of version 2


def check_pages(
    data: bytes, base: int, group: RowGroupPages, rows: int, names: Sequence[str]
) -> None:
    """Raise ``ValueError`` unless all pages of a row group stay within what ``rows`` need.

    ``data`` are the bytes of a file from ``base`` on, ``group`` is what its footer says, and
    ``names`` are those of its columns' leaves.
    """
    if group.rows != rows:
        raise ValueError(f"a row group of {group.rows} rows, not {rows}")
    if [one.name for one in group.columns] != list(names):
        raise ValueError("a row group has other columns than its file")
    for column in group.columns if rows else ():
        name, start, end = column.name, column.first, column.first + column.packed
        if not base <= start <= end <= base + len(data):
            raise ValueError(f"{name} lies outside of the file")
        limit = column.values * (_KEY_BYTES if name == "key" else _VALUE_BYTES) + _SLACK
        values, decoded = _walk(data, start - base, end - base, name)
        if values != column.values or values % max(1, rows):
            raise ValueError(f"{name} has pages of {values} values, not {column.values}")
        if max(decoded, column.decoded) > limit:
            raise ValueError(f"{name} claims {decoded} bytes, more than {rows} rows can have")


def _walk(data: bytes, offset: int, end: int, name: str) -> tuple[int, int]:
    """Return the values and the decoded bytes that a column's page headers claim."""
    values = decoded = 0
    while offset < end:
        try:
            header, after = _read_struct(data, offset, depth=4)
            size, packed = header[2], header[3]
            found = [header[number][1] for number in _DATA_HEADERS if number in header]
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name} has a page without a header") from error
        if not 0 <= size <= _PAGE_LIMIT or not 0 <= packed <= end - after:
            raise ValueError(f"{name} has a page of {packed} bytes that claims {size} bytes")
        if any(type(one) is not int or one < 0 for one in found):
            raise ValueError(f"{name} has a page of {found} values")
        values += sum(found)
        decoded += size + after - offset
        offset = after + packed
    return values, decoded


def _read_struct(data: bytes, offset: int, depth: int) -> tuple[dict[int, Any], int]:
    """Return a struct's numbers and structs by field, and the offset after it."""
    if depth < 0:
        raise ValueError("structs within structs without an end")
    fields: dict[int, Any] = {}
    field = 0
    while True:
        kind, delta = data[offset] & 15, data[offset] >> 4
        offset += 1
        if kind == 0:
            return fields, offset
        if delta:
            field += delta
        else:
            field, offset = read_number(data, offset)
        fields[field], offset = _read_value(data, offset, kind, depth)


def _read_value(data: bytes, offset: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, offset
    if kind == 3:
        return data[offset], offset + 1
    if kind in (4, 5, 6):
        return read_number(data, offset)
    if kind == 8:
        size, offset = read_varint(data, offset)
        return None, offset + size
    if kind == 12:
        return _read_struct(data, offset, depth - 1)
    raise ValueError(f"a value of kind {kind}, which no page header has")
