"""From folders of images to a student's accuracy: a class that is missing moves no other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

from jobs.label_teacher import main as label
from pipeline import LabelConfig, PackConfig, open_store, pack_shards
from pipeline.errors import ClassesError
from pipeline.labelling.job import index_shards
from student import EvaluateConfig, TrainConfig, evaluate_checkpoint, open_inputs
from student.checkpoint import open_checkpoint
from student.cli import evaluate_main
from student.engine import train
from tests.factories import digits, photographs
from tests.labelling import write_teacher
from tests.student.factories import TINY

NAMES = ("eight", "five", "four", "nine", "one", "seven", "six", "three", "two", "zero")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_images(root: Path, positions: range, without: tuple[str, ...] = ()) -> Path:
    """Write digits, and pieces of photographs, as an image folder."""
    images, targets = digits()
    for position in positions:
        name = DIGITS[targets[position]]
        if name not in without:
            (root / name).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(images[position]).resize((32, 32))
            image.save(root / name / f"{position}.png")
    for position, photograph in enumerate(photographs()):
        piece = Image.fromarray(photograph).crop((0, 0, 64, 48))
        piece.save(root / "eight" / f"photograph {position} {positions.start}.jpg")
    return root


@dataclass(frozen=True, slots=True)
class Run:
    """A student that was trained on what was packed from a folder."""

    root: Path

    def pack(self, name: str, without: tuple[str, ...] = (), classes: str | None = None) -> str:
        """Pack new images of some classes, and return their shards."""
        images = write_images(self.root / f"{name} images", range(700, 760), without)
        pack_shards(PackConfig(images=images, out=str(self.root / name), classes=classes))
        return str(self.root / name / "*.tar")

    def evaluation(self, shards: str) -> EvaluateConfig:
        return EvaluateConfig(
            checkpoint=self.root / "run" / "last.pt", val_shards=(shards,), workers=0, device="cpu"
        )

    def training(self, output: str, **changes: object) -> TrainConfig:
        values = {
            "labels": str(self.root / "labels.parquet"),
            "shards": (str(self.root / "train" / "*.tar"),),
            "output": self.root / output,
            "model_args": TINY,
            "epochs": 3,
            "batch_size": 12,
            "workers": 0,
            "device": "cpu",
        }
        return TrainConfig.of_settings(**{**values, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("run")
    images = write_images(root / "images", range(60))
    pack_shards(PackConfig(images=images, out=str(root / "train"), per_shard=40))
    with pytest.raises(SystemExit) as ended:
        label(
            [
                *("--shards", str(root / "train" / "*.tar"), "--out", str(root / "labels.parquet")),
                *("--teacher", "regnety_002", "--allow-low-agreement", "--serial"),
                *("--teacher-checkpoint", str(write_teacher(root / "teacher.safetensors"))),
                *("--image-size", "32", "--views", "3", "--precision", "fp32"),
            ]
        )
    assert ended.value.code == 0
    run = Run(root)
    config = run.training("run")
    train(config, open_inputs(config))
    return run


def test_names_reach_the_store_and_the_checkpoint(run: Run) -> None:
    assert open_store(run.root / "labels.parquet").manifest.classes == NAMES
    assert open_checkpoint(run.root / "run" / "last.pt").student.class_names == NAMES


def test_a_validation_folder_that_lacks_a_class_is_not_evaluated_by_other_numbers(run: Run) -> None:
    shards = run.pack("shifted", without=("four",))
    with pytest.raises(ClassesError, match=r"last\.pt and .*shifted.*: class 2 is 'four' .*'nine'"):
        evaluate_checkpoint(run.evaluation(shards))
    config = run.training("refused", val_shards=(shards,))
    with pytest.raises(ClassesError, match=r"labels\.parquet and .*shifted.*: class 2 is 'four'"):
        open_inputs(config)
    config = LabelConfig(shards=(shards, str(run.root / "train" / "*.tar")), out="never.parquet")
    with pytest.raises(ClassesError, match=r"shifted.* and .*train.*: class 2 is 'nine'"):
        index_shards(config.shards)


def test_packed_with_the_classes_of_training_it_is_evaluated_as_part_of_the_whole(run: Run) -> None:
    part = run.pack("part", ("four",), str(run.root / "train"))
    again = run.pack("again", ("four",), str(run.root / "images"))
    found = evaluate_checkpoint(run.evaluation(part)).evaluations["raw"]
    expected = replace(found, images_per_second=0)
    other = evaluate_checkpoint(run.evaluation(again)).evaluations["raw"]
    assert replace(other, images_per_second=0) == expected
    targets = index_shards((part,)).max_target
    assert targets == index_shards((str(run.root / "train" / "*.tar"),)).max_target
    assert open_inputs(run.training("run", val_shards=(part,))).unnamed == ()


def test_the_table_of_classes_shows_names_beside_numbers(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = run.pack("table")
    evaluate_main(
        ["--checkpoint", str(run.root / "run" / "last.pt"), "--val-shards", shards, "--analysis"]
    )
    printed = capsys.readouterr()
    for number, name in enumerate(NAMES):
        assert f"\n{number} {name} " in printed.out
    assert "names of classes" not in printed.err


def test_shards_without_names_stay_possible_and_it_is_said(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = run.pack("unnamed")
    (run.root / "unnamed" / "classes.json").unlink()
    assert evaluate_checkpoint(run.evaluation(shards)).evaluations["raw"].samples > 50
    evaluate_main(["--checkpoint", str(run.root / "run" / "last.pt"), "--val-shards", shards])
    words = "the validation shards have no names of classes: whether both number the classes alike"
    assert capsys.readouterr().err.count(words) == 1
    inputs = open_inputs(run.training("run", val_shards=(shards,)))
    assert inputs.unnamed == ("the validation shards",)
    assert inputs.classes is not None
    assert inputs.classes.names == NAMES


def test_a_checkpoint_with_other_names_is_not_resumed(run: Run) -> None:
    config = run.training("run", resume="auto", epochs=3)
    inputs = open_inputs(config)
    assert inputs.classes is not None
    other = replace(inputs, classes=replace(inputs.classes, names=NAMES[::-1]))
    with pytest.raises(ClassesError, match=r"last\.pt and"):
        train(config, other)
    assert train(config, inputs).steps == inputs.plan.steps
