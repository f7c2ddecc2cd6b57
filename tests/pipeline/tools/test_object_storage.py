from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.store import LabelStore, claim_store, commit_part, finish_store, open_store
from pipeline.store.card import card_text
from pipeline.tools import merge_stores, store_stats, thin_store
from tests.object_storage import S3Server
from tests.storing import IDENTITY, PRINTS, bytes_of, info_of, ranges, rows_of, write_store

SHARDS = [info_of(0), info_of(1)]
CUT = ranges(range(6), 2)


def write_remote(url: str, views: list[tuple[int, int]]) -> LabelStore:
    claim_store(url, IDENTITY, PRINTS)
    for shard in SHARDS:
        for first, count in views:
            commit_part(url, rows_of(IDENTITY, shard, first, count))
    finish_store(url, IDENTITY, PRINTS, SHARDS, card_text)
    return open_store(url)


def promised(s3: S3Server, url: str) -> dict[str, bytes]:
    objects = s3.objects(url)
    return {path: data for path, data in objects.items() if not path.startswith("_meta/runs/")}


def test_stores_in_object_storage_merge_and_thin_into_the_local_bytes(
    s3: S3Server, tmp_path: Path
) -> None:
    bucket = s3.make_bucket()
    whole = write_store(tmp_path / "whole.parquet", SHARDS, CUT)
    halves = [
        write_remote(f"{bucket}/early.parquet", CUT[:1]),
        write_remote(f"{bucket}/late.parquet", CUT[1:]),
    ]
    s3.requests.clear()
    merge_stores(halves, f"{bucket}/merged.parquet")
    assert promised(s3, f"{bucket}/merged.parquet") == bytes_of(tmp_path / "whole.parquet")
    for half, store in zip(("early", "late"), halves, strict=True):
        for entry in store.manifest.parts:
            assert s3.asked("GET", f"{half}.parquet/{entry.part.path}") == 1
    merged = open_store(f"{bucket}/merged.parquet")
    assert replace(store_stats(merged), store="") == replace(store_stats(whole), store="")
    thin_store(merged, f"{bucket}/thin.parquet", views=range(3))
    write_store(tmp_path / "start.parquet", SHARDS, [(0, 2), (2, 1)])
    assert promised(s3, f"{bucket}/thin.parquet") == bytes_of(tmp_path / "start.parquet")
