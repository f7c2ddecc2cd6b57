"""What docs/TOOLS.md shows is run, on small stores."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from jobs.label_teacher import parse_arguments
from pipeline.identity import ColumnConfig
from pipeline.store import LabelStore, open_store
from pipeline.tools import diff_stores, store_stats
from tests.pipeline.store.test_card import run_cli
from tests.storing import IDENTITY, OTHER_TEACHER, info_of, ranges, write_store

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "TOOLS.md").read_text()
SHARDS = [info_of(0), info_of(1, samples=9)]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LabelStore, LabelStore]:
    """The page's two stores, in the current directory."""
    monkeypatch.chdir(tmp_path)
    columns = ColumnConfig(confidence=True, margin=True)
    one, other = (
        write_store(Path(name), SHARDS, ranges(range(6), 3), replace(identity, columns=columns))
        for name, identity in (("teacher.parquet", IDENTITY), ("fp32.parquet", OTHER_TEACHER))
    )
    return one, other


def test_duckdb_reproduces_the_figures_of_stats_and_diff(
    stores: tuple[LabelStore, LabelStore],
) -> None:
    stats, diff = store_stats(stores[0]), diff_stores(*stores)
    answers = {
        block.splitlines()[0].removeprefix("-- "): duckdb.sql(block).fetchall()
        for block in blocks("sql")
    }
    assert answers.pop("agreement") == [(stats.truth.known, stats.truth.equal)]
    assert answers.pop("labels") == [
        (one.number, one.labels) for one in stats.classes if one.labels
    ]
    assert answers.pop("classes") == [
        (one.number, one.truth.known, one.truth.equal) for one in stats.classes if one.truth.known
    ]
    assert answers.pop("views") == [
        (one.view, one.truth.known, one.truth.equal) for one in stats.views
    ]
    ((mean, samples),) = answers.pop("entropy")
    assert samples == stats.entropy.samples
    assert mean == pytest.approx(stats.entropy.mean, rel=1e-12)  # summed in another order
    assert answers.pop("different labels") == [(diff.teachers.rows, diff.teachers.different)]
    assert not answers


def test_the_commands_of_the_page_run_in_their_order(
    stores: tuple[LabelStore, LabelStore],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert {shlex.split(line)[1] for line in commands} == {
        *("inspect", "stats", "diff", "thin", "merge", "extend")
    }
    for line in commands:
        name, *arguments = shlex.split(line)
        assert name == "label-store"
        assert run_cli(monkeypatch, *arguments) == 0, line
    printed = capsys.readouterr().out.splitlines()[-1]
    command = TEXT[TEXT.index("label-teacher --out") :].partition("```")[0].replace("\\\n", "")
    for text in (printed, command):
        assert parse_arguments(shlex.split(text)[1:]).views == 12
    assert open_store("labels.parquet").manifest.rows == stores[0].manifest.rows


def test_the_python_of_the_page_runs(
    stores: tuple[LabelStore, LabelStore], capsys: pytest.CaptureFixture[str]
) -> None:
    (source,) = blocks("python")
    exec(compile(source, "TOOLS.md", "exec"), {})
    assert diff_stores(*stores).to_markdown() in capsys.readouterr().out
