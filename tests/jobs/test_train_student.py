"""The trainer on Ray: the weights of as many ranks anywhere, whatever is killed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.train_student import main
from student.checkpoint import open_checkpoint
from student.engine import Outcome
from student.output import file_here
from tests.forking import Forked
from tests.jobs.processes import (
    RAY_ENVIRONMENT,
    ROOT,
    RayHead,
    alive,
    command_of,
    descendants,
    forked,
    kill,
    wait_for,
)
from tests.student.test_distributed import arguments_of
from tests.student.worlds import World, make_world, run_ranks

EPOCHS = 24


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("ray"), (14, 10), views=EPOCHS)


@pytest.fixture(scope="module")
def straight(world: World, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What two ranks come to that nobody disturbs."""
    output = tmp_path_factory.mktemp("straight") / "run"
    return run_ranks(world.config(output, epochs=EPOCHS), 2)[0].outcome


@pytest.fixture(params=["disk", "storage"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[RayHead, str]]:
    """A cluster, and the output of a run on it."""
    if request.param == "disk":
        yield request.getfixturevalue("head"), str(tmp_path / "run")
    else:
        bucket = request.getfixturevalue("s3").make_bucket()
        yield request.getfixturevalue("head"), f"{bucket}/run"


def is_there(path: str) -> bool:
    with file_here(path) as file:
        return file.exists()


def start(world: World, head: RayHead, output: str, log: Path, *more: str) -> Forked:
    flags = ("--ranks", "2", "--cpus-per-rank", "0.5", "--epochs", str(EPOCHS))
    words = [*arguments_of(world, output, "--workers", "0"), *flags, *more]
    variables = {**os.environ, **RAY_ENVIRONMENT, "RAY_ADDRESS": head.address}
    program = str(ROOT / "jobs.train_student")  # as `python -m` does, from there
    return forked("jobs.train_student:main", [program, *words], variables, log, ROOT)


def workers(head: RayHead) -> list[int]:
    found = [one for one in descendants(head.pid) if "TrainWorker" in command_of(one)]
    return alive(found)


@pytest.mark.timeout(400)
def test_a_killed_worker_is_replaced_and_the_weights_are_those_of_two_ranks(
    world: World, straight: Outcome, place: tuple[RayHead, str], tmp_path: Path
) -> None:
    (head, output), log = place, tmp_path / "log"
    last = f"{output}/last.pt"
    process = start(world, head, output, log, "--checkpoint-steps", "3")
    wait_for(lambda: process.poll() is not None or is_there(last), "it", log=log)
    assert process.poll() is None, log.read_text()
    first = workers(head)
    assert len(first) == 2
    kill(first[1])
    process.wait(300)
    text = log.read_text()
    assert process.returncode == 0, text
    assert f"sha256 {straight.weights}" in text
    with file_here(last) as file:
        saved = open_checkpoint(file)
    assert saved.step == straight.steps
    # Nothing of it goes on.
    end = time.monotonic() + 30
    while alive(first) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(first)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--ranks", "0"), "error: --ranks is 0; use 1 or more"),
        (("--resume", "x.pt"), "error: --resume is x.pt; on Ray it is auto"),
        (("--epochs", str(EPOCHS + 1)), "epochs need"),
    ],
)
def test_what_cannot_be_trained_is_said_before_ray_is_asked(
    world, tmp_path, capsys, monkeypatch, flags, words
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # nobody is there
    with pytest.raises(SystemExit) as caught:
        main([*arguments_of(world, tmp_path / "run"), *flags])
    assert caught.value.code == 1
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_a_run_ends_with_its_report_and_what_comes_next(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained = SimpleNamespace(step=3, model={})
    monkeypatch.setattr("jobs.train_student.train_on_ray", lambda *_: trained)
    main(arguments_of(world, tmp_path / "run"))
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == f"report {tmp_path}/run/report.html"
    assert said.err.splitlines()[-1].startswith(
        f"train-student-ray: next: export-student {tmp_path}/run/last.pt --to timm"
    )
