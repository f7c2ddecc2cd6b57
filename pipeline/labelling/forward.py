"""The way of a teacher's batches: staged, copied, mixed, labelled, and a few bytes back.

On a GPU two batches are under way: while one runs, the next is copied to where it will be mixed,
and a third may be staged. The host waits only for what it reads or writes over. On a CPU the same
steps are done one after the other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from math import prod
from operator import itemgetter
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.labelling.ranking import Answers, answers_of
from pipeline.labelling.streams import Device, Event
from pipeline.records import AugmentedGroup, ViewMix
from pipeline.views.mixing import MixRows, mixed_views

__all__ = ["UNDER_WAY", "BatchShape", "Forward", "Pending", "ahead"]

UNDER_WAY = 2
"""Batches that the device has at a time, and so memory for staged ones."""

_PROOFS = 2  # batches of noise on which a recording must give the logits of the plain run

Asked = TypeVar("Asked")
Given = TypeVar("Given")


def ahead(
    asked: Iterable[Asked], begin: Callable[[Asked], Callable[[], Given]]
) -> Iterator[tuple[Asked, Given]]:
    """Yield each with what ``begin`` gives for it in the end, the next one begun before."""
    under_way: deque[tuple[Asked, Callable[[], Given]]] = deque()
    for one in asked:
        under_way.append((one, begin(one)))
        if len(under_way) == UNDER_WAY:
            first, finish = under_way.popleft()
            yield first, finish()
    for first, finish in under_way:
        yield first, finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """What all batches of a teacher have in common, whatever is in them."""

    samples: int  # P of a group
    views: int
    side: int  # S
    classes: int
    ranked: bool  # whether classes are ranked, beside the label
    dtype: torch.dtype  # of the network's input
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def rows(self) -> int:
        """B: rows of a batch, ``index * views + column``."""
        return self.samples * self.views


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A batch before it is mixed, all of it in one run of memory."""

    memory: Tensor  # bytes, of which the others are views
    digested: Tensor  # (B,) int64, of which the first few are rows that have a mixed digest
    rows: MixRows  # of B
    pixels: Tensor  # (B, S, S, 3) uint8

    @staticmethod
    def parts(shape: BatchShape) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
        """Return type and shape of each tensor; larger types come first, so all are aligned."""
        rows, side = shape.rows, shape.side
        return (
            (torch.int64, (rows,)),
            (torch.int64, (rows,)),
            (torch.float32, (rows,)),
            (torch.int32, (rows, 4)),
            (torch.uint8, (rows,)),
            (torch.uint8, (rows, side, side, 3)),
        )

    @staticmethod
    def size(shape: BatchShape) -> int:
        """Return the bytes of a batch."""
        return sum(dtype.itemsize * prod(one) for dtype, one in Staged.parts(shape))

    @staticmethod
    def of(memory: Tensor, shape: BatchShape) -> Staged:
        """Return the batch that lies in memory."""
        views, start = [], 0
        for dtype, one in Staged.parts(shape):
            end = start + dtype.itemsize * prod(one)
            views.append(memory[start:end].view(dtype).view(one))
            start = end
        digested, partner, lam, box, kind, pixels = views
        rows = MixRows(partner=partner, kind=kind, lam=lam, box=box)
        return Staged(memory=memory, digested=digested, rows=rows, pixels=pixels)

    def fill(self, group: AugmentedGroup, views: slice, first_column: int) -> int:
        """Take in some of a group's views, as columns from one on; return how many are digested.

        Other columns hold unmixed zeros: a row's logits depend on neither its row nor its
        neighbors, but at another shape kernels may add up otherwise.
        """
        samples, given = group.valid.shape
        width = len(self.pixels) // samples
        columns = slice(first_column, first_column + views.stop - views.start)

        def part(values: NDArray[Any]) -> NDArray[Any]:
            return values.reshape(samples, given, *values.shape[1:])[:, views]

        def put(whole: Tensor, values: Tensor) -> None:
            whole.view(samples, width, *whole.shape[1:])[:, columns] = values

        if columns.stop - columns.start < width:
            self.pixels.zero_()
            self.rows.kind.zero_()
            self.rows.partner.copy_(torch.arange(len(self.pixels)))
        mix, partner = group.mix, part(group.mix.partner)
        partner = partner // given * width + partner % given - views.start + first_column
        rows = MixRows.of(
            ViewMix(partner=partner, kind=part(mix.kind), lam=part(mix.lam), box=part(mix.box))
        )
        for one in fields(MixRows):
            put(getattr(self.rows, one.name), getattr(rows, one.name))
        put(self.pixels, torch.from_numpy(group.pixels)[:, views])
        sample, column = np.nonzero(group.has_mixed_digest[:, views])
        chosen = sample * width + column + first_column
        self.digested[: len(chosen)] = torch.from_numpy(chosen)
        return len(chosen)


@dataclass(slots=True, kw_only=True)
class _Slot:
    """Memory for one batch, on both sides, and how far the device is with it."""

    host: Staged
    there: Staged
    copied: Event  # the host's side may be written over
    mixed: Event  # the device's side may be


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A batch that the device was given."""

    host: Answers  # written by the device
    floats: Tensor | None  # (n, S, S, 3) float32, the mixed images that have a digest, likewise
    begun: Event
    done: Event

    def wait(self) -> float:
        """Wait for the answers; return the seconds that the device took for the batch."""
        self.done.wait()
        return self.done.seconds_since(self.begun)


class Forward:
    """Labels staged batches of one shape with a network. Several threads may hand over batches."""

    def __init__(
        self, network: Callable[[Tensor], Tensor], device: Device, shape: BatchShape
    ) -> None:
        self._network, self._device, self._shape = network, device, shape
        self._copy, self._compute = device.stream(), device.stream()
        side = shape.side
        image = device.memory(shape.rows, side, side, 3, dtype=shape.dtype)
        self._input = image.permute(0, 3, 1, 2)  # channels last
        self._turn = threading.Lock()
        self._free: SimpleQueue[_Slot] = SimpleQueue()
        for _ in range(UNDER_WAY):
            memory = device.host_memory(Staged.size(shape), dtype=torch.uint8)
            slot = _Slot(
                host=Staged.of(memory, shape),
                there=Staged.of(device.mirror(memory), shape),
                copied=self._copy.record(),
                mixed=self._compute.record(),
            )
            self._free.put(slot)
        self._run = self._fastest_run()

    def begin(self, group: AugmentedGroup, views: slice, first_column: int) -> Pending:
        """Hand some of a group's views to the device, as columns of a batch from one on."""
        # Whoever has a slot gives it back without waiting for more than a copy.
        slot = self._free.get()
        try:
            slot.copied.wait()
            digested = slot.host.fill(group, views, first_column)
            # In this one order on each stream; the device is not waited for.
            with self._turn:
                return self._hand_over(slot, digested)
        finally:
            self._free.put(slot)

    def _hand_over(self, slot: _Slot, digested: int) -> Pending:
        shape, copy, compute = self._shape, self._copy, self._compute
        host = Answers.room(shape.rows, shape.classes, shape.ranked, self._device.host_memory)
        floats = None
        if digested:
            image = (shape.side, shape.side, 3)
            floats = self._device.host_memory(digested, *image, dtype=torch.float32)
        copy.wait_for(slot.mixed)
        copy.run(lambda: slot.there.memory.copy_(slot.host.memory, non_blocking=True))
        slot.copied = copy.record()
        compute.wait_for(slot.copied)
        begun = compute.record()
        compute.run(lambda: self._mix(slot.there, floats))
        slot.mixed = compute.record()
        compute.run(lambda: host.fill(self._run()[1]))
        return Pending(host=host, floats=floats, begun=begun, done=compute.record())

    def _mix(self, staged: Staged, floats: Tensor | None) -> None:
        """Mix a batch into the network's input, and give back the float32 of some rows."""
        mean, std = self._shape.mean, self._shape.std
        with torch.inference_mode():
            mixed_views(staged.pixels, staged.rows, mean, std, self._input)
            if floats is None:
                return
            count = len(floats)
            chosen = staged.digested[:count]
            some = staged.rows.map(itemgetter(chosen))
            pixels = staged.pixels[torch.cat([chosen, some.partner])]
            partner = torch.arange(count, 2 * count, device=pixels.device)
            images = mixed_views(pixels, replace(some, partner=partner), mean, std)
            floats.copy_(images.permute(0, 2, 3, 1), non_blocking=True)

    def _run_plainly(self) -> tuple[Tensor, Answers]:
        """Return the logits of the network's input, and what they say."""
        with torch.inference_mode():
            logits = self._network(self._input)
            return logits, answers_of(logits, self._shape.ranked)

    def _fastest_run(self) -> Callable[[], tuple[Tensor, Answers]]:
        """Return a recording of the plain run, if it gives the same bits."""
        self._compute.run(self._input.zero_)
        recorded = self._device.recorded(self._compute, self._run_plainly)
        if recorded is None:
            return self._run_plainly
        same: list[bool] = []
        noise = torch.Generator(self._input.device).manual_seed(0)

        def compare() -> None:
            self._input.normal_(generator=noise)
            plain = self._run_plainly()[0].clone()
            same.append(torch.equal(plain, recorded()[0]))

        for _ in range(_PROOFS):
            self._compute.run(compare)
        self._compute.record().wait()
        return recorded if all(same) else self._run_plainly
