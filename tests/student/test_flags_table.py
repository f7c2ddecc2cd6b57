"""The table of DeiT's and timm's flags in docs/RECIPES.md names flags that there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import label_teacher
from pipeline.cli import commands
from student import cli

RECIPES = Path(__file__).parents[2] / "docs" / "RECIPES.md"

PROGRAMS: dict[str, Callable[[], object]] = {
    "train-student": cli.main,
    "evaluate-student": cli.evaluate_main,
    "label-teacher": label_teacher.main,
    "pack-shards": commands.pack_shards,
    "label-store": commands.label_store,
}

FLAG = re.compile(r"--[a-zA-Z][a-zA-Z0-9_.-]*[a-zA-Z0-9]")


def rows() -> list[tuple[str, str, str]]:
    """Return what DeiT or timm call it, what is here, and the remark, of all rows."""
    tables = RECIPES.read_text().split("| there | here | |\n|---|---|---|\n")[1:]
    lines = [line for table in tables for line in table.split("\n\n")[0].splitlines()]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(there, here, remark) for there, here, remark in cells]


@pytest.fixture
def help_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Return the help of a program, or of a command of it; it fails if there is none."""

    def shown(program: str, *words: str) -> str:
        monkeypatch.setattr("sys.argv", [program, *words, "--help"])
        with pytest.raises(SystemExit) as caught:
            PROGRAMS[program]()
        assert not caught.value.code, (program, *words)
        return capsys.readouterr().out

    return shown


def test_each_flag_of_the_table_is_one_of_the_program_that_it_is_said_to_be(help_of) -> None:
    named: dict[str, set[str]] = {}
    for there, here, _ in rows():
        spans = re.findall(r"`([^`]+)`", here)
        assert spans or here in ("no", "always", "torchrun"), there
        for span in spans:
            program, _, flag = span.rpartition(" ")
            named.setdefault(program or "train-student", set()).add(flag)
    for program, flags in named.items():
        if program == "label-store":
            assert all(help_of(program, command) for command in flags)
        else:
            assert flags - set(FLAG.findall(help_of(program))) == set(), program
    assert len(named["train-student"]) > 20


def test_what_is_refused_has_a_reason_and_no_flag_stands_twice() -> None:
    seen: set[str] = set()
    for there, here, remark in rows():
        assert remark or here != "no", there
        flags = FLAG.findall(there)
        assert flags, there
        assert not seen.intersection(flags), there
        seen.update(flags)
    assert len(seen) > 150
