"""Brace patterns: bash's names, counted before they are made."""

from __future__ import annotations

from pathlib import Path
from time import process_time

import pytest
from braceexpand import braceexpand
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ShardError
from pipeline.files import local
from pipeline.files.braces import parse_braces
from pipeline.files.local import expand_shards

pieces = st.sampled_from(
    [
        "{",
        "}",
        ",",
        "a",
        "b",
        "Z",
        "..",
        "0",
        "7",
        "12",
        "-",
        "..2",
        "\\{",
        "{1..3}",
        "{a,b}",
        "{a..e}",
    ]
)


def opened_before_closed(pattern: str) -> bool:
    depths, depth = [], 0
    for character in pattern.replace("\\{", ""):
        depth += {"{": 1, "}": -1}.get(character, 0)
        depths.append(depth)
    return min(depths, default=0) >= 0 and depth == 0


@given(st.lists(pieces, max_size=9).map("".join))
def test_names_are_those_of_braceexpand(pattern: str) -> None:
    """It takes a closing brace before an opening one for text, which is a slip here."""
    if not opened_before_closed(pattern):
        with pytest.raises(ValueError, match="brace is"):
            parse_braces(pattern)
        return
    names = parse_braces(pattern)
    made = list(names.make())
    assert made == list(braceexpand(pattern))
    assert names.count == len(made)


@pytest.mark.parametrize(
    "pattern",
    [
        *("{a,b}" * 25, "{" + "{a,b}" * 25 + "}", "{" * 30 + "{a,b}" * 25 + "}" * 30),
        *("{0..9}" * 7, "{a..z}" * 5, "{{0..999},{0..999999}}", "{0..1" + "0" * 4000 + "}"),
        *("{a,b}" * 3000, "{x,{a,b}{c,d}}" * 12, "{0..99999999999999999999..3}"),
    ],
)
def test_a_pattern_of_too_many_names_is_refused_in_a_moment(pattern: str) -> None:
    began = process_time()
    with pytest.raises(ShardError, match=r"names more than 1,000,000 files; check"):
        expand_shards([f"x-{pattern}.tar"])
    assert process_time() - began < 1  # 25 pairs took 20 s, and in braces all of the memory


@pytest.mark.parametrize("pattern", ["{000000..999999}", "{a,b}" * 19, "{" * 8000 + "}" * 8000])
def test_a_long_pattern_is_read_in_a_moment(pattern: str) -> None:
    began = process_time()
    names = parse_braces(pattern)
    assert sum(1 for _ in names.make()) == names.count
    assert process_time() - began < 3  # it took 10 s


def test_patterns_share_what_they_may_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_MOST_NAMES", 10)
    for number in range(8):
        (tmp_path / f"x-{number}.tar").write_bytes(b"x")
    with pytest.raises(ShardError, match=r"names more than 4 files, the rest of 10; check"):
        expand_shards([f"{tmp_path}/x-{{0..5}}.tar", f"{tmp_path}/x-{{3..7}}.tar"])
    assert len(expand_shards([f"{tmp_path}/x-{{0..5}}.tar", f"{tmp_path}/x-{{6..7}}.tar"])) == 8
