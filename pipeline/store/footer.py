"""What a Parquet footer claims, read without Arrow, which believes it and ends the process.

Arrow gives 700 bytes for each column of a row group, which three bytes of a footer make, and its
Python lets no exception of a column's metadata through. A footer is a struct in Thrift's compact
protocol (https://thrift.apache.org, parquet.thrift); here it is passed over whole, and only what
says where pages lie is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["ColumnPages", "Footer", "RowGroupPages", "read_number", "read_varint"]

_MOST_RECORDS = 1 << 20  # row groups, their columns and what else lies in lists of lists
_MOST_VALUES = 1 << 25  # some seconds
_RECORD_DEPTH = 2  # lists within lists; those below are of small records
_TRUE, _FALSE, _BYTE, _I64, _FLOAT, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 6, 7, 8, 9, 10, 12
_NUMBERS = (4, 5, _I64)
_SIZES = {_TRUE: 0, _FALSE: 0, _BYTE: 1, _FLOAT: 8}
_MOST_NAMES = 8  # of a column: a list has three


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnPages:
    """Where the pages of a column of a row group lie, and what they are said to hold."""

    name: str  # of its leaf, as label or topk_label.list.element
    values: int
    decoded: int  # bytes
    packed: int  # bytes in the file, headers included
    first: int  # offset of its first page, of a dictionary if it has one


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroupPages:
    """What a footer says of a row group."""

    rows: int
    columns: Sequence[ColumnPages]


class Footer:
    """A Parquet footer, to its last byte passed over and counted when this is made.

    Raises ``ValueError``, here and later, for one that is malformed, or of more records than any
    store in one file has.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self._records, self._values = data, 0, 0
        self._outer: list[int] = []  # where the elements of the last list begin that is in none
        self._groups: list[int] = []
        with _whole():
            for field, kind, _ in self._fields(0, 0):
                if field == 4:
                    _require(kind == _LIST, "row groups are no list")
                    self._groups = self._outer

    def __len__(self) -> int:
        """Return the number of row groups."""
        return len(self._groups)

    def __iter__(self) -> Iterator[RowGroupPages]:
        """Yield what is said of each row group."""
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> RowGroupPages:
        """Return what is said of a row group; raises ``IndexError`` for one that is not there."""
        self._records = self._values = 0
        start, rows, columns = self._groups[number], -1, []
        with _whole():
            for field, kind, offset in self._fields(start, 1):
                if field == 1:
                    _require(kind == _LIST, "columns are no list")
                    starts = list(self._elements(offset, _STRUCT, 2))
                    columns = [self._column(start) for start in starts]
                elif field == 3:
                    rows = self._count(kind, offset)
        return RowGroupPages(rows=rows, columns=columns)

    def _column(self, start: int) -> ColumnPages:
        found: dict[int, int] = {}
        for field, kind, offset in self._fields(start, 2):
            _require(field != 8, "a column is encrypted")
            if field == 3:
                _require(kind == _STRUCT, "a column's pages are no struct")
                found, name = {}, ""
                for inner, inner_kind, at in self._fields(offset, 2):
                    if inner == 3:
                        name = self._name(inner_kind, at)
                    elif inner in (5, 6, 7, 9, 11):
                        found[inner] = self._count(inner_kind, at)
        try:
            values, decoded, packed, data_page = (found[one] for one in (5, 6, 7, 9))
        except KeyError as error:
            raise ValueError("a column does not say where its pages lie") from error
        first = min(data_page, found.get(11, data_page))
        return ColumnPages(name=name, values=values, decoded=decoded, packed=packed, first=first)

    def _name(self, kind: int, offset: int) -> str:
        _require(kind == _LIST, "a column's name is no list")
        starts = list(self._elements(offset, _BINARY, 3))
        _require(len(starts) <= _MOST_NAMES, f"a column's name has {len(starts)} parts")
        spans = (read_varint(self._data, start) for start in starts)
        return ".".join(bytes(self._data[at : at + size]).decode() for size, at in spans)

    def _count(self, kind: int, offset: int) -> int:
        # Arrow passes over a number of another kind, as if it were not there.
        value = read_number(self._data, offset)[0] if kind == _I64 else -1
        _require(0 <= value < 1 << 62, f"a count is {value}")
        return value

    def _fields(self, offset: int, lists: int) -> Iterator[tuple[int, int, int]]:
        """Yield number, kind and offset of a struct's fields, each after it is passed over.

        The struct lies in so many lists.
        """
        data, field = self._data, 0
        while kind := data[offset] & 15:
            delta, offset = data[offset] >> 4, offset + 1
            if delta:
                field += delta
            else:
                field, offset = read_number(data, offset)
            after = self._pass(kind, offset, lists)
            yield field, kind, offset
            offset = after

    def _elements(self, offset: int, expected: int, lists: int) -> Iterator[int]:
        """Yield the offsets of a list's elements."""
        size, kind, offset = self._begin_list(offset)
        _require(kind == expected or not size, f"a list is of kind {kind}")
        for _ in range(size):
            yield offset
            offset = self._pass(kind, offset, lists)

    def _begin_list(self, offset: int) -> tuple[int, int, int]:
        """Return a list's length, the kind of its elements, and the offset of the first."""
        size, kind = self._data[offset] >> 4, self._data[offset] & 15
        if size < 15:
            return size, kind, offset + 1
        size, offset = read_varint(self._data, offset + 1)
        return size, kind, offset

    def _pass_struct(self, offset: int, lists: int) -> int:
        """Return the offset after a struct."""
        data = self._data
        while kind := data[offset] & 15:
            offset = offset + 1 if data[offset] >> 4 else read_varint(data, offset + 1)[1]
            offset = self._pass(kind, offset, lists)
        return offset + 1

    def _pass(self, kind: int, offset: int, lists: int) -> int:
        self._values += 1
        if self._values > _MOST_VALUES:
            raise ValueError(f"its footer has more than {_MOST_VALUES} values")
        if kind in _NUMBERS:
            while self._data[offset] > 127:
                offset += 1
            return offset + 1
        if kind == _STRUCT:
            return self._pass_struct(offset, lists)
        if kind == _BINARY:
            size, offset = read_varint(self._data, offset)
            return offset + size
        if kind in (_LIST, _SET):
            return self._pass_list(offset, lists + 1)
        if kind not in _SIZES:
            raise ValueError(f"its footer has a value of kind {kind}")
        return offset + _SIZES[kind]

    def _pass_list(self, offset: int, lists: int) -> int:
        size, kind, offset = self._begin_list(offset)
        if kind == _STRUCT and lists <= _RECORD_DEPTH:
            self._records += size
        if self._records > _MOST_RECORDS:
            raise ValueError(f"its footer has more than {_MOST_RECORDS} records")
        # Truth values take a byte each in a list, and none in a struct.
        kind = _BYTE if kind in (_TRUE, _FALSE) else kind
        starts: list[int] = []
        for _ in range(size):
            if lists == 1:
                starts.append(offset)
            offset = self._pass(kind, offset, lists)
        if lists == 1:
            self._outer = starts if kind == _STRUCT else []
        return offset


@contextmanager
def _whole() -> Iterator[None]:
    try:
        yield
    except (IndexError, RecursionError) as error:
        raise ValueError("its footer is cut short, or nested without an end") from error


def _require(sound: bool, fault: str) -> None:
    if not sound:
        raise ValueError(f"its footer is malformed: {fault}")


def read_number(data: bytes | memoryview, offset: int) -> tuple[int, int]:
    """Return a signed number and the offset after it."""
    value, offset = read_varint(data, offset)
    return (value >> 1) ^ -(value & 1), offset


def read_varint(data: bytes | memoryview, offset: int) -> tuple[int, int]:
    """Return a number that is not negative and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
    raise ValueError("a number without an end")
