"""From an error to an exit status, and from a text to a terminal."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import threading
import time
from dataclasses import replace
from importlib import import_module
from importlib.metadata import distribution
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.label_teacher import LabelFlags, parse_arguments
from jobs.teacher_labels import COMMANDS
from pipeline.cli import commands, console
from pipeline.cli.console import (
    Progress,
    counted,
    flags_of,
    note,
    printable,
    running,
    say,
    say_lines,
    tell,
    tell_next,
    within_another,
    words_given,
)
from pipeline.errors import ConfigError, StoreError
from pipeline.records import PartRows
from pipeline.telling import told
from student.config import EvaluateConfig, TrainConfig
from tests.commands import require_command
from tests.storing import info_of, write_store

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
HOSTILE = "\x1b[2Jpassed\r\n\u202egpj.\x9b31m\udcff\u2066\x07"


def status_of(error: BaseException, flags: dict[str, str] | None = None) -> object:
    with pytest.raises(SystemExit) as ended, running("a-program", flags or {}):
        raise error
    return ended.value.code


def test_an_error_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(StoreError("s.parquet is gone; restore it")) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "a-program: error: s.parquet is gone; restore it\n")


def test_ctrl_c_is_status_130_and_any_other_status_stays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status_of(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "a-program: interrupted\n"
    assert status_of(SystemExit(143)) == 143
    assert status_of(SystemExit(0)) == 0
    with pytest.raises(ZeroDivisionError), running("a-program", {}):
        raise ZeroDivisionError  # a fault keeps its traceback


def test_parameters_are_shown_as_flags_where_the_command_has_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = "`views_per_part` is 7, `shards` none, `gigabytes` 0, `unheard_of` 1, as `a b` says"
    status_of(ConfigError(text), flags_of(LabelFlags))
    assert capsys.readouterr().err == (
        "a-program: error: --views-per-part is 7, --shards none, --cache-gb 0, `unheard_of` 1, "
        "as `a b` says\n"
    )
    status_of(ConfigError("`store`, `shards`, `checkpoint`"), flags_of(commands.Verify))
    assert "error: store, --shards, --teacher-checkpoint\n" in capsys.readouterr().err
    status_of(ConfigError("`shards` and `store`"), flags_of(commands.Stats))
    assert "error: `shards` and store\n" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [LabelFlags, TrainConfig, EvaluateConfig], ids=str)
def test_every_flag_that_is_shown_is_one_that_the_command_takes(settings: type) -> None:
    program = {LabelFlags: "label-teacher", TrainConfig: "train-student"}
    name = program.get(settings, "evaluate-student")
    done = subprocess.run([BIN / name, "--help"], capture_output=True, text=True, check=True)
    words = set(done.stdout.replace("{", " ").replace(",", " ").split())
    flags = flags_of(settings, prefixes=settings is not TrainConfig)
    missing = [flag for flag in flags.values() if flag not in words]
    assert [flag for flag in missing if flag.startswith("--")] == []


def test_an_error_in_a_nested_setting_names_the_nested_flag() -> None:
    flags = flags_of(LabelFlags)
    assert flags["group_size"] == "--mixing.group-size"
    assert flags["image_size"] == "--image-size"


@given(st.text())
def test_nothing_that_is_printed_acts_upon_a_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    shown.encode()


@pytest.mark.parametrize("show", [say, note, say_lines])
def test_escapes_newlines_and_marks_of_direction_are_spelled_out(
    show, capsys: pytest.CaptureFixture[str]
) -> None:
    show(HOSTILE)
    printed = "".join(capsys.readouterr())
    lines = 2 if show is say_lines else 1
    assert printed.count("\n") == lines
    assert printed.replace("\n", "").isprintable()
    for escape in (r"\x1b[2Jpassed", r"\r", r"\u202egpj", r"\x9b31m", r"\udcff", r"\u2066"):
        assert escape in printed


def test_one_thing_is_counted_as_one_and_names_with_numbers_stay(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert [counted(count, "shard") for count in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]
    say("/data/1 images/1 shards.tar")
    assert capsys.readouterr().out == "/data/1 images/1 shards.tar\n"


def test_a_list_in_an_error_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    status_of(ConfigError("these differ:\n  a: 1\n  b: \x1b[0m\npassed"))
    assert capsys.readouterr().err == (
        "a-program: error: these differ:\n  a: 1\n  b: \\x1b[0m\\npassed\n"
    )


def test_names_in_files_are_data_for_every_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "s.parquet")
    hostile = HOSTILE.replace("\udcff", "")  # no store holds what is not UTF-8

    def named(rows: PartRows) -> PartRows:
        keys = tuple(f"{hostile}{key}" for key in rows.keys)
        torn = tuple(replace(one, key=hostile) for one in rows.rejections)
        return replace(rows, keys=keys, rejections=torn)

    write_store(Path(path), [info_of(0), info_of(1)], [(0, 4)], change=named)
    for command in ("inspect", "stats", "verify"):
        for more in ([], ["--json"]):
            monkeypatch.setattr(sys, "argv", ["label-store", command, path, *more])
            commands.label_store()
    printed = "".join(capsys.readouterr())
    assert printed.replace("\n", "").isprintable()
    assert r"\u202egpj" in printed
    monkeypatch.setattr(sys, "argv", ["label-store", "verify", f"{path}{HOSTILE}"])
    with pytest.raises(SystemExit):
        commands.label_store()
    assert capsys.readouterr().err.removesuffix("\n").isprintable()


def test_the_library_s_warnings_are_printed_once_with_flags(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("pipeline.files.cache")
    with running("outer", {}), running("label-teacher", flags_of(LabelFlags)):
        logger.warning("%s waits for room: raise `gigabytes`", "s3://b/\x1b[2J.tar")
    assert capsys.readouterr().err == (
        "label-teacher: warning: s3://b/\\x1b[2J.tar waits for room: raise --cache-gb\n"
    )
    logger.warning("outside of a command")
    assert "label-teacher" not in capsys.readouterr().err


def test_progress_is_a_line_in_a_log_and_the_last_one_is_always_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 1.0, 11.0, 12.0, 20.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with running("pack-shards", {}), Progress("images") as progress:
        for done in (1, 2, 3, 4):
            progress.show(done, 4)
    assert capsys.readouterr().err == (
        "pack-shards: 2 of 4 images, 0.1 images/s, about 20 s left\n"
        "pack-shards: 4 of 4 images, 0.2 images/s\n"
    )


def test_what_came_before_the_first_is_no_part_of_the_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 60.0, 71.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with running("pack-shards", {}), Progress("images") as progress:
        progress.show(1, 1000)  # after a minute of imports
        progress.show(111, 1000)
    assert capsys.readouterr().err == (
        "pack-shards: 1 of 1000 images, 0.0 images/s\n"
        "pack-shards: 111 of 1000 images, 10 images/s, about 89 s left\n"
    )


def test_the_next_command_is_said_as_it_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with running("pack-shards", {}):
        tell_next("label-teacher", "--shards", "my shards", "x-*.tar")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "pack-shards: next: label-teacher --shards 'my shards' 'x-*.tar'\n"


def test_paths_below_this_directory_are_said_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    with running("a", {}):
        tell_next("label-store", "show", f"{tmp_path}/in/x.parquet", f"{tmp_path}/inner", "--all")
    assert capsys.readouterr().err == (
        f"a: next: label-store show x.parquet {tmp_path}/inner --all\n"
    )


def test_programs_have_the_names_that_the_user_typed(capsys: pytest.CaptureFixture[str]) -> None:
    def ends() -> str:
        with running("a-program", {}):
            tell_next("label-store", "show", "my store")
            note("bind it by `label-store rebind`, or pack with `pack-shards`; not `x y`")
        return capsys.readouterr().err

    assert ends() == (
        "a-program: next: label-store show 'my store'\n"
        "a-program: bind it by label-store rebind, or pack with pack-shards; not `x y`\n"
    )
    with running("a", {}, names={"label-store": "all store", "pack-shards": "all pack"}):
        assert ends() == (
            "a-program: next: all store show 'my store'\n"
            "a-program: bind it by all store rebind, or pack with all pack; not `x y`\n"
        )
    assert "next: label-store" in ends()


def test_a_step_of_another_command_leaves_what_comes_next_to_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with running("all", {}):
        with within_another(), running("step", {}):
            tell_next("label-store", "stats", "x")
            tell("rest")
            note("done")
        tell("open it")
    assert capsys.readouterr().err == "step: done\nall: open it\n"


def test_where_an_error_came_from_is_shown_if_the_environment_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for asked in ("", "0"):
        monkeypatch.setenv("TEACHER_LABELS_DEBUG", asked)
        assert status_of(StoreError("torn")) == 1
        assert capsys.readouterr().err == "a-program: error: torn\n"
    monkeypatch.setenv("TEACHER_LABELS_DEBUG", "1")
    for error in (StoreError("torn"), OSError(errno.ENOENT, "", "x")):
        assert status_of(error) == 1
        lines = capsys.readouterr().err.splitlines()
        assert "Traceback (most recent call last):" in lines[0]
        assert any("in status_of" in line for line in lines)
        assert lines[-1].startswith("a-program: error: ")


def slow_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, seconds: float) -> None:
    (folder / f"{name}.py").write_text(f"import time; time.sleep({seconds})")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(console, "_SLOW", {name: "a slow one"})


def test_a_library_that_takes_long_to_load_is_named_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow_module(tmp_path, monkeypatch, "slow_on_terminal", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with running("a-program", {}), running("inside", {}):
        import_module("slow_on_terminal")
        import_module("slow_on_terminal")
    assert capsys.readouterr().err == "inside: loading a slow one ...\n"
    assert not [one for one in sys.meta_path if isinstance(one, console._Loading)]


@pytest.mark.parametrize(
    ("terminal", "counts", "seconds"), [(True, False, 3), (False, False, 8), (False, True, 12)]
)
def test_what_goes_on_is_said_where_nothing_else_is(
    terminal: bool,
    counts: bool,
    seconds: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """README: nothing is silent for more than three seconds, ten in a log."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with Progress("weights", "evaluating x") as progress:
        progress.counts = counts
        assert console._quiet_for() == seconds
        assert console._at_work() == "evaluating x ..."
    monkeypatch.setattr(console, "_quiet_for", lambda: 0.1)
    monkeypatch.setattr(console, "_BEAT_SECONDS", 0.05)
    slow_module(tmp_path, monkeypatch, f"slow_{seconds}", 0.6)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with running("a-program", {}), running("inside", {}):
        import_module(f"slow_{seconds}")
        time.sleep(0.4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("inside: loading a slow one ..., 0 s so far")
    assert lines[-1].startswith("inside: ... at work, ")
    assert not [one for one in threading.enumerate() if one.name == "pulse"]


def test_only_the_first_of_several_ranks_says_that_it_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_quiet_for", lambda: 0.0)
    monkeypatch.setattr(console, "_BEAT_SECONDS", 0.02)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with running("a-program", {}):
            time.sleep(0.2)
        assert ("at work" in capsys.readouterr().err) == (rank == "0")


def test_a_slip_in_a_store_s_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for word, hint in (("verfy", "did you mean verify?"), ("qq", "use inspect, verify, stats")):
        with pytest.raises(SystemExit) as ended:
            commands.label_store([word, "s.parquet"])
        assert ended.value.code == 1
        assert f"label-store: error: there is no command '{word}'; {hint}" in (
            capsys.readouterr().err
        )


def test_what_takes_less_than_three_seconds_has_no_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 1.0, 2.9])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with running("pack-shards", {}), Progress("images") as progress:
        for done in (1, 2):
            progress.show(done, 2)
    assert capsys.readouterr().err == ""


WORKING = """
import sys, time
from pipeline.cli import console
from pipeline.cli.console import Progress, note, running
from pipeline.telling import told
console._SHORT_SECONDS = 0.2
with running("a-program", {}), Progress("parts") as progress:
    for part in range(1, 4):
        for view in told(range(1, 4), "redrawing x", "views", 3):
            time.sleep(0.15)
        progress.show(part, 3)
        note(f"part {part} is done")
"""


@pytest.mark.parametrize("columns", [0, 40, 120])
def test_a_terminal_shows_work_and_the_work_inside_of_it(columns: int) -> None:
    leader, follower = pty.openpty()
    size = struct.pack("HHHH", 24 * bool(columns), columns, 0, 0)
    fcntl.ioctl(follower, termios.TIOCSWINSZ, size)
    process = subprocess.Popen([sys.executable, "-c", WORKING], cwd=ROOT, stderr=follower)
    os.close(follower)
    seen = b""
    with contextlib.suppress(OSError):  # of a terminal that is closed
        while data := os.read(leader, 1 << 16):
            seen += data
    os.close(leader)
    assert process.wait() == 0
    text = seen.decode()
    assert "redrawing x:" in text
    assert "a-program:" in text
    assert text.count("part 3 is done") == 1
    assert re.search(r"redrawing x: +67%.*\| 2/3 \[00:00<00:0", text)
    assert columns == 40 or re.search(r"a-program: 100%.*\| 3/3 \[.*parts/s\]", text)


def test_work_inside_of_other_work_says_what_it_is_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 1.0, 2.0, 3.0, 4.0, 14.0, 15.0, 16.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with running("verify", {}), Progress("labels") as progress:
        progress.show(0, 100)
        for _ in told(range(4), "redrawing x", "views", 4):
            pass
        assert len(Progress.shown) == 1
    assert capsys.readouterr().err == (
        "verify: redrawing x: 2 of 4 views, 0.2 views/s, about 11 s left\n"
        "verify: redrawing x: 4 of 4 views, 0.3 views/s\n"
    )


def test_an_error_leaves_no_bar_and_the_end_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = told(range(4), "redrawing x", "views", 4)
    with pytest.raises(SystemExit), running("verify", {}):
        raise StoreError(f"torn at {next(loop)}")
    assert Progress.shown == []
    clock = iter([0.0, 4.0, 5.0, 16.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with Progress("labels") as progress:
        for _ in range(3):
            progress.show(9, 9)
    assert capsys.readouterr().err.count("9 of 9") == 1


PRINTING = """
import sys
from pipeline.cli.console import note, running, say
from pipeline.errors import StoreError
with running("a-program", {}):
    exec(sys.argv[1])
"""

ENDS = {
    "say('x')": (141, ""),
    "[say('x') for _ in range(100000)]": (141, ""),
    "print('x')": (141, ""),
    "print('x'); sys.exit(0)": (141, ""),
    "print('x'); sys.exit(3)": (3, ""),
    "print('x'); raise StoreError('gone')": (1, "a-program: error: gone\n"),
    "pass": (0, ""),
}
"""What a program does, and how it ends if nobody reads its output."""


def end_of(*command: object, bufsize: str | None = None) -> tuple[int, str]:
    """Return status and stderr of a command whose stdout is a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=variables | ({"PYTHONUNBUFFERED": "1"} if bufsize == "0" else {}),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("does", ENDS)
def test_a_closed_pipe_ends_a_command_without_a_word(does: str) -> None:
    assert end_of(sys.executable, "-c", PRINTING, does) == ENDS[does]


@pytest.mark.parametrize("bufsize", [None, "0"])
@pytest.mark.parametrize("does", ["print('x')", "say('x')", "print('x' * 99999)"])
def test_a_full_disk_behind_the_output_is_said(does: str, bufsize: str | None) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    variables |= {"PYTHONUNBUFFERED": "1"} if bufsize else {}
    code = PRINTING.replace("import running", "import running, say")
    command = [sys.executable, "-c", code, does]
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        one = subprocess.run(
            command, cwd=ROOT, env=variables, stdout=full, stderr=subprocess.PIPE, text=True
        )
        both = subprocess.run(command, cwd=ROOT, env=variables, stdout=full, stderr=full)
    words = "a-program: error: its output cannot be written: No space left on device\n"
    assert (one.returncode, one.stderr) == (1, words)
    assert both.returncode == 1


@pytest.mark.parametrize("wrapped", ["raise SystemError from error", "raise ImportError('x')"])
def test_ctrl_c_is_found_below_the_errors_of_others(
    wrapped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"try:\n    raise KeyboardInterrupt\nexcept KeyboardInterrupt as error:\n    {wrapped}"
    with pytest.raises(SystemExit) as ended, running("a-program", {}):
        exec(code)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "a-program: interrupted\n"


@pytest.mark.parametrize("number", ["ENOENT", "EACCES", "EROFS", "ENOSPC", "ENOTDIR"])
def test_a_file_that_the_system_refuses_is_named_without_a_traceback(
    number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = getattr(errno, number)
    assert status_of(OSError(code, "words", "x.json")) == 1
    assert capsys.readouterr().err == f"a-program: error: x.json: {os.strerror(code)}\n"
    with pytest.raises(OSError, match="of no file"):
        status_of(OSError("of no file"))


def test_a_tilde_is_the_home_directory_also_in_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    words = ["--out", "~/x.parquet", "--shards=~/a/*.tar", "~", "x~y", "--key", "a=~/b", "s3://b/~"]
    assert words_given(words) == [
        *("--out", "/home/me/x.parquet", "--shards=/home/me/a/*.tar", "/home/me"),
        *("x~y", "--key", "a=~/b", "s3://b/~"),
    ]
    monkeypatch.setattr("sys.argv", ["program", "~/y"])
    assert words_given(None) == ["/home/me/y"]
    assert words_given([]) == []


def test_another_pipe_that_breaks_is_a_fault() -> None:
    code = PRINTING.replace("exec(sys.argv[1])", "raise BrokenPipeError('of a worker')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "of a worker" in done.stderr) == (1, True)


PROGRAMS = {one.name: one for one in distribution("teacher-labels").entry_points}
HELPS = [*([name] for name in PROGRAMS), ["label-store", "stats"]]


@pytest.mark.parametrize("command", HELPS, ids=" ".join)
def test_help_loads_nothing_that_only_the_work_needs(command: list[str]) -> None:
    program, _, function = PROGRAMS[command[0]].value.partition(":")
    code = (
        f"import atexit, sys; sys.argv = {[*command, '--help']}\n"
        "def loaded(): print('loaded:', *{name.partition('.')[0] for name in sys.modules})\n"
        f"atexit.register(loaded)\nfrom {program} import {function} as main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    shown, _, loaded = done.stdout.rpartition("loaded:")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: {command[0]}" in shown
    assert "tyro" in loaded.split()
    heavy = {"numba", "pyarrow", "ray", "timm", "torch", "webdataset", "zarr"}
    assert heavy.isdisjoint(loaded.split())


@pytest.mark.parametrize("name", ["label-teacher", "train-student", "pack-shards"])
def test_a_help_fits_a_terminal_and_its_example_can_be_copied(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = next(one for old, one, _ in COMMANDS.values() if old == name)
    module, _, function = target.partition(":")
    with pytest.raises(SystemExit):
        getattr(import_module(module), function)(["--help"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    example = printed.partition("For example:\n")[2].partition("\n\n")[0]
    require_command(shlex.split(example.replace("\\\n", "")))


@pytest.mark.parametrize("command", [*HELPS, ["label-store", "verify"]], ids=" ".join)
def test_what_a_flag_does_is_broken_by_the_width_of_the_terminal_alone(command: list[str]) -> None:
    """Not where a docstring's lines end; and no example in Python is shown for a flag's."""
    shown = subprocess.run(
        [BIN / command[0], *command[1:], "--help"],
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line.rstrip(" │") for line in shown.partition("--help")[2].splitlines()]
    width = max(map(len, lines)) - 2  # inside the frame
    # A help begins beside its flag, or on the next line; each but its last line is full.
    deep = [len(line) - len(line.lstrip(" │")) > 10 for line in lines]
    for (one, other), both in zip(pairwise(lines), pairwise(deep), strict=True):
        if all(both):
            assert len(one) + 1 + len(other.strip(" │").split()[0]) > width, (one, other)
    assert ">>>" not in shown


@pytest.mark.parametrize("command", HELPS, ids=" ".join)
@pytest.mark.parametrize("bufsize", [None, "0"])
def test_help_may_be_cut_short(command: list[str], bufsize: str | None) -> None:
    assert end_of(BIN / command[0], *command[1:], "--help", bufsize=bufsize) == (141, "")


def test_json_of_names_in_files_is_read_back_as_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say_lines(json.dumps({"name": HOSTILE}, indent=2))
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    assert json.loads(printed) == {"name": HOSTILE}


def test_the_settings_of_label_teacher_are_the_library_s_own() -> None:
    config = parse_arguments(["--shards", "x.tar", "--out", "s.parquet", "--keep", "topk=5"])
    assert type(config).__name__ == "LabelConfig"
    assert config.columns.topk == 5


def test_threads_do_not_spin_while_they_wait_unless_the_user_wants_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for set_before, seen in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if set_before:
            monkeypatch.setenv("OMP_WAIT_POLICY", set_before)
        with running("label-store", {}):
            assert os.environ["OMP_WAIT_POLICY"] == seen


def test_no_message_breaks_its_lines_but_for_a_list() -> None:
    """``note`` keeps the lines of a list, which begin with two spaces, and spells the rest out."""
    broken = re.compile(r'(?<!b)"\\n[a-z](?!nd \{more\})')  # but for a card's Markdown
    for path in sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("student/**/*.py")]):
        found = [line for line in path.read_text().splitlines() if broken.search(line)]
        assert found == [], f"{path}: {found}"


CALLED_BACK = """
import ctypes, os, signal, time
from pipeline.cli.console import running
signal.signal(signal.SIGINT, signal.default_int_handler)
called_back = ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), signal.SIGINT))
class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
with running("demo", {}), running("inner", {}):
"""


@pytest.mark.parametrize(
    "body",
    [
        "called_back(); raise RuntimeError('no compiled object yet')",  # as numba does
        "called_back(); time.sleep(60)",
        "Finalized(); time.sleep(60)",
    ],
)
def test_ctrl_c_is_not_lost_while_c_calls_back(body: str) -> None:
    code = f"{CALLED_BACK}    {body}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "inner: interrupted\n")


def test_another_fault_in_a_callback_is_told_as_ever() -> None:
    code = f"{CALLED_BACK}    ctypes.CFUNCTYPE(None)(lambda: 1 / 0)()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert "ZeroDivisionError" in done.stderr


def test_a_path_that_is_not_utf8_is_named_where_a_file_cannot_hold_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as raised, running("a-program", {}):
        ("x" * 500 + "/data/caf\udce9/run" + "y" * 500).encode()
    assert raised.value.code == 1
    said = capsys.readouterr().err
    assert r"error: a name that is not UTF-8" in said
    assert r"/data/caf\udce9/run" in said
    assert len(said) < 300
    with pytest.raises(UnicodeEncodeError), running("a-program", {}):
        "\u00e9".encode("ascii")
