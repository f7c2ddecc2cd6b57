"""Stores made to harm their reader: consistent in every checksum, wrong in what they claim."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest

from pipeline.columns import ColumnConfig
from pipeline.errors import PipelineError, StoreError
from pipeline.files.local import sha256
from pipeline.identity import canonical_json
from pipeline.records import PartRows
from pipeline.store import LabelStore, export_store, open_store, parquet, single
from pipeline.store.footer import ColumnPages, Footer, RowGroupPages
from pipeline.store.layout import array_specs
from pipeline.store.manifest import MANIFEST_PATH, most_rows, seal, unseal
from pipeline.store.pages import check_pages
from pipeline.store.sealing import FOOTER_MARK, SEAL_BYTES, footer_offset, sealed
from tests.storing import ALL_COLUMNS, IDENTITY, info_of, rows_of, write_store

MEMORY = 8 << 20  # bytes: far less than any claim below, far more than an honest read needs
VIEWS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest")
    write_store(folder / "directory.parquet", [info_of(0), info_of(1)], [(0, VIEWS)])
    export_store(folder / "directory.parquet", folder / "arrays.zarr")
    export_store(folder / "directory.parquet", folder / "one.parquet", single_file=True)
    return folder


@pytest.fixture
def crafted(folder: Path, tmp_path: Path) -> Path:
    """A copy of the honest Zarr store, to be changed."""
    return Path(shutil.copytree(folder / "arrays.zarr", tmp_path / "crafted.zarr"))


@contextmanager
def little_memory() -> Iterator[None]:
    """Assert that neither Arrow nor Python takes much."""
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
        assert pool.max_memory() < MEMORY
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


def read_all(root: Path) -> None:
    store = open_store(root)
    for shard in store.manifest.shards:
        for view in store.manifest.view_range:
            store.read_view(shard.number, view)


def rewrite(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and seal it again."""
    path = root / MANIFEST_PATH
    values = unseal(path.read_bytes(), "the manifest")
    change(values)
    path.write_bytes(seal(values))


def file_of(values: dict[str, Any], path: str) -> dict[str, Any]:
    return next(one for one in values["zarr"]["files"] if one["path"] == path)


def rewrite_file(root: Path, path: str, data: bytes, **fields: object) -> None:
    """Write a file with other bytes, and list it with its true size and checksum."""
    (root / path).write_bytes(data)
    entry = {"bytes": len(data), "sha256": sha256(data), **fields}
    rewrite(root, lambda values: file_of(values, path).update(entry))


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "/etc/passwd",
        "label/c/0/../../../../outside",
        "label/c/0",
        "label/c/0/0/0",
        "label/c/00/0",
        "label/c/1/0",
        "label/c/-1/0",
        "label/c/0/1",
        "label/c/9999999999999999999999/0",
        "other/c/0/0",
        "_meta/identity.json",
        "label\\c\\0\\0",
        "label/c/0/0\0",
        "label//c/0/0",
        "LABEL/c/0/0",
        "label/c/0/\u0660",
        "\x1b[31mlabel/c/0/0",
    ],
)
def test_a_zarr_manifest_names_no_file_but_the_arrays(crafted: Path, path: str) -> None:
    rewrite(crafted, lambda values: file_of(values, "label/c/0/0").update(path=path))
    with pytest.raises(StoreError, match="no file of this store is called"):
        open_store(crafted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda one: one["chunks"][0].__setitem__(1, 1 << 40),
            "has a chunk of 1099511627776 bytes",
        ),
        (lambda one: one["chunks"][0].__setitem__(0, 7), "at 7"),
        (lambda one: one["chunks"][0].__setitem__(0, -1), "-1 is no number of bytes"),
        (lambda one: one["chunks"].append(None), "lists 7 chunks"),
        (lambda one: one.update(chunks=[]), "lists 0 chunks"),
        (lambda one: one.update(bytes=1 << 50), "has 1125899906842624 bytes"),
        (lambda one: one["index"].__setitem__(1, 1), "of which"),
        (lambda one: one.pop("index"), "lists 6 chunks"),
        (lambda one: one.update(chunks="abc"), "malformed"),
        (lambda one: one.update(bytes=True), "True is no number"),
    ],
)
def test_a_zarr_manifest_whose_sizes_do_not_add_up_is_refused(
    crafted: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewrite(crafted, lambda values: change(file_of(values, "label/c/0/0")))
    with little_memory(), pytest.raises(StoreError, match=message):
        open_store(crafted)


def test_a_label_that_reads_as_the_fill_value_is_missing_and_named(crafted: Path) -> None:
    rewrite(crafted, lambda values: values["zarr"]["files"].remove(file_of(values, "label/c/0/0")))
    store = open_store(crafted)
    message = r"label has no label of 's-1.tar/0' at view 3: it reads as the fill value 65535"
    with pytest.raises(StoreError, match=message):
        store.read_view(1, 3)
    with pytest.raises(StoreError, match=message.replace("view 3", "view 0")):
        store.read_part(store.manifest.parts[1])


def test_there_are_few_digests_that_are_zero(crafted: Path) -> None:
    cells = [[row, 0] for row in range(1 << 12)]
    rewrite(crafted, lambda values: values["zarr"].update(zero_digests=cells))
    read_all(crafted)
    rewrite(crafted, lambda values: values["zarr"].update(zero_digests=[*cells, [0, 1]]))
    with little_memory(), pytest.raises(StoreError, match="4097 digests that are 0"):
        open_store(crafted)


@pytest.mark.parametrize("key_bytes", [0, 1 << 40, -1, "8", None])
def test_absurd_keys_are_refused(crafted: Path, key_bytes: object) -> None:
    rewrite(crafted, lambda values: values["zarr"].update(key_bytes=key_bytes))
    with little_memory(), pytest.raises(StoreError, match=r"keys of|is no number"):
        open_store(crafted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.update(shape=[10**12, 10**6]), r"its shape is \[1000000000000, 1000000\]"),
        (lambda one: one.update(data_type="float64"), "its data_type is 'float64'"),
        (lambda one: one.update(fill_value=0), "its fill_value is 0"),
        (
            lambda one: one["chunk_grid"]["configuration"].update(chunk_shape=[10**9, 10**9]),
            "its shard is",
        ),
        (
            lambda one: one["codecs"][0]["configuration"].update(chunk_shape=[10**9, 50]),
            "its chunk is",
        ),
        (
            lambda one: one["codecs"][0]["configuration"]["codecs"].append({"name": "blosc"}),
            "its codecs is",
        ),
        (lambda one: one.update(codecs=[]), "does not fit"),
        (lambda one: one.update(node_type="group"), "its node_type is 'group'"),
    ],
)
def test_absurd_metadata_of_an_array_is_refused(
    crafted: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    values = json.loads((crafted / "label" / "zarr.json").read_bytes())
    change(values)
    rewrite_file(crafted, "label/zarr.json", json.dumps(values).encode())
    with little_memory(), pytest.raises(StoreError, match=message):
        read_all(crafted)


def test_metadata_nested_without_an_end_is_refused(crafted: Path) -> None:
    rewrite_file(crafted, "label/zarr.json", b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(StoreError, match="does not fit the store's manifest"):
        read_all(crafted)


@pytest.mark.parametrize("zeros", [1000 * 50 * 2 - 2, 1000 * 50 * 2 + 2, 1 << 28])
def test_a_chunk_that_decodes_to_another_size_is_refused(crafted: Path, zeros: int) -> None:
    chunk = bytes(pa.Codec("zstd").compress(bytes(zeros)))
    chunk += struct.pack("<I", google_crc32c.value(chunk))
    positions = [(0, len(chunk))] + [((1 << 64) - 1, (1 << 64) - 1)] * 5
    index = b"".join(struct.pack("<QQ", *position) for position in positions)
    index += struct.pack("<I", google_crc32c.value(index))
    rewrite_file(
        crafted,
        "label/c/0/0",
        chunk + index,
        chunks=[[0, len(chunk), sha256(chunk)], *[None] * 5],
        index=[len(chunk), len(index), sha256(index)],
    )
    with (
        little_memory(),
        pytest.raises(StoreError, match="is damaged, though as its manifest says"),
    ):
        read_all(crafted)


@pytest.mark.parametrize("name", ["directory.parquet", "arrays.zarr"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["parts"][0].update(rows=10**9), "claims 1000000000 rows"),
        (
            lambda v: (v["shards"][0].update(samples=10**9), v["parts"][0].update(rows=10**9)),
            "claims 1000000000 rows",
        ),
        (
            lambda v: (
                v["shards"][0].update(samples=10**9 + 1),
                v["parts"][0].update(rows=10**9 * VIEWS),
            ),
            "a part has at most 67108864",
        ),
        (lambda v: v["shards"][0].update(samples=1 << 62), "malformed"),
        (lambda v: v["shards"][0].update(samples=-1), "malformed"),
        (lambda v: v["shards"][0].update(samples="7"), r"shards\.samples is '7'; use a whole"),
        (lambda v: v["shards"][0].update(name="../../s-0.tar"), "which is no file's name"),
        (
            lambda v: v["shards"][0].update(name=["s-0.tar"]),
            r"shards\.name is \['s-0.tar'\]; use a text",
        ),
        (lambda v: v["shards"][0].update(key_hash=[]), r"shards\.key_hash is \[\]; use a text"),
        (
            lambda v: v["rejections"]["0"][0].update(reason=None),
            r"rejections\.reason is None; use 'empty' or .*install the release",
        ),
        (lambda v: v["agreement"].update(equal="7"), r"agreement\.equal is '7'; use a whole"),
        (lambda v: v["agreement"].update(known=-1), "malformed"),
        (lambda v: v["parts"][0].update(bytes=1 << 70), "malformed"),
        (
            lambda v: v["parts"][0].update(bytes=(1 << 26) + 30 * 300 + 1),
            r"claims 67117865 bytes for shard=0/view-00000-00005.parquet, and 30 rows take at most",
        ),
        (lambda v: v["parts"][0].update(bytes=-1), "malformed"),
        (lambda v: v["parts"][0].update(path="shard=0\\view-00000-00005.parquet"), "should be"),
        (
            lambda v: v["shards"].append({**v["shards"][1], "number": 2, "samples": 1 << 39}),
            r"no parts of shards \[2\]",
        ),
        (
            lambda v: (
                v["shards"][1].update(samples=1),
                v["rejections"].update({"1": [{**v["rejections"]["0"][0], "index": 0}]}),
                v["parts"][1].update(
                    views=1048577, rows=0, path="shard=1/view-00000-1048577.parquet"
                ),
            ),
            "of 1048576 views at most",
        ),
        (lambda v: v["shards"].reverse(), "not in order"),
        (lambda v: v["parts"].reverse(), "not in order"),
        (lambda v: v["parts"].append(v["parts"][1]), "not in order"),
        (lambda v: v["rejections"]["0"][0].update(index=10**9), "rejections of shard 0"),
        (lambda v: v["rejections"]["0"][0].update(index=-1), "rejections of shard 0"),
        (lambda v: v["parts"][0].update(path="../../etc/passwd"), "should be 'shard=0/view-"),
        (lambda v: v.update(parts=5), "malformed"),
        (lambda v: v.update(rejections=[]), r"rejections is \[\]; use an object"),
        (lambda v: v["parts"][0].update(shard=0.0), "numbers that are not whole"),
        (lambda v: v["parts"][1].update(rows=v["parts"][1]["rows"] + 0.5), "are not whole"),
        (lambda v: v["parts"][0].update(bytes=True), "numbers that are not whole"),
        (lambda v: v["formats"].update({"0": "jpeg"}), "formats is .*; use an object"),
        (lambda v: v["image_hashes"].update({" 1 ": "x"}), "other names than shards' numbers"),
        (lambda v: v.update(fingerprints=[]), r"fingerprints is \[\]; use an object"),
        (lambda v: v["fingerprints"].update(decode=1.5), "fingerprints is .*; use an object"),
        (lambda v: v.update(notes=[["a", 1]]), r"notes is \[\['a', 1\]\]; use an object"),
        (lambda v: v.update(needs=[1]), r"needs is \[1\]; use a text"),
        (lambda v: v.update(card=None), "card is None; use a text"),
        (lambda v: v["identity"].update(root_seed=6), "identity has the digest"),
        (lambda v: v.update(classes=None), "classes is no list of names"),
        (lambda v: v.update(classes=[]), "classes names 0 classes"),
        (lambda v: v.update(classes={"0": "cat"}), "classes is no list of names"),
        (lambda v: v.update(classes=["cat", 7]), "classes is no list of names"),
        (lambda v: v.update(classes=["ca\x1b[2Jt"]), r"names class 0 'ca\\x1b\[2Jt'"),
        (lambda v: v.update(classes=["x"] * 65536), "classes names 65536 classes"),
    ],
)
def test_a_manifest_that_claims_what_no_job_makes_is_refused(
    folder: Path,
    tmp_path: Path,
    name: str,
    change: Callable[[dict[str, Any]], object],
    message: str,
) -> None:
    root = Path(shutil.copytree(folder / name, tmp_path / name))
    rewrite(root, change)
    with little_memory(), pytest.raises(StoreError, match=message) as error:
        open_store(root)
    assert str(root) in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("columns.margin", "yes"),
        ("columns.confidence", 1 << 70),
        ("teacher.architecture", ["x"]),
        ("teacher.classes", 5.5),
        ("augment.hflip", True),
    ],
)
def test_an_identity_with_values_of_another_kind_is_refused(
    folder: Path, tmp_path: Path, field: str, value: object
) -> None:
    root = Path(shutil.copytree(folder / "arrays.zarr", tmp_path / "arrays.zarr"))
    part, _, name = field.partition(".")

    def change(values: dict[str, Any]) -> None:
        values["identity"][part][name] = value
        values["identity_digest"] = sha256(canonical_json(values["identity"]))

    rewrite(root, change)
    with pytest.raises(
        StoreError, match=rf"identity\.{part}\.{name} is .*; use .*damaged or forged"
    ):
        open_store(root)


def test_a_manifest_of_ten_thousand_brackets_is_refused(folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(folder / "arrays.zarr", tmp_path / "deep.zarr"))
    body = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    (root / "_manifest.json").write_bytes(b'{"sha256":"' + sha256(body).encode() + b'",' + body[1:])
    with pytest.raises(StoreError, match=r"is no manifest \(.*nested more than 32 deep"):
        open_store(root)


def with_long_key(rows: PartRows) -> PartRows:
    """Return rows with a key that compresses ten thousand times."""
    return dataclasses.replace(rows, keys=("k" * (1 << 25), *rows.keys[1:]))


@pytest.fixture
def bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Parquet stores with a page that decodes to 32 MB, written by code that lets it pass."""
    with monkeypatch.context() as patch:
        for module in (parquet, single):
            patch.setattr(module, "check_pages", lambda *_: None)
        write_store(tmp_path / "directory.parquet", [info_of(0)], [(0, 2)], change=with_long_key)
        export_store(tmp_path / "directory.parquet", tmp_path / "one.parquet", single_file=True)
    return tmp_path


@pytest.mark.parametrize("name", ["directory.parquet", "one.parquet"])
def test_a_page_that_claims_far_more_than_its_rows_is_refused(bombs: Path, name: str) -> None:
    path = bombs / name
    assert sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file()) < 1 << 17
    with (
        little_memory(),
        pytest.raises(
            StoreError, match=r"key has a page of \d+ bytes that claims 335545\d\d bytes"
        ),
    ):
        read_all(path)


def claim_rows(data: bytes, rows: int, claimed: int) -> bytes:
    """Return a Parquet file whose footer says ``claimed`` wherever it said ``rows``."""
    length = int.from_bytes(data[-8:-4], "little")
    body, footer = data[: -8 - length], data[-8 - length : -8]
    changed = footer.replace(b"\x16" + varint(2 * rows), b"\x16" + varint(2 * claimed))
    assert changed.count(varint(2 * claimed)) >= 6  # the file's, the row group's, the columns'
    return sealed(body[:-SEAL_BYTES] + changed + len(changed).to_bytes(4, "little") + b"PAR1")


def varint(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def test_a_part_that_claims_a_billion_rows_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "s.parquet"
    store = write_store(root, [info_of(0, samples=114)], [(0, 111)])
    rows = store.manifest.rows
    assert rows == 113 * 111
    path = root / store.manifest.parts[0].part.path
    data = claim_rows(path.read_bytes(), rows, 10**9)
    path.write_bytes(data)
    rewrite(root, lambda v: v["parts"][0].update(bytes=len(data), sha256=sha256(data)))
    with little_memory(), pytest.raises(StoreError, match="has 1000000000 rows, not 12543"):
        read_all(root)
    with little_memory(), pytest.raises(StoreError, match="1000000000 rows"):
        parquet.decode_part(data, store.manifest.parts[0].part, "a part")


def test_a_part_without_rows_claims_no_more_views_than_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = rows_of(IDENTITY, info_of(0), 0, VIEWS)
    rejected = tuple(dataclasses.replace(rows.rejections[0], index=one) for one in range(7))
    none = np.zeros(len(rows.keys), np.bool_)
    rows = dataclasses.replace(rows.cut(rows.part, none), rejections=rejected)
    data = parquet.encode_part(rows)
    assert not parquet.decode_part(data, rows.part, "a part").keys
    monkeypatch.setattr(parquet, "MAX_PART_VIEWS", VIEWS - 1)
    for read in (parquet.decode_part, parquet.read_claims):
        with pytest.raises(StoreError, match="has 5 views, and may have 4"):
            read(data, rows.part, "a part")
    with pytest.raises(StoreError, match="of 4 views at most"):
        parquet.encode_part(rows)


@pytest.mark.parametrize("name", ["directory.parquet", "arrays.zarr", "one.parquet"])
def test_a_part_has_as_many_rows_as_two_gigabytes_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Lists of zeros take next to nothing in a file, and k numbers a row when they are decoded."""
    assert most_rows(ColumnConfig()) == 1 << 26
    assert most_rows(ColumnConfig(topk=255)) == (1 << 31) // (32 + 6 * (255 * 4 + 2))
    store = write_store(tmp_path / "directory.parquet", [info_of(0)], [(0, VIEWS)], ALL_COLUMNS)
    if name != "directory.parquet":
        export_store(store.root, tmp_path / name, single_file=name == "one.parquet")
    rows = store.read_part(store.manifest.parts[0])
    data = parquet.encode_part(rows)
    memory = rows.label.size * (32 + 6 * sum(one[0, 0].nbytes for one in rows.columns.values()))
    for many, fits in ((memory, True), (memory - 1, False)):
        monkeypatch.setattr("pipeline.store.manifest._PART_MEMORY", many)
        if fits:
            read_all(tmp_path / name)
            parquet.decode_part(parquet.encode_part(rows), rows.part, "a part")
            continue
        with pytest.raises(StoreError, match="a part has at most 29, of"):
            open_store(tmp_path / name)
        with pytest.raises(StoreError, match="a part has at most 29, of"):
            parquet.encode_part(rows)
        for read in (parquet.decode_part, parquet.read_claims):
            with pytest.raises(StoreError, match="it has 30 rows, and may have 29"):
                read(data, rows.part, "a part")


def test_files_of_zeros_that_take_no_disk_are_not_read(folder: Path, tmp_path: Path) -> None:
    """Nothing else would bound what is read before its SHA-256 is known."""
    root = Path(shutil.copytree(folder / "directory.parquet", tmp_path / "s.parquet"))
    part = open_store(root).manifest.parts[0].part
    with (root / part.path).open("r+b") as file:
        file.truncate((1 << 40) - 1)
    with little_memory(), pytest.raises(StoreError, match="has more than the manifest's"):
        read_all(root)
    rewrite(root, lambda v: v["parts"][0].update(bytes=(1 << 40) - 1))
    with little_memory(), pytest.raises(StoreError, match="claims 1099511627775 bytes"):
        open_store(root)


def test_keys_of_a_shard_take_no_more_than_a_gigabyte(crafted: Path) -> None:
    """Chunks that are missing read as zeros, so a few bytes could claim terabytes."""

    def claim(values: dict[str, Any]) -> None:
        shard, part = values["shards"][1], values["parts"][1]
        shard.update(samples=1 << 20)
        part.update(rows=VIEWS * ((1 << 20) - 1))
        values["zarr"].update(key_bytes=4096)

    rewrite(crafted, claim)
    with little_memory(), pytest.raises(StoreError, match="of 1048576 keys, each in 4096 bytes"):
        open_store(crafted)


def test_row_groups_outside_of_their_file_are_refused(folder: Path, tmp_path: Path) -> None:
    store = open_store(folder / "one.parquet")
    plain = single.asdict
    path = tmp_path / "crafted.parquet"
    for change in (
        {"offset": 5},
        {"bytes": 1 << 50},
        {"bytes": 1 << 27},
        {"bytes": -1},
        {"offset": "4"},
        {"more": 1},
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(single, "asdict", lambda group, c=change: {**plain(group), **c})
            single.write_single_file(store, path)
        with little_memory(), pytest.raises(StoreError):
            open_store(path)
        path.unlink()


def test_a_row_group_of_a_hole_in_its_file_is_refused(folder: Path, tmp_path: Path) -> None:
    """It takes no disk, and nothing else would bound what is read before its SHA-256 is known."""
    store, path, plain = open_store(folder / "one.parquet"), tmp_path / "x.parquet", single.asdict
    last, hole = len(store.manifest.parts) - 1, 1 << 40
    with pytest.MonkeyPatch.context() as patch:
        numbers = itertools.count()

        def claim(group: Any) -> dict[str, Any]:
            more = hole if next(numbers) == last else 0
            return {**plain(group), "bytes": group.bytes + more}

        patch.setattr(single, "asdict", claim)
        single.write_single_file(store, path)
    data = path.read_bytes()
    end = data.index(FOOTER_MARK)
    with path.open("r+b") as file:
        file.seek(end + hole)
        file.write(data[end:])
    with little_memory(), pytest.raises(StoreError, match=r"a row group of 10995\d+ bytes"):
        open_store(path)


def test_bytes_that_no_row_group_has_are_refused(folder: Path, tmp_path: Path) -> None:
    data = (folder / "one.parquet").read_bytes()
    footer = int.from_bytes(data[-8:-4], "little") + 8 + SEAL_BYTES
    path = tmp_path / "one.parquet"
    path.write_bytes(data[:-footer] + b"more" + data[-footer:])
    with pytest.raises(StoreError, match=r"has \d+ bytes, its manifest says"):
        open_store(path)


@pytest.mark.parametrize("length", [0, 1, 1 << 20, (1 << 32) - 1])
def test_a_footer_longer_than_its_file_is_refused(
    folder: Path, tmp_path: Path, length: int
) -> None:
    data = (folder / "one.parquet").read_bytes()
    path = tmp_path / "one.parquet"
    path.write_bytes(data[:-8] + length.to_bytes(4, "little") + b"PAR1")
    with little_memory(), pytest.raises(StoreError):
        open_store(path)


def list_of(size: int, kind: int = 12) -> bytes:
    """Return how Thrift's compact protocol begins a list, of structs by default."""
    return bytes([0xF0 | kind]) + varint(size)


def footer_of(groups: int, columns: int, *, there: bool = True) -> bytes:
    """Return a footer of row groups with columns that are of three bytes, or only claimed."""
    names = b"\x48\x01s\x15\x02\0" + b"\x15\0\x25\0\x18\x01x\0"
    group = b"\x19" + list_of(columns) + b"\x26\0\0" * columns * there + b"\x16\0\x16\0\0"
    schema = b"\x15\x04\x19" + list_of(2) + names + b"\x16\0"
    footer = schema + b"\x19" + list_of(groups) + group * groups + b"\0"
    return footer + len(footer).to_bytes(4, "little") + b"PAR1"


@pytest.mark.parametrize(
    ("footer", "message"),
    [
        (footer_of(4, 5000), "its footer has more than 16384 records"),
        (footer_of(100, 200), "its footer has more than 16384 records"),
        (footer_of(1, 9_999, there=False), "its footer is cut short"),
        (b"\x19" + list_of(1 << 40) + b"\0", "its footer has more than 16384 records"),
        (b"\x19" + list_of(1 << 60, 5) + b"\0" * 99, "its footer is cut short"),
        (b"\x1c" * 100_000, "nested without an end"),
        (b"\x1b\x01\x55\0\0\0", "its footer has a value of kind 11"),
    ],
)
def test_a_footer_of_records_without_an_end_is_refused(
    footer: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow gives 700 bytes for each column of a row group, which has three."""
    monkeypatch.setattr("pipeline.store.footer._MOST_RECORDS", 1 << 14)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            Footer(footer)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


PAGES = b"\x39\x18\x01x" + b"\x26\x06" + b"\x16\x08" * 2 + b"\x26\x08" + b"\0"  # of a column


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (b"\x26\0\x1c" + PAGES + b"\0", None),
        (b"\x26\0\0", "does not say where its pages lie"),
        (b"\x26\0\x1c" + PAGES.replace(b"\x26\x06", b"\x25\x06") + b"\0", "a count is -1"),
        (b"\x26\0\x1c" + PAGES.replace(b"\x26\x06", b"\x26\x05") + b"\0", "a count is -3"),
        (b"\x26\0\x19" + list_of(1) + PAGES + b"\0", "pages are no struct"),
        (b"\x26\0\x1c" + PAGES.replace(b"\x39\x18\x01x", b"\x38\x01x") + b"\0", "name is no list"),
        (b"\x26\0\x1c" + PAGES + b"\x5c\0\0", "a column is encrypted"),
        (b"\x26\0\x1c" + PAGES + b"\x0c\x06\0\0", "does not say where its pages lie"),  # again
        (
            b"\x26\0\x1c" + PAGES.replace(b"\x39\x18\x01x", b"\x39\x98" + b"\x01x" * 9) + b"\0",
            "name has 9 parts",
        ),
        (
            b"\x26\0\x1c" + PAGES.replace(b"\x26\x06", b"\x26" + varint(1 << 63)) + b"\0",
            "a count is 4611686018427387904",
        ),
        (
            b"\x26\0\x1c" + PAGES.replace(b"\x26\x06", b"\x26" + b"\xff" * 20 + b"\0") + b"\0",
            "a number without an end",
        ),
    ],
)
def test_a_column_whose_pages_arrow_would_see_elsewhere_is_refused(
    column: bytes, message: str | None
) -> None:
    group = b"\x19" + list_of(1) + column + b"\x26\x06\0"
    footer = Footer(b"\x49" + list_of(1) + group + b"\0")
    if message is None:
        pages = ColumnPages(name="x", values=3, decoded=4, packed=4, first=4)
        assert footer[0] == RowGroupPages(rows=3, columns=[pages])
        return
    with pytest.raises(ValueError, match=message):
        footer[0]


@pytest.mark.parametrize(
    ("footer", "message"),
    [
        (b"\x4c\0\0", "row groups are no list"),
        (b"\x49" + list_of(1) + b"\x1c\0\0" + b"\0", "columns are no list"),
        (b"\x49" + list_of(1) + b"\x19" + list_of(1, 5) + b"\0\0" + b"\0", "a list is of kind 5"),
        (b"\x49" + list_of(1, 5) + b"\0" + b"\0", None),  # numbers, so there is no row group
    ],
)
def test_a_footer_with_values_of_another_kind_is_refused(
    footer: bytes, message: str | None
) -> None:
    if message is None:
        assert len(Footer(footer)) == 0
        return
    with pytest.raises(ValueError, match=message):
        Footer(footer)[0]


def test_values_of_every_kind_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Truth values, in a list and not, bytes, floats, and text; then comes one row group."""
    passed = b"\x19" + list_of(2, 1) + b"\xff\xff" + b"\x03\x14\xff" + b"\x07\x1f" + b"8 bytes!"
    passed += b"\x01\x18" + b"\x08\x1a\3abc" + b"\x09\x1c" + list_of(2, 7) + b"8 bytes!" * 2
    group = b"\x19" + list_of(0) + b"\x26\x06\0"
    footer = Footer(passed + b"\x09\x08" + list_of(1) + group + b"\0")
    monkeypatch.setattr("pipeline.store.footer._MOST_VALUES", 4)
    for _ in range(9):  # what is counted is counted anew
        assert footer[0] == RowGroupPages(rows=3, columns=[])


def test_a_store_in_one_file_with_such_a_footer_is_not_opened(folder: Path, tmp_path: Path) -> None:
    store, footer = tmp_path / "one.parquet", footer_of(4, 300_000)
    seal = FOOTER_MARK + hashlib.sha256(FOOTER_MARK + footer).digest()
    store.write_bytes(
        (folder / "one.parquet").read_bytes().partition(FOOTER_MARK)[0] + seal + footer
    )
    with pytest.raises(StoreError, match="its footer has more than 1048576 records"):
        open_store(store)


def test_a_footer_of_zeros_is_not_held_twice(folder: Path, tmp_path: Path) -> None:
    """Of a file of holes, which takes no disk."""
    path, size = tmp_path / "one.parquet", 1 << 26
    data = (folder / "one.parquet").read_bytes().partition(FOOTER_MARK)[0]
    for length, message in ((size, "footer is malformed"), (1 << 29, "has at most 536870912")):
        tail = length.to_bytes(4, "little") + b"PAR1"
        digest = hashlib.sha256(FOOTER_MARK)
        digest.update(bytes(size))
        digest.update(tail)
        with path.open("wb") as file:
            file.write(data + FOOTER_MARK + digest.digest())
            file.seek(length, 1)
            file.write(tail)
        tracemalloc.start()
        try:
            with pytest.raises(PipelineError, match=message):
                open_store(path)
            assert tracemalloc.get_traced_memory()[1] < 1.2 * size
        finally:
            tracemalloc.stop()


def test_a_footer_has_so_many_values_at_most(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (folder / "one.parquet").read_bytes()
    footer = data[data.index(FOOTER_MARK) + SEAL_BYTES :]
    Footer(footer)
    monkeypatch.setattr("pipeline.store.footer._MOST_VALUES", 300)
    with pytest.raises(ValueError, match="its footer has more than 300 values"):
        Footer(footer)
    with pytest.raises(ValueError, match="its footer has more than 300 values"):
        Footer(b"\x19" + list_of(301, 5) + b"\0" * 400)


def test_a_parts_footer_lists_few_records(folder: Path) -> None:
    path = next((folder / "directory.parquet").glob("shard=0/*.parquet"))
    part = open_store(folder / "directory.parquet").manifest.parts[0].part
    for groups, columns, there in ((257, 1, True), (1, 257, True), (1, 999_999, False)):
        data = sealed(path.read_bytes()[:4] + footer_of(groups, columns, there=there))
        for read in (parquet.decode_part, parquet.read_claims):
            with little_memory(), pytest.raises(StoreError, match="Exceeded size limit"):
                read(data, part, "a part")
    data = sealed(path.read_bytes()[:4] + footer_of(256, 256))
    with pytest.raises(StoreError, match="is not a part of a label store"):
        parquet.decode_part(data, part, "a part")


def test_a_forged_footer_under_a_true_seal_ends_no_process(tmp_path: Path) -> None:
    """Arrow's Python let an exception of a column's sizes through, to the end of the process."""
    store = write_store(tmp_path / "s.parquet", [info_of(0)], [(0, VIEWS)], ALL_COLUMNS)
    entry = store.manifest.parts[0]
    data = store.read_file(entry)
    assert data is not None
    begin = footer_offset(data, len(data))
    body, footer = data[: begin - SEAL_BYTES], data[begin:]
    lists = [at for at, byte in enumerate(footer) if byte & 15 in (5, 6, 8) and 0 < byte >> 4 < 9]
    refused = 0
    for at in lists:
        forged = bytearray(footer)
        forged[at] ^= 64  # four elements more or less
        try:
            parquet.decode_part(sealed(body + bytes(forged)), entry.part, "a part")
        except StoreError:
            refused += 1
    assert len(lists) > refused > 100


@pytest.mark.parametrize("index", [-1, 6, 1 << 30])
def test_a_key_that_a_part_does_not_list_is_refused(index: int) -> None:
    rows = rows_of(IDENTITY, info_of(0), 0, VIEWS)
    table = parquet.table_of(rows)
    key = table["key"].chunk(0)
    assert len(key.dictionary) == 6
    indices = np.where(key.indices.to_numpy() == 5, index, key.indices.to_numpy()).astype("i4")
    forged = pa.DictionaryArray.from_arrays(indices, key.dictionary, safe=False)
    table = table.set_column(0, table.schema.field("key"), forged)
    with pytest.raises(ValueError, match="a row has a key that the part does not list"):
        parquet.rows_of_table(table, rows.columns.config, rows.header)


def test_pages_are_walked_to_their_ends(folder: Path) -> None:
    store = open_store(folder / "directory.parquet")
    entry = store.manifest.parts[0]
    data = store.read_file(entry)
    assert data is not None
    (group,) = Footer(data[footer_offset(data, len(data)) :])
    names = [one.name for one in group.columns]
    check_pages(data, 0, group, entry.rows, names)
    with pytest.raises(ValueError, match=f"a row group of {entry.rows} rows"):
        check_pages(data, 0, group, entry.rows + 1, names)
    with pytest.raises(ValueError, match="other columns than its file"):
        check_pages(data, 0, group, entry.rows, names[::-1])
    for cut in (data[:40], b"\xff" * len(data), bytes(len(data))):
        with pytest.raises(ValueError, match="key"):
            check_pages(cut, 0, group, entry.rows, names)


def test_a_footer_says_what_arrow_reads_in_it(folder: Path) -> None:
    for path in (folder / "one.parquet", *(folder / "directory.parquet").glob("shard=*/*")):
        data = path.read_bytes()
        metadata = parquet.pq.read_metadata(path)
        footer = Footer(data[footer_offset(data, len(data)) :])
        assert len(footer) == metadata.num_row_groups > 0
        for number, group in enumerate(footer):
            theirs = metadata.row_group(number)
            assert group.rows == theirs.num_rows
            assert len(group.columns) == theirs.num_columns
            for index, column in enumerate(group.columns):
                known = theirs.column(index)
                begins = (known.dictionary_page_offset, known.data_page_offset)
                assert column == ColumnPages(
                    name=known.path_in_schema,
                    values=known.num_values,
                    decoded=known.total_uncompressed_size,
                    packed=known.total_compressed_size,
                    first=min(one for one in begins if one is not None),
                )


def test_a_store_of_another_format_is_not_taken_by_its_name(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "directory.parquet", tmp_path / "x.zarr")
    with pytest.raises(StoreError, match="named as a Zarr store, but its manifest is another's"):
        open_store(tmp_path / "x.zarr")
    (tmp_path / "file.zarr").write_text("")
    with pytest.raises(StoreError, match="is no label store: give a directory"):
        open_store(tmp_path / "file.zarr")
    shutil.copytree(folder / "arrays.zarr", tmp_path / "x.parquet")
    with pytest.raises(PipelineError, match="is missing"):
        read_all(tmp_path / "x.parquet")


def test_shapes_follow_from_the_manifest(folder: Path) -> None:
    store: LabelStore = open_store(folder / "arrays.zarr")
    specs = array_specs(store.manifest, 5)
    assert specs["label"].shape == (14, VIEWS)
    assert specs["key"].shape == (14, 5)
    assert specs["label"].locate((3, 13)) == ("label/c/3/2", 1)
    assert specs["seed"].locate((101,)) == ("seed/c/1", 1)


def _beyond(name: str) -> Callable[[PartRows], PartRows]:
    def change(rows: PartRows) -> PartRows:
        value = {"target": -2, "unknown target": 70_000}.get(name, 5)  # classes are 0 to 4
        if name == "topk_label":
            columns = rows.columns.map(np.copy)
            columns["topk_label"][1, 1, 2] = value
            return dataclasses.replace(rows, columns=columns)
        field = name.rpartition(" ")[2]
        values = getattr(rows, field).copy()
        values[1] = value
        return dataclasses.replace(rows, **{field: values})

    return change


@pytest.mark.parametrize("name", ["label", "topk_label", "target", "unknown target"])
def test_classes_beyond_the_teachers_are_refused_in_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s.parquet"
    believing = [patch(f"pipeline.store.{one}.require_classes") for one in ("parquet", "zarr")]
    with believing[0], believing[1], patch("pipeline.store.single.require_classes"):
        write_store(path, [info_of(0)], [(0, 3)], ALL_COLUMNS, _beyond(name))
        export_store(path, tmp_path / "s.zarr")
        export_store(path, tmp_path / "one.parquet", single_file=True)
    for store in map(open_store, (path, tmp_path / "s.zarr", tmp_path / "one.parquet")):
        with pytest.raises(StoreError, match="classes beyond the 5 of the store's teacher"):
            store.read_view(0, 1)
        with pytest.raises(StoreError, match="classes beyond the 5 of the store's teacher"):
            store.read_part(store.manifest.parts[0])
