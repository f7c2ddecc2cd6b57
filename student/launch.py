"""Which process of a run this is, as its launcher says in the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import ConfigError

__all__ = ["Launch", "is_first", "read_launch"]

_PORTS = range(20_000, 32_000)
"""From which a SLURM step takes one by its number; Linux gives none of them away by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """The place of this process among those of a run."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0  # on this machine
    local_ranks: int = 1
    address: str | None = None  # HOST:PORT of rank 0; None: in MASTER_ADDR and MASTER_PORT
    own_cpus: bool = False  # whether this process may use its share of the machine's cores alone
    own_gpu: bool = False  # whether it may see a GPU that no other process does


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Return what torchrun says of this process, or else ``srun``; one rank without either.

    A launcher inside a SLURM job, torchrun or Ray's, goes first. Raises ``ConfigError`` if its
    variables make no sense.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _of_torchrun(environment)
    # Those of a step: a batch script has SLURM_PROCID too, and is one process in any case.
    if "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        return _of_slurm(environment)
    return Launch()


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this is rank 0, or what launched it says nothing that makes sense."""
    try:
        return read_launch(environment).rank == 0
    except ConfigError:
        return True


def _of_torchrun(environment: Mapping[str, str]) -> Launch:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = {name: environment[name] for name in names if name in environment}
    cure = "start the trainer with torchrun, or unset them"
    rank, ranks = _numbers(values, ("RANK", "WORLD_SIZE"), cure)
    local = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks), **values}
    local_rank, local_ranks = _numbers(local, ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), cure)
    if not 0 <= rank < ranks:
        raise ConfigError(f"RANK is {rank} of WORLD_SIZE {ranks}; start the trainer with torchrun")
    return Launch(rank=rank, ranks=ranks, local_rank=local_rank, local_ranks=local_ranks)


def _of_slurm(environment: Mapping[str, str]) -> Launch:
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID")
    cure = "start the trainer with srun or torchrun"
    rank, ranks, local_rank, node = _numbers(environment, names, cure)
    if not 0 <= rank < ranks:
        raise ConfigError(f"SLURM_PROCID is {rank} of SLURM_STEP_NUM_TASKS {ranks}; {cure}")
    tasks = _tasks_of_nodes(environment.get("SLURM_STEP_TASKS_PER_NODE", str(ranks)))
    cpus = environment.get("SLURM_CPUS_PER_TASK", "")
    return Launch(
        rank=rank,
        ranks=ranks,
        local_rank=local_rank,
        local_ranks=tasks[node] if node < len(tasks) else 1,
        address=_address(environment),
        own_cpus=cpus == str(len(os.sched_getaffinity(0))),
        own_gpu=True,
    )


def _numbers(values: Mapping[str, str], names: tuple[str, ...], cure: str) -> tuple[int, ...]:
    shown = {name: values[name] for name in names if name in values}
    try:
        return tuple(int(values[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{', '.join(names)} are not all numbers ({shown}); {cure}") from error


def _tasks_of_nodes(text: str) -> list[int]:
    """Return the tasks of each node from SLURM's text: ``8(x2),4`` for 8, 8 and 4."""
    found = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        found += [int(count)] * int(times or 1)
    return found


def _address(environment: Mapping[str, str]) -> str:
    """Return where rank 0 is met: on the step's first node, at a port that its number gives."""
    nodes = environment.get("SLURM_STEP_NODELIST", "127.0.0.1")
    # gpu[01-04,07],x: up to the first comma outside brackets, and of each bracket the first.
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else nodes)
    words = (environment.get("SLURM_JOB_ID", "0"), environment.get("SLURM_STEP_ID", "0"))
    job, step = (int(word) if word.isdecimal() else 0 for word in words)
    port = _PORTS[(31 * job + step) % len(_PORTS)]
    return f"{environment.get('MASTER_ADDR', host)}:{environment.get('MASTER_PORT', port)}"
