"""Runs that are stopped, killed or torn lose at most what lies after a checkpoint."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from pipeline.errors import CheckpointError, ConfigError, PipelineError
from student.checkpoint import claim_output, open_checkpoint
from student.engine import Outcome, train
from student.inputs import open_inputs
from student.loading import LoaderOptions, load
from student.signals import StopRequest
from tests.student.factories import TINY
from tests.student.worlds import FORKS, Command, World, make_world

EPOCHS = 60
STEPS = 2 * EPOCHS  # 24 rows in batches of 12
STEPS_OF_THREE = 2 * 3  # epochs, the default of a world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), (14, 10), views=EPOCHS)


@pytest.fixture(autouse=True)
def _sigint_as_in_a_terminal() -> Iterator[None]:
    """A shell's background job, as tests may be, and what it starts ignore SIGINT."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def run(world: World, output: Path, **changes: Any) -> Outcome:
    stop_after = changes.pop("stop_after", None)
    stop = changes.pop("stop", lambda: False)
    config = world.config(output, **changes)
    return train(config, open_inputs(config), stop_after=stop_after, stop=stop)


def start(world: World, output: Path, *more: str) -> Command:
    arguments = [
        *("--labels", str(world.root / "labels.parquet")),
        *("--shards", str(world.root / "digits-*.tar"), "--output", str(output)),
        *("--epochs", str(EPOCHS), "--batch-size", "12", "--lr", "1e-3", "--device", "cpu"),
        *("--threads", "1", "--ema-decay", "0.9", "--drop-path", "0.3", "--model-args", *TINY),
        *more,
    ]
    return Command(arguments, world.root / "printed")


def written(path: Path) -> int | None:
    """Return when a file was written, if it is there."""
    return path.stat().st_mtime_ns if path.exists() else None


@pytest.mark.timeout(300)
def test_a_run_killed_at_any_moment_ends_with_the_weights_of_one_that_was_not(
    world: World, tmp_path: Path
) -> None:
    """SIGKILL at random moments, another number of workers each time."""
    straight = run(world, tmp_path / "straight", epochs=EPOCHS, ema_decay=0.9, drop_path=0.3)
    output, delays = tmp_path / "killed", random.Random(5)
    reached = [0]
    for workers in ("2", "0", "1"):
        more = ("--workers", workers, "--checkpoint-steps", "2", "--resume", "auto")
        before = written(output / "last.pt")
        command = start(world, output, *more)
        command.wait_for(lambda before=before: written(output / "last.pt") != before)
        time.sleep(delays.uniform(0, 0.15))
        command.kill()
        reached.append(torch.load(output / "last.pt", weights_only=True)["step"])
    assert reached == sorted(set(reached))  # each was killed in the midst of its steps
    assert reached[-1] < STEPS
    resumed = run(
        world, output, epochs=EPOCHS, ema_decay=0.9, drop_path=0.3, resume="auto", workers=1
    )
    assert (resumed.steps, resumed.weights) == (STEPS, straight.weights)
    one, other = (
        torch.load(path / "last.pt", weights_only=True)["ema"]
        for path in (output, tmp_path / "straight")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "name", "status"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)]
)
def test_a_signal_ends_the_step_checkpoints_and_says_so(
    world: World, tmp_path: Path, number: int, name: str, status: int
) -> None:
    output = tmp_path / "run"
    command = start(world, output, "--checkpoint-steps", "1000", "--workers", "1")
    command.wait_for((output / "last.pt").exists)
    command.signal_all(number)  # as a terminal does: loaders get it too
    ended, text = command.end()
    assert ended == status, text
    step = torch.load(output / "last.pt", weights_only=True)["step"]
    assert f"stopped by {name} after step {step}/{STEPS}" in text
    assert "Traceback" not in text


@pytest.mark.timeout(120)
def test_sigterm_before_the_first_step_says_that_nothing_was_written(world, tmp_path) -> None:
    script = (
        "import os, signal, student.cli as cli\n"
        "def early(*_): os.kill(os.getpid(), signal.SIGTERM)\n"
        "cli._parse = early\n"
        "cli.main([])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 143
    assert "stopped by SIGTERM before the first step; nothing was" in done.stderr


def test_a_second_ctrl_c_ends_at_once_but_not_its_echo(monkeypatch) -> None:
    clock = iter([10.0, 11.0, 13.0])
    monkeypatch.setattr("student.signals.time.monotonic", lambda: next(clock))
    stop = StopRequest(lambda: None)
    with stop.listening(), stop.training():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # a launcher passes it on
        assert stop() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_signals_before_and_after_training_are_no_request() -> None:
    told = []
    stop = StopRequest(lambda: told.append("before"))
    with stop.listening():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with stop.training():
            pass
        signal.raise_signal(signal.SIGTERM)
        assert told == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_is_ignored_stays_ignored() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = StopRequest(lambda: None)
        with stop.listening(), stop.training():
            signal.raise_signal(signal.SIGINT)
        assert stop() == 0
    finally:
        signal.signal(signal.SIGINT, previous)


class Slow(Dataset[int]):
    """Sends its own process both signals before the first item."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, item: int) -> int:
        for number in (signal.SIGINT, signal.SIGTERM) if item == 0 else ():
            os.kill(os.getpid(), number)
        time.sleep(0.7)
        return item


def test_loaders_outlive_signals_for_as_long_as_a_validation(monkeypatch) -> None:
    monkeypatch.setattr("student.signals._GRACE_SECONDS", 1)
    with pytest.raises(PipelineError, match="exited unexpectedly"):
        list(load(Slow(), range(4), LoaderOptions(workers=1)))  # an alarm that is due
    monkeypatch.undo()
    assert list(load(Slow(), range(4), LoaderOptions(workers=1))) == [0, 1, 2, 3]


def test_a_run_that_is_asked_to_stop_goes_on_as_if_it_never_had(world, tmp_path) -> None:
    straight = run(world, tmp_path / "straight")
    calls = iter(range(100))
    stopped = run(world, tmp_path / "run", stop=lambda: next(calls) == 3)
    assert (stopped.steps, stopped.stopped_by) == (3, 1)
    resumed = run(world, tmp_path / "run", resume="auto")
    assert (resumed.weights, resumed.stopped_by) == (straight.weights, 0)


@pytest.mark.parametrize("damage", ["cut", "flip", "missing"])
def test_a_torn_checkpoint_falls_back_to_the_one_before_with_a_warning(
    world, tmp_path, caplog, damage
) -> None:
    straight = run(world, tmp_path / "straight")
    output = tmp_path / "run"
    run(world, output, checkpoint_steps=1, stop_after=5)
    tear(output / "last.pt", damage)
    caplog.set_level(logging.INFO, "student")
    run(world, output, checkpoint_steps=1, resume="auto", stop_after=4)
    said = [(one.levelname, one.message) for one in caplog.records]
    assert ("WARNING", f"{output / 'last.pt'} was torn or missing") in said
    assert ("INFO", f"continues at step 4/6, from {output / 'previous.pt'}") in said
    # What was torn never takes the place of the sound one.
    assert torch.load(output / "last.pt", weights_only=True)["step"] == 4
    assert not (output / "previous.pt").exists() or damage_is_undone(output / "previous.pt")
    resumed = run(world, output, checkpoint_steps=1, resume="auto")
    assert resumed.weights == straight.weights


def test_two_processes_do_not_train_into_one_directory(world, tmp_path) -> None:
    output = tmp_path / "run"
    run(world, output, stop_after=1)
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    held = FORKS.Event()
    other = FORKS.Process(target=hold, args=(output, held), daemon=True)
    other.start()
    assert held.wait(60)
    with pytest.raises(ConfigError, match="another process is training there; wait for its end"):
        run(world, output, resume="auto")
    assert {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()} == before
    other.kill()
    other.join()
    assert run(world, output, resume="auto").steps == STEPS_OF_THREE


def hold(output: Path, held: Event) -> None:
    claimed = claim_output(output)
    held.set()
    time.sleep(600)
    del claimed


def test_two_torn_checkpoints_are_refused(world, tmp_path) -> None:
    output = tmp_path / "run"
    run(world, output, checkpoint_steps=1, stop_after=5)
    tear(output / "last.pt", "flip")
    tear(output / "previous.pt", "cut")
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged"):
        run(world, output, resume="auto")


def damage_is_undone(path: Path) -> bool:
    return bool(open_checkpoint(path).step == 4)


def tear(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-1000])
    elif damage == "flip":
        values = torch.load(path, weights_only=True)
        weight = values["model"]["blocks.0.mlp.fc1.weight"].numpy().tobytes()
        data[data.index(weight) + 5] ^= 1
        path.unlink()  # previous.pt may be the same file
        path.write_bytes(data)
    else:
        path.unlink()
