"""A small teacher is trained on what decodes, and says what does not."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs import small_teacher
from jobs.small_teacher import TeacherTraining, main
from tests.commands import require_command
from tests.factories import digit_samples, write_shard
from tests.odd_images import odd_files

BROKEN = [key for key in odd_files() if not key.startswith("good")]


def run(folder: Path, shard: Path) -> Path:
    out = folder / "teacher.safetensors"
    given = ["--shards", str(shard), "--val-shards", str(shard), "--out", str(out)]
    small = ["--model", "test_resnet", "--epochs", "1", "--batch-size", "8"]
    main([*given, *small, "--image-size", "32"])
    return out


def test_images_that_do_not_decode_are_left_out_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = digit_samples(10)
    odd = [(key, data, 11 if key in BROKEN else 3) for key, data in odd_files().items()]
    out = run(tmp_path / "new", write_shard(tmp_path / "odd.tar", [*digits, *odd]))
    printed = capsys.readouterr()
    count = f"left out {len(BROKEN)} of {len(digits) + len(odd)} images, which do not decode: "
    told = [line for line in printed.out.splitlines() if count in line]
    assert len(told) == 2  # those to learn from, and those of the accuracy
    assert f"{count}{BROKEN[0]}.jpg, {BROKEN[1]}.jpg, " in told[0]
    assert "validation images right" in printed.out
    assert "next: " in printed.err
    assert load_file(out)["fc.bias"].shape == (12,)  # classes of which nothing decodes, too


def test_a_teacher_that_learned_little_is_not_passed_on_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write_shard(tmp_path / "digits.tar", digit_samples(18))
    told = {}
    for right in (0.33, 0.34):  # a quarter of the way to all from two in 18, the commonest class
        monkeypatch.setattr(small_teacher, "accuracy", lambda *_, right=right: right)
        run(tmp_path, shard)
        told[right] = capsys.readouterr().err
    assert (
        "warning: 33.0% of the validation images right is little, where naming one class alone "
        "gives 11.1%, and a label job may refuse this teacher. It learned in 2 steps: give more "
        "--epochs, a smaller --batch-size, or more images, of each class about as many"
    ) in told[0.33]
    assert "warning" not in told[0.34]
    plain, views = [line.partition("next: ")[2] for line in told[0.34].splitlines()[-2:]]
    assert " --preset center " in plain
    assert " --views 16 --preset crop-flip --crop-scale 0.5 1 " in views  # milder than the default
    (better,) = [
        line.partition("next: ")[2] for line in told[0.33].splitlines() if "next: " in line
    ]
    assert " train-teacher " in better
    assert " --epochs 60 --batch-size 8 --image-size 32 " in better
    assert better.endswith(f" --out {tmp_path}/teacher-2.safetensors")
    for command in (plain, views, better):
        require_command(shlex.split(command))


def test_after_a_longer_training_it_labels_be_it_poor_or_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write_shard(tmp_path / "digits.tar", digit_samples(18))
    monkeypatch.setattr(small_teacher, "accuracy", lambda *_: 0.0)
    monkeypatch.setattr(
        small_teacher, "train", lambda options, *_: small_teacher.create(options, 10)
    )
    shards = ["--shards", str(shard), "--val-shards", str(shard), "--image-size", "32"]
    main([*shards, "--epochs", "60", "--out", str(tmp_path / "t.safetensors")])
    told = capsys.readouterr().err
    assert "warning: 0.0% of the validation images" in told
    assert " label --shards " in told.splitlines()[-1]


@pytest.mark.parametrize(("count", "size"), [(2, 2), (19, 8), (100, 12), (256, 32), (9999, 32)])
def test_few_images_make_small_batches(count: int, size: int) -> None:
    options = TeacherTraining(shards=("a",), val_shards=("b",), out=Path("t.safetensors"))
    assert small_teacher.batch_of(options, count) == size


def test_shards_in_which_nothing_decodes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_shard(tmp_path / "odd.tar", [(key, b"", 0) for key in ("a", "b")])
    with pytest.raises(SystemExit):
        run(tmp_path, shard)
    assert "none of the 2 images decodes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--batch-size 19", "--batch-size is 19, and there are 18 images to learn from"),
        ("--epochs 0", "--epochs is 0; use 1 or more"),
        ("--lr nan", "--lr is nan; use more than 0"),
        ("--model nosuch", "--model 'nosuch' is no model of timm"),
        ("--model vit_tiny_patch16_224", "does not take images with an --image-size of 64"),
        ("--out s3://bucket/t.safetensors", "is a URL, and this is written to a local path alone"),
        ("--out d.tar/t.safetensors", "d.tar/t.safetensors cannot be written"),
        ("--out t.pth", "its name ends in .safetensors"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line_before_it_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: str,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(small_teacher.F, "cross_entropy", None)
    write_shard(tmp_path / "d.tar", digit_samples(18))
    usual = {"--shards": "d.tar", "--val-shards": "d.tar", "--out": "t.safetensors"}
    usual |= {"--batch-size": "8"} | dict([given.split()])
    with pytest.raises(SystemExit) as ended:
        main([word for pair in usual.items() for word in pair])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert [one.name for one in tmp_path.iterdir()] == ["d.tar"]
