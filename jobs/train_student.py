"""The command ``train-student-ray``: the trainer's ranks as workers of Ray Train.

Ray starts the ranks, tells each its place, and starts all of them again when one is lost. What they
do is ``student.engine.train``: the weights are those of ``train-student`` with as many ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from jobs.label_teacher import prepare_environment
from pipeline.cli.console import flags_of, running, say, tell_error
from pipeline.errors import ConfigError, PipelineError, TryAgainError, require_package
from pipeline.growth import require, settle
from student.cli import _parse, tell_after_training
from student.config import TrainConfig

if TYPE_CHECKING:
    from jobs.joining import RayConnection
    from student.checkpoint import Checkpoint

__all__ = ["RayTrainConfig", "main", "train_on_ray"]

EXIT_AGAIN = 75  # as of a label job: the same command may do better
ROOM_SECONDS = 600.0  # that the cluster has to have room for all ranks
STARTS = 10  # of all ranks for which room is missing in the end; Ray waits a minute each time

_LIMIT = "controller_failure_limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class RayTrainConfig:
    """How many ranks Ray starts, and how often."""

    ranks: int = 1
    """Workers of Ray Train, each a rank; with a GPU each where the device is cuda."""
    max_failures: int = 8
    """How often all ranks are started again because one was lost; 0 gives up at once."""
    cpus_per_rank: float = 1.0
    """CPUs of Ray's that a rank takes, its loaders' included."""

    def __post_init__(self) -> None:
        settle(self)
        require(self, "ranks", self.ranks >= 1, "use 1 or more")
        require(self, "max_failures", self.max_failures >= 0, "use 0 or more")
        require(self, "cpus_per_rank", self.cpus_per_rank > 0, "use a positive number")


def train_on_ray(config: TrainConfig, ranks: RayTrainConfig) -> Checkpoint:
    """Train on the cluster of ``RAY_ADDRESS``, or on a Ray of our own, to the end.

    Returns the last checkpoint. Ranks that are started again resume from it, so the output is on a
    disk that all machines share or in object storage, as store and shards are. Raises
    ``PipelineError`` for whatever the user can cure, and ``TryAgainError`` if ranks were lost too
    often.
    """
    require_package("ray", "jobs", "training on Ray")
    here = os.environ.get("RAY_ADDRESS", "") in ("", "local")  # others may have a network
    if here:
        config.student.check_fetched()  # before what takes seconds to load
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from jobs.joining import RayConnection, within
    from student.checkpoint import LAST, open_checkpoint
    from student.inputs import open_inputs
    from student.output import file_here, open_output

    if config.resume not in (None, "auto"):
        raise ConfigError(f"`resume` is {config.resume}; on Ray it is auto, or nothing")
    inputs = open_inputs(config)  # what does not fit together is said here, not by every rank
    if here:
        config.teacher.check_fetched(inputs.store.identity.teacher.architecture)
    from student.engine import checkpoint_to_resume  # loads timm

    checkpoint_to_resume(config, open_output(config.output))  # or another run's files are there
    gpus = config.run.device == "cuda"
    # Ray Train's first version has no such limit.
    limits: dict[str, Any] = {_LIMIT: STARTS} if hasattr(FailureConfig, _LIMIT) else {}
    with contextlib.closing(RayConnection.open()) as ray, TemporaryDirectory() as files:
        trainer = TorchTrainer(
            _train_rank,
            train_loop_config={"config": config, "directory": str(Path.cwd())},
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=ranks.ranks,
                use_gpu=gpus,
                resources_per_worker={"CPU": ranks.cpus_per_rank, **({"GPU": 1} if gpus else {})},
            ),
            run_config=RunConfig(
                # For its own files. It is given no checkpoint, so only its controller sees them,
                # which is where this process is.
                storage_path=files,
                failure_config=FailureConfig(max_failures=ranks.max_failures, **limits),
            ),
        )
        _wait_for_room(ray, ranks, gpus=gpus)
        try:
            within(math.inf, "training", trainer.fit, look=ray.require_raylet)
        except (RayError, RuntimeError) as error:
            raise _cause_of(error, ranks) from error
    with file_here(config.output_file(LAST)) as last:
        return open_checkpoint(last)


def _wait_for_room(ray: RayConnection, ranks: RayTrainConfig, *, gpus: bool) -> None:
    """Wait until all ranks have room at a time; Ray itself would, without a word."""
    from jobs.joining import Waiting, state_now

    needs = {"CPU": ranks.ranks * ranks.cpus_per_rank, "GPU": float(ranks.ranks * gpus)}
    for kind, need in needs.items():
        there = state_now().resources[kind]
        if there.total < need and not ray.joined:  # a cluster may grow
            raise ConfigError(
                f"`ranks` is {ranks.ranks}, which take {need:g} {kind} in all, and this machine "
                f"has {there.total:g}; use fewer, or less of `cpus_per_rank`"
            )
        waiting = Waiting(ray, "the start of the ranks", ROOM_SECONDS, kind=kind, need=need)
        while state_now().resources[kind].free < need:
            waiting.look()
            time.sleep(1.0)


def _cause_of(error: Exception, ranks: RayTrainConfig) -> PipelineError:
    """Return what ended a run: a rank's own words where it had some."""
    causes = [error, *getattr(error, "worker_failures", {}).values()]
    for one in causes:
        inner = getattr(one, "cause", None) or one
        if isinstance(inner, PipelineError) and type(inner).__name__ != "SilentError":
            return inner
    if "startup timed out" in str(error):
        return TryAgainError(
            f"the cluster had no room for {ranks.ranks} ranks at a time for {STARTS} minutes in "
            "all; run the same command again with `resume` auto"
        )
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return TryAgainError(
        f"ranks were lost more often than `max_failures` {ranks.max_failures} ({line}); run the "
        "same command again with `resume` auto"
    )


def _train_rank(given: Mapping[str, Any]) -> None:
    """Be one rank of a run, from its last checkpoint if there is one."""
    from ray import train as ray_train

    from student.distributed import Ranks
    from student.engine import train
    from student.inputs import open_inputs

    os.chdir(given["directory"])  # Ray gives its workers another, and paths may be relative
    # Whatever is there is this run's: the driver has seen to it.
    config: TrainConfig = replace(given["config"], resume="auto")
    context = ray_train.get_context()
    ranks = Ranks(
        rank=context.get_world_rank(),
        ranks=context.get_world_size(),
        local_rank=context.get_local_rank(),
        local_ranks=context.get_local_world_size(),
        own_gpu=True,
    )
    train(config, open_inputs(config), ranks=ranks)


def _own_flags(arguments: Sequence[str]) -> tuple[RayTrainConfig, list[str]]:
    """Return what Ray is to do, and the flags that are train-student's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for one in fields(RayTrainConfig):
        kind = type(one.default)
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=kind, default=one.default)
    own, rest = parser.parse_known_args(list(arguments))
    return RayTrainConfig(**vars(own)), rest


def main(arguments: Sequence[str] | None = None, program: str = "train-student-ray") -> None:
    """Run ``train-student-ray``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    prepare_environment()
    flags = {**flags_of(TrainConfig, prefixes=False), **flags_of(RayTrainConfig)}
    with running(program, flags, "interrupted; --resume auto goes on", arguments):
        ranks, rest = _own_flags(arguments)
        if {"-h", "--help"} & set(rest):
            say(f"{program}: {', '.join(sorted(flags_of(RayTrainConfig).values()))}, and:")
        config, _ = _parse(rest, program)
        try:
            found = train_on_ray(config, ranks)
        except TryAgainError as error:
            tell_error(error)
            raise SystemExit(EXIT_AGAIN) from None
        from pipeline.labelling.weights import state_digest

        say(f"steps                {found.step:8}")
        say(f"weights {config.output_file('last.pt')} sha256 {state_digest(found.model)}")
        tell_after_training(config)


if __name__ == "__main__":
    main()
