"""Ranks as real processes: the same rows, the same gradient, no hang, one writer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipeline.errors import CheckpointError, ConfigError
from student.checkpoint import open_checkpoint
from student.config import EvaluateConfig
from student.distributed import Ranks, read_ranks
from student.evaluation.report import evaluate_checkpoint
from student.inputs import open_inputs
from tests.student.factories import TINY
from tests.student.worlds import (
    FORKS,
    Command,
    World,
    make_world,
    run_ranks,
    train_and_report,
)

SIZES = (25, 17, 8)  # no shard divides by two ranks and a batch
EPOCHS = 30  # of the run that is stopped by a signal
STEPS, DROPPED = 12, 6  # 3 epochs of 50 rows in batches of 12


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("ranks"), SIZES, views=EPOCHS)


def alone(world: World, output: Path, stop_after: int | None = None, **changes):
    config = world.config(output, **changes)
    return train_and_report(config, Ranks(), stop_after, lambda: False)


@pytest.mark.parametrize(("count", "repeated"), [(1, False), (2, False), (3, False), (2, True)])
def test_ranks_take_the_rows_of_one_process_and_end_together(
    world, tmp_path, count, repeated
) -> None:
    changes = {"repeated_augmentation": repeated}
    expected = alone(world, tmp_path / "alone", **changes)
    reports = run_ranks(world.config(tmp_path / "run", **changes), count)
    assert [report.outcome.steps for report in reports] == [STEPS] * count
    assert {report.outcome.dropped_rows for report in reports} == {DROPPED}
    assert len({row[1:] for row in expected.rows}) == STEPS * 12  # no view of a sample twice
    share = 12 // count
    joined = [
        row
        for step in range(STEPS)
        for report in reports
        for row in report.rows[step * share : (step + 1) * share]
    ]
    assert joined == expected.rows
    assert len({report.outcome.weights for report in reports}) == 1


@pytest.mark.parametrize(("count", "accumulate"), [(2, 1), (3, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("kind", ["hard", "none"])
def test_without_drop_path_the_averaged_gradient_is_that_of_one_process(
    world, tmp_path, count, accumulate, kind
) -> None:
    settings = {"drop_path": 0.0, "distillation": kind}
    expected = alone(world, tmp_path / "alone", stop_after=1, **settings).gradients
    config = world.config(tmp_path / "run", accumulate=accumulate, **settings)
    for report in run_ranks(config, count, stop_after=1):
        assert set(report.gradients) == set(expected)
        for name, gradient in report.gradients.items():
            # The same float32 sums in another order; gradients are about 1e-2.
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_a_resumed_run_of_two_ranks_ends_with_the_weights_of_one_that_never_stopped(
    world, tmp_path
) -> None:
    settings = {"drop_path": 0.3, "ema_decay": 0.9, "checkpoint_steps": 2}
    straight = run_ranks(world.config(tmp_path / "straight", **settings), 2)
    output = tmp_path / "stopped"
    run_ranks(world.config(output, **settings), 2, stop_after=5)
    resumed = run_ranks(world.config(output, resume="auto", **settings), 2)
    assert {one.outcome.weights for one in resumed} == {straight[0].outcome.weights}
    assert epoch_means(output) == epoch_means(tmp_path / "straight")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_ranks_is_said_and_kept(world, tmp_path, before, after) -> None:
    output = tmp_path / "run"
    first = run_ranks(world.config(output), before, stop_after=5)
    assert not any("not be those" in one.said for one in first)
    resumed = run_ranks(world.config(output, resume="auto"), after)
    text = f"WARNING: ranks {before} -> {after} since the checkpoint: the weights will not be"
    assert [one.said.count(text) for one in resumed] == [1, 0][:after]
    history = open_checkpoint(output / "last.pt").history
    assert [(one.step, one.ranks) for one in history] == [(0, before), (5, after)]


def epoch_means(output: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    # Of the sums that were interrupted, one rank goes on: another order of additions.
    return [(one["step"], pytest.approx(one["loss"]), one["agreement"]) for one in epochs]


def test_metrics_of_two_ranks_are_those_of_all_rows(world, tmp_path) -> None:
    settings = {"drop_path": 0.0, "lr": 1e-9, "warmup_lr": 0.0, "min_lr": 0.0}
    alone(world, tmp_path / "alone", **settings)
    run_ranks(world.config(tmp_path / "run", **settings), 2)
    for one, other in zip(
        epoch_means(tmp_path / "run"), epoch_means(tmp_path / "alone"), strict=True
    ):
        assert one == other
    files = sorted(path.name for path in (tmp_path / "run").iterdir() if path.name != ".lock")
    names = ["config.json", "last.pt", "metrics.jsonl", "previous.pt", "run.toml", "tensorboard"]
    assert files == names


@dataclass
class AfterThree:
    """Asks for a stop by this signal when it was called three times; None: raises."""

    signal: int | None
    calls: int = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= 3:
            return 0
        if self.signal is None:
            raise ConfigError("the reason")
        return self.signal


def test_all_ranks_stop_before_the_same_step_when_one_is_asked(world, tmp_path) -> None:
    reports = run_ranks(world.config(tmp_path / "run"), 2, stops=(AfterThree(0), AfterThree(15)))
    steps = {report.outcome.steps for report in reports}
    assert len(steps) == 1
    assert steps.pop() in (3, 4, 5)
    assert [report.outcome.stopped_by for report in reports] == [15, 15]
    resumed = run_ranks(world.config(tmp_path / "run", resume="auto"), 2)
    straight = run_ranks(world.config(tmp_path / "straight"), 2)
    assert resumed[0].outcome.weights == straight[0].outcome.weights


def test_what_rank_0_refuses_stops_all_ranks(world, tmp_path) -> None:
    alone(world, tmp_path / "run", stop_after=1)
    with pytest.raises(AssertionError) as caught:
        run_ranks(world.config(tmp_path / "run"), 2)
    message = str(caught.value)
    assert "ConfigError: `output`" in message
    assert "SilentError: rank 0 stopped" in message


def test_a_batch_that_ranks_and_pieces_do_not_divide_is_refused(world, tmp_path) -> None:
    with pytest.raises(ConfigError, match="multiple of 10"):
        alone(world, tmp_path / "run", accumulate=5)


def test_a_checkpoint_of_another_model_is_refused(world, tmp_path) -> None:
    alone(world, tmp_path / "run", stop_after=1)
    config = world.config(tmp_path / "run", resume="auto", model="deit_small_distilled_patch16_224")
    with pytest.raises(CheckpointError, match="`model`:"):
        train_and_report(config, Ranks(), None, lambda: False)
    assert open_inputs(config).plan.steps == STEPS


def test_a_rank_ends_although_its_averaged_model_outlives_its_connection() -> None:
    ports = [free_port() for _ in range(12)]
    ranks = [Ranks(rank=rank, ranks=2) for rank in range(2)]
    processes = [FORKS.Process(target=join_and_leave, args=(one, ports)) for one in ranks]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0]  # None: it hangs


def join_and_leave(ranks: Ranks, ports: list[int]) -> None:
    torch.set_num_threads(1)
    for port in ports:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        with ranks.joined(torch.device("cpu")):
            model = ranks.averaging(torch.nn.Linear(2, 2), unused=False)
            ranks.wait()
        del model


@pytest.mark.parametrize("values", [{"RANK": "3", "WORLD_SIZE": "2"}, {"RANK": "a"}])
def test_ranks_that_make_no_sense_are_refused(values, monkeypatch) -> None:
    for name, value in {"WORLD_SIZE": "2", **values}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="torchrun"):
        read_ranks()


def test_without_torchrun_there_is_one_rank(monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert read_ranks() == Ranks()


@pytest.mark.timeout(300)
def test_torchrun_trains_stops_at_sigterm_and_goes_on(world: World, tmp_path: Path) -> None:
    """The whole way once: launcher, loader processes, a signal to all, resume.

    The resumed ranks are forked, with the environment that torchrun gives: loading PyTorch
    three times more would be most of the test.
    """
    output = tmp_path / "run"
    flags = ("--epochs", str(EPOCHS), "--checkpoint-epochs", "1000")
    first = start_torchrun(world, output, *flags, "--checkpoint-steps", "3")
    wait_for(lambda: (output / "last.pt").exists(), first)
    first.send_signal(signal.SIGTERM)
    text, _ = first.communicate(timeout=120)
    stopped = torch.load(output / "last.pt", weights_only=True)["step"]
    assert f"stopped by SIGTERM after step {stopped}/{sum(SIZES) * EPOCHS // 12}" in text, text
    resumed = start_ranks(world, output, tmp_path, *flags, "--resume", "auto")
    (status, text), (other_status, other_text) = (rank.end() for rank in resumed)
    assert (status, other_status) == (0, 0), text + other_text
    straight = run_ranks(world.config(tmp_path / "straight", epochs=EPOCHS), 2)
    assert f"sha256 {straight[0].outcome.weights}" in text


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def arguments_of(world: World, output: Path, *more: str) -> list[str]:
    return [
        *("--labels", str(world.root / "labels.parquet")),
        *("--shards", str(world.root / "digits-*.tar"), "--output", str(output)),
        *("--batch-size", "12", "--lr", "1e-3", "--device", "cpu", "--threads", "1"),
        *("--workers", "1", "--model-args", *TINY, *more),
    ]


def start_ranks(world: World, output: Path, logs: Path, *more: str) -> list[Command]:
    every = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    every |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    arguments = arguments_of(world, output, *more)
    return [
        Command(arguments, logs / f"{rank}.log", **every, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(2)
    ]


def start_torchrun(world: World, output: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-addr", "127.0.0.1", "--master-port", str(free_port()), "-m", "student.cli"),
        *arguments_of(world, output, *more),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def test_a_rank_that_fails_stops_the_others_with_a_message(world, tmp_path) -> None:
    with pytest.raises(AssertionError) as caught:
        run_ranks(world.config(tmp_path / "run"), 2, stops=(AfterThree(0), AfterThree(None)))
    message = str(caught.value)
    assert "ConfigError: the reason" in message
    assert "PipelineError: rank 0 lost another rank, whose message says why" in message


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_at_its_step(world, tmp_path) -> None:
    config = world.config(tmp_path / "run", lr=1e30, warmup_epochs=0.0)
    with pytest.raises(AssertionError) as caught:
        run_ranks(config, 2)
    assert str(caught.value).count("PipelineError: the loss is not finite at step") == 2
    assert not (tmp_path / "run" / "last.pt").exists()


def test_every_rank_and_piece_of_a_step_has_random_numbers_of_its_own(world, tmp_path) -> None:
    reports = run_ranks(world.config(tmp_path / "run", accumulate=3), 2)
    seeds = [seed for report in reports for seed in report.seeds]
    assert len(set(seeds)) == len(seeds) == 2 * 3 * STEPS


@pytest.mark.parametrize("rows", [2, 5, 64])  # of a batch; 64 leave a rank without any
def test_ranks_share_the_validation_and_find_what_one_rank_does(world, tmp_path, rows) -> None:
    shards = {"val_shards": (str(world.root / "digits-1.tar"),), "eval_batch_size": rows}
    changes = {
        # Batch norm: its means differ from rank to rank, and rank 0's are kept.
        **{"model": "test_resnet", "model_args": (), "distillation_kind": "classical"},
        **{"ema_decay": 0.5, "batch_size": 8, **shards},
    }
    reports = run_ranks(world.config(tmp_path / "run", **changes), 2)
    alone = EvaluateConfig(
        checkpoint=tmp_path / "run" / "last.pt", **shards, workers=0, threads=1, device="cpu"
    )
    found = evaluate_checkpoint(alone).evaluations
    for report in reports:
        for name in ("raw", "ema"):
            ours = report.outcome.evaluation if name == "raw" else report.outcome.ema_evaluation
            assert ours is not None
            assert ours.samples == found[name].samples
            assert {**ours.to_json(), "images_per_second": 0} == {
                **found[name].to_json(),
                "images_per_second": 0,
            }
    assert found["raw"].class_head != found["ema"].class_head
