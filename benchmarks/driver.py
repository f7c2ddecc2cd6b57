"""What the driver of a label job takes with a thousand teachers, and to plan a million parts.

Shards, teachers and Ray are stand-ins on a clock of their own, which jumps to the next event; the
driver's code is the job's: what Ray's calls themselves take is not in it.
Run alone: `python -m benchmarks.driver`; `docs/SCALING.md` has results.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import tyro

from benchmarks.report import Report, describe_machine
from benchmarks.stand_in import stand_in_identity
from pipeline.files.local import sha256
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.job import (
    IndexedShards,
    JobPlan,
    PartOrder,
    Progress,
    begin_job,
    finish_job,
    plan_job,
    receipts_of,
)
from pipeline.records import PartKey, ShardInfo
from pipeline.store import Agreement, Committed, PartEntry
from pipeline.store.committed import ShardImages
from pipeline.views.floats import float_fingerprints

SAMPLES, VIEWS, CELLS = 1000, 100, 3  # of a shard; of a part; parts of a shard
FILE = b"no part\n"  # stands for a part's file: none is read
DEATHS = 0.0005  # of parts, the share whose teacher dies


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverBenchmark:
    """Measure the driver alone."""

    teachers: int = 1000
    """Teachers, one a GPU, eight a machine."""
    parts: int = 100_000
    """Parts that they label."""
    resumed: int = 100_000
    """Parts that are there when a job resumes and finishes."""
    folder: Path | None = None
    """Where to write trial stores; the temporary directory."""
    json: Path | None = None
    """File to write the figures to."""


def made_up_shards(count: int) -> IndexedShards:
    """Return what a job would know of so many shards."""
    names = [f"shard-{number:06d}.tar" for number in range(count)]
    return IndexedShards(
        paths=tuple(map(Path, names)),
        infos=tuple(
            ShardInfo(
                number=number,
                name=name,
                key_hash=sha256(b"keys" + name.encode()),
                content_hash=sha256(name.encode()),
                samples=SAMPLES,
                bytes=110_000_000,
            )
            for number, name in enumerate(names)
        ),
        max_target=999,
        max_target_at=f"{names[0]}, sample 'a'",
        warnings=(),
    )


def config_of(out: Path) -> LabelConfig:
    """Return a job's settings."""
    return LabelConfig(
        shards=("-",), out=str(out), views=CELLS * VIEWS, views_per_part=VIEWS, device="cuda"
    )


def plan_of(config: LabelConfig, shards: IndexedShards) -> JobPlan:
    """Plan a job of the stand-in teacher."""
    floats = float_fingerprints(config.augment, config.effective_mixing, "cpu")
    return plan_job(config, shards, stand_in_identity(batch_views=15), floats)


def committed(part: PartKey, shard: ShardInfo) -> Committed:
    """Return what a teacher says of a part."""
    rows = shard.samples * part.views
    digest = sha256(part.path.encode())
    return Committed(
        entry=PartEntry(part=part, bytes=len(FILE), sha256=digest, rows=rows),
        images=ShardImages(
            hash=sha256(shard.name.encode()), formats=("jpeg",), rejections=(), omitted=""
        ),
        agreement=Agreement(known=rows, equal=rows),
    )


@dataclass(slots=True)
class Clock:
    """Time that passes when it is waited for; answers come at their times."""

    now: float = 0.0
    order: Iterator[int] = field(default_factory=itertools.count)
    due: list[tuple[float, int, Answer]] = field(default_factory=list)
    seen: list[Answer] = field(default_factory=list)

    def monotonic(self) -> float:
        """Return the time in seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def answer(self, seconds: float, value: Any, actor: Actor) -> Answer:
        """Return what will be ``value``, in some time, unless the actor is killed before."""
        found = Answer(value, actor)
        heapq.heappush(self.due, (self.now + seconds, next(self.order), found))
        return found

    def wait(
        self, answers: Sequence[Answer], num_returns: int, timeout: float
    ) -> tuple[list[Answer], list[Answer]]:
        """Return answers that are there, at most as many as are wanted, once the first is."""
        end, ready = self.now + timeout, self.seen
        self.seen = []
        while self.due and len(ready) < num_returns and self.due[0][0] <= max(self.now, end):
            if self.due[0][0] > self.now and ready:
                break
            at, _, found = heapq.heappop(self.due)
            if found.actor.killed:
                continue
            self.now = max(self.now, at)
            ready.append(found)
        if not ready:
            self.now = end
        if num_returns == 1:
            self.seen = list(ready)  # they are asked for again
        return ready, []


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A reference of the stand-in for Ray."""

    value: Any
    actor: Actor


class Actor:
    """The stand-in for a teacher's actor: parts take about five seconds."""

    said: tuple[str, ...] = ()  # with each part that is done

    def __init__(self, clock: Clock, machine: str, random_: random.Random) -> None:
        self._clock, self._random = clock, random_
        self.killed = False
        self._groups = itertools.count(1)
        self.node = _Method(lambda: clock.answer(1.0, machine, self))
        self.load = _Method(lambda share: clock.answer(20.0, None, self))
        self.progress = _Method(lambda: clock.answer(0.1, self._progress(), self))
        self.label = _Method(self._label)

    def _progress(self, said: tuple[str, ...] = ()) -> Any:
        from jobs.actors import Progress as Told

        return Told(
            groups=next(self._groups),
            starved=False,
            busy_seconds=0.0,
            window=0,
            again=len(said),
            labels=0,
            closing=False,
            said=said,
        )

    def _label(self, order: PartOrder, lean: int) -> Answer:
        from ray.exceptions import ActorDiedError

        from jobs.actors import Labelled

        seconds = self._random.uniform(4.0, 6.0)
        if self._random.random() < DEATHS:
            return self._clock.answer(seconds, ActorDiedError(), self)
        done = committed(order.part, order.shard)
        answer = Labelled(committed=done, progress=self._progress(self.said))
        return self._clock.answer(seconds, answer, self)


class _Method:
    def __init__(self, remote: Any) -> None:
        self.remote = remote


@contextmanager
def made_up_cluster(teachers: int, store_bytes: float = 300e9) -> Iterator[Clock]:
    """Let ``jobs.cluster`` find a cluster with so many GPUs, eight a machine."""
    from jobs import cluster, joining
    from jobs.sizing import Machine
    from jobs.supervisor import Resource

    machines = {
        f"{number:056x}": Machine(cpus=128, gpus=8, store_bytes=store_bytes)
        for number in range(-(-teachers // 8))
    }
    clock, draws, names = Clock(), random.Random(0), itertools.cycle(machines)
    total = Resource(total=teachers, free=0)
    state = joining.ClusterState(resources={"CPU": total, "GPU": total}, machines=machines)
    connection = SimpleNamespace(
        joined=True, require_raylet=lambda: None, state=lambda: None, close=lambda: None
    )

    def get(answer: Answer, timeout: float) -> Any:
        if isinstance(answer.value, Exception):
            raise answer.value
        return answer.value

    def start(self: cluster.Cluster, home: str | None) -> Actor:
        return Actor(clock, next(names), draws)

    ray = SimpleNamespace(
        wait=clock.wait, get=get, kill=lambda actor: setattr(actor, "killed", True)
    )
    with (
        patch.object(cluster, "ray", ray),
        patch.object(cluster, "time", clock),
        patch.object(joining.RayConnection, "open", lambda: connection),
        patch.object(joining, "state_now", lambda: state),
        patch.object(cluster.Cluster, "_start_teacher", start),
        patch.object(cluster._log, "warning", lambda *_: None),
    ):
        yield clock


def megabytes() -> float:
    """Return the memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def driving(folder: Path, teachers: int, parts: int) -> dict[str, float]:
    """Return what the driver takes while teachers label parts."""
    from jobs.cluster import Cluster
    from jobs.draining import Drain

    config = config_of(folder / "driven.parquet")
    plan = plan_of(config, made_up_shards(parts // CELLS))
    begin_job(plan)
    progress = Progress(plan)
    with made_up_cluster(teachers) as clock, closing(receipts_of(plan)) as receipts:
        job = Cluster(config, Drain(20.0))
        started, before, early = time.process_time(), clock.now, 0.0
        for done, one in enumerate(job.label(plan), 1):
            progress.add(one)
            receipts.add(one)
            if done == len(plan.missing) // 10:
                early = megabytes()
        seconds = time.process_time() - started
    assert progress.parts == len(plan.missing)
    return {
        f"driver_parts_per_second_{teachers}": progress.parts / seconds,
        f"cluster_parts_per_second_{teachers}": progress.parts / (clock.now - before),
        "driver_megabytes_a_tenth_done": early,
        "driver_megabytes_all_done": megabytes(),
    }


def resuming(folder: Path, parts: int) -> dict[str, float]:
    """Return the CPU seconds to plan a job whose parts are there, and to finish it."""
    config = config_of(folder / "resumed.parquet")
    shards = made_up_shards(parts // CELLS)
    figures: dict[str, float] = {}
    started = time.process_time()
    plan = plan_of(config, shards)
    figures[f"plan_seconds_{parts}"] = time.process_time() - started
    begin_job(plan)
    with closing(receipts_of(plan)) as receipts:
        for part in plan.missing:
            path = Path(config.out) / part.path
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(FILE)
            receipts.add(committed(part, shards.infos[part.shard]))
    started = time.process_time()
    plan = plan_of(config, shards)
    figures[f"resume_seconds_{parts}"] = time.process_time() - started
    assert not plan.missing
    started = time.process_time()
    finish_job(plan, {})
    figures[f"finish_seconds_{parts}"] = time.process_time() - started
    figures[f"finish_peak_megabytes_{parts}"] = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    )
    return figures


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    config = tyro.cli(DriverBenchmark, description=DriverBenchmark.__doc__)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=config.folder) as name:
        if config.parts:
            figures |= driving(Path(name), config.teachers, config.parts)
        if config.resumed:
            figures |= resuming(Path(name), config.resumed)
    report = Report(ratios=figures, context={"machine": describe_machine()})
    report.show()
    report.write(config.json)


if __name__ == "__main__":
    main()
