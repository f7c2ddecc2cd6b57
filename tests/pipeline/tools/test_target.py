"""What holds of every tool that writes a store from others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.store import LabelStore, commit_part, open_store
from pipeline.tools import merge_stores, relabelled_store, thin_store
from pipeline.tools.target import ShowProgress
from tests.storing import IDENTITY, bytes_of, info_of, ranges, rows_of, write_store

SHARDS = [info_of(0), info_of(1)]
CUT = ranges(range(8), 3)


def merge(stores: list[LabelStore], out: Path, show: ShowProgress) -> None:
    merge_stores(stores, out, show)


def thin(stores: list[LabelStore], out: Path, show: ShowProgress) -> None:
    thin_store(stores[1], out, views=range(3, 7), show=show)


def derive(stores: list[LabelStore], out: Path, show: ShowProgress) -> None:
    relabelled_store(stores[1], stores[0], out, note="others", show=show)


Tool = Callable[[list[LabelStore], Path, ShowProgress], None]
TOOLS = pytest.mark.parametrize("tool", [merge, thin, derive])


@pytest.fixture
def stores(tmp_path: Path) -> list[LabelStore]:
    return [
        write_store(tmp_path / "a.parquet", SHARDS, CUT[:1]),
        write_store(tmp_path / "b.parquet", SHARDS, CUT[1:]),
    ]


def at_the_end(do: Callable[[], object]) -> ShowProgress:
    def show(done: int, total: int) -> None:
        if done == total:
            do()

    return show


@TOOLS
def test_a_part_that_vanishes_before_the_end_leaves_no_store_and_can_be_written_again(
    tmp_path: Path, stores: list[LabelStore], tool: Tool
) -> None:
    out = tmp_path / "out.parquet"
    lose = at_the_end(lambda: max(out.glob("shard=1/*.parquet")).unlink())
    with pytest.raises(IncompleteStoreError, match=r"lacks 1 of the parts.*: shard 1, views"):
        tool(stores, out, lose)
    with pytest.raises(IncompleteStoreError, match="unfinished"):
        open_store(out)
    tool(stores, out, lambda done, total: None)
    tool(stores, tmp_path / "whole.parquet", lambda done, total: None)
    assert bytes_of(out) == bytes_of(tmp_path / "whole.parquet")


@TOOLS
def test_a_part_that_another_adds_before_the_end_is_refused(
    tmp_path: Path, stores: list[LabelStore], tool: Tool
) -> None:
    out = tmp_path / "out.parquet"
    add = at_the_end(lambda: commit_part(out, rows_of(IDENTITY, SHARDS[0], 20, 2)))
    with pytest.raises(StoreError, match="holds 1 parts that would not be in the result"):
        tool(stores, out, add)
    assert not (out / "_manifest.json").exists()
