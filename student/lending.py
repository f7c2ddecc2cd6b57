"""Memory that a loader's processes fill, and fill again once the trainer has no use for it.

Fresh shared memory takes a tenth of a worker's time: the kernel clears its pages, maps them in two
processes, and takes them back.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ALIGNMENT", "Lending", "Lent", "Run", "borrowed", "tensors_of"]

ALIGNMENT = 16  # bytes; enough for any type

_Place: TypeAlias = tuple[int, torch.dtype, tuple[int, ...]]  # first byte, type, shape

borrowed: ContextVar[Run | None] = ContextVar("borrowed", default=None)
"""The run that the item in work may fill, in a process of a loader."""

_numbers = itertools.count()
_lendings: weakref.WeakValueDictionary[int, Lending] = weakref.WeakValueDictionary()


def tensors_of(item: Any) -> dict[str, Tensor]:
    """Return the tensors that are fields of an item, by name; none of what has no fields."""
    values = (
        {one.name: getattr(item, one.name) for one in fields(item)} if is_dataclass(item) else {}
    )
    return {name: one for name, one in values.items() if isinstance(one, Tensor)}


class Lending:
    """Runs of shared memory, ``each`` of them for each of ``workers``, which are forked later.

    A run goes out with an item, and is free again when no tensor and no array of it is left in
    the trainer. Where all of a worker's are out, it takes fresh memory: nobody waits, and
    nothing that somebody holds is written over. ``size`` is bytes of a run; pages that were never
    written take no memory. Raises ``OSError`` if there is no memory for it.
    """

    def __init__(self, workers: int, each: int, size: int) -> None:
        self.number, self._owner = next(_numbers), os.getpid()
        self._runs = [[mmap.mmap(-1, size) for _ in range(each)] for _ in range(workers)]
        out = np.frombuffer(mmap.mmap(-1, workers * each), np.bool_)
        self._out = out.reshape(workers, each)
        _lendings[self.number] = self

    def borrow(self, worker: int) -> Run | None:
        """Return a run that is free, None if none is; called in the worker."""
        free = np.flatnonzero(~self._out[worker])
        if not len(free):
            return None
        index = int(free[0])  # the first: the fewest runs are ever written
        self._out[worker, index] = True
        return Run(self, (worker, index), self._runs[worker][index])

    def read(self, worker: int, index: int) -> Tensor:
        """Return the bytes of a run that went out; it is free when their memory is let go."""
        array = np.frombuffer(self._runs[worker][index], np.uint8)
        # The tensor keeps this very array as long as anything shares its memory.
        weakref.finalize(array, _let_go, self._out[worker], index, self._owner).atexit = False
        return torch.from_numpy(array)

    def give_back(self, worker: int, index: int) -> None:
        """Let a run be filled again."""
        self._out[worker, index] = False


def _let_go(out: NDArray[np.bool_], index: int, owner: int) -> None:
    if os.getpid() == owner:  # what a process forked from it lets go may be held there
        out[index] = False


class Run:
    """A run of shared memory as the worker fills it, from its start."""

    def __init__(self, lending: Lending, key: tuple[int, int], memory: mmap.mmap) -> None:
        self._lending, self._key = lending, key
        self._memory = torch.frombuffer(memory, dtype=torch.uint8)
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor | None:
        """Return an uninitialized tensor in the run, None if it has no room for it."""
        size = math.prod(shape) * dtype.itemsize
        start = -(-self._used // ALIGNMENT) * ALIGNMENT
        if start + size > len(self._memory):
            return None
        self._used = start + size
        return _seen(self._memory, (start, dtype, shape))

    def lend(self, item: Any) -> Any:
        """Return an item as it is sent: with its tensors in the run, those that find room there.

        Where it has none, the run is free again.
        """
        places = {name: self._place(one) for name, one in tensors_of(item).items()}
        found = {name: place for name, place in places.items() if place is not None}
        if not found:
            self.give_back()
            return item
        return Lent(self._lending.number, self._key, item, found)

    def give_back(self) -> None:
        """Let the run be filled again, as nothing of it was sent."""
        self._lending.give_back(*self._key)

    def _place(self, tensor: Tensor) -> _Place | None:
        """Return where in the run a tensor lies, or a copy of it; None if there is no room."""
        memory, there = self._memory.untyped_storage(), tensor
        if tensor.untyped_storage().data_ptr() != memory.data_ptr() or not tensor.is_contiguous():
            copy = self.empty(tuple(tensor.shape), tensor.dtype)
            if copy is None:
                return None
            there = copy.copy_(tensor)
        return there.data_ptr() - memory.data_ptr(), tensor.dtype, tuple(tensor.shape)


class Lent:
    """An item on its way: the trainer's side of the queue makes the item of it again."""

    def __init__(
        self, lending: int, key: tuple[int, int], item: Any, places: Mapping[str, _Place]
    ) -> None:
        self.item = replace(item, **dict.fromkeys(places))
        self._run = lending, key, places

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.item, *self._run)


def _received(item: Any, lending: int, key: tuple[int, int], places: Mapping[str, _Place]) -> Any:
    memory = _lendings[lending].read(*key)
    return replace(item, **{name: _seen(memory, place) for name, place in places.items()})


def _seen(memory: Tensor, place: _Place) -> Tensor:
    """Return the tensor that lies at a place in memory."""
    start, dtype, shape = place
    return memory[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
