"""What docs/TOOLS.md shows is run, on small stores."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from jobs.label_teacher import parse_arguments
from pipeline.identity import ColumnConfig
from pipeline.records import PartRows
from pipeline.store import LabelStore, commit_part, finish_store, open_store
from pipeline.tools import diff_stores, store_stats
from tests.labelling import digit_shard, write_hash_store
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
        if "views.parquet" not in block
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
        *("inspect", "status", "stats", "diff", "thin", "merge", "extend")
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


def test_the_queries_of_views_say_what_counting_rows_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [digit_shard(tmp_path / "cifar10-test-000000.tar", 40)]
    store = write_hash_store(tmp_path / "teacher.parquet", paths, views=12, per_part=6)

    def of_few_classes(rows: PartRows) -> PartRows:
        return replace(rows, label=rows.label % 3)

    for entry in store.manifest.parts:
        commit_part(Path("few.parquet"), of_few_classes(store.read_part(entry)))
    finish_store(
        Path("few.parquet"),
        store.identity,
        store.manifest.fingerprints,
        store.manifest.shards,
        lambda _: "",
    )
    (command,) = [
        line for line in TEXT.splitlines() if line.startswith("label-store views teacher")
    ]
    arguments = shlex.split(command.replace("teacher", "few").replace("{000000..000001}", "000000"))
    assert run_cli(monkeypatch, *arguments[1:]) == 0
    rows = duckdb.sql("SELECT * FROM 'views.parquet'").fetchdf().to_dict("records")
    answers = {
        block.splitlines()[0].removeprefix("-- "): duckdb.sql(block).fetchall()
        for block in blocks("sql")
        if "views.parquet" in block
    }
    of_sample = defaultdict(list)
    for row in rows:
        of_sample[row["key"]].append(row)
    wrong = {
        key
        for key, mine in of_sample.items()
        if all(one["label"] not in (one["target"], one["partner_target"]) for one in mine)
    }
    assert {key for key, *_ in answers.pop("wrong in all views")} == wrong != set()
    flips: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for mine in of_sample.values():
        own = [one["label"] for one in mine if one["lam"] >= 0.75]
        flips[mine[0]["target"]][0] += len(own)
        flips[mine[0]["target"]][1] += max(map(own.count, own), default=0)
    for target, views, share in answers.pop("flip rate by class"):
        assert views == flips[target][0]
        assert share == pytest.approx(1 - flips[target][1] / views)
    sides = answers.pop("the partner's side")
    assert {mix for mix, *_ in sides} == {"mixup", "cutmix"}
    for mix, at_least, views, own, partners in sides:
        mine = [
            one
            for one in rows
            if one["mix"] == mix
            and at_least <= one["lam"] < min(1, at_least + 0.25)
            and one["target"] != one["partner_target"]
        ]
        assert views == len(mine)
        assert own == pytest.approx(sum(r["label"] == r["target"] for r in mine) / views)
        told = sum(r["label"] == r["partner_target"] for r in mine)
        assert partners == pytest.approx(told / views)
    assert not answers
