"""The loop: offline equals in-loop, a resumed run equals one that never stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import (
    CheckpointError,
    ConfigError,
    PipelineError,
    ReplayError,
    ShardError,
    TeacherError,
)
from pipeline.identity import MixConfig
from pipeline.labelling.teacher import load_teacher
from pipeline.labelling.weights import state_digest
from pipeline.store import open_store
from pipeline.store.manifest import read_manifest, write_manifest
from student.config import TrainConfig
from student.engine import Outcome, Trainer, train
from student.inputs import open_inputs
from tests.student.factories import (
    SMALL_VIEWS,
    TINY,
    flip_one_label,
    make_identity,
    make_store,
    write_digit_shards,
    write_digit_teacher,
)

VIEWS = 3
CLOCKS = (
    "seconds",
    "rows_per_second",
    "peak_memory_bytes",
    "timed_from_step",
)  # as the machine has it
STEPS = 15  # 3 epochs of 40 samples in batches of 8


@dataclass(frozen=True)
class World:
    """A store labelled by a real teacher, and all that training on it takes."""

    root: Path
    teacher: Path

    def config(self, output: Path, **changes: Any) -> TrainConfig:
        values = {
            "labels": str(self.root / "labels.parquet"),
            "shards": (str(self.root / "digits-[01].tar"),),
            "output": output,
            "model_args": TINY,
            "epochs": 3,
            "batch_size": 8,
            "lr": 1e-3,
            "workers": 0,
            "threads": 1,
            "device": "cpu",
            "log_every": 4,
        }
        return TrainConfig.of_settings(**{**values, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    spec = write_digit_teacher(root / "teacher.safetensors")
    teacher = load_teacher(spec, SMALL_VIEWS, MixConfig(), torch.device("cpu"))
    # This root seed puts a digest on five of the 120 rows.
    identity = replace(make_identity(root_seed=28), teacher=teacher.identity)
    paths = write_digit_shards(root, [25, 16], torn={0: [7]})
    make_store(root / "labels.parquet", paths, identity=identity, teacher=teacher, views=VIEWS)
    write_digit_shards(root / "validation", [9])
    return World(root, root / "teacher.safetensors")


Run = Callable[..., Outcome]


@pytest.fixture
def run(world: World, tmp_path: Path) -> Run:
    """Return a function that trains in a fresh directory with some settings changed."""
    count = iter(range(100))

    def start(*, stop_after: int | None = None, **changes: Any) -> Outcome:
        changes.setdefault("output", tmp_path / f"run-{next(count)}")
        config = world.config(**changes)
        return train(config, open_inputs(config), stop_after=stop_after)

    return start


def test_training_from_the_store_equals_training_with_the_teacher_in_the_loop(
    run: Run, world: World
) -> None:
    offline = run()
    online = run(teacher_in_loop=True, teacher_checkpoint=world.teacher)
    assert offline.steps == online.steps == STEPS
    assert offline.weights == online.weights


def test_repeated_augmentation_from_the_store_equals_that_in_the_loop(run, world) -> None:
    repeated = {"repeated_augmentation": True, "batch_size": 12}
    offline = run(**repeated)
    online = run(**repeated, teacher_in_loop=True, teacher_checkpoint=world.teacher)
    assert offline.weights == online.weights


def test_one_flipped_label_changes_the_weights(run: Run, world: World, tmp_path: Path) -> None:
    store = open_store(world.root / "labels.parquet")
    flip_one_label(store, tmp_path / "flipped.parquet")
    assert run(labels=str(tmp_path / "flipped.parquet")).weights != run().weights


def test_views_shifted_by_one_are_refused_or_change_the_weights(run, world, tmp_path) -> None:
    """As if the store's labels of view v were given to view v + 1."""
    from pipeline.store import commit_part, finish_store

    store = open_store(world.root / "labels.parquet")
    manifest = store.manifest
    for entry in manifest.parts:
        rows = store.read_part(entry)
        shifted = replace(entry.part, first_view=entry.part.first_view + 1)
        commit_part(tmp_path / "shifted.parquet", replace(rows, part=shifted))
    finish_store(
        tmp_path / "shifted.parquet",
        manifest.identity,
        manifest.fingerprints,
        manifest.shards,
        lambda _: "shifted",
    )
    try:
        weights = run(labels=str(tmp_path / "shifted.parquet"), audit=False).weights
    except PipelineError:
        weights = ""
    straight = run()
    assert weights != straight.weights
    assert straight.audited > 0
    with pytest.raises(ReplayError, match="has digest"):
        run(labels=str(tmp_path / "shifted.parquet"))


def test_weights_do_not_depend_on_workers_or_logging(run: Run) -> None:
    assert run(workers=2).weights == run(log_every=1, checkpoint_steps=2).weights


def test_a_run_records_the_commit_of_a_store_on_the_hub(world: World, tmp_path: Path) -> None:
    inputs = open_inputs(world.config(tmp_path / "run"))
    commit = f"hf://datasets/a/b@{'0f' * 20}/labels.parquet"
    inputs.store.root.name = commit  # read here, named as there
    config = world.config(tmp_path / "run", labels="hf://datasets/a/b/labels.parquet")
    train(config, inputs, stop_after=1)
    assert f'labels = "{commit}"' in (tmp_path / "run" / "run.toml").read_text()


def test_every_step_has_random_numbers_of_its_own(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path / "run")
    trainer = Trainer(config, open_inputs(config))
    seeds: list[int] = []
    trainer.model.register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
    trainer.run()
    assert len(set(seeds)) == len(seeds) == STEPS


def test_the_seed_decides_the_weights(run: Run) -> None:
    assert run(seed=1).weights != run(seed=2).weights


@pytest.mark.parametrize("stop_after", [1, 4, 5, 7, 14])
def test_a_resumed_run_ends_with_the_weights_of_one_that_never_stopped(
    run: Run, tmp_path: Path, stop_after: int
) -> None:
    straight = run(output=tmp_path / "straight", drop_path=0.3)
    output = tmp_path / "stopped"
    stopped = run(output=output, drop_path=0.3, stop_after=stop_after)
    assert stopped.steps == stop_after
    resumed = run(output=output, drop_path=0.3, resume="auto", workers=1)
    assert (resumed.steps, resumed.weights) == (STEPS, straight.weights)
    assert metrics(output) == metrics(tmp_path / "straight")
    assert points(output) == points(tmp_path / "straight")


def metrics(output: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log, without what depends on the clock."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(CLOCKS)} for line in lines]


def points(output: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows of a run, by name: steps and values."""
    board = EventAccumulator(str(output / "tensorboard")).Reload()
    names = [name for name in board.Tags()["scalars"] if not name.split("/")[1].startswith(CLOCKS)]
    return {name: [(one.step, one.value) for one in board.Scalars(name)] for name in names}


def epoch_losses(output: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "epoch"]


def test_a_run_killed_between_checkpoints_goes_on_from_the_last_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run()
    output = tmp_path / "killed"
    update = Trainer._update

    def dies(self: Trainer, *arguments: Any) -> None:
        if self.step == 9:
            raise KeyboardInterrupt
        update(self, *arguments)

    monkeypatch.setattr(Trainer, "_update", dies)
    with pytest.raises(KeyboardInterrupt):
        run(output=output, checkpoint_steps=2)
    monkeypatch.undo()
    assert torch.load(output / "last.pt", weights_only=True)["step"] == 8
    assert run(output=output, resume=str(output / "last.pt")).weights == straight.weights
    assert [step for step, _ in epoch_losses(output)] == [5, 10, 15]


def test_a_finished_run_that_is_resumed_changes_nothing(run: Run, tmp_path: Path) -> None:
    done = run(output=tmp_path / "run")
    before = (tmp_path / "run" / "last.pt").read_bytes()
    assert run(output=tmp_path / "run", resume="auto").weights == done.weights
    assert (tmp_path / "run" / "last.pt").read_bytes() == before


def test_a_directory_that_holds_a_run_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    run(output=tmp_path / "run", stop_after=1)
    with pytest.raises(ConfigError, match=r"holds a run \(last.pt, config.json\).*`resume` auto"):
        run(output=tmp_path / "run")


def test_a_resume_with_other_settings_lists_them(run: Run, tmp_path: Path) -> None:
    run(output=tmp_path / "run", stop_after=1)
    with pytest.raises(CheckpointError) as caught:
        run(output=tmp_path / "run", resume="auto", alpha=0.75, drop_path=0.0)
    message = str(caught.value)
    assert "\n  `alpha`: 0.75 / 0.5" in message
    assert "\n  `drop_path`: 0.0 / 0.1" in message
    assert "digest" not in message


def test_a_torn_checkpoint_is_refused_with_a_cure(run: Run, tmp_path: Path) -> None:
    run(output=tmp_path / "run", stop_after=1)
    last = tmp_path / "run" / "last.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"cannot be read, it is torn.*resume from another"):
        run(output=tmp_path / "run", resume="auto")


def test_a_checkpoint_holds_the_final_weights_under_model(run, world, tmp_path) -> None:
    validation = (str(world.root / "validation" / "digits-0.tar"),)
    outcome = run(output=tmp_path / "run", val_shards=validation)
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state_digest(last["model"]) == outcome.weights
    assert outcome.evaluation is not None
    assert last["metrics"]["raw"] == outcome.evaluation.to_json()
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert best["best"] == best["metrics"]["raw"]["mean_of_logits"]["top1"]
    epochs = [
        json.loads(line)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if json.loads(line)["kind"] == "epoch"
    ]
    top1 = [line["evaluation"]["mean_of_logits"]["top1"] for line in epochs]
    assert best["best"] == max(top1)
    assert set(epochs[0]["seconds"]) == {"data", "student", "evaluation", "total"}
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["config"]["batch_size"] == 8
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_evaluating_in_between_changes_no_weights(run: Run, world: World) -> None:
    validation = (str(world.root / "validation" / "digits-0.tar"),)
    assert run(val_shards=validation).weights == run().weights


def test_a_loss_that_is_not_finite_stops_the_run_where_it_logs_and_names_its_step(
    world: World, tmp_path: Path
) -> None:
    config = world.config(tmp_path / "run", lr=1e30, warmup_epochs=0.0)
    trainer = Trainer(config, open_inputs(config))
    with pytest.raises(PipelineError, match=r"not finite at step 2; .*lower `lr`") as caught:
        trainer.run()
    assert trainer.step == config.run.log_every
    assert "no checkpoint was written yet" in str(caught.value)
    assert trainer.step < trainer.plan.epoch_start(1)
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize("what", ["weights", "average", "moments"])
def test_what_is_not_finite_is_never_saved_and_the_last_good_step_is_named(
    world: World, run: Run, tmp_path: Path, what: str
) -> None:
    class Poisoned(Trainer):
        def _update(self, batches: Any) -> None:
            super()._update(batches)
            if self.step == 7:
                with torch.no_grad():
                    self.tensors()[what].view(-1)[3] = torch.nan

        def tensors(self) -> dict[str, torch.Tensor]:
            optimization = self.optimization
            state = next(iter(optimization.optimizer.state.values()))
            weights, average = (
                next(iter(one.parameters())) for one in (self.model, optimization.average)
            )
            return {"weights": weights, "average": average, "moments": state["exp_avg"]}

    output = tmp_path / "run"
    changes = {"ema_decay": 0.9, "checkpoint_steps": 1}
    config = world.config(output, **changes)
    with pytest.raises(PipelineError, match=r"is not finite after step 7; the last good .*") as no:
        Poisoned(config, open_inputs(config)).run()
    assert f"{output / 'last.pt'}, of step 6. Train anew with a lower `lr`" in str(no.value)
    assert torch.load(output / "last.pt", weights_only=True)["step"] == 6
    assert run(output=output, resume="auto", **changes).weights == run(**changes).weights


def test_another_teacher_in_the_loop_is_refused(run: Run, world: World, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"not the one that labelled the store.*\n  weights: "):
        run(teacher_in_loop=True, teacher_random_weights=3)


def test_shards_that_are_not_the_stores_are_refused(run: Run, world: World) -> None:
    with pytest.raises(ShardError, match=r"digits-1\.tar"):
        run(shards=(str(world.root / "digits-0.tar"),))


def test_more_epochs_than_views_are_refused_before_anything_is_written(run, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"4 epochs need 4 views.*to view 4"):
        run(output=tmp_path / "run", epochs=4)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_distillation_head_is_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(ConfigError, match="no distillation head"):
        run(output=tmp_path / "run", model="deit_tiny_patch16_224")
    assert not (tmp_path / "run").exists()


def test_the_optimizer_decays_neither_biases_nor_norms_nor_tokens(world, tmp_path) -> None:
    config = world.config(tmp_path / "run")
    trainer = Trainer(config, open_inputs(config))
    decayed = {
        id(parameter)
        for group in trainer.optimization.optimizer.param_groups
        if group["weight_decay"] > 0
        for parameter in group["params"]
    }
    names = {name for name, one in trainer.model.named_parameters() if id(one) in decayed}
    matrices = {name for name, one in trainer.model.named_parameters() if one.ndim > 1}
    tokens = {"cls_token", "dist_token", "pos_embed"}
    assert tokens < matrices
    assert names == matrices - tokens


def test_clipping_and_bf16_train(run: Run) -> None:
    plain = run()
    assert run(clip_grad=0.01).weights != plain.weights
    assert run(precision="bf16").weights != plain.weights


def test_a_store_without_a_view_is_refused(run: Run, world: World, tmp_path: Path) -> None:
    copy = tmp_path / "short.parquet"
    shutil.copytree(world.root / "labels.parquet", copy)
    manifest = read_manifest(copy)
    first, second = manifest.parts
    later = replace(second, part=replace(second.part, first_view=second.part.end_view))
    for parts, words in (
        ((first,), r"no parts of shards \[1\]"),
        ((first, later), "the store has 0"),  # views that both shards have
    ):
        write_manifest(copy, replace(manifest, parts=parts))
        with pytest.raises(PipelineError, match=words):
            run(labels=str(copy))
