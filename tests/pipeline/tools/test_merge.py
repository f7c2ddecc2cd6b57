from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import (
    ChecksumError,
    ConfigError,
    IdentityError,
    IncompleteStoreError,
    RejectionError,
    StoreError,
)
from pipeline.records import PartRows
from pipeline.store import LabelStore, claim_store, finish_store, open_store
from pipeline.store.card import card_text
from pipeline.store.manifest import write_manifest
from pipeline.tools import merge as merging
from pipeline.tools import merge_stores
from tests.labelling import digit_shard, write_hash_store
from tests.pipeline.store.test_card import run_cli
from tests.storing import (
    ALL_COLUMNS,
    CLASSES,
    IDENTITY,
    OTHER_TEACHER,
    PRINTS,
    bytes_of,
    info_of,
    ranges,
    write_store,
    written_anew,
)

SHARDS = [info_of(number) for number in range(4)]
CUT = ranges(range(8), 3)


@pytest.fixture
def whole(tmp_path: Path) -> LabelStore:
    return write_store(tmp_path / "whole.parquet", SHARDS, CUT)


def assert_whole(merged: Path, whole: LabelStore) -> None:
    ours, theirs = bytes_of(merged), bytes_of(Path(whole.root.name))
    assert ours.keys() == theirs.keys()
    for name, data in theirs.items():
        assert ours[name] == data, name


@pytest.mark.parametrize("columns", [IDENTITY, ALL_COLUMNS], ids=["labels", "all-columns"])
def test_halves_of_views_merge_into_the_bytes_of_the_whole(tmp_path: Path, columns: object) -> None:
    whole = write_store(tmp_path / "whole.parquet", SHARDS, CUT, columns)
    early = write_store(tmp_path / "a.parquet", SHARDS, CUT[:1], columns)
    late = write_store(tmp_path / "b.parquet", SHARDS, CUT[1:], columns)
    merge_stores([late, early], tmp_path / "c.parquet")
    assert_whole(tmp_path / "c.parquet", whole)


def test_halves_of_shards_merge_into_the_bytes_of_the_whole(
    tmp_path: Path, whole: LabelStore
) -> None:
    first = write_store(tmp_path / "a.parquet", SHARDS[:1], CUT)
    rest = write_store(tmp_path / "b.parquet", SHARDS[1:], CUT)
    merge_stores([rest, first], tmp_path / "c.parquet")
    assert_whole(tmp_path / "c.parquet", whole)


def test_halves_that_both_count_from_0_merge_into_the_whole_in_their_order(
    tmp_path: Path, whole: LabelStore
) -> None:
    first = write_store(tmp_path / "a.parquet", SHARDS[:2], CUT)
    rest = [info_of(2, 0), info_of(3, 1)]
    second = write_store(tmp_path / "b.parquet", rest, CUT)
    report = merge_stores([first, second], tmp_path / "c.parquet")
    assert_whole(tmp_path / "c.parquet", whole)
    name = second.root.name
    assert report.renumbered == (f"{name}, s-2.tar: 0 to 2", f"{name}, s-3.tar: 1 to 3")


def test_stores_of_real_shards_and_hashed_pixels_merge_into_the_whole(tmp_path: Path) -> None:
    paths = [digit_shard(tmp_path / f"{n}.tar", 9, first=9 * n, broken=(n,)) for n in range(2)]
    whole = write_hash_store(tmp_path / "whole.parquet", paths, views=4, per_part=2)
    halves = [
        write_hash_store(tmp_path / f"half-{n}.parquet", [path], views=4, per_part=2)
        for n, path in enumerate(paths)
    ]
    merge_stores(halves, tmp_path / "c.parquet")
    merged = open_store(tmp_path / "c.parquet")
    assert replace(merged.manifest, card="") == replace(whole.manifest, card="")
    for entry in whole.manifest.parts:
        assert merged.read_file(entry) == whole.read_file(entry)


@pytest.mark.parametrize("done", range(0, 13, 3))
def test_an_interrupted_merge_has_no_manifest_and_can_be_run_again(
    tmp_path: Path, whole: LabelStore, done: int
) -> None:
    halves = [
        write_store(tmp_path / "a.parquet", SHARDS, CUT[:1]),
        write_store(tmp_path / "b.parquet", SHARDS, CUT[1:]),
    ]

    class _KilledError(Exception):
        pass

    def kill(parts: int, total: int) -> None:
        assert total == 12
        if parts > done:
            raise _KilledError

    out = tmp_path / "c.parquet"
    if done < 12:
        with pytest.raises(_KilledError):
            merge_stores(halves, out, kill)
        with pytest.raises(IncompleteStoreError, match="unfinished store"):
            open_store(out)
    merge_stores(halves, out)
    assert_whole(out, whole)
    merge_stores(halves, out)  # and once more, though it is done
    assert_whole(out, whole)


def test_a_part_that_both_have_is_taken_once(tmp_path: Path, whole: LabelStore) -> None:
    early = write_store(tmp_path / "a.parquet", SHARDS, CUT[:2])
    late = write_store(tmp_path / "b.parquet", SHARDS[1:], CUT[1:])
    last = write_store(tmp_path / "d.parquet", SHARDS, CUT[2:])
    merge_stores([early, late, last], tmp_path / "c.parquet")
    assert_whole(tmp_path / "c.parquet", whole)


def test_the_same_rows_in_other_bytes_are_the_same_part(tmp_path: Path, whole: LabelStore) -> None:
    """Another release of PyArrow may write other bytes; the first store's stand."""
    other = tmp_path / "other.parquet"
    write_store(other, SHARDS, CUT)
    for path in other.glob("shard=*/*.parquet"):
        path.write_bytes(written_anew(path.read_bytes()))
    finish_store(other, IDENTITY, PRINTS, SHARDS, card_text)
    merge_stores([whole, open_store(other)], tmp_path / "c.parquet")
    assert_whole(tmp_path / "c.parquet", whole)
    merge_stores([open_store(other), whole], tmp_path / "d.parquet")
    part = whole.manifest.parts[0].part.path
    assert (tmp_path / "d.parquet" / part).read_bytes() == (other / part).read_bytes()


def refused(
    tmp_path: Path, stores: Sequence[LabelStore], error: type[StoreError], message: str
) -> None:
    """Demand an error before anything is written."""
    with pytest.raises(error, match=message):
        merge_stores(stores, tmp_path / "refused.parquet")
    assert not (tmp_path / "refused.parquet").exists()


def test_one_part_with_two_contents_is_named_in_both_stores(
    tmp_path: Path, whole: LabelStore
) -> None:
    def flipped(rows: PartRows) -> PartRows:
        label = rows.label.copy()
        label[0, 0] = (label[0, 0] + 1) % CLASSES
        return replace(rows, label=label)

    other = write_store(tmp_path / "b.parquet", SHARDS[2:3], CUT[:1], change=flipped)
    part = r"shard=2/view-00000-00003\.parquet"
    message = rf"whole\.parquet/{part} and .*b\.parquet/{part} .*label \(1 of 18 values differ\)"
    refused(tmp_path, [whole, other], StoreError, message)


def test_parts_that_overlap_are_named(tmp_path: Path, whole: LabelStore) -> None:
    other = write_store(tmp_path / "b.parquet", SHARDS[:1], [(2, 2)])
    refused(tmp_path, [whole, other], StoreError, r"00000-00003.* and .*00002-00004.* overlap")


def test_other_teachers_and_fingerprints_are_refused_with_the_fields(
    tmp_path: Path, whole: LabelStore
) -> None:
    other = write_store(tmp_path / "b.parquet", SHARDS, CUT, OTHER_TEACHER)
    refused(tmp_path, [whole, other], IdentityError, r"teacher\.weights: 'aaa.*/ 'bbb")
    root = tmp_path / "d.parquet"
    write_store(root, SHARDS[:1], CUT)
    (root / "_meta" / "identity.json").unlink()
    drifted = {**PRINTS, "op.rotate": 3}
    finish_store(root, IDENTITY, drifted, SHARDS[:1], card_text)
    refused(
        tmp_path,
        [whole, open_store(root)],
        IdentityError,
        r"other pixels: op\.rotate \(the operation rotate\);",
    )


def test_a_shard_with_other_images_under_the_same_keys_is_refused(
    tmp_path: Path, whole: LabelStore
) -> None:
    relabelled = replace(info_of(1), content_hash="c" * 64)
    other = write_store(tmp_path / "b.parquet", [relabelled], CUT)
    refused(tmp_path, [whole, other], IdentityError, r"s-1\.tar.*images or targets differ")

    def damaged(rows: PartRows) -> PartRows:
        return replace(rows, image_hash="d" * 64)

    other = write_store(tmp_path / "d.parquet", SHARDS[1:2], [(8, 3)], change=damaged)
    refused(tmp_path, [whole, other], IdentityError, r"s-1\.tar.*images or targets differ")


def test_stores_that_disagree_about_rejections_are_refused(
    tmp_path: Path, whole: LabelStore
) -> None:
    def other_one(rows: PartRows) -> PartRows:
        torn = replace(rows.rejections[0], key="s-0.tar/3", index=3)
        return replace(rows, rejections=(torn,), keys=("s-0.tar/2", *rows.keys[1:]))

    other = write_store(tmp_path / "b.parquet", SHARDS[:1], [(8, 3)], change=other_one)
    with pytest.raises(RejectionError, match=r"disagree whether 's-0\.tar/2' of s-0\.tar decodes"):
        merge_stores([whole, other], tmp_path / "c.parquet")
    assert not (tmp_path / "c.parquet").exists()


def test_a_damaged_source_leaves_no_manifest(tmp_path: Path, whole: LabelStore) -> None:
    late = write_store(tmp_path / "b.parquet", SHARDS, [(8, 3)])
    path = tmp_path / "b.parquet" / late.manifest.parts[-1].part.path
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ChecksumError, match=r"b\.parquet/shard=3.*the manifest says"):
        merge_stores([whole, late], tmp_path / "c.parquet")
    assert not (tmp_path / "c.parquet" / "_manifest.json").exists()


def test_a_target_that_holds_something_else_is_left_alone(
    tmp_path: Path, whole: LabelStore
) -> None:
    half = write_store(tmp_path / "a.parquet", SHARDS[:1], CUT[:1])
    before = bytes_of(tmp_path / "whole.parquet")
    with pytest.raises(StoreError, match=r"holds 9 parts that would not be in the result"):
        merge_stores([half, write_store(tmp_path / "b.parquet", SHARDS[1:2], CUT[1:])], whole.root)
    other = write_store(tmp_path / "d.parquet", SHARDS, CUT, OTHER_TEACHER)
    with pytest.raises(IdentityError, match="of another identity"):
        merge_stores([whole, half], other.root)
    with pytest.raises(ConfigError, match="`stores` names fewer than two"):
        merge_stores([whole], tmp_path / "c.parquet")
    assert bytes_of(tmp_path / "whole.parquet") == before


def test_a_target_begun_with_other_fingerprints_is_left_alone(
    tmp_path: Path, whole: LabelStore
) -> None:
    late = write_store(tmp_path / "b.parquet", SHARDS, [(8, 3)])
    out = tmp_path / "c.parquet"
    claim_store(out, IDENTITY, {**PRINTS, "op.rotate": 3})
    with pytest.raises(IdentityError, match="begun with other fingerprints than the stores"):
        merge_stores([whole, late], out)
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["identity.json"]


def test_a_store_takes_another_in(tmp_path: Path, whole: LabelStore) -> None:
    """The target may be the first store: its parts stay, the others join."""
    late = write_store(tmp_path / "b.parquet", SHARDS, CUT[1:])
    early = write_store(tmp_path / "a.parquet", SHARDS, CUT[:1])
    merge_stores([early, late], early.root)
    assert_whole(tmp_path / "a.parquet", whole)


def test_a_merged_store_keeps_the_records_of_all_runs(tmp_path: Path, whole: LabelStore) -> None:
    late = write_store(tmp_path / "b.parquet", SHARDS, [(8, 3)])
    for number, store in enumerate((whole, late)):
        store.root.commit_new(f"_meta/runs/2026010{number}.json", b'{"labels":1}\n')
    merge_stores([whole, late], tmp_path / "c.parquet")
    runs = sorted((tmp_path / "c.parquet" / "_meta" / "runs").iterdir())
    assert [path.name for path in runs[:2]] == ["20260100.json", "20260101.json"]
    record = json.loads(runs[2].read_bytes())
    assert record["tool"] == "label-store"
    assert record["stores"] == [whole.root.name, late.root.name]


def test_the_command_merges_and_names_errors(
    tmp_path: Path,
    whole: LabelStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_store(tmp_path / "a.parquet", SHARDS[:2], CUT)
    write_store(tmp_path / "b.parquet", [info_of(2, 0), info_of(3, 1)], CUT)
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, "merge", "a.parquet", "b.parquet", "--out", "c.parquet") == 0
    assert "- b.parquet, s-3.tar: 1 to 3" in capsys.readouterr().out
    assert_whole(tmp_path / "c.parquet", whole)
    assert run_cli(monkeypatch, "merge", "a.parquet", "b.parquet", "--out", "c") == 1
    said = capsys.readouterr().err
    assert re.search("label-store: error: (`out`|--out) is c: the name of a store must end", said)


def test_numbers_are_kept_where_they_are_free() -> None:
    assert merging._free_number(7, {0, 1}) == 7
    assert merging._free_number(1, {0, 1, 3}) == 2
    assert merging._free_number(0, {0}) == 1
    assert merging._free_number(0, {0, 1}) == 2


def noted(root: Path, views: list[tuple[int, int]], notes: object) -> LabelStore:
    store = write_store(root, SHARDS, views)
    found: dict[str, Any] = {"notes": notes}
    write_manifest(root, replace(store.manifest, **found))
    return open_store(root)


def test_notes_of_merged_merges_are_one_list(tmp_path: Path) -> None:
    merged = noted(tmp_path / "0.parquet", [(0, 1)], {"by": 0})
    for number in range(1, 4):
        other = noted(tmp_path / f"{number}.parquet", [(number, 1)], {"by": number})
        out = tmp_path / f"until-{number}.parquet"
        merge_stores([merged, other], out)
        merged = open_store(out)
    assert merged.manifest.notes == {"of_sources": [{"by": number} for number in range(4)]}


def test_notes_that_no_reader_takes_are_refused_and_leave_no_manifest(tmp_path: Path) -> None:
    deep: Any = json.loads(30 * '{"a":' + "1" + 30 * "}")
    stores = [
        noted(tmp_path / "a.parquet", [(0, 1)], deep),
        noted(tmp_path / "b.parquet", [(1, 1)], {}),
    ]
    with pytest.raises(StoreError, match="nested more than 32 deep; no manifest was written"):
        merge_stores(stores, tmp_path / "c.parquet")
    assert not (tmp_path / "c.parquet" / "_manifest.json").exists()


def test_a_store_does_not_vouch_for_parts_that_nobody_fingerprinted(tmp_path: Path) -> None:
    whole, bare = noted(tmp_path / "a.parquet", [(0, 1)], {}), tmp_path / "b.parquet"
    write_manifest(bare, replace(write_store(bare, SHARDS, [(1, 1)]).manifest, fingerprints={}))
    with pytest.raises(
        IdentityError, match=r"b\.parquet has no fingerprint 'decode', 'op\.rotate'"
    ):
        merge_stores([whole, open_store(bare)], tmp_path / "c.parquet")
    assert not (tmp_path / "c.parquet").exists()
