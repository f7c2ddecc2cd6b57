"""Ways to name shards: files, patterns, directories, lists, and the home directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ShardError
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
