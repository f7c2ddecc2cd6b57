from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.identity import ColumnConfig, StoreIdentity
from pipeline.store import LabelStore, open_store
from pipeline.tools import merge_stores, thin_store
from tests.pipeline.store.test_card import run_cli
from tests.storing import ALL_COLUMNS, IDENTITY, bytes_of, info_of, ranges, write_store

SHARDS = [info_of(0), info_of(1, samples=9)]
VIEWS = range(8)


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return write_store(tmp_path / "s.parquet", SHARDS, ranges(VIEWS, 3), ALL_COLUMNS)


def with_columns(**columns: object) -> StoreIdentity:
    return replace(IDENTITY, columns=ColumnConfig(**columns))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("drop", "kept"),
    [
        ((), {"confidence": True, "margin": True, "topk": 3}),
        (("confidence",), {"margin": True, "topk": 3}),
        (("margin", "topk"), {"confidence": True}),
        (("topk", "confidence", "margin"), {}),
    ],
)
@pytest.mark.parametrize("views", [None, range(6), range(5), range(3, 8)])
def test_a_thinned_store_has_the_bytes_of_one_labelled_so_from_the_start(
    tmp_path: Path,
    store: LabelStore,
    drop: tuple[str, ...],
    kept: dict[str, object],
    views: range | None,
) -> None:
    thin_store(store, tmp_path / "thin.parquet", views=views, drop=drop)
    cut = ranges(VIEWS if views is None else views, 3)
    write_store(tmp_path / "start.parquet", SHARDS, cut, with_columns(**kept))
    assert bytes_of(tmp_path / "thin.parquet") == bytes_of(tmp_path / "start.parquet")


def test_views_cut_elsewhere_are_the_same_row_for_row(tmp_path: Path, store: LabelStore) -> None:
    thin_store(store, tmp_path / "thin.parquet", views=range(1, 7), drop=("topk",))
    thin = open_store(tmp_path / "thin.parquet")
    assert thin.manifest.view_range == range(1, 7)
    for shard in SHARDS:
        for view in range(1, 7):
            ours, theirs = (one.read_view(shard.number, view) for one in (thin, store))
            assert ours.keys == theirs.keys
            for name in ("label", "target", "seed", "digest"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
            assert ours.columns.keys() == {"confidence", "margin"}
            for name, values in ours.columns.items():
                np.testing.assert_array_equal(values, theirs.columns[name])


def test_thinned_halves_merge_back_into_the_whole(tmp_path: Path, store: LabelStore) -> None:
    for name, views in (("a", range(3)), ("b", range(3, 8))):
        thin_store(store, tmp_path / f"{name}.parquet", views=views)
    halves = [open_store(tmp_path / f"{name}.parquet") for name in "ab"]
    merge_stores(halves, tmp_path / "c.parquet")
    assert bytes_of(tmp_path / "c.parquet") == bytes_of(tmp_path / "s.parquet")


def test_shards_with_other_views_keep_them_all_unless_asked(tmp_path: Path) -> None:
    long = write_store(tmp_path / "a.parquet", SHARDS[:1], ranges(VIEWS, 3))
    short = write_store(tmp_path / "b.parquet", SHARDS[1:], ranges(range(5), 3))
    merge_stores([long, short], tmp_path / "c.parquet")
    uneven = open_store(tmp_path / "c.parquet")
    assert uneven.manifest.view_range == range(5)
    thin_store(uneven, tmp_path / "d.parquet")
    assert bytes_of(tmp_path / "d.parquet") == bytes_of(tmp_path / "c.parquet")


@pytest.mark.parametrize("views", [range(8, 9), range(3, 3), range(0, 9), range(5, 2)])
def test_views_that_the_store_does_not_have_are_refused(
    tmp_path: Path, store: LabelStore, views: range
) -> None:
    with pytest.raises(ConfigError, match=r"has the views 0:8 of all shards"):
        thin_store(store, tmp_path / "thin.parquet", views=views)
    assert not (tmp_path / "thin.parquet").exists()


def test_columns_that_the_store_does_not_have_are_refused(
    tmp_path: Path, store: LabelStore
) -> None:
    plain = write_store(tmp_path / "plain.parquet", SHARDS, [(0, 3)])
    with pytest.raises(ConfigError, match="which the store does not have; it has"):
        thin_store(plain, tmp_path / "thin.parquet", drop=("margin",))
    with pytest.raises(ConfigError, match="use some of confidence, margin, topk"):
        thin_store(store, tmp_path / "thin.parquet", drop=("digest",))


def test_an_interrupted_run_can_be_run_again(tmp_path: Path, store: LabelStore) -> None:
    class _KilledError(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == 3:
            raise _KilledError

    out = tmp_path / "thin.parquet"
    with pytest.raises(_KilledError):
        thin_store(store, out, drop=("topk",), show=kill)
    assert not (out / "_manifest.json").exists()
    thin_store(store, out, drop=("topk",))
    fewer = with_columns(confidence=True, margin=True)
    write_store(tmp_path / "start.parquet", SHARDS, ranges(VIEWS, 3), fewer)
    assert bytes_of(out) == bytes_of(tmp_path / "start.parquet")


def test_a_store_is_never_thinned_in_place(tmp_path: Path, store: LabelStore) -> None:
    before = bytes_of(tmp_path / "s.parquet")
    with pytest.raises(StoreError, match="would not be in the result"):
        thin_store(store, store.root, views=range(3))
    with pytest.raises(StoreError, match="another identity"):
        thin_store(store, store.root, drop=("topk",))
    assert bytes_of(tmp_path / "s.parquet") == before


def test_the_command_thins_and_names_errors(
    tmp_path: Path,
    store: LabelStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("thin", "s.parquet", "--out", "t.parquet", "--views", "0:6")
    assert run_cli(monkeypatch, *command, "--drop", "confidence,topk") == 0
    assert "| columns dropped | confidence, topk |" in capsys.readouterr().out
    write_store(tmp_path / "start.parquet", SHARDS, ranges(range(6), 3), with_columns(margin=True))
    assert bytes_of(tmp_path / "t.parquet") == bytes_of(tmp_path / "start.parquet")
    wrong = ("thin", "s.parquet", "--out", "u.parquet", "--views", "6")
    assert run_cli(monkeypatch, *wrong) == 1
    assert "error: --views 6: give two numbers, as 0:100" in capsys.readouterr().err
