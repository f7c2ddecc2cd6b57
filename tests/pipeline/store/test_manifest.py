"""The manifest: its seal, its claims, and what it costs to open a large store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ChecksumError, StoreError
from pipeline.files.local import sha256
from pipeline.identity import canonical_json
from pipeline.records import PartKey, Rejection
from pipeline.store.manifest import (
    Manifest,
    PartEntry,
    read_manifest,
    seal,
    unseal,
    write_manifest,
)
from pipeline.store.parts import PartEntries
from pipeline.store.subset import SubsetOf
from tests.student.factories import make_manifest


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path) -> None:
    source = SubsetOf(identity="a" * 64, manifest="b" * 64, samples=9, share=0.25, share_seed=0)
    manifest = make_manifest([5, 3], rejected={1: [0, 2]}, views=4)
    manifest = replace(manifest, omitted={0: "Eg=="}, subset_of=(source,))
    parts = tuple(
        replace(entry, rows=manifest.accepted_samples(entry.part.shard) * 4)
        for entry in manifest.parts
    )
    manifest = replace(manifest, parts=parts, card="c" * 64, classes=("cat", "dog"))
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


@given(
    values=st.dictionaries(st.text(), st.integers() | st.text()),
    at=st.integers(0),
    bit=st.integers(0, 7),
)
def test_any_flipped_bit_breaks_the_seal(values: dict[str, object], at: int, bit: int) -> None:
    data = seal(values)
    assert unseal(data, "it") == values
    changed = bytearray(data)
    changed[at % len(data)] ^= 1 << bit
    with pytest.raises(ChecksumError, match="it"):
        unseal(bytes(changed), "it")
    with pytest.raises(ChecksumError, match="it"):
        unseal(data[: at % len(data)], "it")


def test_what_could_not_be_read_back_is_not_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="the number 1000"):
        seal({"a": 10**40})
    monkeypatch.setattr("pipeline.store.manifest.MAX_MANIFEST_BYTES", 1000)
    with pytest.raises(StoreError, match="more than 1000; no manifest was written"):
        seal({"a": "x" * 1000})


def test_a_sealed_file_is_json_that_any_tool_reads() -> None:
    data = seal({"b": 1, "a": "é"})
    assert json.loads(data) == {"sha256": sha256(b'{"a":"\\u00e9","b":1}\n'), "a": "é", "b": 1}


def _swapped(manifest: Manifest) -> Manifest:
    return replace(manifest, parts=manifest.parts[::-1])


def _overlapping(manifest: Manifest) -> Manifest:
    first = manifest.parts[0]
    again = replace(first, part=replace(first.part, first_view=2))
    return replace(manifest, parts=(first, again, *manifest.parts[1:]))


def _of_too_many_rows(manifest: Manifest) -> Manifest:
    return replace(manifest, parts=(replace(manifest.parts[0], rows=10**9), *manifest.parts[1:]))


def _omitting(text: str, shard: int = 0) -> Callable[[Manifest], Manifest]:
    return lambda manifest: replace(manifest, omitted={shard: text})


def _omitting_a_rejected_one(manifest: Manifest) -> Manifest:
    rejection = Rejection(index=1, key="b", reason="undecodable")
    return replace(manifest, omitted={1: "Ag=="}, rejections={1: (rejection,)})


def _of_an_unknown_shard(manifest: Manifest) -> Manifest:
    part = PartKey(shard=9, first_view=0, views=1)
    stray = PartEntry(part=part, bytes=1, sha256="0" * 64, rows=1)
    return replace(manifest, parts=(*manifest.parts, stray))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_swapped, "are not in order"),
        (_overlapping, "are not in order"),
        (_of_too_many_rows, "claims 1000000000 rows"),
        (_of_an_unknown_shard, r"unknown shards \[9\]"),
        (_omitting("AQ==", 9), r"unknown shards \[9\]"),
        (_omitting("AQ=="), "its shard and views give 16"),
        (_omitting("IA=="), "beyond the 5"),
        (_omitting("AA=="), "names no samples"),
        (_omitting(""), "omits no sample"),
        (_omitting("AQEB"), "3 bytes for 5 samples"),
        (_omitting("A!"), "malformed"),
        (_omitting_a_rejected_one, "a rejected sample is omitted too"),
    ],
)
def test_claims_that_no_label_job_makes_are_refused(
    tmp_path: Path, change: Callable[[Manifest], Manifest], message: str
) -> None:
    write_manifest(tmp_path, change(make_manifest([5, 3], views=4)))
    with pytest.raises(StoreError, match=message):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda v: v.update(weather=1), "'weather'"),
        (lambda v: v["identity"].update(zoom=1), r"identity\.zoom"),
        (lambda v: v["identity"]["mix"].update(zoom=1), r"identity\.mix\.zoom"),
        (lambda v: v["shards"][0].update(zoom=1), r"shards\.zoom"),
        (lambda v: v["parts"][0].update(zoom=1), r"parts\.zoom"),
        (lambda v: v["rejections"]["1"][0].update(zoom=1), r"rejections\.zoom"),
        (lambda v: v["agreement"].update(zoom=1), r"agreement\.zoom"),
        (lambda v: v.update(subset_of=[{"zoom": 1}]), r"subset_of\.zoom"),
    ],
)
def test_a_field_of_a_later_release_is_refused_by_its_name_and_release(
    change: Callable[[dict[str, Any]], object], name: str
) -> None:
    values = json.loads(json.dumps(make_manifest([5, 3], rejected={1: [0]}, views=4).to_json()))
    values["parts"][1]["rows"] = 8
    Manifest.from_json(values, "it")
    values["needs"] = "3.1.0"
    change(values)
    with pytest.raises(StoreError, match=rf"{name}.* not known .* install teacher-labels 3\.1\.0"):
        Manifest.from_json(values, "it")


def test_what_lies_below_notes_is_kept_and_need_not_be_known() -> None:
    values = make_manifest([5, 3], views=4).to_json()
    values["notes"] = {"weather": {"rain": [1, 2]}}
    assert Manifest.from_json(values, "it").to_json()["notes"] == {"weather": {"rain": [1, 2]}}


@given(
    cuts=st.lists(
        st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=5),
        min_size=1,
        max_size=4,
    )
)
def test_the_views_that_all_shards_have_are_those_of_plain_sets(
    cuts: list[list[tuple[int, int]]],
) -> None:
    manifest = make_manifest([2] * len(cuts))
    parts = tuple(
        PartEntry(
            part=PartKey(shard=shard, first_view=first, views=views), bytes=1, sha256="", rows=0
        )
        for shard, ranges in enumerate(cuts)
        for first, views in ranges
    )
    found = replace(manifest, parts=parts).view_range
    common = set.intersection(
        *(
            {view for first, views in ranges for view in range(first, first + views)}
            for ranges in cuts
        )
    )
    expected = []
    view = min(common, default=0)
    while view in common:
        expected.append(view)
        view += 1
    assert list(found) == expected


@pytest.mark.timeout(60)
def test_views_with_very_many_gaps_are_found_in_seconds() -> None:
    manifest = make_manifest([5, 3], views=4)
    parts = [
        PartEntry(
            part=PartKey(shard=shard, first_view=3 * number + shard, views=1 + shard),
            bytes=0,
            sha256="0" * 64,
            rows=0,
        )
        for shard in range(2)
        for number in range(40_000)
    ]
    assert replace(manifest, parts=tuple(parts)).view_range == range(0)
    more = replace(parts[-1], part=replace(parts[-1].part, first_view=119_997, views=9))
    assert replace(manifest, parts=(*parts[:-1], more)).view_range == range(119_997, 119_998)


def test_more_names_than_the_teacher_has_classes_are_refused() -> None:
    values = replace(make_manifest([5, 3]), classes=("a",) * 10).to_json()
    assert Manifest.from_json(values, "it").classes == ("a",) * 10
    values["classes"] = ["a"] * 11
    with pytest.raises(StoreError, match="names more classes than the teacher has"):
        Manifest.from_json(values, "it")


def test_a_manifest_is_written_from_columns_as_from_records() -> None:
    manifest = make_manifest([2, 3])
    parts = tuple(
        replace(one, sha256=f"{number:064x}") for number, one in enumerate(manifest.parts)
    )
    records, columns = (replace(manifest, parts=one) for one in (parts, PartEntries.of(parts)))
    assert records == columns
    assert records.digest == columns.digest
    assert records.digest == sha256(canonical_json(columns.to_json()) + b"\n")


def test_a_manifest_is_written_and_read_in_pieces_as_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_manifest([2, 3, 4, 5, 6])
    manifest = replace(manifest, parts=PartEntries.of(manifest.parts), card="c" * 64)
    digest = replace(manifest).digest
    for name in ("_AT_A_TIME", "_PIECE_BYTES"):
        monkeypatch.setattr(f"pipeline.store.manifest.{name}", 2)
    write_manifest(tmp_path, manifest)
    found = read_manifest(tmp_path)
    assert (found, found.digest) == (manifest, digest)
    assert [found.find_part(shard, 5).part.shard for shard in range(5)] == list(range(5))
    assert found.of_shards([1, 3]).parts == (manifest.parts[1], manifest.parts[3])


@pytest.mark.parametrize("text", ["0" * 63, "x" * 64, 62 * "0" + "  "])
def test_what_is_no_sha256_of_a_part_is_refused(text: str) -> None:
    values = make_manifest([5, 3]).to_json()
    values["parts"][1]["sha256"] = text
    with pytest.raises(StoreError, match="malformed"):
        Manifest.from_json(values, "it")
