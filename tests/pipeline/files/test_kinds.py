from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.files.kinds import read_toml, why_no_data

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 335000000\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (LFS, "a pointer of Git LFS, not the file itself; run git lfs pull"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page"),
        (b"\xef\xbb\xbf\n <HTML>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an XML page"),
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
