"""Receipts spare reading parts, and are believed no further than that."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ChecksumError, IncompleteStoreError, StoreError
from pipeline.files.local import LocalFolder
from pipeline.records import PartKey
from pipeline.store import (
    Committed,
    Manifest,
    Receipts,
    claim_store,
    commit_part,
    committed_parts,
    finish_store,
    read_entries,
    read_receipts,
    receipts,
)
from pipeline.store.card import card_text
from pipeline.store.manifest import seal, unseal
from pipeline.store.receipts import RECEIPTS_PATH
from tests.storing import ALL_COLUMNS, OTHER_TEACHER, PRINTS, info_of, rows_of

DIGEST = ALL_COLUMNS.digest
SHARDS = [info_of(0), info_of(1)]
INFOS = {one.number: one for one in SHARDS}
REJECTED = {"index": 1, "key": "a", "reason": "truncated"}
PLANNED = [PartKey(shard=s, first_view=v, views=3) for s in (0, 1) for v in (0, 3, 6)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store whose parts all have receipts, and no manifest yet."""
    place = tmp_path / "x.parquet"
    claim_store(place, ALL_COLUMNS, PRINTS)
    noted = Receipts(place, DIGEST, SHARDS)
    for part in PLANNED:
        rows = rows_of(ALL_COLUMNS, INFOS[part.shard], part.first_view, part.views)
        noted.add(commit_part(place, rows))
    noted.close()
    return place


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that are read."""
    found: list[str] = []
    whole = LocalFolder.read_bytes

    def noting(self: LocalFolder, path: str, at_most: int = 1 << 32) -> bytes:
        found.extend([path] if path.startswith("shard=") else [])
        return whole(self, path, at_most)

    monkeypatch.setattr(LocalFolder, "read_bytes", noting)
    return found


def finish(root: Path, known: Sequence[Committed]) -> Manifest:
    return finish_store(root, ALL_COLUMNS, PRINTS, SHARDS, card_text, PLANNED, known=known)


def receipts_file(root: Path) -> Path:
    (found,) = (root / "_meta" / ".jobs").glob("receipts-*.json")
    return found


def change(root: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    path = receipts_file(root)
    values = unseal(path.read_bytes(), str(path))
    how(values)
    path.write_bytes(seal(values))


def test_receipts_say_of_parts_what_their_files_say_and_no_part_is_read(
    root: Path, read: list[str]
) -> None:
    by_files = read_entries(root, PLANNED, DIGEST, INFOS)
    assert len(read) == len(PLANNED)
    read.clear()
    assert committed_parts(root, ALL_COLUMNS, INFOS) == by_files
    ours = finish(root, read_receipts(root, DIGEST, INFOS))
    assert read == []
    assert ours == finish(root, [])
    assert len(read) == len(PLANNED)


def test_a_part_without_a_receipt_or_of_another_size_is_read(root: Path, read: list[str]) -> None:
    more = PartKey(shard=0, first_view=9, views=3)
    commit_part(root, rows_of(ALL_COLUMNS, SHARDS[0], 9, 3))
    assert more in [one.entry.part for one in committed_parts(root, ALL_COLUMNS, INFOS)]
    assert read == [more.path]
    with (root / PLANNED[0].path).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ChecksumError, match=r"shard=0/view-00000-00003\.parquet is damaged"):
        committed_parts(root, ALL_COLUMNS, INFOS)


def test_a_part_that_is_gone_is_not_believed_to_be_there(root: Path) -> None:
    (root / PLANNED[2].path).unlink()
    there = [one.entry.part for one in committed_parts(root, ALL_COLUMNS, INFOS)]
    assert there == [part for part in PLANNED if part != PLANNED[2]]
    with pytest.raises(IncompleteStoreError, match=r"shard 0, views 6\.\.8"):
        finish(root, read_receipts(root, DIGEST, INFOS))
    assert not (root / "_manifest.json").exists()


def test_a_part_with_two_receipts_that_differ_is_read(root: Path, read: list[str]) -> None:
    (one, *_) = [one for one in read_receipts(root, DIGEST, INFOS) if one.entry.part == PLANNED[0]]
    noted = Receipts(root, DIGEST, SHARDS)
    noted.add(replace(one, entry=replace(one.entry, sha256="0" * 64)))
    noted.close()
    assert finish(root, read_receipts(root, DIGEST, INFOS)) == finish(root, [])
    assert read.count(PLANNED[0].path) == 2  # and the others once, without receipts


def test_receipts_of_another_store_or_other_shards_are_not_believed(root: Path) -> None:
    assert len(read_receipts(root, DIGEST, INFOS)) == len(PLANNED)
    assert len(read_receipts(root, OTHER_TEACHER.digest, INFOS)) == 0
    packed_again = {**INFOS, 1: replace(SHARDS[1], content_hash="0" * 64)}
    found = read_receipts(root, DIGEST, packed_again)
    assert {one.entry.part.shard for one in found} == {0}
    found = read_receipts(root, DIGEST, {1: SHARDS[1]})
    assert {one.entry.part.shard for one in found} == {1}


def with_number(row: int, number: int) -> Callable[[dict[str, Any]], None]:
    """Return a change of one number of the first part: its shard, first view, views, bytes ..."""

    def change_it(values: dict[str, Any]) -> None:
        numbers = np.frombuffer(b64decode(values["parts"]), "<i8").reshape(7, -1).copy()
        numbers[row, 0] = number
        values["parts"] = b64encode(numbers.tobytes()).decode()

    return change_it


@pytest.mark.parametrize(
    "how",
    [
        with_number(0, 5),  # a shard of which nothing is said
        with_number(2, 0),
        with_number(2, -3),
        with_number(4, 22),  # rows
        with_number(5, -1),
        with_number(6, 1 << 40),
        lambda values: values.update({"parts": values["parts"][4:]}),
        lambda values: values.update({"parts": [1, 2]}),
        lambda values: values.pop("parts"),
        lambda values: values.update({"sha256": values["sha256"][44:]}),
        lambda values: values.update({"sha256": "?" + values["sha256"][1:]}),
        lambda values: values.update({"shards": values["shards"][:12] * 2}),
        lambda values: values.update({"formats": 5}),
        lambda values: values.update({"formats": [[5], [5]]}),
        lambda values: values["formats"].pop(),
        lambda values: values["omitted"].update({"0": "zzz"}),
        lambda values: values["rejections"].update({"0": [{"index": 99, "key": "a"}]}),
        lambda values: values["rejections"].update({"0": [dict(REJECTED, index=99)]}),
        lambda values: values["rejections"].update({"0": [dict(REJECTED, index=-1)]}),
        lambda values: values["rejections"].update({"0": [REJECTED, REJECTED]}),
    ],
)
def test_receipts_that_are_malformed_are_as_good_as_none(
    root: Path, how: Callable[[dict[str, Any]], Any], caplog: pytest.LogCaptureFixture
) -> None:
    change(root, how)
    assert len(read_receipts(root, DIGEST, INFOS)) == 0
    assert "its parts are read instead" in caplog.text
    assert len(committed_parts(root, ALL_COLUMNS, INFOS)) == len(PLANNED)


def test_a_flipped_bit_in_receipts_is_found(root: Path) -> None:
    path = receipts_file(root)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert len(read_receipts(root, DIGEST, INFOS)) == 0


def test_receipts_that_are_too_large_are_not_read_and_are_written_in_two(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = read_receipts(root, DIGEST, INFOS)
    size = receipts_file(root).stat().st_size
    monkeypatch.setattr(receipts, "MAX_RECEIPTS_BYTES", size - 1)
    assert len(read_receipts(root, DIGEST, INFOS)) == 0
    assert f"such a file has at most {size - 1}" in caplog.text
    receipts_file(root).unlink()
    with closing(Receipts(root, DIGEST, SHARDS)) as again:
        for one in known:
            again.add(one)
    assert len(list((root / "_meta" / ".jobs").glob("receipts-*.json"))) == 2
    assert read_receipts(root, DIGEST, INFOS).in_order() == known


def test_parts_that_contradict_each_other_about_a_shard_are_both_noted(root: Path) -> None:
    first, second, *_ = read_receipts(root, DIGEST, INFOS)
    assert first.entry.part.shard == second.entry.part.shard
    receipts_file(root).unlink()
    other = replace(second, images=replace(second.images, hash="0" * 64))
    with closing(Receipts(root, DIGEST, SHARDS)) as again:
        again.add(first)
        again.add(other)
    assert list(read_receipts(root, DIGEST, INFOS).in_order()) == [first, other]
    with pytest.raises(StoreError, match="were labelled from different image bytes of one shard"):
        finish(root, read_receipts(root, DIGEST, INFOS))


def test_files_of_receipts_grow_with_their_number(tmp_path: Path) -> None:
    place = tmp_path / "x.parquet"
    claim_store(place, ALL_COLUMNS, PRINTS)
    one = commit_part(place, rows_of(ALL_COLUMNS, SHARDS[0], 0, 3))
    noted = Receipts(place, DIGEST, SHARDS)
    for number in range(20_000):
        part = PartKey(shard=0, first_view=3 * number, views=3)
        noted.add(replace(one, entry=replace(one.entry, part=part)))
    noted.close()
    assert len(list((place / "_meta" / ".jobs").iterdir())) < 200
    assert len(read_receipts(place, DIGEST, INFOS)) == 20_000
    assert RECEIPTS_PATH.startswith("_meta/.")  # copies leave it out
