"""What Parquet pages and footers claim to hold, before memory is given.

Arrow believes a page's header, in which a few bytes may claim two gigabytes, and gives 700 bytes
for each column of a row group, which three bytes of a footer make. Headers and footers are structs
in Thrift's compact protocol (https://thrift.apache.org, parquet.thrift); only what sizes memory is
looked at here.
"""

from __future__ import annotations

from typing import Any

__all__ = ["MOST_OF_A_LIST", "check_footer_records", "check_pages"]

MOST_OF_A_LIST = 256
"""Records in a list of a part's footer, which has one row group and a dozen columns."""

_PAGE_LIMIT = 1 << 24  # bytes of a decoded page; ours have about a megabyte
_SLACK = 1 << 24
_KEY_BYTES = 260  # in each row, where a file's keys are too long for a dictionary
_VALUE_BYTES = 10  # the widest number, and levels

_MOST_RECORDS = 1 << 20  # row groups, their columns and what else lies in lists of lists
_MOST_VALUES = 1 << 25  # of a footer: some seconds
_RECORD_DEPTH = 2  # lists within lists; those below are of small records
_DATA_HEADERS = (5, 8)  # fields of a page's header: data page, data page of version 2


def check_pages(data: bytes, base: int, group: Any, rows: int) -> None:
    """Raise ``ValueError`` unless all pages of a row group stay within what ``rows`` need.

    ``data`` are the bytes of a file from ``base`` on, ``group`` is PyArrow's metadata.
    """
    if group.num_rows != rows:
        raise ValueError(f"a row group of {group.num_rows} rows, not {rows}")
    for number in range(group.num_columns if rows else 0):
        column = group.column(number)
        name = column.path_in_schema
        start = column.data_page_offset
        if column.has_dictionary_page and column.dictionary_page_offset is not None:
            start = min(start, column.dictionary_page_offset)
        end = start + column.total_compressed_size
        if not base <= start <= end <= base + len(data):
            raise ValueError(f"{name} lies outside of the file")
        limit = column.num_values * (_KEY_BYTES if name == "key" else _VALUE_BYTES) + _SLACK
        values, decoded = _walk(data, start - base, end - base, name)
        if values != column.num_values or column.num_values % max(1, rows):
            raise ValueError(f"{name} has pages of {values} values, not {column.num_values}")
        if max(decoded, column.total_uncompressed_size) > limit:
            raise ValueError(f"{name} claims {decoded} bytes, more than {rows} rows can have")


def check_footer_records(footer: bytes) -> None:
    """Raise ``ValueError`` for a Parquet footer of more records than any store in one file has.

    Arrow limits the length of each list, and a list of lists by nothing.
    """
    try:
        _Footer(footer).pass_struct(0, 0)
    except (IndexError, RecursionError) as error:
        raise ValueError("its footer is cut short, or nested without an end") from error


class _Footer:
    """Walks through a footer and counts what is in it."""

    def __init__(self, data: bytes) -> None:
        self._data, self._records, self._values = data, 0, 0

    def pass_struct(self, offset: int, lists: int) -> int:
        """Return the offset after a struct, which lies in so many lists."""
        data = self._data
        while kind := data[offset] & 15:
            offset = offset + 1 if data[offset] >> 4 else _read_varint(data, offset + 1)[1]
            offset = self._pass(kind, offset, lists)
        return offset + 1

    def _pass(self, kind: int, offset: int, lists: int) -> int:
        self._values += 1
        if self._values > _MOST_VALUES:
            raise ValueError(f"its footer has more than {_MOST_VALUES} values")
        data = self._data
        if kind in (1, 2):
            return offset
        if kind in (4, 5, 6):
            while data[offset] > 127:
                offset += 1
            return offset + 1
        if kind == 12:
            return self.pass_struct(offset, lists)
        if kind == 8:
            size, offset = _read_varint(data, offset)
            return offset + size
        if kind in (9, 10):
            return self._pass_list(offset, lists + 1)
        if kind in (3, 7):
            return offset + (1 if kind == 3 else 8)
        raise ValueError(f"its footer has a value of kind {kind}")

    def _pass_list(self, offset: int, lists: int) -> int:
        size, kind = self._data[offset] >> 4, self._data[offset] & 15
        offset += 1
        if size == 15:
            size, offset = _read_varint(self._data, offset)
        if kind == 12 and lists <= _RECORD_DEPTH:
            self._records += size
        if self._records > _MOST_RECORDS:
            raise ValueError(f"its footer has more than {_MOST_RECORDS} records")
        # Truth values take a byte each in a list, and none in a struct.
        kind = 3 if kind in (1, 2) else kind
        for _ in range(size):
            offset = self._pass(kind, offset, lists)
        return offset


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
            field, offset = _read_number(data, offset)
        fields[field], offset = _read_value(data, offset, kind, depth)


def _read_value(data: bytes, offset: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, offset
    if kind == 3:
        return data[offset], offset + 1
    if kind in (4, 5, 6):
        return _read_number(data, offset)
    if kind == 8:
        size, offset = _read_varint(data, offset)
        return None, offset + size
    if kind == 12:
        return _read_struct(data, offset, depth - 1)
    raise ValueError(f"a value of kind {kind}, which no page header has")


def _read_number(data: bytes, offset: int) -> tuple[int, int]:
    value, offset = _read_varint(data, offset)
    return (value >> 1) ^ -(value & 1), offset


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
    raise ValueError("a number without an end")
