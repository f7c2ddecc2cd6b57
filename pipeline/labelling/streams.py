"""A device that works by itself: streams of work, events in them, memory that both sides see.

What runs on a GPU is written against these few words, so that tests run it on streams that are
late on purpose, and watch who touches which memory when.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["CpuDevice", "CudaDevice", "Device", "Event", "Stream", "device_of"]

_log = logging.getLogger(__name__)

WARM_UP = 3  # runs before a recording: libraries make their plans and take their memory in them

Result = TypeVar("Result")


class Event(Protocol):
    """A point in a stream."""

    def wait(self) -> None:
        """Return when the stream is there.

        There is no deadline: who asks is watched by the job's supervisor.
        """

    def seconds_since(self, earlier: Any) -> float:
        """Return the time that the device took from an earlier event, once both were reached."""


class Stream(Protocol):
    """Work that a device does in its order, while the host goes on."""

    def run(self, work: Callable[[], object]) -> None:
        """Have work done after all that this stream was given before."""

    def wait_for(self, event: Any) -> None:
        """Let what this stream is given from here on wait for an event of another stream."""

    def record(self) -> Event:
        """Return the point after all that this stream was given so far."""


class Device(Protocol):
    """Where a network runs."""

    def stream(self) -> Stream:
        """Return a new stream, which begins after all that was asked of the device so far."""

    def host_memory(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return memory of the host that copies go to or come from while the host goes on."""

    def memory(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return memory of the device."""

    def mirror(self, host: Tensor) -> Tensor:
        """Return the device's memory for what comes from the host's; the same one if it is that."""

    def recorded(self, stream: Any, work: Callable[[], Result]) -> Callable[[], Result] | None:
        """Return what does the same work on a stream with one command; None if nothing does.

        What it returns lies in memory that the next time writes over.
        """


@dataclass(frozen=True, slots=True)
class CpuEvent:
    """A moment that has passed."""

    seconds: float = field(default_factory=time.perf_counter)

    def wait(self) -> None:
        """Do nothing: whatever was to be done is done."""

    def seconds_since(self, earlier: CpuEvent) -> float:
        """Return the time between both."""
        return self.seconds - earlier.seconds


class CpuStream:
    """Does at once what it is given."""

    def run(self, work: Callable[[], object]) -> None:
        """Do it."""
        work()

    def wait_for(self, event: CpuEvent) -> None:
        """Do nothing: it has passed."""

    def record(self) -> CpuEvent:
        """Return this moment."""
        return CpuEvent()


class CpuDevice:
    """The host itself."""

    def stream(self) -> CpuStream:
        """Return what does its work at once."""
        return CpuStream()

    def host_memory(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return plain memory."""
        return torch.empty(shape, dtype=dtype)

    memory = host_memory

    def mirror(self, host: Tensor) -> Tensor:
        """Return the same memory, to which nothing need be copied."""
        return host

    def recorded(self, stream: CpuStream, work: Callable[[], Result]) -> None:
        """Return None: there is nothing to save."""


@dataclass(frozen=True, slots=True)
class CudaEvent:
    """An event of CUDA's; a thread that waits for it leaves its core to others."""

    event: torch.cuda.Event

    def wait(self) -> None:
        """Wait, without Python's lock."""
        self.event.synchronize()

    def seconds_since(self, earlier: CudaEvent) -> float:
        """Return what the GPU measured."""
        return float(earlier.event.elapsed_time(self.event)) / 1000


@dataclass(frozen=True, slots=True)
class CudaStream:
    """A stream of CUDA's."""

    stream: torch.cuda.Stream

    def run(self, work: Callable[[], object]) -> None:
        """Launch work on the stream."""
        with torch.cuda.stream(self.stream):
            work()

    def wait_for(self, event: CudaEvent) -> None:
        """Let the GPU wait, not the host."""
        self.stream.wait_event(event.event)

    def record(self) -> CudaEvent:
        """Record an event that tells its time."""
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        self.stream.record_event(event)
        return CudaEvent(event)


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """A GPU."""

    device: torch.device

    def stream(self) -> CudaStream:
        """Return a stream that begins where the current one is: weights may still be under way."""
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        return CudaStream(stream)

    def host_memory(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return pinned memory; PyTorch keeps it for the next who asks, once copies are done."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def memory(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return memory of the GPU."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def mirror(self, host: Tensor) -> Tensor:
        """Return as much memory of the GPU."""
        return self.memory(*host.shape, dtype=host.dtype)

    def recorded(
        self, stream: CudaStream, work: Callable[[], Result]
    ) -> Callable[[], Result] | None:
        """Return the replay of a CUDA graph; None for work that cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        try:
            for _ in range(WARM_UP):
                stream.run(work)
            stream.record().wait()
            # Other threads may use the GPU meanwhile.
            with torch.cuda.graph(graph, stream=stream.stream, capture_error_mode="thread_local"):
                result = work()
        except RuntimeError as error:  # CUDA's and PyTorch's are such
            _log.info("the teacher is launched kernel by kernel: %s", error)
            return None

        def replay() -> Result:
            graph.replay()
            return result

        return replay


def device_of(device: torch.device) -> Device:
    """Return how to work on one of PyTorch's devices."""
    return CudaDevice(device) if device.type == "cuda" else CpuDevice()
