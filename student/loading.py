"""Runs a map-style data set in worker processes, in order, and raises what goes wrong there."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pipeline.errors import PipelineError
from pipeline.files.objects import started_here
from pipeline.growth import settle
from pipeline.views.apply import warm_up
from student.signals import outlive_signals

__all__ = ["LoaderOptions", "batch_memory", "load"]

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """How items are fetched; what they hold does not depend on it."""

    workers: int = 0  # processes; 0 does the work in this one
    prefetch: int = 2  # items ahead, per worker
    pin: bool = False  # for copies to a GPU that do not block

    def __post_init__(self) -> None:
        settle(self)


def load(dataset: Dataset[Item], items: range, options: LoaderOptions) -> Iterator[Item]:
    """Yield the data set's ``items`` in order."""
    parallel: dict[str, Any] = {}
    if options.workers:
        warm_up()  # forked workers inherit the compiled kernels
        parallel = {
            "multiprocessing_context": _start_method(),
            "prefetch_factor": options.prefetch,
            "worker_init_fn": _prepare,
        }
    loader = DataLoader(
        _Reporting(dataset),
        batch_size=None,
        sampler=items,
        num_workers=options.workers,
        pin_memory=options.pin,
        **parallel,
    )
    for item in loader:
        if isinstance(item, PipelineError):
            raise item
        yield item


def _start_method() -> str | None:
    methods = multiprocessing.get_all_start_methods()
    if not started_here():
        return "fork" if "fork" in methods else None
    # A fork would wait for ever for the threads that talk to object storage. The fork
    # server has none; it loads PyTorch once, not once per worker.
    if "forkserver" not in methods:
        return "spawn"
    multiprocessing.set_forkserver_preload(["student.replay", "student.evaluation.validation"])
    return "forkserver"


def batch_memory(*shape: int) -> Tensor:
    """Return an uninitialized uint8 tensor, in a worker one that the trainer shares.

    What is written there reaches the trainer without a copy.
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    memory = torch.empty(0, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    memory.set_(storage, 0, shape)  # type: ignore[call-overload]
    return memory


def _prepare(_worker: int) -> None:
    torch.set_num_threads(1)
    outlive_signals()


class _Reporting(Dataset[Any]):
    """Gives an error instead of raising it, since a worker would wrap it in its traceback."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, item: int) -> Any:
        try:
            return self._dataset[item]
        except PipelineError as error:
            return error
