"""The student's loader: its cost beyond the views, its workers, their memory."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch loads

import torch
import tyro

from benchmarks.report import Report, describe_machine, print_table
from benchmarks.stand_in import write_store
from benchmarks.timing import Timings, measure, on_one_core
from pipeline.files.local import expand_shards
from pipeline.shards.index import match_shards, open_known_shard
from pipeline.store import LabelStore
from pipeline.views.apply import warm_up
from pipeline.views.make import make_view
from pipeline.views.regions import EncodedImage
from student.loading import LoaderOptions
from student.order import PlanConfig, TrainingPlan
from student.replay import ReplayDataset, replay_loader

EPOCHS = 9
LOADER, VIEWS = "loader, tar to batch", "its views alone"
WORKERS, THREADS = ("1 worker", "2 workers"), ("1 thread", "2 threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderBenchmark:
    """Measure the student's loader on real JPEGs."""

    shards: tuple[str, ...]
    """Shards of photographs: files, brace patterns or globs, in quotes."""
    rounds: int = 7
    """Rounds; each runs every case once."""
    batch_size: int = 64
    """Rows of a batch."""
    batches: int = 3
    """Batches of a round, for the cost beyond the views."""
    worker_batches: int = 24
    """Batches of a round, for workers."""
    json: Path | None = None
    """File to write the ratios to."""


def open_dataset(config: LoaderBenchmark, root: Path) -> ReplayDataset:
    """Label the shards with the stand-in, and plan as many epochs as are needed."""
    store = write_store(root, config.shards, views=EPOCHS, image_size=224)
    paths = match_shards(store.manifest.shards, expand_shards(config.shards))
    plan = PlanConfig(seed=0, batch_size=config.batch_size, epochs=EPOCHS)
    return ReplayDataset(store, paths, TrainingPlan(store.manifest, plan))


class Sequential:
    """Cases that go through the data set in one process, one after the other."""

    def __init__(self, dataset: ReplayDataset, batches: int, rows: int) -> None:
        self._dataset, self._batches, self._rows = dataset, batches, rows
        self._next = {LOADER: 0, VIEWS: 0}
        store: LabelStore = dataset.store
        self._shards = {
            info.number: open_known_shard(dataset.path(info.number), info)
            for info in store.manifest.shards
        }

    def load(self) -> int:
        """Take the next batches from the loader."""
        items = self._take(LOADER)
        for _ in replay_loader(self._dataset, items.start, items.stop, LoaderOptions()):
            pass
        return len(items) * self._rows

    def make_views(self) -> int:
        """Decode and make the views of the same batches, and nothing else."""
        store, items = self._dataset.store, self._take(VIEWS)
        augment = store.identity.augment
        for step in items:
            rows = self._dataset.plan.slice(step, 0, 1)
            for number, position, view in zip(
                rows.shard.tolist(), rows.sample.tolist(), rows.view.tolist(), strict=True
            ):
                data = self._shards[number].image_bytes(position)
                image = EncodedImage(data=data, name="image", max_pixels=augment.max_pixels)
                seed = int(store.read_view(number, view).seed[position])
                make_view(image, seed, view, augment)
        return len(items) * self._rows

    def _take(self, case: str) -> range:
        start = self._next[case]
        if start + self._batches > len(self._dataset):
            start = 0
        self._next[case] = start + self._batches
        return range(start, start + self._batches)


@dataclass(frozen=True, slots=True)
class Run:
    """What a run of the loader's processes took."""

    first: float  # seconds from the call to the first batch
    batch: float  # seconds, while all are busy: after the first batches, and with more to come
    private: float  # megabytes of one process


def time_workers(dataset: ReplayDataset, workers: int, batches: int) -> Run:
    """Return what a run with this many workers took."""
    ahead = 2 * workers
    end = ahead + batches + 2 * ahead
    if end > len(dataset):
        raise SystemExit(f"too few batches for this: {len(dataset)}, needs {end}")
    started = time.perf_counter()
    loader = replay_loader(dataset, 0, end, LoaderOptions(workers=workers))
    next(loader)
    first = time.perf_counter() - started
    for _ in range(ahead - 1):
        next(loader)
    started = time.perf_counter()
    for _ in range(batches):
        next(loader)
    seconds = (time.perf_counter() - started) / batches
    private = max(_private_megabytes(child.pid) for child in multiprocessing.active_children())
    del loader
    return Run(first, seconds, private)


def time_threads(dataset: ReplayDataset, threads: int, batches: int) -> float:
    """Return seconds a batch where threads of this process make them, all busy to the end."""
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(dataset.__getitem__, range(threads)):  # opens shards and parts
            pass
        started = time.perf_counter()
        for _ in pool.map(dataset.__getitem__, range(threads, threads + batches)):
            pass
        return (time.perf_counter() - started) / batches


def _private_megabytes(pid: int | None) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("Private_")]
    return sum(kilobytes) / 1000


def run_benchmark(config: LoaderBenchmark, root: Path) -> tuple[Timings, Timings, list[Run]]:
    """Measure all cases: in one process, with workers, and with threads instead."""
    dataset = open_dataset(config, root)
    warm_up()
    with on_one_core():
        cases = Sequential(dataset, config.batches, config.batch_size)
        alone = measure({LOADER: cases.load, VIEWS: cases.make_views}, config.rounds)
    seconds: dict[str, list[float]] = {name: [] for name in (*WORKERS, *THREADS)}
    runs = []
    for _ in range(config.rounds):
        for count, (workers, threads) in enumerate(zip(WORKERS, THREADS, strict=True), start=1):
            runs.append(time_workers(dataset, count, config.worker_batches))
            seconds[workers].append(runs[-1].batch / config.batch_size)
            batch = time_threads(dataset, count, config.worker_batches)
            seconds[threads].append(batch / config.batch_size)
    parallel = Timings(seconds={name: tuple(values) for name, values in seconds.items()})
    return alone, parallel, runs


def main() -> None:
    """Measure, print tables, and write JSON if asked to."""
    config = tyro.cli(LoaderBenchmark, description=LoaderBenchmark.__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        alone, workers, runs = run_benchmark(config, Path(directory) / "bench.parquet")
    print_table(alone, VIEWS, "view")
    print_table(workers, "1 worker", "view")
    ratios = {
        "loader_overhead": alone.ratio(LOADER, VIEWS),
        "two_workers": workers.ratio("1 worker", "2 workers"),
        "two_threads": workers.ratio("1 thread", "2 threads"),
        "first_batch_milliseconds": 1e3 * statistics.median(run.first for run in runs),
        "worker_private_mb": statistics.median(run.private for run in runs),
    }
    context = {
        "milliseconds": {
            case: 1e3 * timings.median(case)
            for timings in (alone, workers)
            for case in timings.seconds
        }
    }
    report = Report(ratios=ratios, context={"machine": describe_machine(), "loader": context})
    report.show()
    report.write(config.json)


if __name__ == "__main__":
    main()
