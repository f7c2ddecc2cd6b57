"""Shared memory that is filled again: no sooner than nothing holds it, and whatever an item has."""

from __future__ import annotations

import gc
import multiprocessing
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.errors import ConfigError, PipelineError
from student.lending import Lending, tensors_of
from student.loading import LoaderOptions, batch_memory, load

SIDE = 1 << 9
BYTES = SIDE * SIDE
ITEMS = 30
LIMIT = 1 << 16


@dataclass(frozen=True, slots=True)
class Item:
    number: int
    pixels: Tensor
    labels: Tensor


class Numbered(Dataset[Item]):
    """Items full of their number, where fresh shared memory has at most ``limit`` bytes."""

    def __init__(self, limit: int = resource.RLIM_INFINITY) -> None:
        self._limit = limit

    def __getitem__(self, item: int) -> Item:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._limit, hard))
        return Item(item, batch_memory(SIDE, SIDE).fill_(item), torch.full((3,), item))


def numbered(workers: int, limit: int = resource.RLIM_INFINITY) -> Iterator[Item]:
    options = LoaderOptions(workers=workers)
    return load(Numbered(limit), range(ITEMS), options, item_bytes=BYTES + 64)


def whole(item: Item) -> Any:
    return item


def rows(item: Item) -> Any:
    return item.pixels[7:9]


def array(item: Item) -> Any:
    return item.pixels.numpy()[100]


def transposed(item: Item) -> Any:
    return item.pixels.view(torch.int32).T[:2]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("keep", [whole, rows, array, transposed])
def test_nothing_that_is_kept_is_written_over(keep: Callable[[Item], Any], workers: int) -> None:
    kept = [keep(item) for item in numbered(workers)]
    gc.collect()
    assert len(kept) == ITEMS
    for number, one in enumerate(kept):
        pixels = one.pixels if isinstance(one, Item) else one
        assert np.unique(np.ascontiguousarray(pixels).view(np.uint8)).tolist() == [number]


@pytest.mark.timeout(60)
def test_no_fresh_memory_is_taken_where_nothing_is_kept() -> None:
    seen = [int(item.pixels[-1, -1]) for item in numbered(2, LIMIT)]
    assert seen == list(range(ITEMS))
    with pytest.raises(ConfigError, match="no room in /dev/shm"):  # the limit holds
        list(numbered(2, LIMIT))


@pytest.mark.timeout(60)
def test_what_a_forked_process_lets_go_stays_held_here() -> None:
    items = numbered(1)
    held = [next(items), next(items)]
    forked = multiprocessing.get_context("fork").Process(target=held.clear)
    forked.start()
    forked.join(20)
    assert forked.exitcode == 0
    for _ in items:
        pass
    assert [set(item.pixels.unique().tolist()) for item in held] == [{0}, {1}]


@dataclass(frozen=True, slots=True)
class Odd:
    name: str
    none: Tensor | None
    empty: Tensor
    number: Tensor
    truth: Tensor
    strided: Tensor
    half: Tensor
    large: Tensor


def odd(large: int = 0) -> Odd:
    return Odd(
        name="a",
        none=None,
        empty=torch.empty(0, 3, dtype=torch.int64),
        number=torch.tensor(-7),
        truth=torch.tensor([True, False, True]),
        strided=batch_memory(4, 6).copy_(torch.arange(24).view(4, 6)).T[1:4],
        half=torch.arange(5, dtype=torch.bfloat16),
        large=torch.full((large,), 9, dtype=torch.uint8),
    )


class Odds(Dataset[Odd]):
    def __getitem__(self, item: int) -> Odd:
        return odd(large=1 << item)


@pytest.mark.timeout(60)
def test_tensors_of_any_type_and_size_arrive() -> None:
    """The largest have no room in what is lent."""
    for item, found in enumerate(load(Odds(), range(14), LoaderOptions(workers=1), 1 << 10)):
        expected = odd(large=1 << item)
        assert (found.name, found.none) == ("a", None)
        assert set(tensors_of(found)) == set(tensors_of(expected))
        for name, tensor in tensors_of(expected).items():
            arrived = getattr(found, name)
            assert arrived.dtype == tensor.dtype
            assert torch.equal(arrived, tensor)


class Failing(Dataset[Item]):
    """Fails at its fourth item."""

    def __getitem__(self, item: int) -> Item:
        if item == 3:
            raise PipelineError("no such item")
        return Item(item, batch_memory(9).fill_(item), torch.zeros(1))


@pytest.mark.timeout(60)
def test_an_error_comes_after_the_items_before_it() -> None:
    items = load(Failing(), range(9), LoaderOptions(workers=1), item_bytes=64)
    assert [next(items).number for _ in range(3)] == [0, 1, 2]
    with pytest.raises(PipelineError, match="no such item"):
        next(items)


def test_a_run_that_goes_out_is_lent_again_when_it_came_back() -> None:
    lending = Lending(workers=2, each=2, size=256)
    first, second = lending.borrow(1), lending.borrow(1)
    assert first is not None
    assert second is not None
    assert lending.borrow(1) is None
    assert lending.borrow(0) is not None  # another worker's
    first.give_back()
    third = lending.borrow(1)
    assert third is not None
    assert third.lend("no tensors in it") == "no tensors in it"
    assert lending.borrow(1) is not None


def test_a_run_gives_no_more_than_it_has() -> None:
    run = Lending(workers=1, each=1, size=64).borrow(0)
    assert run is not None
    assert run.empty((65,)) is None
    first, second = run.empty((1,)), run.empty((6,), torch.float64)
    assert first is not None
    assert second is not None
    assert second.data_ptr() - first.data_ptr() == 16
    assert run.empty((1,)) is None
