"""What comes next is a command that can be pasted as it stands, and leads on."""

from __future__ import annotations

import shlex
import tarfile
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cli.commands import pack_shards
from pipeline.cli.following import student_flags, validation_beside


def images(root: Path, *splits: str) -> None:
    for name in (f"{split}/{one}" for split in splits for one in ("cat", "dog")):
        (root / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8)).save(root / name / f"{number}.png")


def following(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """Run ``pack-shards`` and return the commands that it says come next."""
    pack_shards(words)
    said = capsys.readouterr().err.splitlines()
    told = [shlex.split(line.partition(": next: ")[2]) for line in said if ": next: " in line]
    assert told
    assert not any(word.isupper() and word.isalpha() for words in told for word in words)
    return told


def files_of(shards: Path) -> set[str]:
    found: set[str] = set()
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as archive:
            found.update(archive.getnames())
    return found


@pytest.mark.parametrize("only_last", [False, True])
@pytest.mark.parametrize(
    "given",
    [
        "pets --out shards",
        "pets --out shards/train",
        "pets --out s --max-side 7 --per-shard 9",
        "pets --out s --classes names.txt",
        "pets --part 0.8 1 --out s/val --classes pets",
        "pets --part 0 0.7 --out s",
        "split/train --out shards/train",
        "split/val --out shards/val",
        "split/val --out shards/val --classes split/train",
    ],
)
def test_who_pastes_what_comes_next_has_shards_to_learn_from_and_to_validate_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: str,
    only_last: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    images(tmp_path, "pets", "split/train", "split/val")
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    words, told = ["--images", *given.split()], []
    for _ in range(3):
        told = following(words, capsys)
        if told[-1][:2] == ["teacher-labels", "train-teacher"]:
            break
        for command in told[-1:] if only_last else told:
            assert command[0] == "pack-shards"
            words = command[1:]
            if command is not told[-1]:
                pack_shards(words)
                capsys.readouterr()
        assert ("--max-side 7" in given) == ("--max-side" in words)
    *_, shards, flag, val, _, weights = told[-1][2:]
    assert (flag, weights) == ("--val-shards", "teacher.safetensors")
    names = [(Path(one) / "classes.json").read_bytes() for one in (shards, val)]
    assert names[0] == names[1]
    assert all(len(list(Path(one).glob("*.tar"))) for one in (shards, val))
    assert Path(shards) != Path(val)
    if given.startswith("pets"):  # else files of two folders have the same names
        learned, judged = files_of(Path(shards)), files_of(Path(val))
        assert not learned & judged
        assert len(learned | judged) == 2 * 2 * 20  # an image and its class each


def test_shards_of_other_classes_beside_are_neither_taken_for_validation_nor_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images(tmp_path, "split/train", "split/val", "other")
    pack_shards(["--images", "other", "--out", "shards/val"])
    (tmp_path / "shards/val/classes.json").write_text('["ant", "bee"]')
    capsys.readouterr()
    (told,) = following(["--images", "split/train", "--out", "shards/train"], capsys)
    assert told[:5] == ["pack-shards", "--images", "split/val", "--out", "shards/val-2"]
    last = following(told[1:], capsys)[-1]
    assert last[2:6] == ["--shards", "shards/train", "--val-shards", "shards/val-2"]


def test_what_follows_packing_into_this_directory_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path, "pets")
    (tmp_path / "shards").mkdir()
    monkeypatch.chdir(tmp_path / "shards")
    told = following(["--images", "../pets", "--out", "."], capsys)
    for command in told:
        for flag, path in pairwise(command):
            if flag == "--out" and not path.startswith("teacher"):
                # Or shards would lie among shards.
                assert not (tmp_path / "shards" / path).resolve().is_relative_to(Path.cwd())


@pytest.mark.parametrize(
    ("samples", "side", "model", "batch"),
    [(1, 64, "test_resnet", "1"), (16, 96, "test_resnet", "2"), (19_999, 224, "resnet18", "32")],
)
def test_the_next_command_takes_a_student_that_learns_from_few_images(
    samples: int, side: int, model: str, batch: str
) -> None:
    """A batch fits into them too: the command that is printed must run as it stands."""
    kind = ("--model", model, "--distillation-kind", "classical")
    assert student_flags(samples, side) == (*kind, "--batch-size", batch, "--lr", "3e-3")
    assert student_flags(20_000, side) == ()


def test_the_next_command_takes_the_validation_shards_that_lie_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("shards/train/s-0.tar", "shards/val/s-0.tar", "loose/s-0.tar"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    flag = ("--val-shards", "shards/val")
    assert validation_beside(["shards/train"]) == flag
    assert validation_beside(["shards/train/"]) == flag
    assert validation_beside(["shards/train/*.tar"]) == flag
    assert validation_beside(["shards/train/s-0.tar"]) == flag
    assert validation_beside(["shards/val"]) == ()
    assert validation_beside(["loose"]) == ()
    assert validation_beside(["s3://bucket/train/*.tar"]) == ()
