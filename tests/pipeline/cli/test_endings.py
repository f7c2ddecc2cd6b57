"""Every command of label-store ends with what to do next, as it is typed."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from pipeline.cli import commands
from pipeline.cli.commands import label_store, pack_shards
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
    "views": "pandas.read_parquet('views.parquet')",
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
    told = last.removeprefix("label-store: next: ")
    assert told != last
    if name in ENDS:
        assert ENDS[name] in told
    else:
        require_command(shlex.split(told))


def test_packing_ends_with_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "1.png")
    for words, told in (
        (["--images", "train", "--out", "a"], "label-teacher --shards a "),
        (["--images", "val", "--out", "b", "--classes", "a"], "label-teacher --shards a "),
        (
            ["--images", "val", "--out", "c", "--classes", "a/classes.json"],
            "label-teacher --shards a ",
        ),
        (
            ["--images", "train", "--out", "d", "--classes", "names.txt"],
            "label-teacher --shards d ",
        ),
        (["--images", "train", "--out", "e", "--classes", "train"], "label-teacher --shards e "),
    ):
        pack_shards(words)
        *_, before, last = said = capsys.readouterr().err.splitlines()
        earlier = said[-3:-2]
        last = last.removeprefix("pack-shards: next: ")
        assert last.startswith(told)
        require_command(shlex.split(last))
        if told.endswith(" a ") and words[3] != "a":  # these are for validation
            assert before == "pack-shards: next: or, with a teacher of your own:"
            small = f"teacher-labels train-teacher --shards a --val-shards {words[3]} --out "
            assert earlier == [f"pack-shards: next: {small}teacher.safetensors"]
            require_command(shlex.split(earlier[0])[2:])
        else:
            assert before == "pack-shards: next: then, with a teacher of these classes:"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("train --out sh/train", "val --out sh/val --classes sh/train"),
        ("other --out sh/x", "VALIDATION-IMAGES --out sh/val --classes sh/x"),
        ("other --out .", "VALIDATION-IMAGES --out ../val --classes ."),
        ("train --part 0 0.9 --out sh", "train --part 0.9 1 --out val --classes sh"),
    ],
)
def test_packing_goes_on_to_the_images_for_validation(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: str,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    splits = ("train", "val") if given.startswith("train") else ("other",)
    for path in (tmp_path / split / name for split in splits for name in ("cat", "dog")):
        path.mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8)).save(path / f"{number}.png")
    pack_shards(["--images", *given.split()])
    printed = capsys.readouterr()
    line = f"pack-shards: next: pack-shards --images {told}"
    assert line in printed.err.splitlines()
    require_command(shlex.split(line)[2:])
    assert ("with --part 0 0.8" in printed.err) == given.startswith("other")
    assert ("files of the part 0 to 0.9 read = " in printed.out) == ("--part" in given)


def test_what_machines_read_is_the_output_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    label_store(["stats", "s.parquet", "--json"])
    assert json.loads(capsys.readouterr().out)["labels"] == 90
