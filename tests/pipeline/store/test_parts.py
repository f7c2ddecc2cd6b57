"""Parts in columns are those of plain records, whatever their numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import PartKey
from pipeline.store.commit import lost_views
from pipeline.store.committed import Committed, CommittedParts, ShardImages
from pipeline.store.manifest import Agreement, part_of_path, parts_of_paths
from pipeline.store.parts import PartEntries, PartEntry, PartKeys, among, codes, distinct

numbers = st.one_of(st.integers(0, 6), st.integers(0, (1 << 60) - 1))
keys = st.builds(PartKey, shard=numbers, first_view=numbers, views=st.integers(-3, 1 << 40))
many_keys = st.lists(keys, max_size=12)


def committed(part: PartKey, size: int = 5, image: str = "a") -> Committed:
    return Committed(
        entry=PartEntry(part=part, bytes=size, sha256=f"{size:064x}", rows=7),
        images=ShardImages(hash=64 * image, formats=("jpeg",), rejections=(), omitted=""),
        agreement=Agreement(known=3, equal=2),
    )


@given(parts=many_keys)
def test_columns_give_back_the_records_that_they_were_made_of(parts: list[PartKey]) -> None:
    columns = PartKeys.of(parts)
    assert list(columns) == parts
    assert [columns[index] for index in range(len(parts))] == parts
    assert columns == parts
    assert columns[::-1] == parts[::-1]
    assert columns.end_view.tolist() == [one.end_view for one in parts]
    entries = PartEntries.of([committed(one).entry for one in parts])
    assert list(entries) == [committed(one).entry for one in parts]
    assert [entries[index] for index in range(len(parts))] == list(entries)


@given(ours=many_keys, theirs=many_keys)
def test_codes_order_parts_as_records_are_and_tell_them_apart(
    ours: list[PartKey], theirs: list[PartKey]
) -> None:
    first, second = codes(PartKeys.of(ours), PartKeys.of(theirs))
    assert (len(first), len(second)) == (len(ours), len(theirs))
    coded = list(zip([*first.tolist(), *second.tolist()], [*ours, *theirs], strict=True))
    for code, part in coded:
        for other_code, other in coded:
            assert (code < other_code) == (part < other)
    assert PartKeys.of(ours).isin(PartKeys.of(theirs)).tolist() == [x in theirs for x in ours]


@given(ours=st.lists(numbers), theirs=st.lists(numbers))
def test_sets_of_numbers_are_those_of_plain_ones(ours: list[int], theirs: list[int]) -> None:
    first, second = np.array(ours, np.int64), np.array(theirs, np.int64)
    assert distinct(first).tolist() == sorted(set(ours))
    assert among(first, second).tolist() == [one in theirs for one in ours]


@given(parts=st.lists(st.sampled_from([PartKey(shard=s, first_view=f, views=3) for s in (0, 2)
                                       for f in (0, 3)]), max_size=6),
       sizes=st.lists(st.integers(1, 2), min_size=6, max_size=6),
       images=st.lists(st.sampled_from("ab"), min_size=6, max_size=6),
       cut=st.integers(0, 6))  # fmt: skip
def test_of_what_is_said_twice_only_what_is_said_alike_counts(
    parts: list[PartKey], sizes: list[int], images: list[str], cut: int
) -> None:
    said = [committed(*one) for one in zip(parts, sizes, images, strict=False)]
    columns = CommittedParts.joined(CommittedParts.of(said[:cut]), CommittedParts.of(said[cut:]))
    assert columns == said
    expected = [
        next(one for one in said if one.entry.part == part)
        for part in sorted(set(parts))
        if len({one for one in said if one.entry.part == part}) == 1
    ]
    assert columns.without_contradictions().in_order() == expected
    assert columns.total == Agreement.total(one.agreement for one in said)


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "x" * 64])
def test_what_is_no_digest_is_refused(digest: str) -> None:
    entry = committed(PartKey(shard=0, first_view=0, views=1)).entry
    with pytest.raises(ValueError, match=r"SHA-256|hexadecimal"):
        PartEntries.of([replace(entry, sha256=digest)])


PATHS = [
    "shard=0/view-00000-00003.parquet",
    "shard=07/view-00000-00003.parquet",
    "shard=12/view-99999-100002.parquet",
    "shard=12/view-0100000-100002.parquet",
    "shard=1/view-00003-00000.parquet",
    "shard=1/view-0000-00003.parquet",
    "shard=\u0661/view-00000-00003.parquet",
    "shard=9999999999999999999999/view-00000-00003.parquet",
    "shard=1/view-00000-00003.parquet\n",
    "_manifest.json",
]


def test_parts_of_many_paths_are_those_of_each() -> None:
    parts, known = parts_of_paths(PATHS)
    each = [part_of_path(path) for path in PATHS]
    assert known.tolist() == [one is not None for one in each]
    assert list(parts) == [one for one in each if one is not None]
    assert all(one is None or one.path == path for one, path in zip(each, PATHS, strict=True))
    assert known.sum() == 3
    assert len(parts_of_paths([])[0]) == 0


def test_lost_views_are_named_once() -> None:
    wanted = [PartKey(shard=1, first_view=first, views=4) for first in (0, 4, 4)]
    there = PartKeys.of([PartKey(shard=1, first_view=0, views=6)])
    assert lost_views(wanted, there) == [PartKey(shard=1, first_view=6, views=2)]


def test_a_name_that_says_any_number_of_views_takes_no_memory() -> None:
    wanted = [PartKey(shard=0, first_view=0, views=4), PartKey(shard=1, first_view=0, views=4)]
    there, _ = parts_of_paths(["shard=0/view-00002-999999999999999999.parquet"])
    assert lost_views(wanted, there) == [PartKey(shard=0, first_view=0, views=2), wanted[1]]
