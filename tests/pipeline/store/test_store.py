from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import (
    ChecksumError,
    IdentityError,
    IncompleteStoreError,
    PipelineError,
    StoreError,
)
from pipeline.files import local as files
from pipeline.identity import PRESETS, StoreIdentity, canonical_json
from pipeline.records import PartRows, Rejection
from pipeline.shards.index import open_shard
from pipeline.store import (
    ParquetStore,
    claim_store,
    commit_part,
    find_parts,
    finish_store,
    open_store,
)
from pipeline.store.manifest import seal, unseal
from pipeline.store.parquet import decode_part, encode_part, read_claims
from pipeline.views.draw import has_mixed_digest
from tests.labelling import digit_shard, hash_identity, label_with_hashes, part_of, write_hash_store
from tests.storing import written_anew


def make_rows(samples: int, views: int, *, seed: int = 0, first: int = 0) -> PartRows:
    """Return rows of random numbers, with one rejection in the middle of the shard."""
    random = np.random.default_rng(seed)
    has_digest = random.random((samples, views)) < 0.1
    seeds = random.integers(0, 1 << 63, samples, np.int64)
    mixed = has_mixed_digest(has_digest, seeds[:, None], np.arange(first, first + views))
    return PartRows(
        part=part_of(first, views, shard=7),
        identity=hash_identity().digest,
        key_hash="k" * 64,
        content_hash="c" * 64,
        image_hash="i" * 64,
        formats=("jpeg", "png"),
        samples=samples + 1,
        rejections=(Rejection(index=samples // 2, key="torn", reason="undecodable"),),
        keys=tuple(f"key/{i:03d}" for i in range(samples)),
        target=random.integers(0, 1000, samples, np.int32),
        seed=seeds,
        label=random.integers(0, 1 << 16, (samples, views), np.uint16),
        digest=np.where(has_digest, random.integers(0, 1 << 32, (samples, views), np.uint32), 0),
        has_digest=has_digest,
        mixed_digest=np.where(mixed, random.integers(0, 1 << 32, mixed.shape, np.uint32), 0),
    )


def assert_same(ours: PartRows, theirs: PartRows) -> None:
    assert (ours.header, ours.keys) == (theirs.header, theirs.keys)
    for name, mine in ours.arrays().items():
        other = theirs.arrays()[name]
        assert mine.dtype == other.dtype, name
        np.testing.assert_array_equal(mine, other)


@given(samples=st.integers(0, 20), views=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_part_reads_back_as_it_was_written(samples: int, views: int, seed: int) -> None:
    rows = make_rows(samples, views, seed=seed, first=seed)
    data = encode_part(rows)
    assert encode_part(rows) == data
    assert_same(rows, decode_part(data, rows.part, "a part"))


def test_any_changed_byte_of_a_store_is_found_before_a_label_is_used(
    tmp_path: Path, hash_store: ParquetStore
) -> None:
    root = tmp_path / "copy.parquet"
    shutil.copytree(hash_store.root.path, root)
    parts = [root / entry.part.path for entry in hash_store.manifest.parts]
    random = np.random.default_rng(1)
    for path in [*parts, root / "_manifest.json"]:
        whole = path.read_bytes()
        for offset in random.integers(0, len(whole), 60).tolist():
            torn = bytearray(whole)
            torn[offset] ^= 1 << int(random.integers(8))
            path.write_bytes(torn)
            with pytest.raises(StoreError):
                _read_all(open_store(root))
        for length in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(StoreError):
                _read_all(open_store(root))
        path.write_bytes(whole)
    _read_all(open_store(root))


def _read_all(store: ParquetStore) -> None:
    for shard in store.manifest.shards:
        for view in store.manifest.view_range:
            store.read_view(shard.number, view)


def test_the_seal_finds_damage_without_the_manifest(hash_store: ParquetStore) -> None:
    entry = hash_store.manifest.parts[0]
    data = bytearray((hash_store.root.path / entry.part.path).read_bytes())
    column = pq.read_metadata(hash_store.root.path / entry.part.path).row_group(0).column(4)
    assert column.path_in_schema == "label"
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    with pytest.raises(ChecksumError, match="delete the file and run the label job again"):
        decode_part(bytes(data), entry.part, "the part")


def test_a_view_is_spread_over_indexed_samples(tmp_path: Path) -> None:
    paths = [digit_shard(tmp_path / "a.tar", 19, broken=(0, 5, 18))]
    store = write_hash_store(tmp_path / "s.parquet", paths, views=5, per_part=2)
    shard = open_shard(paths[0], 0)
    whole = label_with_hashes(shard, part_of(0, 5), hash_identity())
    for view in range(5):
        read = store.read_view(0, view)
        assert read.keys == tuple(sample.key for sample in shard.samples)
        assert np.flatnonzero(~read.accepted).tolist() == [0, 5, 18]
        assert (read.label[read.accepted] == whole.label[:, view]).all()
        assert (read.seed[read.accepted] == whole.seed).all()
        assert (read.target[read.accepted] == whole.target).all()
        assert (read.has_digest[read.accepted] == whole.has_digest[:, view]).all()
        assert (read.digest[read.accepted] == whole.digest[:, view]).all()
        assert not read.has_digest[[0, 5, 18]].any()


def test_a_missing_view_is_named_with_its_cure(hash_store: ParquetStore) -> None:
    with pytest.raises(IncompleteStoreError, match="`first_view` and `views` that include 99"):
        hash_store.read_view(0, 99)


def test_an_open_store_travels_to_other_processes(hash_store: ParquetStore) -> None:
    hash_store.read_view(0, 0)
    copy = pickle.loads(pickle.dumps(hash_store))
    assert (copy.read_view(1, 3).label == hash_store.read_view(1, 3).label).all()


def test_pandas_pyarrow_and_duckdb_read_the_directory_as_it_stands(
    hash_store: ParquetStore,
) -> None:
    root = hash_store.root.path
    frame = pd.read_parquet(root)
    assert list(frame.columns)[:6] == ["key", "view", "target", "seed", "label", "digest"]
    table = pyarrow.dataset.dataset(root, partitioning="hive").to_table()
    rows = duckdb.sql(f"select * from read_parquet('{root}/*/*.parquet')").fetchall()
    assert len(frame) == len(table) == len(rows) == hash_store.manifest.rows
    for shard in hash_store.manifest.shards:
        view = hash_store.read_view(shard.number, 4)
        found = frame[(frame["shard"].astype(int) == shard.number) & (frame["view"] == 4)]
        assert found["key"].tolist() == list(view.keys)
        assert found["label"].tolist() == view.label.tolist()


def test_committing_the_same_rows_again_changes_nothing(tmp_path: Path) -> None:
    rows = make_rows(5, 4)
    first = commit_part(tmp_path, rows)
    before = (tmp_path / rows.part.path).stat().st_ino
    assert commit_part(tmp_path, rows) == first
    assert (tmp_path / rows.part.path).stat().st_ino == before


@pytest.mark.parametrize("column", ["key", "target", "seed", "view"])
def test_rows_in_another_order_are_no_part(column: str) -> None:
    rows = make_rows(5, 4)
    order = [*range(19, -1, -1)] if column == "view" else [4, *range(1, 4), 0, *range(5, 20)]

    def reorder(table: pyarrow.Table) -> pyarrow.Table:
        field = table.schema.field(column)
        position = table.schema.get_field_index(column)
        return table.set_column(position, field, table[column].take(order))

    with pytest.raises(ChecksumError, match=r"is damaged \((views|rows) .*delete the file"):
        decode_part(written_anew(encode_part(rows), reorder), rows.part, "the part")


def test_a_part_of_an_unknown_format_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(5, 4)
    monkeypatch.setattr("pipeline.store.parquet.FORMAT_VERSION", 9)
    data = encode_part(rows)
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"the part has format version 9, .*install the release"):
        decode_part(data, rows.part, "the part")


def test_a_part_from_another_pyarrow_release_counts_as_the_same(tmp_path: Path) -> None:
    rows = make_rows(5, 4)
    path = tmp_path / rows.part.path
    path.parent.mkdir()
    path.write_bytes(written_anew(encode_part(rows)))
    committed = commit_part(tmp_path, rows)
    assert committed.entry.bytes == path.stat().st_size


def test_other_rows_for_a_committed_part_are_refused(tmp_path: Path) -> None:
    rows = make_rows(5, 4)
    commit_part(tmp_path, rows)
    before = (tmp_path / rows.part.path).read_bytes()
    changed = rows.label.copy()
    changed[2, 1] ^= 1
    with pytest.raises(StoreError, match=r"another label .1 of 20 values differ. than this run's"):
        commit_part(tmp_path, replace(rows, label=changed))
    assert (tmp_path / rows.part.path).read_bytes() == before


def test_a_store_of_another_identity_is_refused_with_the_fields(tmp_path: Path) -> None:
    root, ours = tmp_path / "s.parquet", hash_identity()
    claim_store(root, ours, {})
    theirs = replace(ours, root_seed=6, augment=replace(ours.augment, hflip=0.25))
    with pytest.raises(IdentityError) as caught:
        claim_store(root, theirs, {})
    assert "augment.hflip: 0.25 / 0.5" in str(caught.value)
    assert "root_seed: 6 / 5" in str(caught.value)
    assert "crop" not in str(caught.value)


def test_an_identity_reads_back_as_it_was_written() -> None:
    for augment in PRESETS.values():
        identity = hash_identity(augment)
        read = StoreIdentity.from_json(json.loads(json.dumps(identity.to_json())))
        assert read == identity
        assert read.digest == identity.digest
        assert hash_identity(replace(augment, image_size=225)).digest != identity.digest


def test_an_unknown_format_version_is_refused_with_a_cure() -> None:
    values = {**hash_identity().to_json(), "format_version": 9}
    with pytest.raises(StoreError, match="format version 9, this release reads 2; install"):
        StoreIdentity.from_json(values)


@pytest.mark.parametrize("name", ["labels", "labels.zarr"])
def test_a_store_needs_the_right_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match=r"must end in \.parquet"):
        claim_store(tmp_path / name, hash_identity(), {})
    assert not (tmp_path / name).exists()


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "s.parquet"
    root.mkdir()
    (root / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="not empty and is no label store"):
        claim_store(root, hash_identity(), {})
    assert [path.name for path in root.iterdir()] == ["notes.txt"]


def test_opening_an_unfinished_store_says_what_to_do(tmp_path: Path) -> None:
    root = tmp_path / "s.parquet"
    claim_store(root, hash_identity(), {})
    cure = "unfinished store.*run the command that was writing it again"
    with pytest.raises(IncompleteStoreError, match=cure):
        open_store(root)
    with pytest.raises(IncompleteStoreError, match="there is no label store here"):
        open_store(tmp_path / "other.parquet")


def test_a_manifest_cannot_point_outside_the_store(
    hash_store: ParquetStore, tmp_path: Path
) -> None:
    root = tmp_path / "copy.parquet"
    shutil.copytree(hash_store.root.path, root)
    values = unseal((root / "_manifest.json").read_bytes(), "the manifest")
    values["parts"][0]["path"] = "../../etc/passwd"
    (root / "_manifest.json").write_bytes(seal(values))
    with pytest.raises(StoreError, match=r"should be 'shard=0/view-00000-00003.parquet'"):
        open_store(root)


def test_overlapping_parts_are_refused(tmp_path: Path) -> None:
    root, identity = tmp_path / "s.parquet", hash_identity()
    shard = open_shard(digit_shard(tmp_path / "a.tar", 4), 0)
    claim_store(root, identity, {})
    for first, views in ((0, 3), (2, 3)):
        commit_part(root, label_with_hashes(shard, part_of(first, views), identity))
    with pytest.raises(StoreError, match="overlap"):
        finish_store(root, identity, {}, [shard.info], lambda _: "")


def test_a_part_of_another_shard_is_refused_by_name(tmp_path: Path) -> None:
    root, identity = tmp_path / "s.parquet", hash_identity()
    shard = open_shard(digit_shard(tmp_path / "a.tar", 4), 0)
    other = open_shard(digit_shard(tmp_path / "b.tar", 4, first=4), 0)
    claim_store(root, identity, {})
    commit_part(root, label_with_hashes(shard, part_of(0, 3), identity))
    with pytest.raises(IdentityError, match=r"another shard 0 than b\.tar"):
        finish_store(root, identity, {}, [other.info], lambda _: "")


def test_a_full_disk_leaves_no_part_and_no_dot_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(5, 4)

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(PipelineError, match="disk is full"):
        commit_part(tmp_path, rows)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "shard=7").write_text("a file where a directory must be")
    with pytest.raises(PipelineError, match=r"cannot be written .*check the path"):
        commit_part(tmp_path, make_rows(5, 4))


def _commit_repeatedly(root: Path, rows: PartRows) -> None:
    for first in range(1000):
        commit_part(root, replace(rows, part=part_of(first * 4, 4, shard=7)))


def test_writers_that_race_and_die_leave_only_whole_parts(tmp_path: Path) -> None:
    rows = replace(make_rows(30, 4), mixed_digest=np.zeros((30, 4), np.uint32))
    context = multiprocessing.get_context("fork")
    random = np.random.default_rng(2)
    for _ in range(200):
        writers = [context.Process(target=_commit_repeatedly, args=(tmp_path, rows)) for _ in "ab"]
        for writer in writers:
            writer.start()
        time.sleep(float(random.uniform(0.01, 0.15)))
        for writer in writers:
            os.kill(writer.pid or 0, signal.SIGKILL)
            writer.join()
        parts = find_parts(tmp_path)
        if len(parts) > 20:
            break
    assert len(parts) > 20
    for part in parts:
        rows_there = decode_part((tmp_path / part.path).read_bytes(), part, part.path)
        assert_same(replace(rows, part=part), rows_there)


def test_the_bytes_of_a_store_do_not_depend_on_umask_or_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [digit_shard(tmp_path / "a.tar", 17)]
    first = write_hash_store(tmp_path / "one.parquet", paths, views=4, per_part=2)
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o077)
    try:
        other = write_hash_store(Path("two.parquet"), paths, views=4, per_part=2)
    finally:
        os.umask(before)
    for name in (
        "_manifest.json",
        "_meta/identity.json",
        *(e.part.path for e in first.manifest.parts),
    ):
        assert (first.root.path / name).read_bytes() == (other.root.path / name).read_bytes()


def test_what_a_part_says_of_its_labels_is_held_against_them() -> None:
    rows = make_rows(5, 3)
    file = pq.read_table(pa.BufferReader(encode_part(rows)))
    header = json.loads(file.schema.metadata[b"teacher_labels"])
    header["agreement"]["equal"] += 1
    forged = file.replace_schema_metadata({b"teacher_labels": canonical_json(header)})
    data = written_anew(encode_part(rows), lambda _: forged)
    assert read_claims(data, rows.part, "x")[1].agreement.equal == header["agreement"]["equal"]
    with pytest.raises(ChecksumError, match=r"x is damaged \(its labels have .*, it says "):
        decode_part(data, rows.part, "x")
