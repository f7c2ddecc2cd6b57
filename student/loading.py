"""Runs a map-style data set in worker processes, in order, and raises what goes wrong there."""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import shutil
import traceback
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.util import Finalize
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pipeline.errors import ConfigError, PipelineError
from pipeline.files.objects import started_here
from pipeline.growth import settle
from pipeline.views.apply import warm_up
from student.lending import Lending, Lent, borrowed, tensors_of
from student.signals import outlive_signals

__all__ = ["LoaderOptions", "batch_memory", "load"]

_SHARED_MEMORY = "/dev/shm"
_CURE = "give fewer `workers`, or more room (a container's shm-size)"
_LONGEST_ITEM_SECONDS = 1800  # the fetch of a shard from slow storage included

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """How items are fetched; what they hold does not depend on it."""

    workers: int = 0  # processes; 0 does the work in this one
    prefetch: int = 2  # items ahead, per worker
    pin: bool = False  # for copies to a GPU that do not block

    def __post_init__(self) -> None:
        settle(self)


def load(
    dataset: Dataset[Item], items: range, options: LoaderOptions, item_bytes: int = 0
) -> Iterator[Item]:
    """Yield the data set's ``items`` in order.

    If tensors of an item take no more than ``item_bytes``, processes fill memory again that nothing
    here holds any more; larger ones get fresh shared memory.

    Raises what the data set raises of the package's errors, ``ConfigError`` if the processes' items
    find no room in shared memory, ``PipelineError`` if a process dies or gives nothing.
    """
    parallel: dict[str, Any] = {}
    lending = None
    if options.workers:
        warm_up()  # forked workers inherit the compiled kernels
        method = _start_method()
        lending = _lending(options, item_bytes) if method == "fork" else None
        parallel = {
            "multiprocessing_context": method,
            "prefetch_factor": options.prefetch,
            # A fork server has the environment of its start, which may lack credentials.
            "worker_init_fn": partial(_prepare, dict(os.environ)),
            "timeout": _LONGEST_ITEM_SECONDS,
        }
    loader = DataLoader(
        _Reporting(dataset, options, lending),
        batch_size=None,
        sampler=items,
        num_workers=options.workers,
        pin_memory=options.pin,
        **parallel,
    )
    iterator = _started(loader, options)
    # The processes outlive SIGTERM, and Python waits for them when it ends. An error's traceback
    # holds this frame, or that of a loop around it, and so the iterator, which would end them.
    Finalize(iterator, _end, args=(weakref.ref(iterator),), exitpriority=0)
    try:
        while (item := _next(iterator)) is not None:
            if isinstance(item, PipelineError):
                raise item
            yield item
    finally:
        _end(weakref.ref(iterator))


def _lending(options: LoaderOptions, item_bytes: int) -> Lending | None:
    """Return memory for items of this size, None where there is none, or they have no size."""
    held = 2  # by the trainer: one in work, and one that it turns to
    try:
        return Lending(options.workers, options.prefetch + held, item_bytes) if item_bytes else None
    except OSError:
        return None


def _started(loader: DataLoader[Any], options: LoaderOptions) -> Iterator[Any]:
    """Return a loader's iterator, its processes started; none is left where one cannot be.

    Python would wait for ever for those that were, when it ends.
    """
    try:
        return iter(loader)
    except OSError as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            begun = frame.f_locals.get("self")
            if isinstance(begun, _MultiProcessingDataLoaderIter):
                begun._shutdown = True  # it would end what it has not begun, and say that it fails
                for process in getattr(begun, "_workers", ()):
                    process.kill()
        if error.errno == errno.ENOSPC:  # their locks lie in shared memory
            raise ConfigError(
                f"`workers` {options.workers}: no room in {_SHARED_MEMORY} for their locks "
                f"({error.strerror}); {_room()}; {_CURE}"
            ) from error
        raise PipelineError(
            f"`workers` {options.workers}: a loader's process cannot be started "
            f"({error.strerror or error}); give fewer `workers`"
        ) from error


def _next(iterator: Iterator[Any]) -> Any:
    """Return the next item, None at the end."""
    try:
        return next(iterator, None)
    except RuntimeError as error:
        if not str(error).startswith(("DataLoader worker", "DataLoader timed out")):
            raise
        raise PipelineError(
            f"a loader's process died or gives nothing ({error}); where memory is short give "
            "fewer `workers`"
        ) from error


def _end(iterator: weakref.ref[Any]) -> None:
    """End the processes of an iterator, if it is there and has some."""
    there = iterator()
    if there is not None and hasattr(there, "_shutdown_workers"):
        there._shutdown_workers()
        for process in there._workers:
            process.kill()  # one that is at work does not hear of the end


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
    run = borrowed.get()
    lent = None if run is None else run.empty(shape)
    return _fresh_memory(*shape) if lent is None else lent


def _fresh_memory(*shape: int) -> Tensor:
    memory = torch.empty(0, dtype=torch.uint8)
    try:
        storage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise _NoRoomError(math.prod(shape), error) from error
    memory.set_(storage, 0, shape)  # type: ignore[call-overload]
    return memory


def _prepare(environment: Mapping[str, str], _worker: int) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    outlive_signals()


class _Reporting(Dataset[Any]):
    """Gives an error instead of raising it, since a worker would wrap it in its traceback."""

    def __init__(
        self, dataset: Dataset[Any], options: LoaderOptions, lending: Lending | None
    ) -> None:
        self._dataset, self._options, self._lending = dataset, options, lending

    def __getitem__(self, item: int) -> Any:
        worker = get_worker_info()
        try:
            return self._dataset[item] if worker is None else self._shared(item, worker.id)
        except PipelineError as error:
            return error
        except _NoRoomError as error:
            return self._no_room(error)

    def _shared(self, item: int, worker: int) -> Any:
        """Return an item whose tensors lie in memory that the trainer shares."""
        run = None if self._lending is None else self._lending.borrow(worker)
        borrowed.set(run)
        try:
            found = self._dataset[item]
            sent = found if run is None else run.lend(found)
            _share(sent.item if isinstance(sent, Lent) else sent)
        except BaseException:
            if run is not None:
                run.give_back()
            raise
        return sent

    def _no_room(self, error: _NoRoomError) -> ConfigError:
        workers, prefetch = self._options.workers, self._options.prefetch
        batches = workers * prefetch + 1
        return ConfigError(
            f"`workers` {workers}: no room in {_SHARED_MEMORY} for a batch ({error.reason}); "
            f"{_room()}, and {batches} batches of {error.size} bytes need "
            f"{batches * error.size}, beside those of other loaders; {_CURE}"
        )


def _room() -> str:
    usage = shutil.disk_usage(_SHARED_MEMORY)
    return f"there are {usage.free} of {usage.total} bytes free"


class _NoRoomError(Exception):
    """Shared memory has no room for so many bytes."""

    def __init__(self, size: int, error: RuntimeError) -> None:
        super().__init__(size)
        self.size, self.reason = size, str(error).rpartition(": ")[2]


def _share(item: Any) -> None:
    """Put all tensors of an item into memory that the trainer shares.

    The loader's queue would do it in a thread of its own, where a failure loses the item, and the
    trainer would wait for it for ever.
    """
    tensors = tensors_of(item).values()
    size = sum(one.untyped_storage().nbytes() for one in tensors)
    for tensor in tensors:
        try:
            tensor.share_memory_()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise _NoRoomError(size, error) from error
