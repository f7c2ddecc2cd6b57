"""What a label job says at its end."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.run import describe_store
from pipeline.cli.console import running
from pipeline.identity import PRESETS, AugmentConfig
from pipeline.labelling.job import Progress, finish_job
from tests.commands import require_command
from tests.labelling import digit_shard
from tests.pipeline.labelling.test_job import config_of, plan_of, run


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
    show = "label-store show my.parquet --shards shards/train"

    def told(augment: AugmentConfig) -> list[str]:
        identity = replace(manifest.identity, augment=augment)
        with running("label-teacher", {}):
            describe_store(replace(manifest, identity=identity), plan, Progress(plan))
        said = capsys.readouterr().err.splitlines()
        return [line.removeprefix("label-teacher: next: ") for line in said]

    first = told(plan.config.augment)
    verify = "label-store verify my.parquet --shards shards/train --all"
    # On a mixed view another class than the image's own is no mistake: no picture calls it wrong.
    assert first == [
        f"{show} --original --out views.png",
        verify,
        f"{train} --output runs/first",
    ]
    (tmp_path / "views.png").touch()
    for name in ("first", "first-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    again = told(plan.config.augment)
    look = f"{show} --original --out views-2.png"
    assert again == [look, verify, f"{train} --output runs/first-3"]
    # Nobody learns from plain images, which are those of a validation, and mixed with no other.
    assert told(PRESETS["center"]) == [f"{show} --disagree --out wrong.png"]
    for command in (*first, *again):
        require_command(shlex.split(command))
