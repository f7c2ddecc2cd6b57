"""A small store with all that training on it takes, and runs on it in processes of their own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from student import cli
from student.config import TrainConfig
from student.distributed import Ranks
from student.engine import Outcome, Trainer
from student.inputs import open_inputs
from student.replay import StudentBatch
from tests.student.factories import TINY, make_store, write_digit_shards

Row = tuple[int, int, int, int]  # step, shard, sample, view

FORKS = multiprocessing.get_context("forkserver")
"""Makes processes in which PyTorch is loaded and no thread ever ran.

A fork of the tests' own process has the locks of all its threads as they were, and may wait for
one for ever.
"""
FORKS.set_forkserver_preload(["tests.student.worlds", "tests.student.frozen"])


@dataclass(frozen=True)
class World:
    """Shards with a store of their labels."""

    root: Path

    def config(self, output: Path | str, **changes: Any) -> TrainConfig:
        values = {
            "labels": str(self.root / "labels.parquet"),
            "shards": (str(self.root / "digits-*.tar"),),
            "output": str(output),
            "model_args": TINY,
            "epochs": 3,
            "batch_size": 12,
            "lr": 1e-3,
            "workers": 0,
            "threads": 1,
            "device": "cpu",
            "log_every": 2,
        }
        return TrainConfig.of_settings(**{**values, **changes})


def make_world(root: Path, sizes: tuple[int, ...], views: int = 3) -> World:
    paths = write_digit_shards(root, sizes)
    make_store(root / "labels.parquet", paths, views=views)
    return World(root)


@dataclass(frozen=True)
class Report:
    """What one rank did."""

    outcome: Outcome
    rows: list[Row]
    gradients: dict[str, torch.Tensor]  # of the last step
    seeds: list[int]  # of each forward pass
    said: str = ""  # its log


def train_and_report(
    config: TrainConfig, ranks: Ranks, stop_after: int | None, stop: Callable[[], bool]
) -> Report:
    rows: list[Row] = []
    seeds: list[int] = []

    class Watched(Trainer):
        def _add_gradients(self, batch: StudentBatch, piece: int) -> None:
            positions = zip(batch.shard, batch.sample, batch.view, strict=True)
            rows.extend((batch.step, int(a), int(b), int(c)) for a, b, c in positions)
            super()._add_gradients(batch, piece)

    with ranks.joined(torch.device("cpu")):
        trainer = Watched(config, open_inputs(config), ranks)
        trainer.model.register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
        outcome = trainer.run(stop_after, stop)
    named = trainer.model.named_parameters()
    gradients = {name: one.grad.clone() for name, one in named if one.grad is not None}
    return Report(outcome, rows, gradients, seeds)


def run_ranks(
    config: TrainConfig,
    count: int,
    *,
    stop_after: int | None = None,
    stops: tuple[Callable[[], bool], ...] = (),
) -> list[Report]:
    """Train on ``count`` ranks, each a process; ``stops`` are the ranks' own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    receiving, processes = [], []
    for rank in range(count):
        receiver, sender = FORKS.Pipe(duplex=False)
        stop = stops[rank] if stops else _never
        ranks = Ranks(rank=rank, ranks=count, local_rank=rank, local_ranks=count)
        arguments = (config, ranks, stop_after, stop, port, sender)
        process = FORKS.Process(target=_run_rank, args=arguments)
        process.start()
        sender.close()
        receiving.append(receiver)
        processes.append(process)
    reports = []
    for receiver in receiving:
        if not receiver.poll(120):
            for process in processes:
                process.kill()
            raise AssertionError("a rank hangs")
        reports.append(pickle.loads(receiver.recv_bytes()))
    for process in processes:
        process.join(30)
    failures = [report for report in reports if isinstance(report, str)]
    if failures:
        raise AssertionError("\n".join(failures))
    return reports


class Command:
    """``train-student`` in a process and session of its own."""

    def __init__(self, arguments: Sequence[str], log: Path, **environment: str) -> None:
        self._process = FORKS.Process(target=_run_command, args=(arguments, log, environment))
        self._log = log
        self._process.start()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds, while the command runs."""
        deadline = time.monotonic() + 120
        while not condition():
            assert self._process.is_alive(), self._log.read_text()
            assert time.monotonic() < deadline, "nothing happened"
            time.sleep(0.005)

    def signal_all(self, number: int) -> None:
        """Send a signal to the command and the processes that it started."""
        assert self._process.pid is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End the command alone, at once."""
        self._process.kill()
        self._process.join()

    def end(self) -> tuple[int | None, str]:
        """Wait for the end; return the exit status and all that was printed."""
        self._process.join(60)
        return self._process.exitcode, self._log.read_text()


def _run_command(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    cli.main(arguments)


def _never() -> bool:
    return False


def _run_rank(config, ranks, stop_after, stop, port, sender) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    try:
        log = StringIO()
        logging.basicConfig(stream=log, format="%(levelname)s: %(message)s", force=True)
        report: Any = train_and_report(config, ranks, stop_after, stop)
        report = replace(report, said=log.getvalue())
    except BaseException:
        report = traceback.format_exc()
    sender.send_bytes(pickle.dumps(report))  # `send` would share tensors
