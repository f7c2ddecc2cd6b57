from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ChecksumError
from pipeline.records import PartRows
from pipeline.tools import store_stats
from pipeline.tools.stats import label_entropies
from tests.pipeline.store.test_card import run_cli
from tests.storing import CLASSES, IDENTITY, info_of, ranges, rows_of, write_store

SHARDS = [info_of(0), info_of(1, samples=9)]
VIEWS = range(8)


def plain_rows() -> list[tuple[str, int, int, int]]:
    """Return (key, view, target, label) of all rows of a store of SHARDS and VIEWS."""
    return [
        (key, view, target, int(rows.label[row, view]))
        for rows in (rows_of(IDENTITY, shard, 0, len(VIEWS)) for shard in SHARDS)
        for row, (key, target) in enumerate(zip(rows.keys, rows.target.tolist(), strict=True))
        for view in VIEWS
    ]


def plain_entropy(labels: list[int]) -> float:
    shares = [count / len(labels) for count in Counter(labels).values()]
    return -sum(one * math.log2(one) for one in shares)


def test_stats_count_as_a_plain_loop_does(tmp_path: Path) -> None:
    stats = store_stats(write_store(tmp_path / "s.parquet", SHARDS, ranges(VIEWS, 3)))
    rows = plain_rows()
    assert stats.labels == len(rows)
    assert {one.number: one.labels for one in stats.classes} == Counter(row[3] for row in rows)
    known = [row for row in rows if row[2] != -1]
    assert (stats.truth.known, stats.truth.equal) == (
        len(known),
        sum(row[2] == row[3] for row in known),
    )
    for one in stats.classes:
        of_class = [row for row in known if row[2] == one.number]
        assert one.truth.known == len(of_class)
        assert one.truth.equal == sum(row[3] == one.number for row in of_class)
    for view in stats.views:
        at_view = [row for row in known if row[1] == view.view]
        assert view.truth.known == len(at_view)
        assert view.truth.equal == sum(row[2] == row[3] for row in at_view)
        assert view.labels == sum(row[1] == view.view for row in rows)
    assert [view.view for view in stats.views] == list(VIEWS)


def test_entropies_are_those_of_each_samples_labels_over_its_views(tmp_path: Path) -> None:
    stats = store_stats(write_store(tmp_path / "s.parquet", SHARDS, ranges(VIEWS, 3)))
    by_key: dict[str, list[int]] = {}
    for key, _, _, label in plain_rows():
        by_key.setdefault(key, []).append(label)
    bits = [plain_entropy(labels) for labels in by_key.values()]
    assert stats.entropy.samples == len(bits) == 14
    assert stats.entropy.mean == pytest.approx(sum(bits) / len(bits), rel=1e-12)
    assert (
        list(stats.entropy.histogram)
        == np.bincount([math.floor(one / 0.5 + 1e-9) for one in bits]).tolist()
    )


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=6))
def test_fast_entropies_equal_the_plain_ones(labels: list[list[int]]) -> None:
    expected = [plain_entropy(row) for row in labels]
    # Sums in another order: the last bits may differ.
    np.testing.assert_allclose(label_entropies(np.array(labels, np.uint16)), expected, atol=1e-12)


def test_stats_do_not_depend_on_how_views_are_cut_into_parts(tmp_path: Path) -> None:
    one = store_stats(write_store(tmp_path / "s.parquet", SHARDS, ranges(VIEWS, 3)))
    other = store_stats(write_store(tmp_path / "t.parquet", SHARDS, ranges(VIEWS, 8)))
    assert replace(one, store="") == replace(other, store="")


def test_agreement_is_unknown_where_no_true_class_is_known(tmp_path: Path) -> None:
    def forget(rows: PartRows) -> PartRows:
        return replace(rows, target=np.full_like(rows.target, -1))

    store = write_store(tmp_path / "s.parquet", SHARDS, [(0, 4)], change=forget)
    stats = store_stats(store)
    assert (stats.truth.known, stats.truth.equal) == (0, 0)
    assert len(stats.classes) == CLASSES
    assert "| agreement with the true class | - (0 of 0) |" in stats.to_markdown()


def test_a_damaged_part_is_not_counted(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.parquet", SHARDS, [(0, 4)])
    path = tmp_path / "s.parquet" / store.manifest.parts[1].part.path
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ChecksumError, match="the manifest says"):
        store_stats(store)


def test_the_command_prints_what_the_function_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_store(tmp_path / "s.parquet", SHARDS, [(0, 4)])
    assert run_cli(monkeypatch, "stats", store.root) == 0
    assert capsys.readouterr().out == store_stats(store).to_markdown()
    assert run_cli(monkeypatch, "stats", store.root, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(store_stats(store).to_json()))
