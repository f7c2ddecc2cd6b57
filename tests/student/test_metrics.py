from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.errors import PipelineError
from student.checkpoint import claim_output
from student.losses import LossTerms
from student.metrics import Meter, MetricsLog


def terms(loss: float) -> LossTerms:
    one = torch.tensor(loss)
    return LossTerms(one, 2 * one, 3 * one)


def classes(agreeing: int, right: int, rows: int) -> torch.Tensor:
    """Return rows of which so many agree with the teacher, which is right in so many."""
    teacher = torch.full((rows,), 5)
    called = torch.where(torch.arange(rows) < agreeing, 5, 4)
    of_own, of_partner = torch.arange(rows) < right // 2, torch.arange(rows) < right
    own = torch.where(of_own, 5, 3)
    return torch.stack([called, teacher, own, torch.where(of_partner & ~of_own, 5, own)])


def test_a_meter_takes_means_since_the_last_time_and_keeps_the_epochs() -> None:
    meter = Meter()
    for step, loss in enumerate((1.0, 2.0, 6.0)):
        meter.add(step, terms(loss), classes(1, 2, rows=2))
        if step == 0:
            assert meter.take()["loss"] == 1.0
    assert meter.take() == {
        "loss": 4.0,
        "class_loss": 8.0,
        "distillation_loss": 12.0,
        "agreement": 0.5,
        "teacher_accuracy": 1.0,
    }
    assert meter.epoch()["loss"] == 3.0


def test_a_restored_meter_goes_on_where_it_was() -> None:
    meter, other = Meter(), Meter()
    meter.add(0, terms(5.0), classes(0, 4, rows=4))
    meter.take()
    meter.add(1, terms(1.0), classes(0, 4, rows=4))
    other.restore(meter.state())
    other.add(2, terms(3.0), classes(4, 0, rows=4))
    assert other.take()["loss"] == 2.0
    assert other.epoch() == {
        "loss": 3.0,
        "class_loss": 6.0,
        "distillation_loss": 9.0,
        "agreement": 4 / 12,
        "teacher_accuracy": 8 / 12,
    }


def test_a_meter_finds_the_first_bad_step_and_adds_up_in_the_order_of_steps(monkeypatch) -> None:
    monkeypatch.setattr("student.metrics._UNREAD", 4)
    losses = [0.1 * 3**number for number in range(9)]
    meter, sums = Meter(), 0.0
    for step, loss in enumerate(losses):
        meter.add(step, terms(loss), classes(1, 0, rows=3))
        sums += torch.tensor(loss).item() * 3
        if step == 2:
            assert meter.first_bad_step() is None
    assert meter.epoch()["loss"] == sums / 27
    for step, loss in ((9, 1.0), (10, float("inf")), (11, float("nan"))):
        meter.add(step, terms(loss), classes(1, 0, rows=3))
    assert meter.first_bad_step() == 10


@pytest.mark.parametrize(("others", "found"), [(3, 3), (99, 10)])
def test_all_ranks_find_the_first_bad_step_of_any(others: int, found: int) -> None:
    ranks: Any = SimpleNamespace(least=lambda value: min(value, others))
    meter = Meter(ranks)
    assert meter.first_bad_step() == others
    meter.add(10, terms(float("nan")), classes(1, 0, rows=3))
    assert meter.first_bad_step() == found


def test_a_log_is_kept_up_to_the_step_that_a_run_resumes_from(tmp_path: Path) -> None:
    path, lines = tmp_path / "metrics.jsonl", [b'{"step":%d}\n' % step for step in range(1, 6)]
    for more in (b"", b'{"step":', b"[" * 2000 + b"]" * 2000 + b"\n", b'{"step":1e999}\n', b"5\n"):
        path.write_bytes(b"".join(lines) + more)
        with MetricsLog(tmp_path, start=3):
            assert path.read_bytes() == b"".join(lines[:3])


@pytest.mark.timeout(60)
def test_what_is_no_log_is_not_waited_for_followed_or_taken_whole(tmp_path: Path) -> None:
    """A run's directory may have come from others."""
    secret = tmp_path / "secret"
    secret.write_bytes(b'{"step":1,"token":"secret"}\n')
    for name, make, error in (
        ("pipe", os.mkfifo, "is no file, but a pipe"),
        ("link", lambda path: path.symlink_to(secret), "leads out of"),
        ("large", lambda path: (path.touch(), os.truncate(path, 1 << 40)), "has at most"),
    ):
        run = tmp_path / name
        run.mkdir()
        make(run / "metrics.jsonl")
        with pytest.raises(PipelineError, match=error):
            MetricsLog(run, start=3)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2,"a":[' + b"[]," * (1 << 21) + b"0]}\n")
    tracemalloc.start()
    try:
        with MetricsLog(tmp_path, start=3):
            assert path.read_bytes() == b'{"step":1}\n'
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


def test_no_file_is_written_where_a_link_in_a_run_leads(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.mkdir()
    (run / "tensorboard").symlink_to(outside)
    with pytest.raises(PipelineError, match=r"tensorboard leads out of .*, not a link"):
        MetricsLog(run, start=0)
    (run / ".lock").symlink_to(outside / "lock")
    with pytest.raises(PipelineError, match=r"\.lock cannot be written"):
        claim_output(run)
    assert not list(outside.iterdir())
