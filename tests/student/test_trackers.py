"""Trackers are told what the log says, by their real clients, and end no run."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from pipeline.errors import ConfigError
from student import trackers
from student.config import RunConfig
from student.engine import Outcome, train
from student.inputs import open_inputs
from tests.jobs.processes import wait_for
from tests.student.worlds import World, make_world

Told = list[tuple[Mapping[str, float], int]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), (14, 10))


def run(world: World, output: Path, *, stop_after: int | None = None, **changes: Any) -> Outcome:
    config = world.config(output, **changes)
    return train(config, open_inputs(config), stop_after=stop_after)


def losses_of(output: Path) -> dict[int, float]:
    """Return the losses of a run's log by step."""
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


class Listening:
    """A client that remembers, and fails at what it is told to."""

    told: Told
    ends: list[bool]
    made: list[tuple[str, str, str, Mapping[str, Any]]]
    fails_at: str

    def __init__(self, *about: Any) -> None:
        if self.fails_at == "init":
            raise SystemExit("no account")
        self.made.append(about)

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self.fails_at == "log":
            raise OSError("no network\nat all")
        self.told.append((values, step))

    def finish(self, failed: bool) -> None:
        if self.fails_at == "finish":
            threading.Event().wait()  # for ever
        self.ends.append(failed)


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> type[Listening]:
    values = {"told": [], "ends": [], "made": [], "fails_at": ""}
    kind = type("Client", (Listening,), values)
    monkeypatch.setattr(trackers, "_CLIENTS", {"trackio": kind})
    monkeypatch.setattr(trackers, "require_package", lambda *_: None)
    return kind


def test_the_names_are_those_of_the_clients_and_of_the_extras() -> None:
    kind = get_type_hints(RunConfig)["tracker"]
    names = {one for part in get_args(kind) for one in get_args(part)}
    assert names == set(trackers._CLIENTS)
    assert RunConfig().tracker is None


def test_a_tracker_is_told_all_numbers_of_the_log(
    world: World, tmp_path: Path, listening: type[Listening]
) -> None:
    run(world, tmp_path / "run", tracker="trackio", tracker_project="mine")
    name = "train/loss"
    losses = {step: values[name] for values, step in listening.told if name in values}
    assert losses == losses_of(tmp_path / "run")
    assert {"epoch/seconds/total", "epoch/loss"} < set(listening.told[-1][0])
    ((project, name, _, settings),) = listening.made
    assert (project, name, settings["epochs"], listening.ends) == ("mine", "run", 3, [False])


def test_a_run_that_goes_on_is_the_same_run(
    world: World, tmp_path: Path, listening: type[Listening]
) -> None:
    run(world, tmp_path / "run", tracker="trackio", stop_after=2)
    run(world, tmp_path / "run", tracker="trackio", resume="auto")
    run(world, tmp_path / "other", tracker="trackio", stop_after=2)
    numbers = [number for _, _, number, _ in listening.made]
    assert numbers[0] == numbers[1] != numbers[2]
    for stranger in ('{"run": "../../x"}', "[" * 100_000):
        (tmp_path / "other" / "tracker.json").write_text(stranger)
        run(world, tmp_path / "other", tracker="trackio", resume="auto")
        assert listening.made[-1][2] not in (numbers[2], "../../x")


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_tracker_that_fails_or_hangs_ends_no_run(
    world: World,
    tmp_path: Path,
    listening: type[Listening],
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(trackers, "END_SECONDS", 0.2)
    plain = run(world, tmp_path / "plain")
    listening.fails_at = where
    with caplog.at_level(logging.WARNING, "student.trackers"):
        tracked = run(world, tmp_path / "run", tracker="trackio")
    assert tracked.weights == plain.weights
    (said,) = [one.getMessage() for one in caplog.records if "tracker" in one.getMessage()]
    assert "training goes on" in said
    assert "\n" not in said


def test_nobody_is_told_unless_it_is_asked_for(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in trackers._CLIENTS:
        monkeypatch.setitem(sys.modules, name, None)
    run(world, tmp_path / "run", stop_after=2)
    assert not (tmp_path / "run" / "tracker.json").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"`tracker` wandb needs wandb: pip install .*\[wandb\]"):
        run(world, tmp_path / "other", tracker="wandb")
    assert not (tmp_path / "other").exists()


def test_mlflow_has_all_numbers_settings_and_one_run_after_a_resume(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    run(world, tmp_path / "run", tracker="mlflow", stop_after=4)
    run(world, tmp_path / "run", tracker="mlflow", resume="auto")
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("teacher-labels")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["epochs"] == "3"
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert {one.step: one.value for one in history} == losses_of(tmp_path / "run")


def test_weights_and_biases_off_line_has_all_numbers(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run(world, tmp_path / "run", tracker="wandb")
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    # The client's own process writes it, on a busy machine a little later.
    wait_for(lambda: b"epoch/seconds/total" in file.read_bytes(), "the last numbers")
    data = file.read_bytes()
    for loss in losses_of(tmp_path / "run").values():
        assert json.dumps(loss).encode() in data


def test_trackio_is_called_as_its_documents_say(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client does not install beside this project's versions of other packages."""
    said: list[Any] = []

    class Run:
        def log(self, metrics: dict[str, float], step: int | None = None) -> None:
            said.append((metrics, step))

        def finish(self) -> None:
            said.append("finished")

    def init(project: str, name: str, *, resume: str, config: dict[str, Any], embed: bool) -> Run:
        said.append((project, name.partition("-")[0], resume, config["epochs"], embed))
        return Run()

    module = types.ModuleType("trackio")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setattr(trackers, "require_package", lambda *_: None)
    run(world, tmp_path / "run", tracker="trackio")
    assert said[0] == ("teacher-labels", "run", "allow", 3, False)
    assert said[-1] == "finished"
    assert [step for values, step in said[1:-1] if "train/loss" in values] == [2, 4, 6]


def test_a_file_that_says_no_runs_number_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "tracker.json"
    number = trackers._number(path)
    assert trackers._number(path) == number
    texts = (b"", b"[]", b'{"run":5}', b'{"run":"x"}', b"[" * 9999)
    for text in texts:
        path.write_bytes(text)
        assert trackers._number(path) != number
    path.write_bytes(b'{"run":"%b"}' % number.encode())
    assert trackers._number(path) == number
    os.truncate(path, 1 << 40)
    assert trackers._number(path) != number
    assert path.stat().st_size < 100
