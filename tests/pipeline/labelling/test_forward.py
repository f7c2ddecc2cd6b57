"""Batches on their way through a device: in order on any streams, and labelled as one by one."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.columns import ColumnConfig
from pipeline.errors import TeacherError
from pipeline.identity import AugmentConfig, MixConfig, TeacherIdentity
from pipeline.labelling import forward, teacher
from pipeline.labelling.devices import choose_device
from pipeline.labelling.forward import UNDER_WAY, ahead
from pipeline.labelling.ranking import rank_logits
from pipeline.labelling.streams import device_of
from pipeline.labelling.teacher import Teacher
from pipeline.labelling.weights import Described
from pipeline.records import AugmentedGroup, Box, MixKind, MixParams, TeacherLabels, ViewMix
from pipeline.views import mixing
from pipeline.views.mixing import mix_images, mixed_digests, normalize
from tests.labelling import every_column
from tests.pipeline.labelling.late_device import LateDevice, Watch

SIDE, STEP, SAMPLES, CLASSES = 8, 3, 4, 12
VIEWS = AugmentConfig(image_size=SIDE)
SEEDS = range(12)


class Corner(nn.Module):
    """Twelve pixels of an image as logits: as cheap as can be, and any wrong pixel may show."""

    def __init__(self, bad: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(bad), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 2:4, 3:5].reshape(len(images), -1) * self.scale


def make_teacher(
    device: torch.device, columns: ColumnConfig | None = None, bad: float = 1.0
) -> Teacher:
    identity = TeacherIdentity(
        architecture="corner", weights="", classes=CLASSES, precision="fp32", batch_views=STEP
    )
    kept = columns or ColumnConfig()
    mix = MixConfig(group_size=SAMPLES)
    return Teacher(Corner(bad).to(device), identity, VIEWS, mix, Described(), kept)


def make_group(seed: int, first_view: int, views: int) -> AugmentedGroup:
    """Make up a group whose rows are mixed in all ways, and of which a third have digests."""
    random = np.random.default_rng(seed)
    rows, mix = SAMPLES * views, ViewMix.unmixed(SAMPLES * views)
    for row in range(rows):
        other = (row + views * int(random.integers(1, SAMPLES))) % rows  # another sample's
        cut = random.random() < 0.5
        box = Box(top=int(random.integers(4)), left=int(random.integers(5)), height=3, width=3)
        kind = MixKind.CUTMIX if cut else MixKind.MIXUP
        if random.random() < 0.8:
            params = MixParams(kind=kind, lam=int(random.integers(1 << 16)), box=box)
            mix.set_row(row, other, params)
    shape = (SAMPLES, views)
    return AugmentedGroup(
        shard=0,
        members=tuple(range(SAMPLES)),
        first_view=first_view,
        pixels=random.integers(0, 256, (*shape, SIDE, SIDE, 3), np.uint8),
        valid=np.ones(shape, np.bool_),
        mix=mix,
        digest=np.zeros(shape, np.uint32),
        has_digest=np.zeros(shape, np.bool_),
        has_mixed_digest=random.random(shape) < 0.3,
        rejections=(),
        decode_seconds=0.0,
        augment_seconds=0.0,
    )


GROUPS = [make_group(number, 3 * number % 4, (3, 2, 7, 1, 6)[number % 5]) for number in range(7)]
"""Most need padding, some several batches."""


def label_plainly(
    group: AugmentedGroup, model: nn.Module, columns: ColumnConfig, device: torch.device
) -> TeacherLabels:
    """Label a group's rows as the sentence says it: normalize, mix, and look at the logits."""
    pixels = torch.from_numpy(group.pixels.reshape(-1, SIDE, SIDE, 3)).to(device)
    images = mix_images(normalize(pixels, VIEWS.mean, VIEWS.std), group.mix)
    digests = mixed_digests(images, group.has_mixed_digest.reshape(-1))
    return replace(rank_logits(model(images), columns), mixed_digest=digests)


def require_same(found: TeacherLabels, expected: TeacherLabels) -> None:
    assert (found.label == expected.label).all()
    assert found.mixed_digest is not None
    assert expected.mixed_digest is not None
    assert (found.mixed_digest == expected.mixed_digest).all()
    assert found.columns.keys() == expected.columns.keys()
    for name, values in found.columns.items():
        assert (values == expected.columns[name]).all(), name


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return choose_device(request.param)


@pytest.fixture
def as_on_a_gpu() -> Iterator[None]:
    """Mix by operations of PyTorch's, which a watch sees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixing, "_IN_ONE_PASS", ())
        yield


@pytest.mark.parametrize("columns", [ColumnConfig(), every_column(5)])
def test_batches_are_labelled_as_rows_one_by_one(
    device: torch.device, columns: ColumnConfig
) -> None:
    made = make_teacher(device, columns)
    for group, labels in made.label_groups(GROUPS):
        require_same(labels, label_plainly(group, made.model, columns, device))
    assert made.busy_seconds > 0


def label_late(late: LateDevice, way: ModuleType = teacher) -> list[TeacherLabels]:
    """Label all groups on a late device, which watches."""
    made = make_teacher(torch.device("cpu"), every_column(2))
    made.__class__ = way.Teacher
    made._device = late
    with Watch(late):
        return [labels for _, labels in made.label_groups(GROUPS)]


@pytest.fixture(scope="module")
def expected() -> list[TeacherLabels]:
    cpu = torch.device("cpu")
    return [label_plainly(one, Corner(), every_column(2), cpu) for one in GROUPS]


@pytest.mark.parametrize("seed", [None, *SEEDS])
@pytest.mark.parametrize("records", ["no", "yes", "otherwise"])
def test_labels_do_not_depend_on_when_streams_do_their_work(
    as_on_a_gpu: None, expected: list[TeacherLabels], records: str, seed: int | None
) -> None:
    late = LateDevice(seed, records=records)
    for found, plain in zip(label_late(late), expected, strict=True):
        require_same(found, plain)
    assert late.faults == []


@pytest.mark.parametrize("records", ["no", "yes", "otherwise"])
def test_a_recording_is_used_only_if_it_gives_the_same_bits(
    as_on_a_gpu: None, records: str
) -> None:
    made = make_teacher(torch.device("cpu"))
    made._device = LateDevice(records=records)
    runs = made._forward
    assert (runs._run == runs._run_plainly) == (records != "yes")


def test_the_host_waits_for_nothing_but_the_copy_whose_memory_it_writes_over(
    as_on_a_gpu: None,
) -> None:
    made, late = make_teacher(torch.device("cpu")), LateDevice()
    made._device = late
    made.label_group(make_group(1, 0, STEP))
    before = late.ran.copy()
    group = make_group(2, 0, STEP)
    begun = [made.begin_group(group) for _ in range(UNDER_WAY)]
    assert late.ran == before
    begun.append(made.begin_group(group))
    assert late.ran - before == {"stream 0": 1}
    for finish in begun:
        finish()
    assert late.ran - before == {"stream 0": 3, "stream 1": 6}  # mixed and labelled, thrice


def test_the_next_batch_is_begun_before_the_last_one_is_waited_for() -> None:
    told: list[str] = []

    def begin(one: int) -> Any:
        told.append(f"begin {one}")
        return lambda: told.append(f"finish {one}")

    assert [one for one, _ in ahead(range(3), begin)] == [0, 1, 2]
    assert told == ["begin 0", "begin 1", "finish 0", "begin 2", "finish 1", "finish 2"]


def test_several_threads_may_label_at_once(
    as_on_a_gpu: None, expected: list[TeacherLabels]
) -> None:
    made = make_teacher(torch.device("cpu"), every_column(2))
    made._device = LateDevice(seed=5, records="yes")
    found: dict[tuple[int, int], TeacherLabels] = {}

    def label(name: int) -> None:
        for number, (_, labels) in enumerate(made.label_groups(GROUPS * 3)):
            found[name, number] = labels

    threads = [threading.Thread(target=label, args=(name,)) for name in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert len(found) == 3 * 3 * len(GROUPS)
    for (_, number), labels in found.items():
        require_same(labels, expected[number % len(GROUPS)])


def test_logits_that_are_not_finite_are_seen_in_what_comes_back(device: torch.device) -> None:
    made = make_teacher(device, bad=float("nan"))
    with pytest.raises(TeacherError, match="corner gives logits that are not finite in fp32"):
        made.label_group(GROUPS[0])


MUTATIONS = {
    "the host does not wait for the copy": ("            slot.copied.wait()\n", ""),
    "the copy does not wait for the mixing": ("        copy.wait_for(slot.mixed)\n", ""),
    "the mixing does not wait for the copy": ("        compute.wait_for(slot.copied)\n", ""),
    "results are not waited for": ("        self.done.wait()\n", ""),
    "the copy's event is an old one": ("        slot.copied = copy.record()\n", ""),
    "the mixing's event is an old one": ("        slot.mixed = compute.record()\n", ""),
    "results are on another stream": (
        "compute.run(lambda: host.fill(self._run()[1]))",
        "compute.run(self._run); copy.run(lambda: host.fill(self._run()[1]))",
    ),
    "mixed on the stream that copies": (
        "compute.run(lambda: self._mix(slot.there, floats))",
        "copy.run(lambda: self._mix(slot.there, floats))",
    ),
}


def mutated(line: str, instead: str) -> ModuleType:
    """Return the teacher's module over a changed copy of ``forward``."""
    source = inspect.getsource(forward)
    assert source.count(line) == 1
    modules = {"mutated_forward": source.replace(line, instead)}
    source = inspect.getsource(teacher)
    modules["mutated_teacher"] = source.replace("pipeline.labelling.forward", "mutated_forward")
    for name, text in modules.items():
        module = sys.modules[name] = ModuleType(name)
        exec(compile(text, name, "exec"), vars(module))
    return module


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_batch_out_of_order_is_seen(
    as_on_a_gpu: None,
    expected: list[TeacherLabels],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    way = mutated(*MUTATIONS[name])
    complaints, wrong = 0, 0
    for seed in SEEDS:
        late = LateDevice(seed)
        try:
            labels = label_late(late, way)
            for found, plain in zip(labels, expected, strict=True):
                require_same(found, plain)
        except (AssertionError, TeacherError, IndexError):
            wrong += 1
        complaints += bool(late.faults)
    assert complaints > len(SEEDS) / 2
    assert wrong > 0, "the labels are right by chance on all schedules"


def test_a_device_is_what_pytorch_calls_it(device: torch.device) -> None:
    host = device_of(device).host_memory(3, dtype=torch.float32)
    assert host.is_pinned() == (device.type == "cuda")
    there = device_of(device).mirror(host)
    assert (there is host) == (device.type == "cpu")
    assert there.device.type == device.type
