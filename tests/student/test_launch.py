"""Launchers: what they say of a process, and that several nodes train as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError
from student.distributed import Ranks
from student.engine import _threads_of
from student.launch import Launch, is_first, read_launch
from tests.student.test_distributed import arguments_of, free_port
from tests.student.worlds import Command, World, make_world, run_ranks

STEP = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "12",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),2,1(x2)",
    "SLURM_STEP_NODELIST": "gpu-[011-012,020],x1,x2",
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "2",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("launch"), (14, 10), views=4)


def test_srun_gives_each_task_its_place_and_the_address_of_the_first() -> None:
    found = read_launch(STEP)
    assert (found.rank, found.ranks, found.local_rank, found.local_ranks) == (5, 12, 1, 4)
    host, _, port = str(found.address).partition(":")
    assert host == "gpu-011"
    assert 1024 < int(port) < 32768
    assert read_launch({**STEP, "SLURM_PROCID": "0"}).address == found.address
    assert read_launch({**STEP, "SLURM_STEP_ID": "3"}).address != found.address
    assert read_launch({**STEP, "SLURM_NODEID": "2"}).local_ranks == 2
    given = read_launch({**STEP, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "99"})
    assert given.address == "10.0.0.7:99"


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("n1", "n1"), ("a,b", "a"), ("n[3-5]", "n3"), ("r[1-2]n[07,09].x,z", "r1n07.x")],
)
def test_the_first_node_of_a_list_is_where_ranks_meet(nodes: str, host: str) -> None:
    found = read_launch({**STEP, "SLURM_STEP_NODELIST": nodes}).address
    assert str(found).rpartition(":")[0] == host


def test_torchrun_within_a_step_goes_first_and_a_batch_script_is_alone() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    expected = Launch(rank=3, ranks=4, local_rank=1, local_ranks=2)
    assert read_launch({**STEP, **torchrun}) == expected
    script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}
    assert read_launch(script) == Launch()
    assert read_launch({}) == Launch()


@pytest.mark.parametrize(
    "wrong",
    [{"SLURM_PROCID": "12"}, {"SLURM_PROCID": "x"}, {"SLURM_LOCALID": ""}, {"SLURM_NODEID": "-"}],
)
def test_a_step_that_makes_no_sense_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="srun or torchrun"):
        read_launch({**STEP, **wrong})
    assert is_first({**STEP, **wrong})
    assert not is_first(STEP)


def test_a_task_with_cores_and_a_gpu_of_its_own_uses_them(monkeypatch) -> None:
    cores = len(os.sched_getaffinity(0))
    own = read_launch({**STEP, "SLURM_CPUS_PER_TASK": str(cores)})
    assert own.own_cpus
    assert not read_launch({**STEP, "SLURM_CPUS_PER_TASK": str(cores + 1)}).own_cpus
    assert _threads_of(Ranks(ranks=4, local_ranks=4, own_cpus=True)) is None
    assert _threads_of(Ranks(ranks=4, local_ranks=4)) == max(1, cores // 4)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    cuda = torch.device("cuda")
    second = Ranks(rank=1, ranks=2, local_rank=1, local_ranks=2, own_gpu=True)
    for count, number in ((1, 0), (2, 1)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert second.device(cuda) == torch.device("cuda", number)
    assert chosen == [0, 1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 ranks were started on a machine with 1 GPUs"):
        Ranks(rank=1, ranks=2, local_rank=1, local_ranks=2).device(cuda)


def start_step(world: World, outputs: list[Path], logs: Path, *more: str) -> list[Command]:
    """Start a step of one task on each of two nodes, with an output of its own."""
    every = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    every |= {"SLURM_STEP_NODELIST": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        Command(
            arguments_of(world, output, *more),
            logs / f"{node}.log",
            **every,
            SLURM_PROCID=str(node),
            SLURM_NODEID=str(node),
            SLURM_LOCALID="0",
        )
        for node, output in enumerate(outputs)
    ]


def test_two_tasks_of_srun_train_as_two_ranks_and_share_no_disk(world, tmp_path) -> None:
    """The second finds no checkpoint where it is; rank 0 has it."""
    outputs = [tmp_path / "one", tmp_path / "two"]
    for more in (("--epochs", "3"), ("--epochs", "4", "--resume", "auto", "--lengthen")):
        level = ("--min-lr", "1e-3", "--warmup-epochs", "0")
        for command in start_step(world, outputs, tmp_path, *level, *more):
            status, text = command.end()
            assert status == 0, text
    assert not outputs[1].exists()
    settings = {"min_lr": 1e-3, "warmup_epochs": 0.0, "epochs": 4}
    straight = run_ranks(world.config(tmp_path / "straight", **settings), 2)
    assert f"sha256 {straight[0].outcome.weights}" in (tmp_path / "0.log").read_text()


@pytest.mark.timeout(300)
def test_two_launchers_train_as_one_node_does(world, tmp_path) -> None:
    port = str(free_port())
    launchers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
                *("--nproc-per-node", "1", "--node-rank", str(node)),
                *("--master-addr", "127.0.0.1", "--master-port", port, "-m", "student.cli"),
                *arguments_of(world, tmp_path / f"run-{node}", "--epochs", "3", "--workers", "0"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for node in range(2)
    ]
    texts = [one.communicate(timeout=240)[0] for one in launchers]
    assert [one.returncode for one in launchers] == [0, 0], texts
    straight = run_ranks(world.config(tmp_path / "straight", epochs=3), 2)
    assert f"sha256 {straight[0].outcome.weights}" in texts[0]
    assert not (tmp_path / "run-1").exists()
