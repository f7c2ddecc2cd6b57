from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from pipeline.labelling.agreement import Preflight
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.estimate import Capacity, estimate_job

TRIAL = Preflight(
    images=48,
    correct=40,
    rows_per_batch=240,
    batch_seconds=0.24,  # 1,000 views a second
    flip_rows=0,
    flips=0,
    augment_seconds=0.01,  # 100 views a second
    warnings=(),
)


def test_gpus_that_wait_for_cores_take_as_long_as_the_cores() -> None:
    found = estimate_job(
        3_600_000, TRIAL, Capacity(teachers=2, cores=10, shared=False), 2.0, hour_price=3.0
    )
    assert found.views_per_second == pytest.approx(1000)
    assert found.hours == pytest.approx(1.0)
    assert found.teacher_hours == pytest.approx(2.0)
    assert found.cost == pytest.approx(6.0)
    assert found.bytes == 7_200_000
    assert found.cores_wanted == pytest.approx(10)
    assert found.break_even == pytest.approx(2.0)  # the GPUs were busy half of the time


def test_with_enough_cores_the_second_student_is_the_first_gain() -> None:
    found = estimate_job(3_600_000, TRIAL, Capacity(teachers=2, cores=64, shared=False), 2.0)
    assert found.views_per_second == pytest.approx(2000)
    assert found.cost is None
    assert found.break_even == pytest.approx(1.0)


def test_a_teacher_on_the_cores_that_augment_takes_its_time_beside_them() -> None:
    found = estimate_job(1000, TRIAL, Capacity(teachers=1, cores=2, shared=True), 2.0)
    assert 1 / found.views_per_second == pytest.approx(0.001 + 0.005)


@pytest.mark.parametrize("given", [{"hour_price": 1.0}, {"estimate": True, "hour_price": -1.0}])
def test_a_price_is_for_an_estimate(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="`hour_price` is a price for `estimate`"):
        LabelConfig(shards=("x.tar",), out="x.parquet", **given)  # type: ignore[arg-type]
