"""Names of classes: read, bounded, compared, and on their way from a folder to a report."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import classes
from pipeline.classes import (
    ClassNames,
    agreed_names,
    check_names,
    class_in_words,
    class_text,
    names_beside,
    read_names,
)
from pipeline.errors import ClassesError, ConfigError, PipelineError

LISTED = ("ape", "cat", "dog")


def listed(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_list_is_read_from_json_text_synsets_and_folders(tmp_path: Path) -> None:
    packed = listed(tmp_path / "packed" / "classes.json", '["ape","cat","dog"]\n')
    text = listed(tmp_path / "names.txt", "ape\r\ncat\n\n  dog \n")
    for name in (*LISTED, ".hidden"):
        (tmp_path / "images" / name).mkdir(parents=True)
    (tmp_path / "images" / "README").touch()
    for location in (packed, packed.parent, text, tmp_path / "images", str(text)):
        assert read_names(location).names == LISTED
    synsets = "n01440764 tench, Tinca tinca\nn01443537 goldfish\n"
    expected = ("n01440764", "n01443537")
    assert read_names(listed(tmp_path / "mapping.txt", synsets)).names == expected
    mixed = listed(tmp_path / "mixed.txt", "n01440764 tench\nother words\n")
    assert read_names(mixed).names == ("n01440764 tench", "other words")


@pytest.mark.parametrize(
    "values",
    [
        {"cat": 0},
        "cat",
        None,
        ["cat", 1],
        [],
        ["cat", ""],
        ["cat", "do\ng"],
        ["cat", "\x1b[31mdog"],
        ["\ud800"],
        ["x" * 1025],
        [str(n) for n in range(65536)],
    ],
)
def test_what_is_no_list_of_names_is_refused(tmp_path: Path, values: object) -> None:
    with pytest.raises(ClassesError):
        check_names(values, "here")
    path = listed(tmp_path / "classes.json", json.dumps(values))
    with pytest.raises(ClassesError, match=r"classes\.json"):
        read_names(path)
    with pytest.raises(ClassesError, match=r"classes\.json"):
        names_beside([tmp_path / "a.tar"])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("classes.json", b""),
        ("classes.json", b"["),
        ("classes.json", b"[" * 10000),
        ("classes.json", b"\xff\xfe"),
        ("names.txt", b""),
        ("names.txt", b"\xff\xfe"),
    ],
)
def test_what_is_no_json_or_text_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ClassesError, match=name):
        read_names(tmp_path / name)


def test_a_list_of_names_has_a_size_at_most(tmp_path: Path) -> None:
    for name in ("names.txt", "classes.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate((1 << 25) + 1)
        with pytest.raises(PipelineError, match="33554433 bytes, and such a file has at most"):
            read_names(tmp_path / name)
    with pytest.raises(PipelineError, match="33554433 bytes, and such a file has at most"):
        names_beside([tmp_path / "a.tar"])


def test_names_that_are_not_there_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_names(tmp_path / "absent.txt")
    (tmp_path / "images" / "cat").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no such file"):
        read_names(tmp_path / "images" / "classes.json")  # and not the images' directories
    (tmp_path / "images" / "cat").rmdir()
    (tmp_path / "images").rmdir()
    with pytest.raises(ConfigError, match=r"neither classes\.json nor directories"):
        read_names(tmp_path)


def test_names_beside_shards_are_those_of_all_their_directories(tmp_path: Path) -> None:
    shards = [tmp_path / "a" / "0.tar", tmp_path / "a" / "1.tar", tmp_path / "b" / "0.tar"]
    assert names_beside(shards) is None
    listed(tmp_path / "b" / "classes.json", '["ape","cat"]')
    named = names_beside(shards)
    assert named is not None
    assert named.names == ("ape", "cat")
    listed(tmp_path / "a" / "classes.json", '["ape","dog"]')
    with pytest.raises(ClassesError, match=r"a/classes\.json and .*b/classes\.json.*class 1"):
        names_beside(shards)


def test_a_bucket_that_hides_what_is_not_there_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Forbidden:
        def read_bytes(self, path: str, at_most: int) -> bytes:
            raise PipelineError("s3://bucket/classes.json: 403")

    monkeypatch.setattr(classes, "open_folder", lambda location: Forbidden())
    with caplog.at_level(logging.WARNING):
        assert classes._names_in("s3://bucket") is None
    assert "403" in caplog.text
    with pytest.raises(PipelineError):
        classes._names_in(Path("here"))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (("ape", "dog"), "class 1 is 'cat' in the first, of 3 classes, and 'dog'"),
        (("ape", "cat"), "class 2 is 'dog' in the first, of 3 classes, and none in the second"),
        (("cat", "ape", "dog"), "class 0 is 'ape'"),
        ((*LISTED, "eel"), "class 3 is none in the first, of 3 classes, and 'eel'"),
    ],
)
def test_lists_that_differ_name_both_sides_and_the_first_class(
    other: tuple[str, ...], words: str
) -> None:
    ours, theirs = ClassNames(names=LISTED, source="ours"), ClassNames(names=other, source="theirs")
    with pytest.raises(ClassesError, match=f"ours and theirs have other classes: {words}") as error:
        agreed_names(ours, None, theirs)
    assert "by `pack-shards` with the other's list" in str(error.value)  # no flag of most commands


names = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(tuple)


@given(st.lists(st.none() | names, max_size=4))
def test_lists_agree_if_all_that_are_there_are_one(lists: list[tuple[str, ...] | None]) -> None:
    known = {one for one in lists if one is not None}
    given_lists = [ClassNames.of(one, location) for location, one in enumerate(lists)]
    if len(known) > 1:
        with pytest.raises(ClassesError):
            agreed_names(*given_lists)
    else:
        found = agreed_names(*given_lists)
        assert (found.names if found else None) == (known.pop() if known else None)


def test_a_class_is_shown_with_its_name_where_there_is_one() -> None:
    assert class_text(1, LISTED) == "1 cat"
    assert class_in_words(1, LISTED) == "1 ('cat')"
    assert [class_text(n, LISTED) for n in (-1, 3)] == ["-1", "3"]
    assert class_in_words(3, None) == class_text(3, None) == "3"
    assert len(class_text(0, ("x" * 900,))) == 42
    assert replace(ClassNames(names=LISTED, source=""), source="x").names == LISTED
