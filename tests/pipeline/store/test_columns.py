"""The optional columns: confidence, margin and the top classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.realistic import make_identity
from benchmarks.realistic import make_rows as make_realistic_rows
from jobs.label_teacher import parse_arguments
from pipeline.columns import COLUMNS, Column, ColumnConfig, Columns
from pipeline.errors import ChecksumError, ConfigError, StoreError, TeacherError
from pipeline.identity import StoreIdentity
from pipeline.labelling.part import PartBuilder, group_tasks, run_task
from pipeline.records import PartRows
from pipeline.shards.index import open_shard
from pipeline.store import (
    ParquetStore,
    bytes_per_label,
    claim_store,
    commit_part,
    finish_store,
    open_store,
)
from pipeline.store.card import card_text
from pipeline.store.parquet import decode_part, encode_part
from pipeline.tools.verify import verify_store
from pipeline.views.fingerprints import fingerprints
from tests.labelling import (
    SMALL,
    HashTeacher,
    digit_shard,
    every_column,
    hash_identity,
    hash_labels,
    label_with_hashes,
    part_of,
    write_hash_store,
)
from tests.storing import written_anew

EVERYTHING = every_column(5)
columns_configs = st.builds(
    ColumnConfig, confidence=st.booleans(), margin=st.booleans(), topk=st.sampled_from([0, 1, 7])
)


def make_rows(samples: int, views: int, columns: ColumnConfig, *, seed: int = 0) -> PartRows:
    """Return a part of made-up labels with these columns, without a rejection."""
    random = np.random.default_rng(seed)
    shape = (samples, views)
    labels = hash_labels(random.integers(0, 1 << 32, samples * views), columns)
    return PartRows(
        part=part_of(seed, views, shard=7),
        identity=hash_identity(columns=columns).digest,
        key_hash="k" * 64,
        content_hash="c" * 64,
        image_hash="i" * 64,
        formats=("jpeg", "png"),
        samples=samples,
        rejections=(),
        keys=tuple(f"key/{i:03d}" for i in range(samples)),
        target=random.integers(0, 1000, samples, np.int32),
        seed=random.integers(0, 1 << 63, samples, np.int64),
        label=labels.label.reshape(shape),
        digest=np.zeros(shape, np.uint32),
        has_digest=np.zeros(shape, np.bool_),
        mixed_digest=np.zeros(shape, np.uint32),
        columns=labels.columns.map(lambda values: values.reshape(*shape, *values.shape[1:])),
    )


def with_column(rows: PartRows, name: str, values: NDArray[Any]) -> PartRows:
    return replace(rows, columns=Columns({**rows.columns, name: values}))


def without_columns(rows: PartRows, kept: ColumnConfig) -> PartRows:
    return replace(rows, columns=rows.columns.only(kept))


def assert_same_columns(ours: PartRows, theirs: PartRows) -> None:
    assert ours.columns.keys() == theirs.columns.keys()
    for name, mine in ours.arrays().items():
        assert mine.dtype == theirs.arrays()[name].dtype, name
        np.testing.assert_array_equal(mine, theirs.arrays()[name])


@pytest.fixture(scope="module")
def soft_store(tmp_path_factory: pytest.TempPathFactory) -> ParquetStore:
    """A store with every column: 19 digits, three of them rejected, 5 views in 3 parts."""
    folder = tmp_path_factory.mktemp("soft")
    shard = digit_shard(folder / "a.tar", 19, broken=(0, 5, 18))
    identity = hash_identity(columns=EVERYTHING)
    return write_hash_store(
        folder / "s.parquet", [shard], views=5, per_part=2, identity=identity, card=card_text
    )


@given(
    columns=columns_configs,
    samples=st.integers(0, 12),
    views=st.integers(1, 12),
    trusted=st.booleans(),
)
def test_a_part_reads_back_with_the_columns_it_was_written_with(
    columns: ColumnConfig, samples: int, views: int, trusted: bool
) -> None:
    rows = make_rows(samples, views, columns, seed=views)
    data = encode_part(rows)
    assert encode_part(rows) == data
    assert_same_columns(rows, decode_part(data, rows.part, "a part", trusted=trusted))


def test_columns_reach_the_reader_at_each_samples_index(soft_store: ParquetStore) -> None:
    shard = open_shard(Path(soft_store.root.name).parent / "a.tar", 0)
    whole = label_with_hashes(shard, part_of(0, 5), soft_store.identity)
    assert whole.columns.keys() == COLUMNS.keys()
    for view in range(5):
        read = soft_store.read_view(0, view)
        for name, values in whole.columns.items():
            spread = read.columns[name]
            assert spread.dtype == values.dtype
            assert (spread[read.accepted] == values[:, view]).all()
            assert not spread[~read.accepted].any()
    assert verify_store(soft_store.root, [str(shard.path)], every_digest=True).mismatches == ()


def test_a_store_of_labels_alone_has_no_other_columns(hash_store: ParquetStore) -> None:
    assert hash_store.read_view(0, 0).columns == {}


def test_pandas_pyarrow_and_duckdb_read_top_classes_as_lists(soft_store: ParquetStore) -> None:
    root = soft_store.root.name
    view = soft_store.read_view(0, 3)
    frame = pd.read_parquet(root).query("view == 3")
    table = pa.dataset.dataset(root, partitioning="hive").to_table(
        filter=pa.dataset.field("view") == 3
    )
    query = f"from read_parquet('{root}/*/*.parquet') where view = 3"
    for name in COLUMNS:
        expected = view.columns[name][view.accepted].tolist()
        assert [np.asarray(one).tolist() for one in frame[name]] == expected
        assert table[name].to_pylist() == expected
        assert [one for (one,) in duckdb.sql(f"select {name} {query}").fetchall()] == expected
    assert table.schema.field("topk_label").type == pa.list_(
        pa.field("element", pa.uint16(), nullable=False), 5
    )
    (first,) = duckdb.sql(f"select list_extract(topk_label, 1) = label {query}").fetchall()[0]
    assert first is True


def test_a_part_whose_lists_may_have_any_length_is_refused() -> None:
    rows = make_rows(5, 4, EVERYTHING)

    def loosen(table: pa.Table) -> pa.Table:
        position = table.schema.get_field_index("topk_label")
        anyhow = table["topk_label"].cast(pa.list_(table.schema.field(position).type.value_type))
        return table.set_column(position, "topk_label", anyhow)

    data = written_anew(encode_part(rows), loosen)
    with pytest.raises(ChecksumError, match=r"is damaged \(its columns are .*list<element"):
        decode_part(data, rows.part, "a part")


@pytest.mark.parametrize("name", COLUMNS)
def test_another_probability_for_a_committed_part_is_refused_by_name(
    tmp_path: Path, name: str
) -> None:
    rows = make_rows(5, 4, EVERYTHING)
    commit_part(tmp_path, rows)
    changed = rows.columns[name].copy()
    changed.reshape(-1)[-1] ^= 1
    with pytest.raises(StoreError, match=rf"another {name} .1 of"):
        commit_part(tmp_path, with_column(rows, name, changed))


def test_a_part_without_the_stores_columns_is_refused(soft_store: ParquetStore) -> None:
    entry = soft_store.manifest.parts[0]
    fewer = replace(EVERYTHING, margin=False)
    data = encode_part(without_columns(soft_store.read_part(entry), fewer))
    copy = replace(entry, sha256=_sha256(data), bytes=len(data))
    with pytest.raises(ChecksumError, match="belongs to another store"):
        _Held(soft_store, data).read_part(copy)


class _Held(ParquetStore):
    """A store whose folder gives the same bytes for every path."""

    def __init__(self, store: ParquetStore, data: bytes) -> None:
        super().__init__(store.root, store.manifest)
        self.root = _OneFile(data)  # type: ignore[assignment]


class _OneFile:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def at(self, path: str) -> str:
        return path

    def read_range(self, _path: str, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]


def _sha256(data: bytes) -> str:
    from pipeline.files.local import sha256

    return sha256(data)


CONTRADICTED: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "confidence": lambda stored: counted(stored),
    "margin": lambda stored: np.full_like(stored, 255),
    "topk_label": lambda stored: stored[..., ::-1],
    "topk_logprob": lambda stored: counted(stored),
    "topk_rest": lambda stored: counted(stored),
}
"""Values that labels or other columns contradict, of what is stored."""


def counted(stored: NDArray[Any]) -> NDArray[Any]:
    """Return 0, 1, 2, 3 and 4 at the beginning of an array."""
    wrong = stored.copy()
    wrong.reshape(-1)[:5] = range(5)
    return wrong


def test_each_column_with_a_rule_of_its_own_is_contradicted_once() -> None:
    none = next(one for one in fields(Column) if one.name == "fits").default
    assert {name for name, column in COLUMNS.items() if column.fits is not none} <= set(
        CONTRADICTED
    )


@pytest.mark.parametrize("name", CONTRADICTED)
def test_probabilities_that_contradict_the_labels_do_not_pass(tmp_path: Path, name: str) -> None:
    shard = open_shard(digit_shard(tmp_path / "a.tar", 8), 0)
    identity = hash_identity(columns=EVERYTHING)
    rows = label_with_hashes(shard, part_of(0, 4), identity)
    wrong = CONTRADICTED[name](rows.columns[name])
    root = tmp_path / "s.parquet"
    claim_store(root, identity, fingerprints(identity))
    commit_part(root, with_column(rows, name, wrong))
    finish_store(root, identity, fingerprints(identity), [shard.info], card_text)
    with pytest.raises(ChecksumError, match="does not fit its manifest"):
        verify_store(root)


def test_a_teacher_that_gives_other_columns_than_the_stores_is_refused(tmp_path: Path) -> None:
    shard = open_shard(digit_shard(tmp_path / "a.tar", 4), 0)
    identity, part = hash_identity(columns=EVERYTHING), part_of(0, 3)
    group = run_task(next(group_tasks(shard.path, shard.info, part, identity)))
    with pytest.raises(TeacherError, match=r"columns \[\], the store holds \['confidence'"):
        PartBuilder(shard.info, part, identity).add(group, HashTeacher().label_group(group))


def test_labels_and_digests_do_not_depend_on_the_columns(tmp_path: Path) -> None:
    shard = open_shard(digit_shard(tmp_path / "a.tar", 19, broken=(3,)), 0)
    plain, soft = (
        label_with_hashes(shard, part_of(0, 20), hash_identity(columns=columns))
        for columns in (ColumnConfig(), EVERYTHING)
    )
    assert (plain.label == soft.label).all()
    assert (plain.digest == soft.digest).all()
    assert plain.identity != soft.identity


@pytest.mark.parametrize("columns", [ColumnConfig(), EVERYTHING, ColumnConfig(topk=3)])
def test_the_columns_are_part_of_an_identity(columns: ColumnConfig) -> None:
    identity = hash_identity(SMALL, columns=columns)
    assert StoreIdentity.from_json(identity.to_json()) == identity
    assert identity.to_json()["columns"]["topk"] == columns.topk
    others = (ColumnConfig(margin=True), ColumnConfig(topk=4))
    assert identity.digest not in {hash_identity(columns=one).digest for one in others}


def test_the_card_names_the_columns(soft_store: ParquetStore, hash_store: ParquetStore) -> None:
    founding = "| columns | label, confidence, margin, the 5 likeliest classes with probabilities"
    assert founding in card_text(soft_store.manifest)
    assert "| columns | label |" in card_text(hash_store.manifest)


def test_the_command_line_names_the_columns() -> None:
    needed = ["--shards", "a.tar", "--out", "s.parquet"]
    assert parse_arguments(needed).columns == ColumnConfig()
    config = parse_arguments([*needed, "--keep", "confidence,topk=5"])
    assert config.columns == ColumnConfig(confidence=True, topk=5)
    assert config.teacher_spec().columns == config.columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("confidnce", "'confidnce' is not known; use words of confidence, margin"),
        ("topk", "'topk' is not known"),
        ("topk=0", "'topk=0' is not known"),
        ("topk=five", "'topk=five' is not known"),
        ("margin=2", "'margin=2' is not known"),
        ("margin,margin", "names margin twice"),
        ("topk=256", "`topk` is 256; use 1..255"),
    ],
)
def test_words_that_name_no_column_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ColumnConfig.from_text(text)


def test_more_top_classes_than_classes_are_refused() -> None:
    identity = hash_identity()
    few = replace(identity.teacher, classes=4)
    with pytest.raises(ConfigError, match="`topk` is 5, but the teacher has 4 classes"):
        replace(identity, teacher=few, columns=EVERYTHING)


@pytest.mark.parametrize(("mixed", "plain", "soft"), [(False, 0.75, 13.0), (True, 1.3, 15.2)])
def test_labels_as_a_real_teacher_gives_them_take_few_bytes(
    mixed: bool, plain: float, soft: float
) -> None:
    columns = ColumnConfig(confidence=True, topk=5)
    identity = make_identity(mixed=mixed, columns=columns)
    rows = make_realistic_rows(400, 150, identity)
    hard = without_columns(rows, ColumnConfig())
    assert len(encode_part(hard)) / rows.label.size <= plain
    assert len(encode_part(rows)) / rows.label.size <= soft
    estimate = bytes_per_label(identity)
    assert estimate == pytest.approx(len(encode_part(rows)) / rows.label.size, rel=0.1)


def test_an_open_store_of_columns_keeps_them_in_other_processes(soft_store: ParquetStore) -> None:
    import pickle

    copy = pickle.loads(pickle.dumps(soft_store))
    ours, theirs = soft_store.read_view(0, 4), copy.read_view(0, 4)
    assert (ours.columns["topk_label"] == theirs.columns["topk_label"]).all()
    assert open_store(soft_store.root).identity.columns == EVERYTHING
