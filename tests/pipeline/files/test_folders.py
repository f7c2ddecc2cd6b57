"""What every folder can do, wherever it is."""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.files.local import (
    Folder,
    LocalFolder,
    commit_new,
    open_folder,
    real_path,
    replace,
    writing,
)


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


OUTWARD = [
    "../outside",
    "a/../../outside",
    "/etc/passwd",
    "a//b",
    "a/",
    ".",
    "a/./b",
    "..\\outside",
    "a\0b",
    "a\n",
    "\x1b[31ma",
    "\u202ea",
]


@pytest.mark.parametrize("path", OUTWARD)
def test_a_path_that_may_lead_out_is_refused_by_every_method(folder: Folder, path: str) -> None:
    folder.replace("a/b", b"inside")
    if isinstance(folder, LocalFolder):
        (folder.path.parent / "outside").write_bytes(b"old")
    calls = [
        lambda: folder.read_bytes(path),
        lambda: folder.read_range(path, 0, 1),
        lambda: folder.size(path),
        lambda: folder.exists(path),
        lambda: folder.list(f"{path}/"),
        lambda: folder.commit_new(path, b"new"),
        lambda: folder.replace(path, b"new"),
        lambda: folder.write_file(path).__enter__(),
    ]
    for call in calls:
        with pytest.raises(PipelineError) as error:
            call()
        assert f"{folder}: {path!r} is no path of a file in it" in str(error.value)
    assert folder.list() == ["a/b"]


@pytest.mark.parametrize("link", ["there", "missing"])
def test_a_link_in_a_folder_that_leads_out_is_never_followed(tmp_path: Path, link: str) -> None:
    folder, outside = LocalFolder(tmp_path / "store"), tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"old")
    folder.replace("a", b"x")
    (folder.path / "dir").symlink_to(outside if link == "there" else outside / "new")
    for call in (
        lambda: folder.read_bytes("dir/file"),
        lambda: folder.exists("dir/file"),
        lambda: folder.list("dir/"),
        lambda: folder.commit_new("dir/new", b"new"),
        lambda: folder.replace("dir/file", b"new"),
        lambda: folder.commit_new("dir/below/new", b"new"),
        lambda: folder.write_file("dir/file").__enter__(),
    ):
        with pytest.raises(PipelineError, match=r"leads out of .*put the file itself there"):
            call()
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_bytes() == b"old"


def test_a_link_in_the_place_of_a_file_is_replaced_and_its_end_stays(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path / "store")
    folder.replace("a", b"x")
    (tmp_path / "outside").write_bytes(b"old")
    for name in ("b", "c"):
        (folder.path / name).symlink_to(tmp_path / "outside")
    folder.replace("b", b"new")
    with folder.write_file("c") as file:
        file.write(b"new")
    assert folder.read_bytes("b") == folder.read_bytes("c") == b"new"
    assert (tmp_path / "outside").read_bytes() == b"old"


def test_a_folder_may_itself_be_a_link_and_links_may_stay_inside(tmp_path: Path) -> None:
    LocalFolder(tmp_path / "real").replace("a/b", b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "c").symlink_to("a/b")
    folder = LocalFolder(tmp_path / "link")
    folder.replace("a/d", b"y")
    assert folder.read_bytes("a/b") == folder.read_bytes("c") == b"x"
    assert folder.list() == ["a/b", "a/d", "c"]


def test_a_link_to_a_directory_is_listed_and_not_entered(tmp_path: Path) -> None:
    LocalFolder(tmp_path / "outside").replace("secret", b"x")
    folder = LocalFolder(tmp_path / "store")
    folder.replace("a", b"x")
    (folder.path / "dir").symlink_to(tmp_path / "outside")
    assert folder.list() == ["a", "dir"]


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    folder = LocalFolder(tmp_path)
    with pytest.raises(PipelineError, match=r"a cannot be read .Too many levels"):
        folder.read_bytes("a")
    with pytest.raises(PipelineError, match=r"a cannot be found .*not a link"):
        folder.exists("a/b")
    with pytest.raises(PipelineError, match=r"a cannot be found .*not a link"):
        folder.read_unwatched("a")
    with pytest.raises(OSError, match="Too many levels"):
        real_path(tmp_path / "a")
    assert real_path(tmp_path / "absent") == tmp_path.resolve() / "absent"


def test_a_link_whose_file_is_missing_says_so(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("annexed")
    with pytest.raises(PipelineError, match=r"a is a link to a file that is not there; fetch it"):
        LocalFolder(tmp_path).read_bytes("a")
    assert not LocalFolder(tmp_path).exists("a")


def test_a_file_may_be_a_link_if_it_is_watched(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"x")
    folder = LocalFolder(tmp_path / "store")
    folder.replace("own", b"y")
    (folder.path / "a").symlink_to(tmp_path / "outside")
    (folder.path / "b").symlink_to("own")
    assert folder.read_bytes("a") == folder.read_range("a", 0, 9) == b"x"
    assert folder.size("a") == 1
    assert folder.exists("a")
    assert folder.read_unwatched("b") == folder.read_unwatched("own") == b"y"
    with pytest.raises(PipelineError, match=r"a leads out of .*put the file itself there"):
        folder.read_unwatched("a")


@pytest.mark.parametrize("cache", [".git/annex/objects", ".dvc/cache/files"])
def test_a_cache_that_is_a_link_vouches_for_nothing(tmp_path: Path, cache: str) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "secret").write_bytes(b"x")
    folder = LocalFolder(tmp_path / "store")
    (folder.path / cache).parent.mkdir(parents=True)
    (folder.path / cache).symlink_to(tmp_path / "home")
    (folder.path / "run").symlink_to(folder.path / cache / "secret")
    with pytest.raises(PipelineError, match="leads out of"):
        folder.read_unwatched("run")


def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    folder = LocalFolder(tmp_path)
    for call in (
        lambda: folder.read_bytes("pipe"),
        lambda: folder.read_range("pipe", 0, 1),
        lambda: folder.size("pipe"),
        lambda: LocalFolder(tmp_path / "pipe").size(""),
        lambda: LocalFolder(Path("/dev/zero")).read_bytes(""),
    ):
        with pytest.raises(PipelineError, match="is no file, but a pipe or a device"):
            call()


def test_a_file_larger_than_it_may_be_is_refused(folder: Folder) -> None:
    folder.replace("a", b"12345")
    assert folder.read_bytes("a", 5) == b"12345"
    with pytest.raises(PipelineError, match="/a has 5 bytes, and such a file has at most 4"):
        folder.read_bytes("a", 4)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, OSError])
def test_a_write_that_is_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    def fail(_handle: int) -> None:
        raise interrupt

    monkeypatch.setattr(os, "fsync", fail)
    folder = LocalFolder(tmp_path)
    for write in (folder.commit_new, folder.replace):
        with pytest.raises((interrupt, PipelineError)):
            write("a.json", b"{}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://bucket/x", "https://host/x", "hf://x"])
def test_a_url_is_never_taken_for_a_directory_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (replace, commit_new):
        with pytest.raises(PipelineError, match="is a URL"):
            write(Path(url), b"x")
    assert not list(tmp_path.iterdir())
    assert commit_new(Path("a:") / "b:c", b"x")


def test_a_directory_without_a_name_is_no_file_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path(), Path("/")):
        with pytest.raises(PipelineError, match="is a directory; give"):
            replace(path, b"x")


@pytest.mark.parametrize("name", ["pipe", "link", "/dev/null", "/dev/stdout", "/proc/self/fd/1"])
def test_nothing_is_written_over_a_pipe_or_a_device(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    # Not by writing: before it was refused, that took /dev/null from the whole machine.
    with (
        pytest.raises(PipelineError, match="is a pipe or a device, which"),
        writing(tmp_path / name),
    ):
        pass
    if not name.startswith("/"):
        with pytest.raises(PipelineError, match="is a pipe or a device"):
            replace(tmp_path / name, b"x")
