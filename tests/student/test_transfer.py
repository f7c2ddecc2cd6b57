"""All that a step needs goes to the device at once, and is there what it was here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from student import replay
from student.batches import mixed_images, mixed_target, stored_signal
from student.inputs import open_replay
from student.losses.hard import HardLoss
from student.losses.soft import SoftLoss
from student.order import PlanConfig
from student.replay import StudentBatch
from tests.golden.make import HERE as GOLDEN
from tests.student.factories import SMALL_VIEWS
from tests.student.worlds import World, make_world

ELSEWHERE = torch.device("meta")  # a device that every machine has; what is there has no values


class Transfers(TorchDispatchMode):
    """Records each operation that takes a tensor from the CPU to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []  # with the bytes

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        result = function(*arguments, **(named or {}))
        given = [one for one in tree_leaves((arguments, named)) if isinstance(one, Tensor)]
        made = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        leaving = [one for one in given if one.device.type == "cpu"]
        if leaving and any(one.device == ELSEWHERE for one in (*made, *given)):
            self.found.append((str(function), leaving[0].nbytes))
        return result


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), (14, 10))


def batch_of(world: World) -> StudentBatch:
    shards = [str(world.root / "digits-*.tar")]
    plan = PlanConfig(seed=0, epochs=3, batch_size=12)
    return open_replay(world.root / "labels.parquet", shards, plan)[0]


def soft_batch() -> StudentBatch:
    plan = PlanConfig(seed=0, epochs=3, batch_size=8)
    return open_replay(GOLDEN / "soft.parquet", [str(GOLDEN / "digits.tar")], plan)[0]


def step(batch: StudentBatch, device: torch.device, loss: Any) -> Tensor:
    images = mixed_images(batch, SMALL_VIEWS, device)
    truth, teacher = mixed_target(batch, device, smoothing=0.1), stored_signal(batch, images)
    logits = torch.zeros(len(images), 1 << 16, device=device)  # as many as the golden store has
    result: Tensor = loss((logits, logits), truth, teacher).loss
    return result


@pytest.mark.parametrize("soft", [False, True])
def test_a_step_takes_one_copy_to_the_device(world, soft) -> None:
    batch, loss = (soft_batch(), SoftLoss()) if soft else (batch_of(world), HardLoss())
    assert batch.mix.kind.any()
    step(batch.to(ELSEWHERE), ELSEWHERE, loss)  # constants stay there from the first step on
    with Transfers() as transfers:
        result = step(batch.to(ELSEWHERE), ELSEWHERE, loss)
    assert result.device == ELSEWHERE
    ((_, moved),) = transfers.found
    assert moved >= batch.pixels.nbytes


def test_the_copy_is_from_pinned_memory_and_does_not_block(world, monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        replay, "pinned_memory", lambda size: asked.append(size) or torch.empty(size).byte()
    )
    batch = batch_of(world).pin_memory()
    assert batch.memory is not None
    assert asked == [batch.memory.nbytes]
    calls: list[tuple[int, bool]] = []
    original = Tensor.to

    def watched(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
        calls.append((self.data_ptr(), options.get("non_blocking", False)))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Tensor, "to", watched)
    batch.to(ELSEWHERE, non_blocking=True)
    assert calls == [(batch.memory.data_ptr(), True)]


@pytest.mark.parametrize("soft", [False, True])
def test_a_packed_batch_holds_what_it_did_and_gives_the_same_bits(world, soft) -> None:
    batch = soft_batch() if soft else batch_of(world)
    packed = batch._packed(replay.plain_memory)
    assert packed.memory is not None
    start, end = packed.memory.data_ptr(), packed.memory.data_ptr() + packed.memory.nbytes
    for field in dataclasses.fields(batch):
        one, other = getattr(batch, field.name), getattr(packed, field.name)
        if isinstance(one, Tensor):
            assert torch.equal(one, other)
            assert start <= other.data_ptr() < end
    cpu = torch.device("cpu")
    assert torch.equal(
        mixed_images(batch, SMALL_VIEWS, cpu), mixed_images(packed, SMALL_VIEWS, cpu)
    )
    loss = SoftLoss() if soft else HardLoss()
    assert torch.equal(step(batch, cpu, loss), step(packed, cpu, loss))


def test_on_the_cpu_nothing_is_copied(world) -> None:
    batch = batch_of(world)
    assert batch.to("cpu") is batch
    assert batch.to(torch.device("cpu")).memory is None
    moved = batch.to(ELSEWHERE)
    assert moved.to("meta:0") is moved or moved.pixels.device.type == "meta"
    assert moved.to("meta") is moved


def test_a_batch_without_mixing_is_packed_too(world, tmp_path: Path) -> None:
    batch = batch_of(world)
    batch.mix.kind[:] = 0
    packed = batch._packed(replay.plain_memory)
    assert packed.mix_rows is not None
    assert not packed.mix_rows.kind.any()
    cpu = torch.device("cpu")
    assert torch.equal(
        mixed_images(batch, SMALL_VIEWS, cpu), mixed_images(packed, SMALL_VIEWS, cpu)
    )


@pytest.mark.gpu
@pytest.mark.parametrize("soft", [False, True])
def test_a_gpu_gets_the_images_of_a_cpu_in_one_copy(world, soft) -> None:
    batch = soft_batch() if soft else batch_of(world)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    there = batch.pin_memory().to(cuda, non_blocking=True)
    assert torch.equal(
        mixed_images(there, SMALL_VIEWS, cuda).cpu(), mixed_images(batch, SMALL_VIEWS, cpu)
    )
    found, expected = (mixed_target(one, where).lam for one, where in ((there, cuda), (batch, cpu)))
    assert torch.equal(found.cpu(), expected)
