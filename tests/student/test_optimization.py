"""How a step changes weights: rate, averages, reduced precision, compilation, pieces."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from packaging.version import Version
from timm.models import load_state_dict
from timm.optim import list_optimizers
from timm.scheduler import CosineLRScheduler, create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad

from pipeline.errors import ConfigError
from pipeline.labelling.weights import state_digest
from student import optimization
from student.checkpoint import open_checkpoint
from student.config import parse_arguments
from student.distributed import Ranks
from student.engine import Outcome, Trainer, train
from student.evaluation.evaluate import Accuracy, evaluate_all
from student.evaluation.report import load_student
from student.finetune import read_weights
from student.inputs import open_inputs
from student.optimization import Optimization, Schedule, schedule_of
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
            name: replace(one, mean_of_logits=Accuracy(top1=wins[name], top5=1.0, loss=1.0))
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


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
def test_every_optimizer_of_timms_goes_on_bit_for_bit_or_is_refused_in_one_line(world) -> None:
    refused: dict[str, str] = {}
    for name in [*list_optimizers(), "lookahead_adamw"]:
        try:
            with torch.compiler.set_stance("force_eager"):  # else one of them compiles for a minute
                weights = [steps_of(world, name, stop) for stop in (None, 2)]
        except ConfigError as error:
            refused[name] = str(error)
        else:
            assert torch.equal(*weights), name
            assert not torch.equal(weights[0], linear().weight), name
    on_gpus = {name for name in list_optimizers() if name.startswith(("bnb", "fused"))}
    assert refused.keys() == {*on_gpus, "adahessian"}
    assert all(text.startswith(f"`optimizer` '{name}' ") for name, text in refused.items())


def linear() -> torch.nn.Linear:
    torch.manual_seed(1)
    return torch.nn.Linear(4, 3)


def steps_of(world: World, optimizer: str, stop: int | None) -> torch.Tensor:
    """Return weights after four steps, after ``stop`` of which a run was saved and went on."""
    model = linear()
    optimization = optimization_of(world, model, optimizer=optimizer, lr=0.1)
    for step in range(4):
        if step == stop:
            file = io.BytesIO()
            torch.save(optimization.state(), file)
            file.seek(0)
            optimization = optimization_of(world, model, optimizer=optimizer, lr=0.1)
            optimization.restore(**torch.load(file))
        torch.manual_seed(step)
        optimization.begin(0.1, step)
        optimization.backward(model(torch.randn(8, 4)).square().mean())
        optimization.finish()
    return model.weight.detach()


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


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_each_step_is_taken_at_its_own_rate_and_the_log_says_which(
    world, tmp_path, schedule
) -> None:
    """Of a run that went on, too: weights move at these rates, whatever else asks for them."""
    taken: list[float] = []
    for stop_after in (3, None):
        resume = None if stop_after else "auto"
        settings = {"warmup_epochs": 1, "schedule": schedule, "resume": resume, "log_every": 1}
        config = world.config(tmp_path / "run", batch_size=8, **settings)
        trainer = Trainer(config, open_inputs(config))
        trainer.optimization.optimizer.register_step_pre_hook(
            lambda optimizer, *_: taken.append(optimizer.param_groups[0]["lr"])
        )
        trainer.run(stop_after)
    rates = [trainer.schedule.lr(step) for step in range(trainer.plan.steps)]
    assert taken == rates
    assert len(set(rates)) > 3
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [line["lr"] for line in lines if line["kind"] == "train"] == rates


def test_a_peak_below_the_end_is_kept() -> None:
    schedule = Schedule(steps=10, warmup_steps=0, peak=1e-6, warmup_from=0.0, end=1e-5)
    assert {schedule.lr(step) for step in range(10)} == {1e-6}


def two_layers() -> torch.nn.Module:
    torch.manual_seed(3)
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224", num_classes=4, img_size=32, embed_dim=24, depth=2,
        num_heads=3, patch_size=8,
    )  # fmt: skip
    for one in model.parameters():
        one.grad = torch.randn(one.shape) * 3
    return model


def optimization_of(world: World, model: torch.nn.Module, **changes: Any) -> Optimization:
    return Optimization(model, world.config(Path("run"), **changes), torch.device("cpu"))


@pytest.mark.parametrize(("mode", "bound"), [("norm", 1.0), ("value", 0.1), ("agc", 0.01)])
def test_gradients_are_clipped_as_timm_clips_them(world, mode, bound) -> None:
    ours, theirs = two_layers(), two_layers()
    optimization = optimization_of(world, ours, clip_grad=bound, clip_mode=mode)
    optimization.finish()
    heads = ("head.", "head_dist.")
    clipped = [
        one
        for name, one in theirs.named_parameters()
        if mode != "agc" or not name.startswith(heads)
    ]
    dispatch_clip_grad(clipped, bound, mode)
    untouched = dict(two_layers().named_parameters())
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name
        kept = mode == "agc" and name.startswith(heads)
        assert torch.equal(one.grad, untouched[name].grad) == kept, name


def test_layers_learn_the_slower_the_nearer_they_are_to_the_pixels(world) -> None:
    model = two_layers()
    optimization = optimization_of(world, model, layer_decay=0.5, weight_decay=0.3)
    optimization.begin(0.8)
    found = {
        id(one): (group["lr"], group["weight_decay"])
        for group in optimization.optimizer.param_groups
        for one in group["params"]
    }
    rates = {name: found[id(one)] for name, one in model.named_parameters()}
    # timm's layers: stem and positions, two blocks, the second with the last norm, and heads.
    assert rates["head.weight"] == (0.8, 0.3)
    assert rates["norm.weight"] == (0.4, 0.0)
    assert rates["blocks.1.attn.qkv.weight"] == (0.4, 0.3)
    assert rates["blocks.0.attn.qkv.weight"] == (0.2, 0.3)
    assert rates["patch_embed.proj.weight"] == (pytest.approx(0.1), 0.3)
    assert rates["pos_embed"] == (pytest.approx(0.1), 0.0)
    plain = optimization_of(world, two_layers())
    plain.begin(0.8)
    assert {group["lr"] for group in plain.optimizer.param_groups} == {0.8}


def test_further_arguments_reach_timms_optimizer(world) -> None:
    model = torch.nn.Linear(2, 2)
    given = {"optimizer": "sgd", "optimizer_args": ("momentum=0.5", "nesterov=True")}
    (group, *_) = optimization_of(world, model, **given).optimizer.param_groups
    assert (group["momentum"], group["nesterov"]) == (0.5, True)
    with pytest.raises(
        ConfigError, match=r"`optimizer` 'sgd' is not .* `optimizer_args` \['x=1'\]"
    ):
        optimization_of(world, model, optimizer="sgd", optimizer_args=("x=1",))
    with pytest.raises(ConfigError, match="`optimizer_args` has lr, which is a setting"):
        optimization_of(world, model, optimizer_args=("lr=1",))


def test_the_average_warms_up_as_timms(world, tmp_path) -> None:
    config = world.config(tmp_path / "run", ema_decay=0.999, ema_warmup=True)
    trainer = Trainer(config, open_inputs(config))
    theirs = ModelEmaV3(trainer.model, decay=0.999, use_warmup=True)
    theirs.stochastic_rounding = False
    finish, steps = trainer.optimization.finish, iter(range(1, 100))

    def follow() -> None:
        finish()
        theirs.update(trainer.model, step=next(steps))

    trainer.optimization.finish = follow  # type: ignore[method-assign]
    trainer.run()
    assert trainer.optimization.average is not None
    for name, one in trainer.optimization.average.state_dict().items():
        assert torch.equal(one, theirs.module.state_dict()[name]), name
        if one.is_floating_point() and "running" not in name:
            assert not torch.equal(one, trainer.model.state_dict()[name]), name


def test_an_average_on_the_cpu_is_the_same_and_goes_to_the_device_to_be_evaluated(
    world, tmp_path
) -> None:
    run(world, tmp_path / "device", ema_decay=0.9)
    run(world, tmp_path / "cpu", ema_decay=0.9, ema_on_cpu=True)
    one, other = (open_checkpoint(tmp_path / name / "last.pt").ema for name in ("device", "cpu"))
    assert one is not None
    assert other is not None
    assert all(torch.equal(one[name], other[name]) for name in one)
    optimization = optimization_of(world, torch.nn.Linear(2, 2), ema_decay=0.9, ema_on_cpu=True)
    average, moves = optimization.average, []
    assert average is not None
    average.to = lambda where: moves.append(where) or average  # type: ignore[method-assign]
    optimization._device = torch.device("cuda")  # there is none: moves are recorded
    with optimization.average_on_device() as found:
        assert found is average
        assert moves == [torch.device("cuda")]
    assert moves[1:] == [torch.device("cpu")]


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.9, "ema_warmup": True},
        {"layer_decay": 0.7, "clip_grad": 0.01, "clip_mode": "agc"},
        {"schedule": "step", "schedule_args": ("decay_epochs=1", "noise=0.1")},
        {"optimizer": "sgd", "optimizer_args": ("momentum=0.5",), "attn_only": True},
        {"bce_loss": True, "smoothing": 0.0, "grad_checkpointing": True},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_run_with_any_of_timms_parts_goes_on_bit_for_bit(world, tmp_path, changes) -> None:
    kept = {}
    for name, given in (("straight", changes), ("plain", {"ema_decay": 0.9}), ("stopped", changes)):
        run(world, tmp_path / name, stop_after=4 if name == "stopped" else None, **given)
        if name == "stopped":
            run(world, tmp_path / name, resume="auto", **given)
        saved = open_checkpoint(tmp_path / name / "last.pt")
        kept[name] = [state_digest(one) for one in (saved.model, saved.ema) if one is not None]
    assert kept["stopped"] == kept["straight"]
    assert kept["plain"][-len(kept["straight"]) :] != kept["straight"]


SCHEDULES = {
    "timm-cosine": ("cycle_limit=2", "cycle_decay=0.5"),
    "tanh": (),
    "step": ("decay_epochs=1", "decay_rate=0.5"),
    "multistep": ("decay_milestones=[1, 2]",),
    "poly": ("decay_rate=0.9",),
    "wsd": (),
    "rsqrt": (),
    "constant": (),
}


LATER = {"wsd", "rsqrt", "constant"} if Version(timm.__version__) < Version("1.0.31") else set()
"""Those that an older timm, which is allowed, has not."""


@pytest.mark.parametrize("name", sorted({*SCHEDULES} - LATER))
def test_a_schedule_of_timms_gives_its_rates_at_any_step_in_any_order(world, name) -> None:
    given = {"schedule": name, "schedule_args": SCHEDULES[name], "warmup_epochs": 1.0}
    config = world.config(Path("run"), batch_size=8, **given, min_lr=1e-4)
    plan = open_inputs(config).plan
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.peak_lr)
    theirs, _ = create_scheduler_v2(
        optimizer,
        name.removeprefix("timm-"),
        num_epochs=3,
        warmup_epochs=1,
        warmup_lr=1e-6,
        min_lr=1e-4,
        step_on_epochs=False,
        updates_per_epoch=plan.steps // 3,
        **parse_arguments("schedule_args", SCHEDULES[name]),
    )
    rates = []
    for step in range(plan.steps):
        theirs.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    ours = schedule_of(config, plan)
    assert [ours.lr(step) for step in range(plan.steps)] == rates
    assert [ours.lr(step) for step in reversed(range(plan.steps))] == rates[::-1]
    assert (len(set(rates)) > plan.steps // 3) or name == "constant"


def test_timms_cosine_is_this_packages(world) -> None:
    config = world.config(Path("run"), batch_size=8, schedule="timm-cosine", warmup_epochs=1.0)
    plan = open_inputs(config).plan
    ours = Schedule.of(config, plan)
    for step in range(plan.steps):
        assert schedule_of(config, plan).lr(step) == pytest.approx(ours.lr(step), rel=1e-12)


def test_what_a_schedule_does_not_take_is_named(world) -> None:
    config = world.config(Path("run"), schedule="poly", schedule_args=("x=1",))
    with pytest.raises(ConfigError, match=r"`schedule` poly cannot be made with .*'x=1'"):
        schedule_of(config, open_inputs(config).plan)


def test_a_schedule_that_an_older_timm_has_not_is_named(world, monkeypatch) -> None:
    config = world.config(Path("run"), schedule="wsd")
    if not LATER:  # timm returns this for a name that it does not know
        monkeypatch.setattr(optimization, "create_scheduler_v2", lambda *_, **__: (None, 3))
    with pytest.raises(ConfigError, match=r"`schedule` wsd: timm .* has none of that name"):
        schedule_of(config, open_inputs(config).plan)
