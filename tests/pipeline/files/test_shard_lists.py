"""Ways to name shards: files, patterns, directories, lists, and the home directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import PipelineError, ShardError
from pipeline.files.cache import RemoteShard
from pipeline.files.local import expand_shards, open_folder
from pipeline.labelling.config import LabelConfig
from pipeline.shards.packing import PackConfig
from tests.object_storage import S3Server


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with three shards, out of order, and files that are none."""
    folder = tmp_path / "train"
    folder.mkdir()
    for name in ("b-10.tar", "b-02.tar", "a.tar", "classes.json", "b.tar.part"):
        (folder / name).write_bytes(b"x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return folder


def names_of(*patterns: str) -> list[str]:
    return [path.name for path in expand_shards(patterns)]


def test_a_directory_stands_for_its_shards(shards: Path) -> None:
    for name in ("train", "train/", str(shards), "~/train", "~/train/*.tar"):
        assert names_of(name) == ["a.tar", "b-02.tar", "b-10.tar"]
    (shards / "empty").mkdir()
    with pytest.raises(ShardError, match="a directory in which no name ends in"):
        names_of("train/empty")
    with pytest.raises(ShardError, match="named twice"):
        names_of("train", "train/a.tar")


def test_a_text_file_lists_shards_that_begin_where_it_lies(shards: Path) -> None:
    (shards / "list.txt").write_text("# two of three\nb-{10..10}.tar\r\n\n  a.tar  \n")
    assert names_of("train/list.txt") == ["b-10.tar", "a.tar"]
    (shards / "list.txt").write_text(f"{shards}/a.tar\n~/train/b-02.tar\n")
    assert names_of("~/train/list.txt") == ["a.tar", "b-02.tar"]
    (shards / "list.txt").write_text("absent.tar\n")
    with pytest.raises(ShardError, match=r"train/absent\.tar"):
        names_of("train/list.txt")
    (shards / "list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ShardError, match="no list of shards"):
        names_of("train/list.txt")
    (shards / "list.txt").write_text("\n")
    with pytest.raises(ShardError, match="no shards"):
        names_of("train/list.txt")


def test_a_file_whose_name_looks_like_a_pattern_is_meant_by_it(shards: Path) -> None:
    folder = shards / "of [2024]" / "{a,b}"
    folder.mkdir(parents=True)
    for name in ("x[1].tar", "y*,?.tar", "z{3}.tar"):
        (folder / name).write_bytes(b"x")
    assert names_of(str(folder)) == ["x[1].tar", "y*,?.tar", "z{3}.tar"]
    assert names_of(*(str(one) for one in folder.iterdir())) == [p.name for p in folder.iterdir()]
    (folder.parent / "list.txt").write_text("{a,b}/x[1].tar\n")
    assert names_of(str(folder.parent / "list.txt")) == ["x[1].tar"]


def test_what_is_no_shard_is_said_as_what_it_is(shards: Path) -> None:
    (shards / "annexed.tar").symlink_to(shards / "objects" / "a")
    (shards / "loop.tar").symlink_to(shards / "loop.tar")
    os.mkfifo(shards / "pipe.tar")
    for name, reason in (
        ("annexed.tar", "is a link to a file that is not there"),
        ("loop.tar", r"cannot be read \(Too many levels"),
        ("pipe.tar", "is a pipe, a socket or a device"),
        ("[a-b]*.tar", "is a link to a file that is not there"),
        ("", "is a link to a file that is not there"),
        ("absent" * 1000, "match no file"),
        ("a\0b.tar", "match no file"),
    ):
        with pytest.raises(ShardError, match=reason):
            names_of(f"train/{name}")


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "line",
    [
        *("[" * 100_000, "{a," * 3000 + "}" * 3000, "{" + "," * 200_000 + "}", "*/" * 1500),
        *("[" * 4000, "{}" * 50_000, "a" * 1_000_000),
    ],
)
def test_a_line_of_a_list_that_no_path_can_be_is_refused_in_time(shards: Path, line: str) -> None:
    (shards / "list.txt").write_text(line)
    with pytest.raises(ShardError, match=r"braces do not match, or|match no file"):
        names_of("train/list.txt")


@pytest.mark.parametrize("name", ["a\x1b[2J.tar", "a\nb.tar", "a\u202eb.tar", "a\\b.tar"])
def test_a_shard_whose_name_no_store_can_hold_is_refused_by_it(shards: Path, name: str) -> None:
    (shards / name).write_bytes(b"x")
    with pytest.raises(PipelineError, match=r"train: .* is no path of a file") as raised:
        names_of("train")
    assert repr(name) in str(raised.value)


def test_a_prefix_in_object_storage_stands_for_its_shards(s3: S3Server) -> None:
    bucket = s3.make_bucket()
    for name in ("train/b.tar", "train/a.tar", "train/classes.json", "other.tar"):
        s3.put(f"{bucket}/{name}", b"x")
    found = expand_shards([f"{bucket}/train/"])
    assert all(isinstance(one, RemoteShard) for one in found)
    assert [one.name for one in found] == ["a.tar", "b.tar"]


def test_the_home_directory_is_meant_by_a_tilde(shards: Path, tmp_path: Path) -> None:
    assert open_folder("~/x.parquet").name == str(tmp_path / "x.parquet")
    assert PackConfig(images=Path("~/images"), out="x").images == tmp_path / "images"
    config = LabelConfig(
        shards=("~/train",), out="~/x.parquet", teacher_checkpoint=Path("~/w.safetensors")
    ).with_absolute_paths()
    assert config.out == str(tmp_path / "x.parquet")
    assert config.teacher_checkpoint == tmp_path / "w.safetensors"
