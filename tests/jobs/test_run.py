"""What a label job says at its end."""

import pytest

from jobs.run import USUAL_BATCH, batch_flag
from student.order import PlanConfig


def test_the_usual_batch_is_the_trainers() -> None:
    assert PlanConfig(seed=0, epochs=1).batch_size == USUAL_BATCH


@pytest.mark.parametrize(
    ("samples", "flag"), [(1, "1"), (7, "1"), (16, "2"), (750, "64"), (8191, "512"), (8192, None)]
)
def test_the_next_command_takes_a_batch_that_fits(samples: int, flag: str | None) -> None:
    """Few samples are no batch of 1,024: the command that is printed must run as it stands."""
    assert batch_flag(samples) == (() if flag is None else ("--batch-size", flag))
