"""What a label job says at its end."""

from pathlib import Path

import pytest

from jobs.run import USUAL_BATCH, batch_flag, validation_beside
from student.order import PlanConfig


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
