"""What every folder can do, wherever it is."""

from __future__ import annotations

import pickle
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.files.local import Folder, LocalFolder, open_folder


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return open_folder(str(tmp_path / "store"))
    return open_folder(request.getfixturevalue("s3").make_bucket() + "/some/store")


def test_a_folder_need_not_exist_until_something_is_written(folder: Folder) -> None:
    assert not folder.exists()
    assert folder.list() == []
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("a")
    folder.replace("a", b"1")
    assert folder.exists()


def test_a_new_file_is_committed_once_and_the_first_stands(folder: Folder) -> None:
    assert folder.commit_new("shard=0/a.parquet", b"first")
    assert not folder.commit_new("shard=0/a.parquet", b"second")
    assert folder.read_bytes("shard=0/a.parquet") == b"first"


def test_replacing_leaves_the_last_bytes(folder: Folder) -> None:
    for data in (b"one", b"", b"three"):
        folder.replace("_manifest.json", data)
        assert folder.read_bytes("_manifest.json") == data


def test_a_written_file_is_there_when_it_is_whole_and_only_then(folder: Folder) -> None:
    data = bytes(range(256)) * 50_000
    with folder.write_file("a/b.tar") as file:
        file.write(data)
        assert not folder.exists("a/b.tar")
    assert folder.read_bytes("a/b.tar") == data
    with suppress(ZeroDivisionError), folder.write_file("a/c.tar") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert folder.list() == ["a/b.tar"]
    with folder.write_file("a/b.tar") as file:
        file.write(b"other")
    assert folder.read_bytes("a/b.tar") == b"other"


def test_a_listing_has_all_files_of_a_prefix_in_order_and_no_commits_under_way(
    folder: Folder,
) -> None:
    paths = ["a", "b/1", "b/2", "b/c/3", "b.d"]
    for path in [*reversed(paths), ".aside", "b/.1.77-ab", ".hidden/x"]:
        folder.replace(path, b"x")
    assert folder.list() == sorted(paths)
    assert folder.list("b") == ["b.d", "b/1", "b/2", "b/c/3"]
    assert folder.list("b/") == ["b/1", "b/2", "b/c/3"]
    assert folder.list("b/c/3") == ["b/c/3"]
    assert folder.list("nothing/") == []


def test_a_directory_is_no_file_of_its_name(folder: Folder) -> None:
    folder.replace("a/b", b"x")
    assert folder.exists("a/b")
    for path in ("a/c", "a/b/c"):
        assert not folder.exists(path)
        with pytest.raises(FileNotFoundError):
            folder.read_bytes(path)


def test_a_folder_travels_to_other_processes(folder: Folder) -> None:
    folder.replace("a", b"x")
    copy = pickle.loads(pickle.dumps(folder))
    assert copy.read_bytes("a") == b"x"
    assert copy.name == folder.name


def test_an_open_folder_is_taken_as_it_is(folder: Folder) -> None:
    assert open_folder(folder) is folder


def test_what_cannot_be_read_is_named_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(PipelineError, match=r"/a cannot be read .*check its permissions"):
        LocalFolder(tmp_path).read_bytes("a")


def test_a_file_in_the_place_of_a_folder_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    assert open_folder(tmp_path / "a").is_a_file()
    assert not open_folder(tmp_path).is_a_file()
    assert not open_folder(tmp_path / "b").is_a_file()
