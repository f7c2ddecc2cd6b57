"""Whoever writes a store is killed before each of its steps on the disk, one after the other."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.store import claim_store, commit_part, find_parts, finish_store, open_store
from pipeline.store.card import card_text
from pipeline.tools import merge_stores, thin_store
from tests.crash.conftest import in_a_small_process
from tests.storing import ALL_COLUMNS, PRINTS, bytes_of, info_of, ranges, rows_of, write_store

CONTEXT = multiprocessing.get_context("fork")  # of a small process
STEPS = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}
SHARDS = [info_of(0)]
CUT = ranges(range(4), 2)


def label(root: Path) -> None:
    """Do what a label job does, with labels that are there already."""
    claim_store(root, ALL_COLUMNS, PRINTS)
    for shard in SHARDS:
        for first, count in CUT:
            commit_part(root, rows_of(ALL_COLUMNS, shard, first, count))
    finish_store(root, ALL_COLUMNS, PRINTS, SHARDS, card_text)


def merge(root: Path) -> None:
    halves = [open_store(root.parent / f"{name}.parquet") for name in ("early", "late")]
    merge_stores(halves, root)


def thin(root: Path) -> None:
    thin_store(open_store(root.parent / "long.parquet"), root, views=range(4))


def die_before(step: int, root: Path, write: Callable[[Path], None]) -> None:
    """Write, and kill this very process before its step number ``step`` below ``root``."""
    seen = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in STEPS and any(str(one).startswith(str(root)) for one in arguments):
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(watch)
    write(root)


def killed_before(step: int, root: Path, write: Callable[[Path], None]) -> bool:
    child = CONTEXT.Process(target=die_before, args=(step, root, write))
    child.start()
    child.join(60)
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


@pytest.mark.parametrize(
    ("write", "added_to"),
    [(label, True), (merge, False), (thin, False)],
    ids=["extend", "merge", "thin"],
)
def test_a_writer_killed_before_any_step_leaves_a_store_that_another_run_completes(
    folder: Path, write: Callable[[Path], None], added_to: bool
) -> None:
    in_a_small_process(kill_before_each_step, folder, write, added_to)


def kill_before_each_step(folder: Path, write: Callable[[Path], None], added_to: bool) -> None:
    for name, cut in (("early", CUT[:1]), ("late", CUT[1:]), ("long", ranges(range(7), 2))):
        write_store(folder / f"{name}.parquet", SHARDS, cut, ALL_COLUMNS)
    expected = bytes_of(_written(folder / "whole.parquet", label))
    before = bytes_of(folder / "early.parquet")
    root, step = folder / "s.parquet", 0
    while True:
        shutil.rmtree(root, ignore_errors=True)
        if added_to:
            shutil.copytree(folder / "early.parquet", root)
        if not killed_before(step, root, write):
            break
        for part in find_parts(root):
            assert (root / part.path).read_bytes() == expected[part.path]
        if (root / "_manifest.json").exists():
            manifest = (root / "_manifest.json").read_bytes()
            known = (before["_manifest.json"], expected["_manifest.json"])
            assert manifest in known[0 if added_to else 1 :]
            store = open_store(root)
            for entry in store.manifest.parts:
                store.read_part(entry)
        assert bytes_of(_written(root, write)) == expected
        step += 1
    assert step > 15
    assert bytes_of(root) == expected


def _written(root: Path, write: Callable[[Path], None]) -> Path:
    write(root)
    return root
