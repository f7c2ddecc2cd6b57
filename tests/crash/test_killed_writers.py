"""Processes that write stores are killed, race and start anew; the bytes stay the same."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.records import PartRows
from pipeline.store import claim_store, commit_part, find_parts, finish_store, open_store
from pipeline.store.card import card_text
from tests.crash.conftest import in_a_small_process
from tests.storing import IDENTITY, PRINTS, bytes_of, info_of, ranges, rows_of

# Forked from a small process, for a new Python would take a second to start.
CONTEXT = multiprocessing.get_context("fork")
KILLS = 200
SHARDS = [info_of(number, samples=40) for number in range(2)]


def rows_of_views(views: range, per_part: int) -> list[PartRows]:
    return [
        rows_of(IDENTITY, shard, first, count)
        for shard in SHARDS
        for first, count in ranges(views, per_part)
    ]


def write(root: Path, parts: Sequence[PartRows]) -> None:
    """Do what a label job does, with labels that are there already."""
    claim_store(root, IDENTITY, PRINTS)
    for rows in parts:
        commit_part(root, rows)
    finish_store(root, IDENTITY, PRINTS, SHARDS, card_text)


def write_and_be_killed(root: Path, parts: Sequence[PartRows], seconds: float) -> bool:
    """Write in another process, kill it after ``seconds``; return whether it was killed."""
    child = CONTEXT.Process(target=write, args=(root, parts))
    child.start()
    child.join(seconds)
    child.kill()
    child.join()
    assert child.exitcode in (0, -9)
    return child.exitcode != 0


def test_a_store_killed_at_any_moment_holds_whole_files_and_ends_with_the_same_bytes(
    folder: Path,
) -> None:
    in_a_small_process(kill_at_any_moment, folder)


def kill_at_any_moment(folder: Path) -> None:
    early, late = rows_of_views(range(9), 3), rows_of_views(range(9, 15), 3)
    first, both = folder / "first.parquet", folder / "both.parquet"
    write(first, early)
    write_and_be_killed(folder / "warm.parquet", early, seconds=60)
    started = time.monotonic()
    assert not write_and_be_killed(both, early + late, seconds=60)
    duration = time.monotonic() - started  # of a process, which takes a while to start
    expected, before = bytes_of(both), bytes_of(first)
    random = np.random.default_rng(8)
    root, kills, rounds = folder / "s.parquet", 0, 0
    while kills < KILLS:
        shutil.rmtree(root, ignore_errors=True)
        rounds += 1
        if rounds % 2:  # a finished store, to which views are added
            write(root, early)
        while write_and_be_killed(root, early + late, float(random.uniform(0, 1.2 * duration))):
            kills += 1
            for part in find_parts(root):
                assert (root / part.path).read_bytes() == expected[part.path]
            manifest = root / "_manifest.json"
            if manifest.exists():
                there = manifest.read_bytes()
                assert there in (before["_manifest.json"], expected["_manifest.json"])
                store = open_store(root)
                for entry in store.manifest.parts:
                    store.read_part(entry)
        assert bytes_of(root) == expected
    assert rounds > 1


def _race(root: Path, rows: Sequence[PartRows], barrier: object, log: Path) -> None:
    won = []
    for part in rows:
        barrier.wait()  # type: ignore[attr-defined]
        try:
            commit_part(root, part)
        except StoreError:
            won.append("lost")
        else:
            won.append("won")
    log.write_text(" ".join(won))


@pytest.mark.parametrize("same", [True, False], ids=["same-rows", "other-rows"])
def test_of_writers_that_race_for_a_part_one_wins_and_the_others_know(
    folder: Path, same: bool
) -> None:
    writers, parts = 3, 25
    root = folder / "s.parquet"
    shard = info_of(0, samples=200)
    rows = [rows_of(IDENTITY, shard, view, 1) for view in range(parts)]
    versions = [
        [one if same else replace(one, label=(one.label + n).astype(np.uint16)) for one in rows]
        for n in range(writers)
    ]
    barrier = CONTEXT.Barrier(writers)
    logs = [folder / f"{n}.log" for n in range(writers)]
    racers = [
        CONTEXT.Process(target=_race, args=(root, version, barrier, log))
        for version, log in zip(versions, logs, strict=True)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    results = [log.read_text().split() for log in logs]
    for number, part in enumerate(find_parts(root)):
        ends = [result[number] for result in results]
        assert ends.count("won") == (writers if same else 1)
        winner = versions[ends.index("won")][number]
        commit_part(folder / "alone.parquet", winner)
        there = (root / part.path).read_bytes()
        assert there == (folder / "alone.parquet" / part.path).read_bytes()
        shutil.rmtree(folder / "alone.parquet")
    assert len(find_parts(root)) == parts
    assert not [path for path in root.rglob(".*") if path.is_file()]
