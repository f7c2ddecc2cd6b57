"""What a label job says at its end."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.run import describe_store, student_flags, validation_beside
from pipeline.cli.console import running
from pipeline.identity import PRESETS, AugmentConfig
from pipeline.labelling.job import Progress, finish_job
from tests.commands import require_command
from tests.labelling import digit_shard
from tests.pipeline.labelling.test_job import config_of, plan_of, run


@pytest.mark.parametrize(
    ("samples", "side", "model", "batch"),
    [(1, 64, "test_resnet", "1"), (16, 96, "test_resnet", "2"), (19_999, 224, "resnet18", "32")],
)
def test_the_next_command_takes_a_student_that_learns_from_few_images(
    samples: int, side: int, model: str, batch: str
) -> None:
    """A batch fits into them too: the command that is printed must run as it stands."""
    config = config_of((Path("x.tar"),))
    config = replace(config, augment=replace(config.augment, image_size=side))
    kind = ("--model", model, "--distillation-kind", "classical")
    assert student_flags(samples, config) == (*kind, "--batch-size", batch, "--lr", "3e-3")
    assert student_flags(20_000, config) == ()


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


def test_labelling_ends_with_a_look_and_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "val"):
        (tmp_path / "shards" / name).mkdir(parents=True)
    shard = digit_shard(tmp_path / "shards" / "train" / "s-0.tar", 9)
    digit_shard(tmp_path / "shards" / "val" / "s-0.tar", 2)
    config = replace(
        config_of((shard,), out=str(tmp_path / "my.parquet")), shards=("shards/train",)
    )
    plan = plan_of(config)
    run(plan)
    manifest = finish_job(plan, {})
    train = "train-student --labels my.parquet --shards shards/train --val-shards shards/val "
    train += "--epochs 8 --model test_resnet --distillation-kind classical --batch-size 1 --lr 3e-3"
    show = "label-store show my.parquet --shards shards/train --disagree"

    def told(augment: AugmentConfig) -> list[str]:
        settings = replace(plan.config, augment=augment)
        with running("label-teacher", {}):
            describe_store(manifest, replace(plan, config=settings), Progress(plan))
        said = capsys.readouterr().err.splitlines()
        return [line.removeprefix("label-teacher: next: ") for line in said]

    first = told(plan.config.augment)
    verify = "label-store verify my.parquet --shards shards/train --all"
    assert first == [f"{show} --original --out wrong.png", verify, f"{train} --output runs/first"]
    (tmp_path / "wrong.png").touch()
    for name in ("first", "first-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    again = told(plan.config.augment)
    look = f"{show} --original --out wrong-2.png"
    assert again == [look, verify, f"{train} --output runs/first-3"]
    # Nobody learns from plain images, which are those of a validation, and mixed with no other.
    assert told(PRESETS["center"]) == [f"{show} --out wrong-2.png"]
    for command in (*first, *again):
        require_command(shlex.split(command))
