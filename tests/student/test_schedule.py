"""The learning rate, against timm's scheduler."""

from __future__ import annotations

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from student.schedule import Schedule

SCHEDULE = Schedule(steps=100, warmup_steps=20, peak=1e-3, warmup_from=1e-6, end=1e-5)


def test_the_learning_rate_is_timms_cosine_with_warm_up() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=SCHEDULE.peak)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=SCHEDULE.steps,
        lr_min=SCHEDULE.end,
        warmup_t=SCHEDULE.warmup_steps,
        warmup_lr_init=SCHEDULE.warmup_from,
        t_in_epochs=False,
    )
    for step in range(SCHEDULE.steps):
        scheduler.step_update(step)
        # The same formula in another order of operations.
        assert SCHEDULE.lr(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_a_peak_below_the_end_is_kept() -> None:
    schedule = Schedule(steps=10, warmup_steps=0, peak=1e-6, warmup_from=0.0, end=1e-5)
    assert {schedule.lr(step) for step in range(10)} == {1e-6}
