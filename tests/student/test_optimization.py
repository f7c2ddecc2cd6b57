"""How a step changes weights: rate, averages, reduced precision, compilation, pieces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import load_state_dict
from timm.scheduler import CosineLRScheduler

from pipeline.errors import ConfigError
from student.distributed import Ranks
from student.engine import Outcome, Trainer, train
from student.evaluation.evaluate import Accuracy, evaluate_all
from student.evaluation.report import load_student
from student.finetune import read_weights
from student.inputs import open_inputs
from student.optimization import Optimization, Schedule
from tests.student.factories import write_digit_shards
from tests.student.worlds import World, make_world, train_and_report


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    write_digit_shards(root / "validation", [9])
    return make_world(root, (14, 10))


def run(world: World, output: Path, stop_after: int | None = None, **changes: Any) -> Outcome:
    config = world.config(output, batch_size=8, **changes)
    return train(config, open_inputs(config), stop_after=stop_after)


def test_the_average_is_its_formula_over_the_weights_of_all_steps(world, tmp_path) -> None:
    config = world.config(tmp_path / "run", ema_decay=0.9)
    trainer = Trainer(config, open_inputs(config))
    expected = {name: one.clone() for name, one in trainer.model.state_dict().items()}
    finish = trainer.optimization.finish

    def follow() -> None:
        finish()
        for name, weight in trainer.model.state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * weight

    trainer.optimization.finish = follow  # type: ignore[method-assign]
    trainer.run()
    assert trainer.optimization.average is not None
    for name, weight in trainer.optimization.average.state_dict().items():
        # One lerp in float32 against two products.
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-7)


def test_averages_of_bf16_weights_are_rounded_to_the_nearest_not_by_chance(world, tmp_path) -> None:
    config = world.config(tmp_path / "run", ema_decay=0.9)
    model = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
    optimization = Optimization(model, config, torch.device("cpu"))
    expected = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    optimization.begin(0.0)
    optimization.finish()
    assert optimization.average is not None
    expected.lerp_(model.weight.detach(), 0.1)
    assert torch.equal(optimization.average.get_parameter("weight"), expected)


@pytest.mark.parametrize("changes", [{"ema_decay": 0.9}, {"ema_decay": 0.5, "precision": "fp16"}])
def test_averages_and_loss_scales_go_on_where_a_run_stopped(world, tmp_path, changes) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run(world, straight, **changes)
    run(world, stopped, stop_after=4, **changes)
    run(world, stopped, resume="auto", **changes)
    one, other = (torch.load(path / "last.pt", weights_only=True) for path in (straight, stopped))
    assert one["scaler"] == other["scaler"]
    for part in ("model", "ema"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])
    assert any(not torch.equal(one["ema"][name], one["model"][name]) for name in one["ema"])


def test_keeping_an_average_changes_no_weights(world, tmp_path) -> None:
    plain = run(world, tmp_path / "plain")
    averaged = run(world, tmp_path / "averaged", ema_decay=0.99)
    assert plain.weights == averaged.weights


def test_the_average_is_evaluated_beside_the_weights_and_may_be_the_best(world, tmp_path) -> None:
    validation = (str(world.root / "validation" / "digits-0.tar"),)
    outcome = run(world, tmp_path / "run", val_shards=validation, ema_decay=0.5)
    assert outcome.evaluation is not None
    assert outcome.ema_evaluation is not None
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    scores = [best["metrics"][name]["mean_of_logits"]["top1"] for name in ("raw", "ema")]
    assert best["best"] == max(scores)


@pytest.mark.parametrize(("winner", "where"), [("ema", "ema"), ("raw", "model")])
def test_whoever_loads_a_checkpoint_gets_the_weights_that_won(
    world, tmp_path, monkeypatch, winner, where
) -> None:
    def scored(*arguments: Any, **options: Any) -> Any:
        found = evaluate_all(*arguments, **options)
        wins = {name: float(name == winner) for name in found}
        return {
            name: replace(one, mean_of_logits=Accuracy(top1=wins[name], top5=1.0))
            for name, one in found.items()
        }

    monkeypatch.setattr("student.engine.evaluate_all", scored)
    validation = (str(world.root / "validation" / "digits-0.tar"),)
    changes = {"val_shards": validation, "ema_decay": 0.5}
    run(world, tmp_path / "run", **changes)
    # A checkpoint within an epoch, and of a run that went on, says so too.
    run(world, tmp_path / "two", stop_after=4, **changes)
    run(world, tmp_path / "two", stop_after=5, resume="auto", **changes)
    for path in (tmp_path / "run" / "best.pt", tmp_path / "two" / "last.pt"):
        saved = torch.load(path, weights_only=True)
        assert saved["winner"] == winner
        own = load_student(path).state_dict()
        by_timm = load_state_dict(str(path))
        begun = read_weights(path)
        assert begun.which == winner
        for name, one in saved[where].items():
            assert torch.equal(own[name], one)
            assert torch.equal(by_timm[name], one)
            assert torch.equal(begun.state[name], one)
        assert any(not torch.equal(saved["model"][name], one) for name, one in saved["ema"].items())
        other = {"raw": "ema", "ema": "raw"}[winner]
        assert read_weights(path, other).which == other
        again = saved.get("state_dict_ema", {})
        assert bool(again) == (winner == "ema")
        # One place in the file under two names.
        assert all(one.data_ptr() == saved["ema"][name].data_ptr() for name, one in again.items())


def test_fp16_scales_the_loss_and_bf16_does_not(world, tmp_path) -> None:
    weights = set()
    for precision in ("fp32", "bf16", "fp16"):
        outcome = run(world, tmp_path / precision, precision=precision)
        weights.add(outcome.weights)
        saved = torch.load(tmp_path / precision / "last.pt", weights_only=True)
        assert bool(saved["scaler"]) == (precision == "fp16")
    assert len(weights) == 3


def test_a_compiled_student_runs_its_graph_and_keeps_its_names(world, tmp_path, monkeypatch):
    compiled = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled.append(graph)
        return graph

    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: original(self, backend=backend))
    outcome = run(world, tmp_path / "run", compile=True, ema_decay=0.5)
    assert compiled
    saved = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    plain = run(world, tmp_path / "plain", stop_after=1)
    names = torch.load(tmp_path / "plain" / "last.pt", weights_only=True)["model"]
    assert set(saved["model"]) == set(names) == set(saved["ema"])
    assert outcome.steps == plain.steps * 9


def test_pieces_of_a_batch_hold_its_rows_in_order(world, tmp_path) -> None:
    whole = train_and_report(world.config(tmp_path / "a"), Ranks(), None, lambda: False)
    config = world.config(tmp_path / "b", accumulate=3)
    pieces = train_and_report(config, Ranks(), None, lambda: False)
    assert pieces.rows == whole.rows


def test_evaluating_every_second_epoch_still_evaluates_the_last(world, tmp_path) -> None:
    import json

    validation = (str(world.root / "validation" / "digits-0.tar"),)
    run(world, tmp_path / "run", val_shards=validation, eval_epochs=2)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in lines if json.loads(line)["kind"] == "epoch"]
    assert ["evaluation" in line for line in epochs] == [False, True, True]


def test_an_unknown_optimizer_is_refused_by_its_name(world, tmp_path) -> None:
    with pytest.raises(ConfigError, match="`optimizer` 'adamv'"):
        run(world, tmp_path / "run", optimizer="adamv")
    assert run(world, tmp_path / "sgd", optimizer="sgd").steps == 9


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
