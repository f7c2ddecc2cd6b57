"""What a label job says at its end."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.run import USUAL_BATCH, batch_flag, describe_store, validation_beside
from pipeline.cli.console import running
from pipeline.labelling.job import Progress, finish_job
from student.order import PlanConfig
from tests.commands import require_command
from tests.labelling import digit_shard
from tests.pipeline.labelling.test_job import config_of, plan_of, run


def test_the_usual_batch_is_the_trainers() -> None:
    assert PlanConfig(seed=0, epochs=1).batch_size == USUAL_BATCH


@pytest.mark.parametrize(
    ("samples", "flag"), [(1, "1"), (7, "1"), (16, "2"), (750, "64"), (8191, "512"), (8192, None)]
)
def test_the_next_command_takes_a_batch_that_fits(samples: int, flag: str | None) -> None:
    """Few samples are no batch of 1,024: the command that is printed must run as it stands."""
    assert batch_flag(samples) == (() if flag is None else ("--batch-size", flag))


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
    with running("label-teacher", {}):
        describe_store(finish_job(plan, {}), plan, Progress(plan))
    said = capsys.readouterr().err.splitlines()
    told = [line.removeprefix("label-teacher: next: ") for line in said]
    assert told == [
        "label-store show my.parquet --shards shards/train --disagree --out wrong.png",
        "train-student --labels my.parquet --shards shards/train --val-shards shards/val "
        "--epochs 8 --batch-size 1 --output runs/first",
    ]
    for command in told:
        require_command(shlex.split(command))
