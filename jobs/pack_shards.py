#!/usr/bin/env python
"""Pack a folder of images into shards on Ray, many at a time: the bytes of ``pack-shards``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run by path: the directory above holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jobs.label_teacher import prepare_environment
from pipeline.cli import commands
from pipeline.errors import PipelineError, require_package
from pipeline.files.local import LocalFolder, open_folder
from pipeline.files.objects import is_url
from pipeline.shards.packing import PackConfig, PackedShard, PlannedShard, write_shard

__all__ = ["main", "write_on_ray"]

CRASHES_PER_SHARD = 3  # that may be chance
SHARDS_PER_CPU = 2  # under way: one is written while the next is sent
STILL_SECONDS = 1800.0  # without a shard: nothing is written any more


def write_on_ray(
    config: PackConfig, planned: Sequence[PlannedShard], show: Callable[[int], None]
) -> Iterator[PackedShard]:
    """Write shards on the cluster of ``RAY_ADDRESS``, or on a Ray of our own; each with one CPU.

    A shard whose worker is killed is written again. All nodes must see ``images`` and ``out`` under
    the paths that this process has. Raises what ``write_shard`` raises anywhere, ``PipelineError``
    for a shard whose workers die, ``TryAgainError`` if none is finished for a long time.
    """
    require_package("ray", "jobs", "packing on a cluster")
    from jobs.joining import RayConnection, state_now

    absolute = replace(config, images=config.images.absolute())
    if not is_url(config.out):
        absolute = replace(absolute, out=str(Path(config.out).absolute()))
    try:
        with closing(RayConnection.open()) as connection:
            window = SHARDS_PER_CPU * max(1, int(state_now().resources["CPU"].total))
            for packed in _written(connection, absolute, planned, window):
                show(packed.packed)
                yield packed
    finally:
        _remove_torn(absolute, planned)


def _written(
    connection: Any, config: PackConfig, planned: Sequence[PlannedShard], window: int
) -> Iterator[PackedShard]:
    import ray
    from ray.exceptions import RayError, WorkerCrashedError

    from jobs.joining import Waiting, fault_of

    # One thread: the cluster's other cores write other shards.
    write = ray.remote(num_cpus=1, max_retries=CRASHES_PER_SHARD)(write_shard)
    waiting = list(reversed(planned))
    under_way: dict[Any, PlannedShard] = {}
    still = Waiting(connection, "writing a shard", STILL_SECONDS)
    while waiting or under_way:
        while waiting and len(under_way) < window:
            shard = waiting.pop()
            under_way[write.remote(config, shard, 1)] = shard
        still.look()
        ready, _ = ray.wait(list(under_way), num_returns=1, timeout=1.0)
        for ref in ready:
            shard = under_way.pop(ref)
            still.begin()
            try:
                yield ray.get(ref, timeout=10.0)
            except WorkerCrashedError as error:
                raise PipelineError(
                    f"{shard.name}: its worker died {CRASHES_PER_SHARD + 1} times; is memory short "
                    "on the nodes, or does an image end its decoder?"
                ) from error
            except (RayError, OSError) as error:
                raise fault_of(error, f"writing {shard.name}") from error


def _remove_torn(config: PackConfig, planned: Sequence[PlannedShard]) -> None:
    """Remove what killed workers have left beside the shards that others wrote."""
    folder = open_folder(config.out)
    if isinstance(folder, LocalFolder):
        for shard in planned:
            for torn in folder.path.glob(f".{shard.name}.*"):
                torn.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``pack-shards`` on Ray; its flags are those of the command."""
    prepare_environment()
    commands.pack_shards(arguments, write=write_on_ray)


if __name__ == "__main__":
    main()
