"""The ranks of one run, as a launcher starts them; a run of one rank needs none of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import ConfigError, PipelineError
from student.launch import Launch, read_launch

__all__ = ["Ranks", "SilentError", "StopAgreement", "read_ranks"]

Decision = TypeVar("Decision")
Value = TypeVar("Value")

_WAIT = timedelta(hours=2)
"""Longest wait for another rank, which may be fetching shards."""


class SilentError(PipelineError):
    """An error that rank 0 reports for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks(Launch):
    """The processes of a run, and the place of this one among them."""

    @property
    def first(self) -> bool:
        """Whether this rank logs and writes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there is anyone to agree with."""
        return self.ranks > 1

    def device(self, device: torch.device) -> torch.device:
        """Return this rank's own device of the kind that was chosen."""
        if device.type != "cuda" or not self.several:
            return device
        count = torch.cuda.device_count()
        # A task of SLURM's may see its own GPU alone, which is then number 0.
        number = 0 if self.own_gpu and count == 1 else self.local_rank
        if number >= count:
            raise ConfigError(
                f"{self.local_ranks} ranks were started on a machine with {count} GPUs; start that "
                "number"
            )
        torch.cuda.set_device(number)
        return torch.device("cuda", number)

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Be connected to the other ranks inside this context.

        Losing one of them there is a ``PipelineError``.
        """
        if not self.several:
            yield
            return
        if dist.is_initialized():  # by what started the ranks, Ray Train for one
            with self._losing():
                yield
            return
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            init_method=None if self.address is None else f"tcp://{self.address}",
            rank=self.rank,
            world_size=self.ranks,
            timeout=_WAIT,
        )
        try:
            with self._losing():
                yield
        finally:
            dist.destroy_process_group()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """Make a ``PipelineError`` of what PyTorch raises where another rank is gone."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or any(
                name in str(error).lower() for name in ("gloo", "nccl", "connection")
            ):
                raise PipelineError(
                    f"rank {self.rank} lost another rank, whose message says why "
                    f"({str(error).splitlines()[0]}); then continue with `resume` auto"
                ) from error
            raise

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over ranks, on the CPU; a copy."""
        total = values.detach().to("cpu", copy=True)
        if self.several:
            dist.all_reduce(total)
        return total

    def least(self, value: int) -> int:
        """Return the smallest of the ranks' integers."""
        if not self.several:
            return value
        held = torch.tensor(value)
        dist.all_reduce(held, dist.ReduceOp.MIN)
        return int(held)

    def decide(self, decision: Callable[[], Decision]) -> Decision:
        """Let rank 0 decide for all; its ``PipelineError`` stops the others silently."""
        if not self.several:
            return decision()
        answer: list[Any] = [None, False]
        if self.first:
            try:
                answer = [decision(), True]
            except PipelineError:
                dist.broadcast_object_list(answer)
                raise
        dist.broadcast_object_list(answer)
        if not answer[1]:
            raise SilentError("rank 0 stopped, its message says why")
        decided: Decision = answer[0]
        return decided

    def gather(self, value: Value) -> list[Value]:
        """Return the ranks' values, in their order; they are pickled."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * self.ranks
        dist.all_gather_object(values, value)
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Give all ranks the first one's buffers, such as batch norm's means, which are kept."""
        if self.several:
            for buffer in model.buffers():
                plain = buffer.view(torch.uint8) if buffer.dtype is torch.bool else buffer
                dist.broadcast(plain, 0)

    def average_means(self, model: nn.Module) -> None:
        """Give all ranks the average of their running means and variances of batch norm."""
        if self.several:
            from timm.utils import distribute_bn  # here, since timm takes seconds to load

            distribute_bn(model, self.ranks, reduce=True)

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self.least(0)  # on the CPU; a barrier would pick a GPU by itself

    def averaging(self, model: nn.Module, *, unused: bool) -> nn.Module:
        """Return the model with gradients averaged over ranks; the same for one rank.

        ``unused`` says that some of its weights take no part in the loss.
        """
        if not self.several:
            return model
        wrapped = DistributedDataParallel(model, find_unused_parameters=unused)
        # Attributes die in the order in which they were set, so this one outlives the reducer's
        # hold on the group. Were the reducer the last to let go, PyTorch 2.11 would join gloo's
        # threads with Python's lock held, which those need to drop the tensors of the last sum.
        wrapped.last_hold_on_group = wrapped.process_group  # type: ignore[assignment]
        return wrapped

    @staticmethod
    def without_averaging(model: nn.Module) -> AbstractContextManager[None]:
        """Return a context whose gradients stay on this rank, to be averaged later."""
        if isinstance(model, DistributedDataParallel):
            held: AbstractContextManager[None] = model.no_sync()
            return held
        return nullcontext()


class StopAgreement:
    """Lets all ranks stop before the same step, once any of them was asked to.

    Who asks gives a number, and all learn the greatest; 0 is no request. The answer of one step
    is read at the next, so that no rank waits for the others here.
    """

    def __init__(self, ranks: Ranks, asked: Callable[[], int]) -> None:
        self._ranks, self._asked = ranks, asked
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._work: Any = None

    def reached(self) -> int:
        """Return a number if it is time to stop, else 0; all ranks call this before every step."""
        if not self._ranks.several:
            return int(self._asked())
        if self._work is not None:
            self._work.wait()
            if self._flag.item():
                return int(self._flag.item())
        self._flag = torch.tensor([int(self._asked())])
        self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, async_op=True)
        return 0


def read_ranks() -> Ranks:
    """Return the place that torchrun or srun gives this process; one rank without either.

    Raises ``ConfigError`` if their variables are there in part or make no sense.
    """
    return Ranks(**asdict(read_launch()))
