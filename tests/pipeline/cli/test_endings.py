"""Every command of label-store ends with what to do next, as it is typed."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from pipeline.cli import commands
from pipeline.cli.commands import label_store, pack_shards
from pipeline.store.provenance import Run
from tests.commands import require_command
from tests.labelling import TEACHER, digit_shard, every_column, hash_identity, write_hash_store

SHARDS = ("--shards", "digits-*.tar")
WORDS = {
    "inspect": ("s.parquet",),
    "verify": ("s.parquet", *SHARDS, "--all"),
    "stats": ("s.parquet",),
    "diff": ("s.parquet", "s.parquet"),
    "merge": ("s.parquet", "s.parquet", "--out", "merged.parquet"),
    "vote": ("a.parquet", "b.parquet", "c.parquet", "--out", "voted.parquet"),
    "extend": ("s.parquet", "--views", "3", *SHARDS),
    "thin": ("s.parquet", "--out", "thin.parquet", "--views", "0:4"),
    "views": ("s.parquet", *SHARDS, "--out", "views.parquet"),
    "show": ("s.parquet", *SHARDS, "--out", "x.png"),
    "report": ("s.parquet", "--out", "x.html"),
    "export": ("s.parquet", "one.parquet", "--single-file"),
    "rebind": ("s.parquet", *SHARDS, "--out", "bound.parquet"),
    "repair": ("s.parquet",),
    "status": ("s.parquet",),
    "finalize": ("s.parquet", *SHARDS),
}
ENDS = {
    "report": "open x.html in a browser",
    "extend": "run this command",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("endings")
    paths = [digit_shard(root / "digits-0.tar", 9), digit_shard(root / "digits-1.tar", 6, first=9)]
    for name in ("s", "a", "b", "c"):
        teacher = replace(TEACHER, weights=f"{ord(name):064x}")
        identity = replace(hash_identity(columns=every_column(3)), teacher=teacher)
        write_hash_store(root / f"{name}.parquet", paths, views=6, per_part=4, identity=identity)
    return root


def test_all_commands_are_tried() -> None:
    names = {one.__name__.lower() for one in get_args(commands.StoreCommand)}
    assert names == set(WORDS)


@pytest.mark.parametrize("name", WORDS)
def test_a_command_ends_with_what_to_do_next(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    label_store([name, *WORDS[name]])
    last = capsys.readouterr().err.splitlines()[-1]
    if name in ENDS:
        assert last == f"label-store: {ENDS[name]}"
    else:
        told = shlex.split(last.removeprefix("label-store: next: "))
        require_command(told)
        assert not any(word.isupper() and word.isalpha() for word in told)


def test_what_machines_read_is_the_output_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    label_store(["stats", "s.parquet", "--json"])
    assert json.loads(capsys.readouterr().out)["labels"] == 90


def test_without_a_command_all_are_listed_with_what_they_are_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        label_store([])
    assert ended.value.code == 2
    lines = capsys.readouterr().out.splitlines()
    for name in WORDS:
        (line,) = [one for one in lines if one.startswith(f"  {name} ")]
        assert len(line.split()) > 4


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--image", "x"], "--image; did you mean --images?"),
        (["--images", "x", "--ot=y"], "--out?"),
    ],
)
def test_a_flag_that_there_is_not_is_told_from_the_one_that_is_meant(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        pack_shards(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(meant)


def job_record(*lists: list[str]) -> list[Run]:
    return [Run(name=f"{n}.json", settings={"shards": one}) for n, one in enumerate(lists)]


@pytest.mark.parametrize(
    ("runs", "shards"),
    [
        (job_record(["sh/*.tar"], ["sh/*.tar"]), " --shards 'sh/*.tar'"),
        (job_record(["a"], ["b"]), ""),  # which are all of them, nobody knows
        (job_record(["--out"]), ""),  # a stranger's record names no flags
        (job_record(["a\x1b[2J"]), ""),
        ([], ""),
    ],
)
def test_shards_that_were_not_given_are_those_of_the_store_s_jobs(
    runs: list[Run],
    shards: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("pipeline.tools.extend.read_runs", lambda root: runs)
    label_store(["stats", "s.parquet"])
    told = f"label-store report s.parquet{shards} --out report.html"
    assert capsys.readouterr().err.endswith(f"next: {told}\n")
    for name in ("status", "inspect"):
        label_store([name, "s.parquet"])
        told = f"label-store verify s.parquet{shards}{' --all' * bool(shards)}"
        assert capsys.readouterr().err.endswith(f"next: {told}\n")
    label_store(["verify", "s.parquet"])
    assert ("next: " in capsys.readouterr().err) == bool(shards)  # not the same again
