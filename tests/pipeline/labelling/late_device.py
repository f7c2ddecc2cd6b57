"""A device on the CPU that works late and in any order its streams allow, and sees who races.

Work that a stream is given lies there until somebody waits for it, or until the device feels like
it. Whatever touches memory of the device is noted with what it knows to have happened before: two
touches of which one writes, and of which neither happened before the other, are a fault.
"""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pipeline.labelling.streams import Result

HOST = "the host"


class LateEvent:
    def __init__(self, stream: LateStream) -> None:
        self.stream, self.is_reached = stream, False
        self.clock: Counter[str] = Counter()

    def wait(self) -> None:
        device = self.stream.device
        with device.lock:
            device.drive(self)
            device.clocks[HOST] |= self.clock

    def seconds_since(self, earlier: LateEvent) -> float:
        if not (self.is_reached and earlier.is_reached):
            self.stream.device.faults.append("the time of an event that is not reached is asked")
        return 1.0


class LateStream:
    def __init__(self, device: LateDevice, name: str) -> None:
        self.device, self.name = device, name
        self.waiting: deque[Callable[[], None]] = deque()  # work, as it was given
        self.blocked: deque[LateEvent | None] = deque()  # what each waits for

    def run(self, work: Callable[[], object]) -> None:
        self._give(lambda: self.device.work(self.name, work))

    def wait_for(self, event: LateEvent) -> None:
        def join() -> None:
            self.device.clocks[self.name] |= event.clock

        self._give(join, event)

    def record(self) -> LateEvent:
        event = LateEvent(self)

        def reach() -> None:
            event.clock, event.is_reached = self.device.clocks[self.name].copy(), True

        self._give(reach)
        return event

    def _give(self, step: Callable[[], None], event: LateEvent | None = None) -> None:
        with self.device.lock:
            known = self.device.clocks[HOST].copy()

            def after_the_host() -> None:
                self.device.clocks[self.name] |= known
                step()

            self.waiting.append(after_the_host)
            self.blocked.append(event)
            self.device.feel_like_it()


class LateDevice:
    """``seed`` says how it feels; without one it does nothing but what is waited for."""

    def __init__(self, seed: int | None = None, *, records: str = "no") -> None:
        self.lock = threading.RLock()
        self.faults: list[str] = []
        self.ran: Counter[str] = Counter()  # pieces of work by stream
        self.clocks: dict[str, Counter[str]] = {HOST: Counter()}
        self._streams: list[LateStream] = []
        self._random = None if seed is None else random.Random(seed)
        self._records = records  # no, yes, or otherwise: with other bits
        self._memory: dict[int, Tensor] = {}
        self._last_write: dict[int, tuple[str, int]] = {}
        self._reads: dict[int, dict[str, int]] = {}
        self._actor = HOST

    def stream(self) -> LateStream:
        name = f"stream {len(self._streams)}"
        self.clocks[name] = Counter()
        self._streams.append(LateStream(self, name))
        return self._streams[-1]

    def host_memory(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return self._watched(torch.full(shape, 113, dtype=dtype))  # what nobody wrote is wrong

    memory = host_memory

    def mirror(self, host: Tensor) -> Tensor:
        return self.host_memory(*host.shape, dtype=host.dtype)

    def recorded(
        self, stream: LateStream, work: Callable[[], Result]
    ) -> Callable[[], Result] | None:
        if self._records == "no":
            return None
        stream.record().wait()
        kept = work()
        tensors, _ = tree_flatten([kept[0], *_tensors(kept[1])])  # type: ignore[index]
        for one in tensors:
            self._watched(one)

        def replay() -> Result:
            again = work()
            with torch.inference_mode():
                for mine, new in zip(tensors, [again[0], *_tensors(again[1])], strict=True):  # type: ignore[index]
                    mine.copy_(new)
                if self._records == "otherwise":
                    tensors[0].view(torch.int32)[-1, -1] ^= 1
            return kept

        return replay

    def drive(self, event: LateEvent) -> None:
        """Work until an event is reached."""
        while not event.is_reached:
            ready = [one for one in self._streams if self._is_ready(one)]
            if self._random is not None:
                self._step(self._random.choice(ready))
                continue
            needed = event.stream
            while not self._is_ready(needed):
                blocked = needed.blocked[0]
                assert blocked is not None
                needed = blocked.stream
            self._step(needed)

    def feel_like_it(self) -> None:
        while self._random is not None and self._random.random() < 0.4:
            ready = [one for one in self._streams if self._is_ready(one)]
            if not ready:
                return
            self._step(self._random.choice(ready))

    def work(self, name: str, work: Callable[[], object]) -> None:
        before, self._actor = self._actor, name
        try:
            work()
        finally:
            self._actor = before
        self.ran[name] += 1

    def _is_ready(self, stream: LateStream) -> bool:
        blocked = stream.blocked[0] if stream.waiting else None
        return bool(stream.waiting) and (blocked is None or blocked.is_reached)

    def _step(self, stream: LateStream) -> None:
        stream.blocked.popleft()
        stream.waiting.popleft()()

    def _watched(self, tensor: Tensor) -> Tensor:
        self._memory[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def touch(self, tensor: Tensor, *, writes: bool) -> None:
        """Note that whoever is at work now touches a tensor."""
        memory = tensor.untyped_storage().data_ptr()
        if memory not in self._memory:
            return
        with self.lock:
            me, clock = self._actor, self.clocks[self._actor]
            clock[me] += 1
            earlier = [self._last_write[memory]] if memory in self._last_write else []
            if writes:
                earlier += self._reads.get(memory, {}).items()
            for other, moment in earlier:
                if other != me and clock[other] < moment:
                    shape = tuple(self._memory[memory].shape)
                    self.faults.append(f"{me} touches {shape}, which {other} may still need")
            if writes:
                self._last_write[memory] = (me, clock[me])
                self._reads[memory] = {}
            else:
                self._reads.setdefault(memory, {})[me] = clock[me]


def _tensors(answers: Any) -> list[Tensor]:
    found = (answers.label, answers.order, answers.log)
    return [one for one in found if one is not None]


class Watch(TorchDispatchMode):
    """Tells a device of each operation that reads or writes its memory."""

    def __init__(self, device: LateDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        schema, named = function._schema.arguments, named or {}
        aliases = [one.alias_info for one in schema]
        if not any(one is not None and not one.is_write for one in aliases):  # else a view of it
            for number, about in enumerate(schema):
                given = arguments[number] if number < len(arguments) else named.get(about.name)
                for one in tree_flatten(given)[0]:
                    if isinstance(one, Tensor):
                        writes = about.alias_info is not None and about.alias_info.is_write
                        self._device.touch(one, writes=writes)
        return function(*arguments, **named)
