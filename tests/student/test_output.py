"""A run whose output is in object storage: a run on a disk has the same files."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import CheckpointError, ConfigError, PipelineError
from pipeline.labelling.weights import state_digest
from student.cli import evaluate_main, export_main, report_main
from student.cli import main as train_student
from student.engine import Outcome, Trainer, train
from student.evaluation.report import load_student
from student.finetune import read_weights
from student.inputs import open_inputs
from student.output import open_output
from student.run_report import read_run
from tests.object_storage import Fault, Request, S3Server
from tests.student.factories import TINY, write_digit_shards
from tests.student.worlds import World, make_world

STEPS = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    write_digit_shards(root / "validation", (13,))
    return make_world(root, (14, 10))


@pytest.fixture(scope="module")
def undisturbed(world: World) -> Outcome:
    """A run on a disk, to its end."""
    return run(world, str(world.root / "run"))


def run(world: World, output: str, *, stop_after: int | None = None, **changes: Any) -> Outcome:
    validation = (str(world.root / "validation" / "*.tar"),)
    config = world.config(output, val_shards=validation, **changes)
    return train(config, open_inputs(config), stop_after=stop_after)


def logged(lines: bytes) -> list[dict[str, Any]]:
    """Return the lines of a log, without what depends on the clock and the machine."""
    timings = {
        *("seconds", "rows_per_second", "peak_memory_bytes", "images_per_second"),
        "timed_from_step",
    }
    found = [json.loads(line) for line in lines.splitlines()]
    for line in found:
        for part in (line, line.get("evaluation", {})):
            for name in timings & part.keys():
                del part[name]
    return found


def require_same(objects: dict[str, bytes], world: World, outcome: Outcome) -> None:
    """Compare a run in storage with the one on a disk."""
    local = {
        path.relative_to(world.root / "run").as_posix(): path
        for path in (world.root / "run").rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    boards = {name for name in objects if name.startswith("tensorboard/")}
    (owner,) = (name for name in objects if name.startswith("owner-"))
    assert boards
    assert objects.keys() - boards - {owner} == {
        name for name in local if not name.startswith("tensorboard/")
    }
    assert logged(objects["metrics.jsonl"]) == logged(local["metrics.jsonl"].read_bytes())
    assert b"</html>" in objects["report.html"]
    assert weights(objects["last.pt"], world) == weights(local["last.pt"].read_bytes(), world)
    assert weights(objects["last.pt"], world) == outcome.weights
    assert json.loads(objects["config.json"])["config"]["output"].startswith("s3://")


def weights(data: bytes, world: World) -> str:
    """Return the digest of a checkpoint's weights."""
    return state_digest(checkpoint(data, world)["model"])


def checkpoint(data: bytes, world: World) -> dict[str, Any]:
    path = world.root / "looked-at.pt"
    path.write_bytes(data)
    return torch.load(path, weights_only=True)


def every(number: int, of: Callable[[Request], bool], fault: str) -> Fault:
    """Return a fault of every so many of some requests."""
    count = itertools.count(1)
    return lambda request: fault if of(request) and next(count) % number == 0 else None


def is_put(request: Request) -> bool:
    return request.method == "PUT"


def test_a_run_in_object_storage_goes_on_elsewhere_to_the_same_files(
    world, undisturbed, s3, caplog
) -> None:
    """No file of the first part is left on this machine: the second is another one to it."""
    url = f"{s3.make_bucket()}/runs/tiny"
    run(world, url, stop_after=3)
    before = s3.objects(url)
    assert {"last.pt", "config.json", "run.toml", "metrics.jsonl"} <= before.keys()
    assert "report.html" not in before
    caplog.set_level(logging.INFO)
    outcome = run(world, url, resume="auto")
    assert outcome.weights == undisturbed.weights
    assert f"continues at step 3/{STEPS}, from {url}/last.pt" in caplog.text
    require_same(s3.objects(url), world, outcome)
    named = run(world, url, resume=f"{url}/best.pt")
    assert named.weights == undisturbed.weights
    elsewhere = run(world, f"{url}-2", resume=f"{url}/last.pt")
    assert elsewhere.weights == undisturbed.weights
    assert f"continues at step {STEPS}/{STEPS}, from {url}/last.pt" in caplog.text
    s3.put(f"{url}/last.pt", b"torn")
    with pytest.raises(CheckpointError, match=f"{url}/last.pt cannot be read"):
        run(world, f"{url}-3", resume=f"{url}/last.pt")


@pytest.mark.parametrize(
    "fault",
    [
        every(3, lambda request: True, "503"),
        every(2, is_put, "lost"),
        every(2, lambda request: request.method == "GET", "torn"),
    ],
    ids=["errors", "lost answers", "torn answers"],
)
def test_faults_of_the_storage_change_nothing(world, undisturbed, s3, fault) -> None:
    url = f"{s3.make_bucket()}/tiny"
    s3.fault = fault
    run(world, url, stop_after=3)
    outcome = run(world, url, resume="auto")
    s3.fault = None
    require_same(s3.objects(url), world, outcome)


@pytest.mark.parametrize("name", ["last.pt", "metrics.jsonl"])
def test_a_write_that_fails_leaves_the_checkpoint_before(world, undisturbed, s3, name) -> None:
    """last.pt comes after all others, so none is older than it."""
    url = f"{s3.make_bucket()}/tiny"
    run(world, url, stop_after=3)
    before = s3.objects(url)
    s3.fault = lambda one: "403" if is_put(one) and one.path.endswith(f"/{name}") else None
    with pytest.raises(PipelineError, match=f"{url}/{name}: access was refused"):
        run(world, url, resume="auto")
    s3.fault = None
    after = s3.objects(url)
    assert after["last.pt"] == before["last.pt"]
    # The log is never behind: what it has beyond is cut off again.
    assert len(after["metrics.jsonl"]) >= len(before["metrics.jsonl"])
    outcome = run(world, url, resume="auto")
    require_same(s3.objects(url), world, outcome)


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(world, undisturbed, s3) -> None:
    url = f"{s3.make_bucket()}/tiny"
    run(world, url, stop_after=5)
    damaged = s3.objects(url)["last.pt"][:-100]
    s3.put(f"{url}/last.pt", damaged)
    outcome = run(world, url, resume="auto")
    objects = s3.objects(url)
    assert objects.pop("torn.pt") == damaged
    require_same(objects, world, outcome)


def test_torn_checkpoints_name_the_best_one_in_storage(world, undisturbed, s3) -> None:
    url = f"{s3.make_bucket()}/tiny"
    run(world, url, stop_after=5)
    for name in ("last.pt", "previous.pt"):
        s3.put(f"{url}/{name}", s3.objects(url)[name][:-100])
    with pytest.raises(CheckpointError) as caught:
        run(world, url, resume="auto")
    assert f"{url}/last.pt cannot be read, it is torn" in str(caught.value)
    assert f"is sound: `resume` {url}/best.pt goes on from it" in str(caught.value)
    assert "train-student-" not in str(caught.value)  # the directory of this process
    assert run(world, url, resume=f"{url}/best.pt").weights == undisturbed.weights


def test_a_run_in_storage_is_not_written_over_and_has_one_writer(world, s3) -> None:
    url = f"{s3.make_bucket()}/tiny"
    config = world.config(url)
    first = Trainer(config, open_inputs(config))
    first.run(stop_after=1)
    with pytest.raises(ConfigError, match=r"`output` s3://.* holds a run \(config.json\)"):
        run(world, url)
    run(world, url, stop_after=2, resume="auto")
    theirs = s3.objects(url)
    with pytest.raises(ConfigError, match="another process began to train there"):
        first.run(stop_after=3)
    assert s3.objects(url) == theirs


def test_who_lost_the_output_keeps_nothing_there_of_the_one_that_has_it(s3) -> None:
    url = f"{s3.make_bucket()}/tiny"
    mine, theirs = open_output(url), open_output(url)
    mine.fetch(None)
    with mine.claim():
        (mine.directory / "last.pt").write_bytes(b"mine")
        mine.publish()
        theirs.fetch("auto")
        with theirs.claim():
            there = s3.objects(url)
            with pytest.raises(ConfigError, match="another process began to train there"):
                mine.keep_epoch(1, 2)
    assert s3.objects(url) == there


@pytest.mark.parametrize(
    ("name", "begun"),
    [
        ("last.pt", False),
        ("last.pt", True),
        ("previous.pt", True),
        ("best.pt", True),
        ("epoch-0002.pt", True),
        ("metrics.jsonl", True),
    ],
)
def test_a_write_that_comes_late_replaces_nothing_of_who_took_over(
    world, undisturbed, s3, name, begun
) -> None:
    """The storage holds back a write of a process that owned the output when it began."""
    url = f"{s3.make_bucket()}/tiny"
    settings = {"checkpoint_steps": 1, "checkpoint_history": 9}
    if begun:
        run(world, url, stop_after=1, **settings)
    resume = "auto" if begun else None
    held, let_go = Event(), Event()

    def hold(request: Request) -> None:
        if is_put(request) and request.path.endswith(f"/{name}") and not held.is_set():
            held.set()
            assert let_go.wait(60)

    s3.fault = hold
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, world, url, resume=resume, **settings)
        try:
            assert held.wait(60)
            run(world, url, resume="auto", stop_after=5, **settings)
            theirs, last = s3.objects(url), s3.objects(url)["last.pt"]
        finally:
            let_go.set()
        with pytest.raises(ConfigError, match="another process began to train there"):
            first.result()
    s3.fault = None
    after = s3.objects(url)
    if name == "previous.pt":  # a copy that the storage makes of what is there at that time
        assert after[name] == last
    elif name == "epoch-0002.pt":  # of which there was none
        assert checkpoint(after[name], world)["step"] == 4
    else:
        assert after[name] == theirs[name]
    assert {**after, name: b""} == {**theirs, name: b""}
    outcome = run(world, url, resume="auto", **settings)
    assert outcome.weights == undisturbed.weights
    steps = [json.loads(line)["step"] for line in s3.objects(url)["metrics.jsonl"].splitlines()]
    assert steps == sorted(steps)


@pytest.mark.parametrize("begun", [False, True])
def test_of_processes_that_begin_at_once_one_is_let_in(s3, begun) -> None:
    url = f"{s3.make_bucket()}/tiny"
    s3.put(f"{url}/owner-of-this.txt", b"a note")
    if begun:
        before = open_output(url)
        before.fetch(None)
        before.claim().close()
    outputs = [open_output(url) for _ in range(3)]
    for one in outputs:
        one.fetch("auto")
    first, second, third = outputs
    with second.claim():
        there = s3.objects(url)
        for late in (first, third):
            with pytest.raises(ConfigError, match="another process began to train there"):
                late.claim()
        (second.directory / "run.toml").write_bytes(b"second")
        second.publish()
    assert s3.objects(url) == {**there, "run.toml": b"second"}
    # Whoever reads what it left goes on, once.
    first.fetch("auto")
    first.claim().close()
    (second.directory / "run.toml").write_bytes(b"again")
    with pytest.raises(ConfigError, match="another process began to train there"):
        second.publish()


def test_a_claim_whose_answer_is_lost_holds(s3) -> None:
    url = f"{s3.make_bucket()}/tiny"
    s3.fault = every(2, is_put, "lost")
    output = open_output(url)
    output.fetch(None)
    with output.claim():
        (output.directory / "run.toml").write_bytes(b"mine")
        output.publish()
    assert s3.objects(url)["run.toml"] == b"mine"


def test_what_reads_runs_reads_those_in_storage(
    world, undisturbed, s3, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("student.evaluation.report._SECONDS_OF_SPEED", 0.0)
    url = f"{s3.make_bucket()}/runs/run"
    run(world, url)
    flags = ("--val-shards", str(world.root / "validation" / "*.tar"), "--workers", "0")
    found = {}
    for output in (str(world.root / "run"), url):
        files = tmp_path / f"of-{len(found)}"
        report_main([output, "--out", str(files / "run.html")])
        evaluate_main(["--checkpoint", output, *flags, "--json", str(files / "all.json")])
        export_main([output, "--to", "safetensors", "--out", str(files / "best.safetensors")])
        begun = world.config(files / "begun", finetune=f"{output}/best.pt", seed=5)
        evaluated = json.loads((files / "all.json").read_text())
        assert evaluated.keys() == {"best.pt", "last.pt", "previous.pt"}
        found[output] = (
            {name: one["evaluations"]["raw"]["mean_of_logits"] for name, one in evaluated.items()},
            state_digest(load_file(files / "best.safetensors")),
            train(begun, open_inputs(begun)).weights,
        )
        assert "Run run" in (files / "run.html").read_text()
        said = capsys.readouterr()
        assert f"--checkpoint {output}/" in said.err  # what comes next
        assert f", of {output}/best.pt, raw weights" in said.out
    here, there = found.values()
    assert here == there
    s3.put(f"{url}/bad.pt", b"nothing")
    for name, why in (("bad.pt", "cannot be read"), ("none.pt", "does not exist")):
        for read in (load_student, read_weights):
            with pytest.raises(CheckpointError, match=f"{url}/{name} .*{why}") as caught:
                read(f"{url}/{name}")
            assert str(tmp_path.parent) not in str(caught.value)
    with pytest.raises(ConfigError, match=f"{url}/none holds no run"):
        read_run(f"{url}/none")


def test_a_torn_checkpoint_that_was_set_aside_late_leaves_those_of_who_took_over(
    world, undisturbed, s3
) -> None:
    """Nothing is deleted that both may write: a request to delete cannot say which object."""
    url = f"{s3.make_bucket()}/tiny"
    run(world, url, stop_after=5)
    s3.put(f"{url}/last.pt", s3.objects(url)["last.pt"][:-100])
    run(world, url, resume="auto", stop_after=5)
    assert s3.asked("DELETE", "/last.pt") == 0
    objects = s3.objects(url)
    assert checkpoint(objects["last.pt"], world)["step"] == 5
    assert checkpoint(objects["previous.pt"], world)["step"] == 4


def test_epochs_that_are_kept_are_kept_in_storage_by_whoever_goes_on(world, s3) -> None:
    url = f"{s3.make_bucket()}/tiny"
    run(world, url, stop_after=4, checkpoint_history=2)
    names = [name for name in s3.objects(url) if name.startswith("epoch-")]
    assert names == ["epoch-0001.pt", "epoch-0002.pt"]
    run(world, url, resume="auto", checkpoint_history=2)
    objects = s3.objects(url)
    assert [name for name in objects if name.startswith("epoch-")] == [
        *("epoch-0002.pt", "epoch-0003.pt"),
    ]
    assert objects["epoch-0003.pt"] == objects["last.pt"]


def test_the_command_trains_into_storage_and_says_where(world, s3: S3Server, capsys) -> None:
    url = f"{s3.make_bucket()}/tiny"
    flags = [
        *("--labels", str(world.root / "labels.parquet"), "--output", url, "--device", "cpu"),
        *("--shards", str(world.root / "digits-*.tar"), "--threads", "1", "--workers", "2"),
        *("--batch-size", "12", "--epochs", "1", "--model-args", *TINY),
    ]
    train_student(flags)
    said = capsys.readouterr()
    assert f"report {url}/report.html" in said.out
    assert f"fetch {url}/report.html, and open it in a browser" in said.err
    assert "train-student-" not in said.out + said.err  # the directory of this process
    assert {"last.pt", "report.html", "run.toml"} <= s3.objects(url).keys()
    with pytest.raises(SystemExit):
        train_student([*flags[:2], "--output", "s3://key@bucket/run", *flags[4:]])
    assert "carries credentials" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["link to nothing", "link to a file", "pipe"])
@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "tracker.json", "tensorboard"])
def test_an_output_of_others_leads_nowhere(tmp_path: Path, name: str, kind: str) -> None:
    """A received directory may be resumed in: its links would be written through."""
    output, victim = tmp_path / "run", tmp_path / "victim"
    output.mkdir()
    victim.mkdir()
    (victim / "file").write_text("mine")
    if kind == "pipe":
        os.mkfifo(output / name)
    else:
        (output / name).symlink_to(victim / ("file" if kind == "link to a file" else "new"))
    with pytest.raises(ConfigError, match=rf"{name} is a link, a pipe or a device"):
        open_output(str(output)).claim()
    assert [path.read_text() for path in victim.iterdir()] == ["mine"]
    (output / name).unlink()
    open_output(str(output)).claim().close()
