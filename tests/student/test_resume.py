"""What a resumed run must share with the one that it continues, and where it may end."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import CheckpointError, PipelineError
from pipeline.growth import founding_values, grown
from pipeline.labelling.devices import set_threads
from pipeline.store import ParquetStore
from student import checkpoint as checkpoints
from student.checkpoint import Segment, open_checkpoint
from student.config import SETTINGS, OptimizationConfig, TrainConfig
from student.engine import Outcome, Trainer, train
from student.evaluation.evaluate import Accuracy, Evaluation, evaluate_all
from student.inputs import open_inputs
from student.metrics import MetricsLog
from student.optimization import Schedule
from tests.student.factories import PixelTeacher, make_identity, make_store
from tests.student.test_trust import forge
from tests.student.worlds import World, make_world

VIEWS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), (14, 10), views=VIEWS)


def run(world: World, output: Path, *, stop_after: int | None = None, **changes: Any) -> Outcome:
    config = world.config(output, **changes)
    return train(config, open_inputs(config), stop_after=stop_after)


def paths_of(world: World) -> list[Path]:
    return sorted(world.root.glob("digits-*.tar"))


def test_other_views_of_the_same_settings_are_refused(world: World, tmp_path: Path) -> None:
    later = tmp_path / "later.parquet"
    make_store(later, paths_of(world), first_view=VIEWS, views=VIEWS)
    run(world, tmp_path / "run", stop_after=2)
    with pytest.raises(CheckpointError, match=r"\n  views\.first: 3 / 0\n"):
        run(world, tmp_path / "run", labels=str(later), resume="auto")


@pytest.mark.parametrize("cycled", [False, True])
def test_views_may_be_added_to_the_store_unless_it_is_cycled(world, tmp_path, cycled) -> None:
    store = tmp_path / "labels.parquet"
    shutil.copytree(world.root / "labels.parquet", store)
    changes = {"labels": str(store), "cycle_views": cycled}
    straight = run(world, tmp_path / "straight", **changes)
    run(world, tmp_path / "run", stop_after=2, **changes)
    make_store(store, paths_of(world), first_view=VIEWS, views=VIEWS)
    if cycled:
        with pytest.raises(CheckpointError, match=r"\n  views\.end: 6 / 3\n"):
            run(world, tmp_path / "run", resume="auto", **changes)
    else:
        assert run(world, tmp_path / "run", resume="auto", **changes).weights == straight.weights


@pytest.mark.parametrize(
    ("changes", "line"),
    [({"classes": 12}, "teacher.classes: 12 / 10"), ({"root_seed": 8}, "root_seed: 8 / 7")],
)
def test_another_store_is_refused_with_what_differs(world, tmp_path, changes, line) -> None:
    identity = make_identity(**changes)
    teacher = PixelTeacher(identity.teacher.classes)
    other = tmp_path / "other.parquet"
    make_store(other, paths_of(world), identity=identity, teacher=teacher, views=VIEWS)
    run(world, tmp_path / "run", stop_after=2)
    with pytest.raises(CheckpointError, match=rf"\n  store\.{line}\n"):
        run(world, tmp_path / "run", labels=str(other), resume="auto")


def validated(world: World) -> dict[str, Any]:
    return {"val_shards": (str(world.root / "digits-1.tar"),)}


def test_a_best_checkpoint_alone_is_gone_on_from(world, tmp_path, caplog) -> None:
    """As a run leaves it that was killed before the first --checkpoint-epochs."""
    caplog.set_level(logging.INFO, "student")
    straight = run(world, tmp_path / "straight", **validated(world))
    output = tmp_path / "run"
    run(world, output, **validated(world))
    for name in ("last.pt", "previous.pt"):
        (output / name).unlink()
    best = open_checkpoint(output / "best.pt").step
    resumed = run(world, output, resume="auto", **validated(world))
    assert f"continues at step {best}/{straight.steps}, from {output / 'best.pt'}" in caplog.text
    assert resumed.weights == straight.weights
    assert open_checkpoint(output / "last.pt").step == straight.steps


def test_a_resumed_run_keeps_weights_that_were_better_than_its_own(
    world, tmp_path, monkeypatch
) -> None:
    def falling(*arguments: Any, **options: Any) -> dict[str, Evaluation]:
        accuracy = Accuracy(top1=next(scores), top5=1.0, loss=1.0)
        found = evaluate_all(*arguments, **options)
        return {name: replace(one, mean_of_logits=accuracy) for name, one in found.items()}

    monkeypatch.setattr("student.engine.evaluate_all", falling)
    scores = iter([0.9, 0.5, 0.6])
    run(world, tmp_path / "run", stop_after=5, **validated(world))
    kept = (tmp_path / "run" / "best.pt").read_bytes()
    run(world, tmp_path / "run", resume="auto", **validated(world))
    assert next(scores, None) is None  # it was evaluated twice more in all
    assert (tmp_path / "run" / "best.pt").read_bytes() == kept
    assert open_checkpoint(tmp_path / "run" / "last.pt").best == 0.9


def test_a_run_that_goes_on_elsewhere_finds_its_best_weights_there(world, tmp_path) -> None:
    run(world, tmp_path / "one", stop_after=4, **validated(world))
    source = tmp_path / "one" / "last.pt"
    assert open_checkpoint(source).best >= 0
    # So no later evaluation could be better than the first run's.
    resumed = run(world, tmp_path / "two", resume=str(source), lr=1e-3, **validated(world))
    straight = run(world, tmp_path / "straight", **validated(world))
    assert resumed.weights == straight.weights
    best = open_checkpoint(tmp_path / "two" / "best.pt")
    assert best.step > 4


def test_a_finished_run_that_goes_on_elsewhere_leaves_all_files_there(world, tmp_path) -> None:
    done = run(world, tmp_path / "one", **validated(world))
    source = str(tmp_path / "one" / "last.pt")
    again = run(world, tmp_path / "two", resume=source, **validated(world))
    assert again.weights == done.weights
    for name in ("last.pt", "best.pt"):
        assert open_checkpoint(tmp_path / "two" / name).step == done.steps


def test_the_best_checkpoint_may_be_the_last_good_one(world, tmp_path) -> None:
    config = world.config(tmp_path / "run", checkpoint_epochs=3, **validated(world))

    class Poisoned(Trainer):
        def _update(self, batches: Any) -> None:
            super()._update(batches)
            if self.step == 5:
                with torch.no_grad():
                    next(iter(self.model.parameters())).fill_(torch.inf)

    with pytest.raises(PipelineError, match=r"finite at step 6; the last good .*best\.pt, of step"):
        Poisoned(config, open_inputs(config)).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterOptimization(OptimizationConfig):
    """With a setting that release 0.3.0 added, whose default is not what was done before."""

    sharpness: float = grown(founding=0.0, since="0.3.0", default=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterConfig(TrainConfig):
    """The settings of release 0.3.0."""

    optimization: LaterOptimization = field(default_factory=LaterOptimization)


def later(config: TrainConfig, sharpness: float) -> TrainConfig:
    values = {one.name: getattr(config, one.name) for one in fields(config)}
    optimization = LaterOptimization(**asdict(config.optimization), sharpness=sharpness)
    return LaterConfig(**{**values, "optimization": optimization})


@pytest.fixture
def later_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SETTINGS", (*SETTINGS, "sharpness"))
    monkeypatch.setattr(checkpoints, "FOUNDING", founding_values(LaterConfig))


def go_on(config: TrainConfig, stop_after: int | None = None) -> Outcome:
    return train(config, open_inputs(config), stop_after=stop_after)


def test_a_setting_at_its_founding_value_binds_nothing_in_either_release(
    world, tmp_path, later_release
) -> None:
    straight = run(world, tmp_path / "straight")
    output = tmp_path / "run"
    run(world, output, stop_after=2)
    config = world.config(output, resume="auto")
    assert later(config, 0.0).digest == config.digest
    assert go_on(later(config, 0.0), stop_after=4).steps == 4
    assert go_on(config).weights == straight.weights


def test_an_older_run_has_the_founding_value_of_a_setting_and_not_its_default(
    world, tmp_path, later_release
) -> None:
    run(world, tmp_path / "run", stop_after=2)
    with pytest.raises(CheckpointError, match=r"\n  `sharpness`: 1\.0 / 0\.0\n"):
        go_on(later(world.config(tmp_path / "run", resume="auto"), 1.0))


def test_a_setting_of_a_later_release_is_refused_by_its_name_and_release(world, tmp_path) -> None:
    config = world.config(tmp_path / "run", resume="auto")
    go_on(later(config, 1.0), stop_after=2)
    with pytest.raises(
        CheckpointError, match=r"setting sharpness.* install teacher-labels 0\.3\.0 or newer"
    ):
        go_on(config)


def test_a_later_releases_notes_are_kept_and_its_fields_refused(world, tmp_path) -> None:
    output = tmp_path / "run"
    run(world, output, stop_after=2)

    def add(values: dict[str, Any]) -> None:
        values["notes"]["mood"] = {"of": [1, "good"]}

    forge(output / "last.pt", output / "last.pt", add)
    run(world, output, resume="auto", stop_after=4)
    assert open_checkpoint(output / "last.pt").notes == {"mood": {"of": [1, "good"]}}
    more = {"mood": 1, "needs": "0.4.0"}
    forge(output / "last.pt", output / "last.pt", lambda values: values.update(more))
    with pytest.raises(
        CheckpointError,
        match=r"checkpoint\.mood is not known.* install teacher-labels 0\.4\.0 or newer",
    ):
        run(world, output, resume="auto")
    assert (output / "previous.pt").exists()
    assert not (output / "torn.pt").exists()  # it is whole, only later


OTHER_SUMS = {
    "threads": ({"threads": 2}, "threads 1 -> 2"),
    "pieces": ({"accumulate": 2}, "accumulate 1 -> 2"),
}


@pytest.mark.parametrize("kind", OTHER_SUMS)
def test_a_run_that_goes_on_with_other_sums_says_so_once_and_keeps_it(
    world, tmp_path, caplog, kind
) -> None:
    changes, words = OTHER_SUMS[kind]
    output = tmp_path / "run"
    run(world, output, stop_after=2)
    run(world, output, resume="auto", stop_after=3)
    assert "not be those" not in caplog.text
    run(world, output, resume="auto", stop_after=4, **changes)
    warning = f"{words} since the checkpoint: the weights will not be those of an"
    assert [one.levelname for one in caplog.records if warning in one.message] == ["WARNING"]
    caplog.clear()
    run(world, output, resume="auto", **changes)
    assert "not be those" not in caplog.text
    history = open_checkpoint(output / "last.pt").history
    assert [one.step for one in history] == [0, 3]
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    (line,) = (one for one in lines if one["kind"] == "segment")
    assert line == {"kind": "segment", **asdict(history[1])}
    torch.set_num_threads(1)


def test_threads_that_only_feed_a_gpu_change_nothing_and_another_gpu_does() -> None:
    gpu = Segment(
        step=0, epochs=3, ranks=1, accumulate=1, threads=1, fast=True, device="NVIDIA A100"
    )
    assert gpu.changes(replace(gpu, threads=2)) == []
    assert gpu.changes(replace(gpu, device="cpu")) == ["device NVIDIA A100 -> cpu"]
    assert gpu.changes(replace(gpu, fast=False)) == ["fast True -> False"]


def switches() -> tuple[bool, ...]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32, not cudnn.deterministic)


@pytest.mark.parametrize(
    ("changes", "fast"),
    [
        ({}, True),
        ({"deterministic": True}, False),
        ({"teacher_in_loop": True, "teacher_random_weights": 1}, False),
    ],
)
def test_a_gpu_is_fast_unless_bits_are_to_repeat_or_a_teacher_labels(
    world, tmp_path, monkeypatch, changes, fast
) -> None:
    monkeypatch.setattr("student.engine.TeacherInLoop", lambda *_: None)
    set_threads(1)
    config = world.config(tmp_path / "run", **changes)
    trainer = Trainer(config, open_inputs(config))
    assert switches() == (fast,) * 4
    trainer._save("last.pt")
    # A CPU has neither, so it is not recorded there.
    assert [one.fast for one in open_checkpoint(tmp_path / "run" / "last.pt").history] == [False]
    set_threads(1)
    assert switches() == (False,) * 4


def test_a_finished_run_is_made_longer_if_that_is_wanted(world, tmp_path, caplog) -> None:
    level = {"lr": 1e-3, "min_lr": 1e-3, "warmup_epochs": 0.0}  # else its schedule is another
    straight = run(world, tmp_path / "straight", **level, epochs=3)
    output = tmp_path / "run"
    run(world, output, **level, epochs=2)
    more = {**level, "epochs": 3, "resume": "auto"}
    with pytest.raises(CheckpointError, match=r"\n  `epochs`: 3 / 2\n.*or give `lengthen`"):
        run(world, output, **more)
    with pytest.raises(CheckpointError, match=r"`seed`: 4 / 0\n  cure: resume with its settings"):
        run(world, output, **more, seed=4, lengthen=True)
    caplog.clear()
    longer = run(world, output, **more, lengthen=True)
    assert (longer.steps, longer.weights) == (straight.steps, straight.weights)
    assert "epochs 2 -> 3 since the checkpoint" in caplog.text
    assert "follows the schedule of 3 epochs from here on: the next step's is 1.00e-03" in (
        caplog.text
    )
    # It is a run of three epochs now.
    assert run(world, output, **more).weights == straight.weights


def test_a_longer_run_follows_the_longer_schedule(world, tmp_path) -> None:
    output = tmp_path / "run"
    run(world, output, epochs=2, log_every=1)
    run(world, output, epochs=3, log_every=1, resume="auto", lengthen=True)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if line["kind"] == "train"]
    schedules = []
    for epochs in (2, 3):
        config = world.config(output, epochs=epochs)
        schedules.append(Schedule.of(config, open_inputs(config).plan))
    assert rates == [schedules[step >= schedules[0].steps].lr(step) for step in range(len(rates))]
    assert len(rates) == schedules[1].steps


@pytest.mark.parametrize("torn", [("last.pt", "previous.pt"), ("last.pt",)])
def test_torn_checkpoints_name_the_best_one_that_is_sound(world, tmp_path, torn) -> None:
    output = tmp_path / "run"
    done = run(world, output, **validated(world))
    for name in torn:
        (output / name).write_bytes((output / name).read_bytes()[:-100])
    if len(torn) == 1:
        (output / "previous.pt").unlink()
    best = output / "best.pt"
    step = open_checkpoint(best).step
    with pytest.raises(CheckpointError) as caught:
        run(world, output, resume="auto", **validated(world))
    assert "last.pt cannot be read, it is torn" in str(caught.value)
    assert f"{best}, of step {step}, is sound: `resume` {best} goes on from it" in str(caught.value)
    assert run(world, output, resume=str(best), **validated(world)).weights == done.weights


@pytest.mark.parametrize("where", ["checkpoint", "log"])
def test_a_full_disk_says_how_the_run_goes_on(world, tmp_path, monkeypatch, where) -> None:
    straight = run(world, tmp_path / "straight", checkpoint_steps=1)
    output, full = tmp_path / "run", OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_: Any) -> None:
        raise full

    class Full(Trainer):
        def _report(self, *arguments: Any) -> None:
            if self.step == 3:
                if where == "log":
                    monkeypatch.setattr(MetricsLog, "write", refuse)
                else:
                    monkeypatch.setattr("pipeline.files.local.os.fsync", refuse)
            super()._report(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("student.engine.Trainer", Full)
        with pytest.raises(PipelineError, match=r"run.*: the disk is full.*`resume` auto"):
            run(world, output, checkpoint_steps=1, log_every=1)
    monkeypatch.undo()
    assert open_checkpoint(output / "last.pt").step == 2
    assert run(world, output, resume="auto", checkpoint_steps=1).weights == straight.weights


def test_a_full_disk_of_another_directory_is_named(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        full = OSError(errno.ENOSPC, "No space left on device")
        raise PipelineError("the shard cache /scratch failed (No space left on device)") from full

    monkeypatch.setattr(MetricsLog, "write", refuse)
    with pytest.raises(PipelineError, match=r"^the shard cache /scratch failed .*`resume` auto"):
        run(world, tmp_path / "run", log_every=1)


@pytest.mark.parametrize("name", ["loop.pt", "."])
def test_what_can_be_no_checkpoint_to_resume_is_called_what_it_is(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop.pt").symlink_to("loop.pt")
    reason = r"loop\.pt cannot be read \(Too many levels|\. is a directory; give the file in it"
    with pytest.raises(CheckpointError, match=reason):
        run(world, tmp_path / "run", resume=name)


def test_a_store_without_digests_says_that_nothing_was_audited(world, tmp_path, caplog) -> None:
    config = world.config(tmp_path / "run")
    inputs = open_inputs(config)
    read_view = inputs.store.read_view

    class Bare(ParquetStore):
        def read_view(self, number: int, view: int) -> Any:
            stored = read_view(number, view)
            return replace(stored, has_digest=np.zeros_like(stored.has_digest))

    bare = Bare(inputs.store.root, inputs.store.manifest)
    assert train(config, replace(inputs, store=bare)).audited == 0
    assert "nothing was audited: no view that was looked at has a digest" in caplog.text
    caplog.clear()
    run(world, tmp_path / "other")
    assert "nothing was audited" not in caplog.text
