"""Flags of timm's and DeiT's scripts are answered with what they are here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from student.cli import main
from student.habits import ABSENT, HABITS
from tests.student.test_flags_table import FLAG, rows

BIN = Path(sys.executable).parent
SHORT = {"-b": "--batch-size", "-j": "--num_workers"}  # the table has no short names


@pytest.mark.parametrize("flag", HABITS)
def test_each_habit_is_answered_with_what_it_is_here(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for word in (flag, f"{flag}=1", flag[:2] + flag[2:].replace("-", "_")):
        with pytest.raises(SystemExit) as ended:
            main(["--labels", "x.parquet", word, "1"])
        assert ended.value.code == 1
        assert f"here it is {HABITS[flag].replace('`', '')}" in capsys.readouterr().err


def test_all_foreign_flags_are_answered_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--opt", "adamw", "--amp", "-j4", "--model_ema_decay=.9", "--epochs", "-1")
    with pytest.raises(SystemExit):
        main(["--labels", "x.parquet", *flags])
    said = capsys.readouterr().err
    own = ("--optimizer;", "--precision bf16;", "--workers;", "--ema-decay;")
    assert [said.count(f"here it is {one}") for one in own] == [1] * 4
    assert "--epochs" not in said


def test_the_answers_are_those_of_the_table() -> None:
    table = {
        flag.replace("_", "-"): here for there, here, _ in rows() for flag in FLAG.findall(there)
    }
    for flag, answer in HABITS.items():
        here = table.get(SHORT.get(flag, flag).replace("_", "-"))
        named = FLAG.findall(answer)
        if here is not None and named:
            assert any(one in here for one in named), (flag, here)
    assert len(HABITS.keys() & table.keys()) > 30


def test_what_the_table_refuses_is_said_to_be_refused(capsys: pytest.CaptureFixture[str]) -> None:
    refused = [flag for there, here, _ in rows() if here == "no" for flag in FLAG.findall(there)]
    assert sorted(refused) == sorted(f"--{name}" for name in ABSENT)
    with pytest.raises(SystemExit):
        main(["--labels", "x.parquet", "--cosub", "--patience_epochs=3", "--opt=adamw"])
    said = capsys.readouterr().err
    assert "--cosub: it is not here" in said
    assert "--patience_epochs: it is not here" in said
    assert "--opt: here it is --optimizer;" in said


def test_no_flag_of_ours_is_taken_for_a_habit() -> None:
    done = subprocess.run(
        [BIN / "train-student", "--help"], capture_output=True, text=True, check=True
    )
    assert not set(FLAG.findall(done.stdout)) & {*HABITS, *(f"--{name}" for name in ABSENT)}
    assert re.search(r"--recipe .*deit-384", done.stdout)
    assert "--config" in done.stdout
