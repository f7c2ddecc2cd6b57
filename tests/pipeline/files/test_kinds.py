from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
import threading
from pathlib import Path
from time import process_time

import pytest

from pipeline.errors import ConfigError
from pipeline.files import kinds
from pipeline.files.kinds import read_list, read_toml, why_no_data

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 335000000\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (LFS, "a pointer of Git LFS, not the file itself; run git lfs pull"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page"),
        (b"\xef\xbb\xbf\n <HTML>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an XML page"),
        (gzip.compress(b"x", mtime=0), "is compressed by gzip; unpack it"),
        (bz2.compress(b"x"), "is compressed by bzip2; unpack it"),
        (lzma.compress(b"x"), "is compressed by xz; unpack it"),
    ],
)
def test_what_is_no_data_is_said_with_its_cure(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a").write_bytes(content)
    found = why_no_data(tmp_path / "a")
    assert found is not None
    assert reason in found


def test_what_may_be_data_has_no_reason_against_it(tmp_path: Path) -> None:
    for number, content in enumerate((b"PK\x03\x04", b"\x00" * 600, b"anything")):
        (tmp_path / str(number)).write_bytes(content)
        assert why_no_data(tmp_path / str(number)) is None


def test_what_is_no_file_is_said_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "annexed")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, reason in (
        ("", "is a directory"),
        ("pipe", "is a pipe"),
        ("none", "does not exist"),
        ("link", "is a link to a file that is not there"),
        ("loop", "cannot be read (Too many levels"),
    ):
        found = why_no_data(tmp_path / name)
        assert found is not None
        assert found.startswith(reason)


@pytest.mark.timeout(20)
def test_a_pipe_for_a_file_of_settings_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.toml")
    for path in (tmp_path / "run.toml", tmp_path, Path("/dev/null")):
        with pytest.raises(ConfigError, match=r"`config` .* cannot be read .*a pipe or a device"):
            read_toml(path)
    (tmp_path / "none.toml").touch()
    assert read_toml(tmp_path / "none.toml") == {}


_LONG = ".".join(["a"] * 20_000)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        f"{_LONG} = 1",
        f"[{_LONG}]",
        f"[[{_LONG}]]",
        "x = {" + _LONG + " = 1}",
        _LONG.replace("a", '"a.\\""') + " = 1",
        _LONG.replace("a", "''") + " = 1",
        f'# """\n{_LONG} = 1\n# """',
        f'x = {{y = """a\n\' """, {_LONG} = \'\'}}',
        f'x = {{y = """"a"""", {_LONG} = """"a""""}}',
        "\n".join(f"{'.'.join(['a'] * 250)}.b{line} = 1" for line in range(1000)),
    ],
)
def test_a_key_of_thousands_of_parts_is_refused_at_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ConfigError, match="keys and numbers have more than 500 dots"):
        read_toml(tmp_path / "run.toml")


@pytest.mark.parametrize("text", ['x = "' + '\\"' * 400_000, "x = '" + '"a\\' * 200_000])
def test_a_text_without_an_end_is_refused_in_a_moment(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    began = process_time()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path / "run.toml")
    assert process_time() - began < 5  # it took an hour


def test_dots_in_texts_and_comments_are_not_counted(tmp_path: Path) -> None:
    shards = [f"s3://bucket/x.{number}.tar" for number in range(2000)]
    text = f'shards = {shards}\n# {"." * 1000}\nnotes = """{"." * 1000}"""\nlr = 0.5'
    (tmp_path / "run.toml").write_text(text)
    assert read_toml(tmp_path / "run.toml") == {"shards": shards, "notes": "." * 1000, "lr": 0.5}


def _written_to(pipe: Path, *, data: bytes, times: int) -> threading.Thread:
    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            try:
                for _ in range(times):
                    file.write(data)
            except BrokenPipeError:
                pass

    os.mkfifo(pipe)
    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_a_list_is_read_from_a_file_and_from_the_pipe_of_a_program(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a\nb")
    assert read_list(tmp_path / "list.txt") == ["a", "b"]
    slow = "(sleep 0.3; echo a; sleep 0.3; echo b)"
    with subprocess.Popen(slow, shell=True, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert read_list(Path(f"/dev/fd/{program.stdout.fileno()}")) == ["a", "b", ""]


@pytest.mark.timeout(20)
def test_a_list_that_never_ends_or_begins_or_is_no_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "_LIST_BYTES", 1 << 20)
    monkeypatch.setattr(kinds, "_SILENT_SECONDS", 0.1)
    endless = _written_to(tmp_path / "endless", data=b"key\n" * 1000, times=10**9)
    os.mkfifo(tmp_path / "silent")
    (tmp_path / "zeros").write_bytes(b"key\n\0")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    for name, reason in (
        ("endless", "has more than 1048576 bytes"),
        ("silent", "gave nothing for 0.1 seconds"),
        ("zeros", "is no text"),
        ("large", "is no text"),
        ("/dev/zero", "is a directory or a device"),
        (".", "directory"),
    ):
        with pytest.raises((ValueError, OSError), match=reason):
            read_list(tmp_path / name)
    endless.join()


def test_settings_and_lists_have_a_size_at_most(tmp_path: Path) -> None:
    settings, keys = tmp_path / "run.toml", tmp_path / "keys.txt"
    settings.write_bytes(b"#" * (1 << 20))
    assert read_toml(settings) == {}
    settings.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="it has more than 1048576 bytes"):
        read_toml(settings)
    keys.write_bytes(b"k" * ((64 << 20) + 1))
    with pytest.raises(ValueError, match="it has more than 67108864 bytes"):
        read_list(keys)


def test_a_mark_of_the_encoding_is_no_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfepochs = 1\r\n")
    assert read_toml(tmp_path / "a") == {"epochs": 1}
    assert read_list(tmp_path / "a")[0].strip() == "epochs = 1"


@pytest.mark.parametrize("text", ['a = "x\\u0000"', '[a.b]\nc = [["x\\u0000y"]]'])
def test_a_zero_byte_in_a_text_of_settings_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text(text)
    with pytest.raises(ConfigError, match=r"cannot be read \(a text in it has a zero byte\)"):
        read_toml(tmp_path / "a")
