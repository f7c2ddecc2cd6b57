"""The tools on stores of every format: what they say and write depends on the rows alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ClassesError, ConfigError
from pipeline.identity import TeacherIdentity
from pipeline.store import LabelStore, export_store, open_store
from pipeline.store.card import inspect_store
from pipeline.tools import (
    diff_stores,
    extend_command,
    merge_stores,
    relabelled_store,
    store_stats,
    thin_store,
)
from tests.storing import ALL_COLUMNS, OTHER_TEACHER, bytes_of, info_of, ranges, write_store

SHARDS = [info_of(0), info_of(1, samples=9)]
CUT = ranges(range(8), 3)
FORMATS = {"directory": ".parquet", "file": ".parquet", "zarr": ".zarr"}


def in_format(store: LabelStore, kind: str) -> LabelStore:
    source = Path(store.root.name)
    target = source.with_name(f"{source.stem}-{kind}{FORMATS[kind]}")
    return export_store(source, target, single_file=kind == "file")


@pytest.fixture(params=list(FORMATS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def plain(tmp_path: Path) -> LabelStore:
    return write_store(tmp_path / "plain.parquet", SHARDS, CUT, ALL_COLUMNS)


def test_stats_and_diff_are_those_of_the_parquet_store(
    tmp_path: Path, plain: LabelStore, kind: str
) -> None:
    teacher: TeacherIdentity = OTHER_TEACHER.teacher
    identity = replace(ALL_COLUMNS, teacher=teacher)
    other = write_store(tmp_path / "other.parquet", SHARDS, CUT, identity)
    store = in_format(plain, kind)
    assert replace(store_stats(store), store="") == replace(store_stats(plain), store="")
    expected = replace(diff_stores(plain, other), a="", b="")
    assert replace(diff_stores(store, in_format(other, kind)), a="", b="") == expected
    assert expected.margins_a
    assert diff_stores(store, plain).teachers.different == 0


def test_merged_halves_have_the_bytes_of_the_whole(
    tmp_path: Path, plain: LabelStore, kind: str
) -> None:
    halves = [
        in_format(write_store(tmp_path / f"{name}.parquet", SHARDS, cut, ALL_COLUMNS), kind)
        for name, cut in (("a", CUT[:1]), ("b", CUT[1:]))
    ]
    merge_stores(halves, tmp_path / "c.parquet")
    assert bytes_of(tmp_path / "c.parquet") == bytes_of(tmp_path / "plain.parquet")


def test_thinned_stores_have_the_bytes_of_those_labelled_so(
    tmp_path: Path, plain: LabelStore, kind: str
) -> None:
    thin_store(in_format(plain, kind), tmp_path / "t.parquet", views=range(6), drop=("topk",))
    columns = replace(ALL_COLUMNS.columns, topk=0)
    identity = replace(ALL_COLUMNS, columns=columns)
    write_store(tmp_path / "start.parquet", SHARDS, ranges(range(6), 3), identity)
    assert bytes_of(tmp_path / "t.parquet") == bytes_of(tmp_path / "start.parquet")


def test_a_card_has_its_runs_and_an_extension_its_shards(plain: LabelStore, kind: str) -> None:
    record = b'{"finished":"2026-01-01","settings":{"shards":["x.tar"]}}\n'
    plain.root.commit_new("_meta/runs/20260101.json", record)
    store = in_format(plain, kind)
    card = inspect_store(store)
    assert "| 2026-01-01 | label-teacher |" in card.to_markdown()
    root = Path(store.root.name)
    files = [root] if kind == "file" else root.rglob("*")
    size = sum(path.stat().st_size for path in files if path.is_file())
    assert 0 < (card.stored_bytes or 0) <= size
    assert card.to_json()["bytes"] == plain.manifest.bytes
    if kind == "file":
        with pytest.raises(ConfigError, match="export it to a directory"):
            extend_command(store, 4)
        return
    assert extend_command(store, 4) == (
        "label-teacher",
        *("--out", store.root.name, "--extend-to", "12", "--shards", "x.tar"),
    )


NAMES = ("ape", "cat | tab\u202ebidi", "dog", "eel", "fox")
OTHERS = (*NAMES[:3], "fox", "eel")


def test_names_of_classes_are_kept_by_every_format_and_tool(tmp_path: Path, kind: str) -> None:
    named = write_store(tmp_path / "named.parquet", SHARDS, CUT, ALL_COLUMNS, classes=NAMES)
    store = in_format(named, kind)
    plain = write_store(tmp_path / "plain.parquet", SHARDS, CUT, ALL_COLUMNS)
    assert store.manifest.classes == NAMES
    assert store.identity.digest == plain.identity.digest
    assert plain.manifest.parts == named.manifest.parts
    thin_store(store, tmp_path / "thin.parquet", drop=("margin",), views=range(3))
    merge_stores([plain, store], tmp_path / "merged.parquet")
    derived = relabelled_store(plain, store, tmp_path / "derived.parquet", note="a trial")
    assert derived.manifest.classes == NAMES
    for name in ("thin", "merged"):
        assert open_store(tmp_path / f"{name}.parquet").manifest.classes == NAMES


def test_names_stand_beside_numbers_and_are_escaped(tmp_path: Path, kind: str) -> None:
    store = in_format(
        write_store(tmp_path / "named.parquet", SHARDS, CUT, ALL_COLUMNS, classes=NAMES), kind
    )
    plain = write_store(tmp_path / "plain.parquet", SHARDS, CUT, ALL_COLUMNS)
    for text in (
        inspect_store(store).to_markdown(),
        store_stats(store).to_markdown(),
        diff_stores(plain, store).to_markdown(),
    ):
        assert "2 dog" in text
        assert "1 cat \\| tab\\u202ebidi" in text
        assert "\u202e" not in text


def test_stores_with_other_names_of_classes_are_not_joined_or_compared(
    tmp_path: Path, kind: str
) -> None:
    a = write_store(tmp_path / "a.parquet", SHARDS, CUT[:2], ALL_COLUMNS, classes=NAMES)
    b = in_format(
        write_store(tmp_path / "b.parquet", SHARDS, CUT[1:], ALL_COLUMNS, classes=OTHERS), kind
    )
    words = r"a\.parquet and .*b.* have other classes: class 3 is 'eel' .*'fox'"
    with pytest.raises(ClassesError, match=words):
        diff_stores(a, b)
    with pytest.raises(ClassesError, match=words):
        merge_stores([a, b], tmp_path / "c.parquet")
    with pytest.raises(ClassesError, match=words):
        relabelled_store(a, b, tmp_path / "c.parquet", note="a trial")
    assert not (tmp_path / "c.parquet").exists()
