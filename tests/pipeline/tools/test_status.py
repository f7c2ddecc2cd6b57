from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.store import at_work, claim_store, commit_part, export_store, finish_store
from pipeline.store.card import card_text
from pipeline.tools import store_status
from tests.object_storage import S3Server
from tests.pipeline.store.test_at_work import ME as ELSEWHERE
from tests.pipeline.store.test_at_work import PROGRESS, tell, wait_for_words
from tests.storing import IDENTITY, PRINTS, info_of, rows_of

SHARDS = [info_of(0), info_of(1)]


def commit(root: Path, *parts: tuple[int, int]) -> None:
    claim_store(root, IDENTITY, PRINTS)
    for shard, first in parts:
        commit_part(root, rows_of(IDENTITY, SHARDS[shard], first, 2))


def test_a_store_that_is_labelled_tells_how_far_it_is(tmp_path: Path) -> None:
    root = tmp_path / "s.parquet"
    commit(root, (0, 0), (0, 2), (1, 0))
    progress = dataclasses.replace(PROGRESS, parts_done=2, labels_done=980, seconds=9.8)
    with at_work(root, progress):
        wait_for_words(root, 1)
        tell(
            root,
            dataclasses.replace(ELSEWHERE, seen=time.time(), progress=progress),
            "at-work-1.json",
        )
        status = store_status(str(root))
    assert status.state == "labelling"
    assert (status.parts, status.parts_wanted) == (3, 12)
    assert len(status.workers) == 2
    assert status.labels_per_second == pytest.approx(200)  # of both
    assert status.seconds_left == pytest.approx(9 * 3920 / 8 / 200)
    assert (status.rejected, status.samples) == (1, 98)
    text = status.to_markdown()
    assert "parts: 3 of 12 (25.0%)" in text
    assert "at work: process 7 on elsewhere, 980 of 3920 labels" in text
    json.dumps(status.to_json())


def test_what_an_ended_job_has_told_stays_known(tmp_path: Path) -> None:
    root = tmp_path / "s.parquet"
    commit(root, (0, 0))
    assert store_status(str(root)).parts_wanted is None  # nobody has told anything
    tell(root, ELSEWHERE)  # long ago
    status = store_status(str(root))
    assert (status.state, status.parts, status.parts_wanted) == ("unfinished", 1, 12)
    assert status.seconds_left is None
    assert "nobody is at work" in status.to_markdown()


def test_a_finished_store_is_finished_until_more_is_added(tmp_path: Path) -> None:
    root = tmp_path / "s.parquet"
    commit(root, (0, 0), (1, 0))
    tell(root, dataclasses.replace(ELSEWHERE, progress=dataclasses.replace(PROGRESS, parts=2)))
    finish_store(root, IDENTITY, PRINTS, SHARDS, card_text)
    status = store_status(str(root))
    assert (status.state, status.parts, status.parts_wanted) == ("finished", 2, 2)
    for name in ("s.zarr", "one/s.parquet"):
        (tmp_path / "one").mkdir(exist_ok=True)
        export_store(root, tmp_path / name, single_file=name.startswith("one"))
        assert store_status(str(tmp_path / name)).labels == status.labels
    commit(root, (0, 2))
    assert store_status(str(root)).state == "unfinished"


def test_a_job_that_was_killed_before_it_added_a_part_leaves_a_store_unfinished(
    tmp_path: Path,
) -> None:
    root = tmp_path / "s.parquet"
    commit(root, (0, 0), (1, 0))
    finish_store(root, IDENTITY, PRINTS, SHARDS, card_text)
    tell(root, ELSEWHERE)  # who wants twelve
    status = store_status(str(root))
    assert (status.state, status.parts, status.parts_wanted) == ("unfinished", 2, 12)


def test_a_store_in_object_storage_is_seen_by_its_url(s3: S3Server) -> None:
    root = f"{s3.make_bucket()}/s.parquet"
    claim_store(root, IDENTITY, PRINTS)
    commit_part(root, rows_of(IDENTITY, SHARDS[0], 0, 2))
    with at_work(root, PROGRESS):
        wait_for_words(root, 1)
        status = store_status(root)
    assert (status.state, status.parts, status.parts_wanted) == ("labelling", 1, 12)
    assert store_status(root).state == "unfinished"


def test_no_store_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store; give the `out`"):
        store_status(str(tmp_path / "s.parquet"))
