from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ChecksumError, PipelineError, StoreError
from pipeline.files.local import LocalFolder
from pipeline.store import (
    claim_store,
    commit_part,
    find_parts,
    finish_store,
    open_store,
)
from pipeline.store.card import card_text
from pipeline.tools import repair_store
from tests.storing import ALL_COLUMNS, PRINTS, bytes_of, info_of, rows_of

SHARDS = [info_of(0), info_of(1)]


def commit(root: Path, shard: int, *ranges: tuple[int, int]) -> None:
    claim_store(root, ALL_COLUMNS, PRINTS)
    for first, end in ranges:
        commit_part(root, rows_of(ALL_COLUMNS, SHARDS[shard], first, end - first))


def finish(root: Path) -> None:
    finish_store(root, ALL_COLUMNS, PRINTS, SHARDS, card_text)


def views(root: Path, shard: int) -> list[tuple[int, int]]:
    return [(one.first_view, one.end_view) for one in find_parts(root) if one.shard == shard]


def test_of_parts_that_overlap_those_stay_that_have_the_most_views(tmp_path: Path) -> None:
    root = tmp_path / "s.parquet"
    commit(root, 0, (0, 6), (6, 12), (0, 4), (4, 8), (8, 12), (12, 14))
    commit(root, 1, (0, 4), (4, 8), (6, 12))
    with pytest.raises(StoreError, match="overlap"):
        finish(root)
    report = repair_store(str(root))
    assert views(root, 0) == [(0, 6), (6, 12), (12, 14)]
    assert views(root, 1) == [(0, 4), (6, 12)]
    assert report.missing == "shard 1, views 4..5"
    assert "1 views" not in report.to_markdown()
    commit(root, 1, (4, 6), (12, 14))  # what a label job would do now
    finish(root)
    assert open_store(root).manifest.view_range == range(14)
    before = bytes_of(root)
    assert repair_store(str(root)).removed == ()
    assert bytes_of(root) == before


def test_parts_that_a_manifest_lists_stay_and_damaged_ones_go(tmp_path: Path) -> None:
    root = tmp_path / "s.parquet"
    for shard in (0, 1):
        commit(root, shard, (0, 2), (2, 4))
    finish(root)
    commit(root, 0, (0, 4))
    commit(root, 1, (4, 8), (6, 12))
    damaged = root / "shard=1/view-00006-00012.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert repair_store(str(root)).removed == (
        "shard=0/view-00000-00004.parquet",
        "shard=1/view-00006-00012.parquet",
    )
    assert views(root, 0) == [(0, 2), (2, 4)]
    assert views(root, 1) == [(0, 2), (2, 4), (4, 8)]


def test_what_cannot_be_read_now_or_is_listed_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "s.parquet"
    for shard in (0, 1):
        commit(root, shard, (0, 4))
    finish(root)
    commit(root, 1, (2, 6), (4, 8))
    before = bytes_of(root)
    read = LocalFolder.read_bytes

    def fails(folder: LocalFolder, path: str, *sizes: int) -> bytes:
        if path.endswith("00004-00008.parquet"):
            raise PipelineError(f"{path} cannot be read (Input/output error); check the disk")
        return read(folder, path, *sizes)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "read_bytes", fails)
        with pytest.raises(PipelineError, match="Input/output error"):
            repair_store(str(root))
    assert bytes_of(root) == before
    listed = root / "shard=1/view-00000-00004.parquet"
    listed.write_bytes(listed.read_bytes()[:-100])
    damaged = bytes_of(root)
    with pytest.raises(ChecksumError, match=r"view-00000-00004\.parquet is damaged"):
        repair_store(str(root))
    assert bytes_of(root) == damaged


def test_parts_that_disagree_are_left_to_the_user(tmp_path: Path) -> None:
    root = tmp_path / "s.parquet"
    commit(root, 0, (0, 4))
    other = rows_of(ALL_COLUMNS, SHARDS[0], 2, 4)
    label = np.array(other.label)
    label[0, 0] ^= 1
    object.__setattr__(other, "label", label)
    commit_part(root, other)
    with pytest.raises(StoreError, match="overlap, and have other labels for the same views"):
        repair_store(str(root))
    assert views(root, 0) == [(0, 4), (2, 6)]


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no store of parts"):
        repair_store(str(tmp_path / "none.parquet"))
