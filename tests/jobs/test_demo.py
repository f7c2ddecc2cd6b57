"""The demo goes the whole way, says what it does, and ends with what to open and to do."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from jobs import demo, shapes, small_teacher
from jobs.teacher_labels import main
from pipeline.cli import console
from pipeline.cli.console import quiet_seconds, running, say
from tests.commands import require_command
from tests.pages import pictures_of, read_page


def status_of(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def test_the_demo_ends_with_reports_and_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, small in (("_IMAGES", (8, 4)), ("_EPOCHS", 1), ("VIEWS", 3)):
        monkeypatch.setattr(demo, name, small)
    monkeypatch.setattr(demo, "_LABEL", f"{demo._LABEL} --allow-low-agreement")
    monkeypatch.chdir(tmp_path)
    main(["demo", "--out", "try"])
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line[:2] for line in lines if line[1:2] == "."] == [f"{n}." for n in range(1, 9)]
    for line in lines:
        if line.startswith("   $ "):
            require_command(shlex.split(line[5:]))
    assert "passed" in lines
    assert any(line.startswith("   both have sha256 ") for line in lines)
    ends = [line.partition(": ")[2] for line in printed.err.splitlines()][-4:]
    assert ends[0] == "open try/report.html in a browser"
    assert ends[1] == "open try/student/report.html in a browser"
    require_command(shlex.split(ends[3].removeprefix("next: ")))
    assert printed.err.count(": next: ") == 1  # none of the steps'
    assert pictures_of(read_page((tmp_path / "try" / "report.html").read_text()))
    assert "Accuracy" in read_page((tmp_path / "try" / "student" / "report.html").read_text()).text
    assert status_of("demo", "--out", "try") == 1
    assert "is there already" in capsys.readouterr().err


def test_what_the_demo_is_made_of_ends_with_what_comes_next_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = small_teacher.TrainedTeacher(share=0.5, is_poor=False, batch_size=32)
    monkeypatch.setattr(small_teacher, "train_teacher", lambda options: trained)
    monkeypatch.setattr(shapes, "write_shapes", lambda out: None)
    monkeypatch.setattr("sys.argv", ["shapes.py", str(tmp_path)])
    given = ["--shards", "a", "--val-shards", "b", "--out", "t.safetensors", "--image-size", "64"]
    for run in (lambda: small_teacher.main(given), shapes.main):
        run()
        require_command(shlex.split(capsys.readouterr().err.rpartition("next: ")[2]))


def test_it_says_that_it_works_where_nothing_else_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    with running("demo", {}):
        say("begun")
        assert quiet_seconds() == 0
        clock[0] = 109.0
        assert quiet_seconds() == 9
        console.note("at work")
        assert quiet_seconds() == 0
