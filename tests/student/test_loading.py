"""Loaders whose processes cannot go on end with an error; none is waited for without an end."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

import pytest
import torch
from torch.utils.data import Dataset

from pipeline.errors import ConfigError, PipelineError
from student import loading
from student.loading import LoaderOptions, batch_memory, load

BYTES = 1 << 20
LIMIT = 1 << 16


@dataclass(frozen=True, slots=True)
class Item:
    pixels: torch.Tensor


def own_memory() -> Item:
    return Item(torch.zeros(BYTES, dtype=torch.uint8))


def shared_memory() -> Item:
    return Item(batch_memory(BYTES))


class Making(Dataset[Item]):
    """Calls ``make`` for each item, where files, as shared memory, have at most ``limit`` bytes."""

    def __init__(self, make: Callable[[], Item], limit: int = resource.RLIM_INFINITY) -> None:
        self._make, self._limit = make, limit

    def __getitem__(self, item: int) -> Item:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._limit, hard))
        return self._make()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [own_memory, shared_memory])
def test_shared_memory_that_has_no_room_is_an_error_that_says_what_is_needed(
    make: Callable[[], Item],
) -> None:
    whole = list(load(Making(make), range(4), LoaderOptions(workers=2)))
    assert [len(one.pixels) for one in whole] == [BYTES] * 4
    message = rf"`workers` 2: no room in /dev/shm .*5 batches of {BYTES} bytes need {5 * BYTES},"
    with pytest.raises(ConfigError, match=message):
        list(load(Making(make, LIMIT), range(4), LoaderOptions(workers=2)))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            errno.ENOSPC,
            r"`workers` 3: no room in /dev/shm for their locks .*free; give fewer",
        ),
        (errno.EAGAIN, r"`workers` 3: a loader's process cannot be started .*; give fewer"),
    ],
)
def test_where_a_process_cannot_be_started_none_is_left_to_be_waited_for(
    monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    start, started = BaseProcess.start, list[BaseProcess]()

    def start_two(self: BaseProcess) -> None:
        if len(started) == 2:
            raise OSError(number, os.strerror(number))
        start(self)
        started.append(self)

    monkeypatch.setattr(BaseProcess, "start", start_two)
    with pytest.raises(PipelineError, match=message):
        list(load(Making(own_memory), range(4), LoaderOptions(workers=3)))
    for process in started:
        process.join(20)
        assert process.exitcode == -signal.SIGKILL


def die() -> Item:
    os.kill(os.getpid(), signal.SIGBUS)  # as where a page of shared memory has no room
    time.sleep(60)
    return own_memory()


def sleep() -> Item:
    time.sleep(30)
    return own_memory()


@pytest.mark.timeout(60)
def test_a_process_that_dies_or_gives_nothing_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(PipelineError, match=r"a loader's process died .*DataLoader worker"):
        list(load(Making(die), range(4), LoaderOptions(workers=1)))
    monkeypatch.setattr(loading, "_LONGEST_ITEM_SECONDS", 1)
    with pytest.raises(PipelineError, match=r"gives nothing .*timed out after 1 s"):
        list(load(Making(sleep), range(4), LoaderOptions(workers=1)))


KEPT = """
import sys
import torch
from student.loading import LoaderOptions, load
from pipeline.errors import PipelineError

class Items(torch.utils.data.Dataset):
    def __getitem__(self, item):
        if item == int(sys.argv[1]):
            raise PipelineError("no such item")
        return torch.zeros(1)

for item in load(Items(), range(8), LoaderOptions(workers=2)):
    assert sys.argv[1] != "-1", "an error of the loop itself"
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("item", ["3", "-1"], ids=["of an item", "of the loop"])
def test_a_program_that_an_error_ends_does_not_wait_for_its_loader(item: str) -> None:
    """Python keeps the last traceback, and with it the loop's frame and the loader."""
    done = subprocess.run(
        [sys.executable, "-i", "-c", KEPT, item],
        input="",
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert "no such item" in done.stderr or "an error of the loop" in done.stderr
