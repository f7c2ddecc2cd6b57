"""A part or a store in one file is known whole before PyArrow sees a byte of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ChecksumError
from pipeline.records import PartRows
from pipeline.store import export_store, open_store, parquet, single
from pipeline.store.parquet import decode_part, encode_part
from pipeline.store.sealing import (
    FOOTER_BYTES,
    FOOTER_MARK,
    PART_MARK,
    SEAL_BYTES,
    footer_offset,
    sealed,
)
from tests.storing import ALL_COLUMNS, IDENTITY, info_of, rows_of, write_store, written_anew

PAGE_FLIPS = 500  # sampled; of the rest of a file every bit is flipped

ROWS = rows_of(ALL_COLUMNS, info_of(0), 0, 4)


@pytest.fixture
def no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody parse Parquet: damage that gets so far may end the process."""

    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("PyArrow was given bytes whose seal is broken")

    for module in (parquet, single):
        monkeypatch.setattr(module.pq, "ParquetFile", refuse)
        monkeypatch.setattr(module.pq, "read_metadata", refuse)


def bits_outside_of_pages(data: bytes, start: int) -> list[int]:
    """Return all bits of the magic bytes and of what follows the pages, and some of the pages."""
    some = np.random.default_rng(0).choice(8 * (start - 4), PAGE_FLIPS, replace=False) + 32
    return [*range(32), *sorted(some.tolist()), *range(8 * start, 8 * len(data))]


def flipped(data: bytes, bit: int) -> bytes:
    torn = bytearray(data)
    torn[bit // 8] ^= 1 << bit % 8
    return bytes(torn)


def torn_lengths(data: bytes) -> list[bytes]:
    """Return a file cut off, doubled, with more at its end, and with a footer of any length."""
    cuts = [data[:length] for length in (0, 1, 7, 8, 47, 48, len(data) // 2, len(data) - 1)]
    lengths = [n.to_bytes(4, "little") for n in (0, 1, 1 << 31, (1 << 32) - 1)]
    cuts += [data[:-8] + length + b"PAR1" for length in lengths]
    return [*cuts, data + data, data + b"\0", b"\0" + data, data[:4] + data[4:] * 2]


@pytest.mark.usefixtures("no_parser")
def test_every_flipped_bit_of_a_part_is_found_before_it_is_parsed() -> None:
    data = encode_part(ROWS)
    start = footer_offset(data, len(data)) - SEAL_BYTES
    assert data[start : start + len(PART_MARK)] == PART_MARK
    bits = bits_outside_of_pages(data, start)
    for torn in [*(flipped(data, bit) for bit in bits), *torn_lengths(data)]:
        with pytest.raises(ChecksumError, match=r"the part is damaged .*delete the file and run"):
            decode_part(torn, ROWS.part, "the part")


@pytest.mark.usefixtures("no_parser")
def test_a_part_without_a_seal_is_none() -> None:
    data = encode_part(ROWS)
    start = footer_offset(data, len(data)) - SEAL_BYTES
    with pytest.raises(ChecksumError, match="it has no seal before its footer"):
        decode_part(data[:start] + data[start + SEAL_BYTES :], ROWS.part, "the part")


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    write_store(tmp_path / "s.parquet", [info_of(0)], [(0, 4)], ALL_COLUMNS)
    export_store(tmp_path / "s.parquet", tmp_path / "one.parquet", single_file=True)
    return tmp_path / "one.parquet"


def read_all(path: Path) -> PartRows:
    store = open_store(path)
    return store.read_part(store.manifest.parts[0])


def test_every_flipped_bit_of_one_file_is_found_before_it_is_parsed(
    one_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = one_file.read_bytes()
    start = footer_offset(data, len(data)) - SEAL_BYTES
    assert data[start : start + len(FOOTER_MARK)] == FOOTER_MARK
    parsed, read_metadata = [], pq.read_metadata
    whole = data[start:]

    def watched(source: pa.BufferReader) -> pq.FileMetaData:
        seen = source.read()
        assert seen == whole  # of which Arrow reads what is behind the seal
        parsed.append(seen)
        return read_metadata(pa.BufferReader(seen))

    monkeypatch.setattr(single.pq, "read_metadata", watched)
    # A footer of some kilobytes: every bit of its ends, a sample of its middle's texts.
    texts = range(8 * (start + SEAL_BYTES + 2000), 8 * (len(data) - 2000))
    keep = set(texts[:: max(1, len(texts) // 2000)])
    for bit in bits_outside_of_pages(data, start):
        if bit in texts and bit not in keep:
            continue
        one_file.write_bytes(flipped(data, bit))
        before = len(parsed)
        with pytest.raises(ChecksumError):
            read_all(one_file)
        assert (len(parsed) > before) == (32 <= bit < 8 * start)
    for torn in torn_lengths(data):
        one_file.write_bytes(torn)
        with pytest.raises(ChecksumError):
            open_store(one_file)
    one_file.write_bytes(data)
    assert (read_all(one_file).label == ROWS.label).all()


def test_other_readers_pass_over_seals(one_file: Path) -> None:
    part = one_file.parent / "s.parquet" / ROWS.part.path
    expected = ROWS.label.reshape(-1).tolist()
    for path in (part, one_file):
        assert pd.read_parquet(path)["label"].tolist() == expected
        assert pq.read_table(path, page_checksum_verification=True)["label"].to_pylist() == expected
        assert pyarrow.dataset.dataset(path).to_table()["label"].to_pylist() == expected
        assert duckdb.sql(f"select label from '{path}'").fetchall() == [(one,) for one in expected]


def as_type(name: str, kind: pa.DataType, nullable: bool = False) -> Callable[[pa.Table], pa.Table]:
    """Return a change of a column's type, as by another program that writes Parquet."""

    def change(table: pa.Table) -> pa.Table:
        position = table.schema.get_field_index(name)
        return table.set_column(position, pa.field(name, kind, nullable), table[name].cast(kind))

    return change


def without_a_value(table: pa.Table) -> pa.Table:
    values = [None, *table["label"].to_pylist()[1:]]
    return table.set_column(4, "label", pa.array(values, pa.uint16()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_type("label", pa.uint16(), nullable=True), "its columns are"),
        (as_type("label", pa.int32()), "its columns are"),
        (as_type("digest", pa.uint64(), nullable=True), "its columns are"),
        (as_type("topk_label", pa.list_(pa.uint16())), "its columns are"),
        (without_a_value, "its columns are"),
        (lambda table: table.drop_columns("margin"), "its columns are"),
        (lambda table: table.slice(1), "it has 23 rows, not 24"),
    ],
)
def test_columns_are_those_of_the_header_whatever_the_seal_says(
    change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    data = written_anew(encode_part(ROWS), change)
    with pytest.raises(ChecksumError, match=message):
        decode_part(data, ROWS.part, "the part")


def test_a_seal_is_a_function_of_the_bytes() -> None:
    rows = rows_of(IDENTITY, info_of(1), 0, 2)
    data = encode_part(rows)
    assert data == encode_part(replace(rows))
    start = footer_offset(data, len(data)) - SEAL_BYTES
    plain = data[:start] + data[start + SEAL_BYTES :]
    assert sealed(plain) == data
    assert footer_offset(data[-FOOTER_BYTES:], len(data)) == start + SEAL_BYTES
