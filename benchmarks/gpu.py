"""What one GPU and its cores do: the teacher, its feeding, and students with and without it.

Needs PyTorch, timm, NumPy, PyArrow, and for the feeding simplejpeg and numba; no Ray,
webdataset or Zarr. `python -m benchmarks.gpu --shards x.tar y.tar --json gpu.json`. With
`--device cpu` and small models it runs anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.task import TokenDistillationTask
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import Timings, measure
from pipeline.identity import AugmentConfig, MixConfig, Precision, StoreIdentity
from pipeline.labelling.devices import set_threads
from pipeline.labelling.teacher import Teacher, TeacherSpec, load_teacher
from pipeline.records import AugmentedGroup, PartKey

GROUP, BLOCK = 16, 15  # a teacher batch on a GPU: one group x one block
CLASSES = 1000
GOAL = 1_281_167 * 300 / 36_000  # views/s: ImageNet-1k x 300 views in 10 hours


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure, and on what."""

    shards: tuple[str, ...]
    teacher: str
    checkpoint: Path | None
    students: tuple[str, ...]
    device: torch.device
    image_size: int
    student_rows: int
    groups: int  # of the feeding
    matrix: int  # side of the matrices
    rounds: int

    @property
    def augment(self) -> AugmentConfig:
        """DeiT's recipe at the size."""
        return AugmentConfig(image_size=self.image_size)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", nargs="*", default=(), help="shards of photographs")
    parser.add_argument("--teacher", default="regnety_160.deit_in1k")
    parser.add_argument("--checkpoint", type=Path, help="trained weights, for the flip rate")
    parser.add_argument(
        "--students",
        nargs="*",
        default=[f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base")],
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--student-rows", type=int, default=256)
    parser.add_argument("--groups", type=int, default=400, help="groups of 240 views to feed")
    parser.add_argument("--matrix", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU; give --device cpu, and small models")
    settings = Settings(
        shards=tuple(given.shards),
        teacher=given.teacher,
        checkpoint=given.checkpoint,
        students=tuple(given.students),
        device=torch.device(given.device),
        image_size=given.image_size,
        student_rows=given.student_rows,
        groups=given.groups,
        matrix=given.matrix,
        rounds=given.rounds,
    )
    set_threads()
    results = {"machine": describe_machine(settings), **measure_all(settings)}
    text = json.dumps(results, indent=2)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n")


def describe_machine(settings: Settings) -> dict[str, Any]:
    """Return what figures depend on."""
    cuda = settings.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "settings": {name: str(value) for name, value in asdict(settings).items()},
    }


def measure_all(settings: Settings) -> dict[str, Any]:
    """Return all figures by name."""
    rate = matrix_rate(settings)
    teacher = make_teacher(settings, "bf16")
    speeds = teacher_speeds(settings, teacher)
    as_run = speeds["as run"]
    flops = 2 * multiply_adds(settings)
    return {
        "matrix_tflops_bf16": rate / 1e12,
        "teacher_images_per_second": speeds,
        "teacher_over_autocast": as_run / speeds["autocast"],
        "teacher_share_of_matrix_rate": as_run * flops / rate,
        "goal_views_per_second": GOAL,
        "teacher_over_goal": as_run / GOAL,
        "feeding": feeding(settings, teacher, as_run),
        "flips_against_fp32": flips(settings, teacher),
        "students": {name: student_steps(settings, name) for name in settings.students},
    }


def matrix_rate(settings: Settings) -> float:
    """Return the floating-point operations per second of a large bf16 product."""
    side = settings.matrix
    left = torch.randn(side, side, device=settings.device, dtype=torch.bfloat16)
    right = torch.randn(side, side, device=settings.device, dtype=torch.bfloat16)
    timings = timed(settings, {"product": lambda: left @ right}, items=10, repeat=10)
    return 2 * side**3 / timings.median("product")


def timed(
    settings: Settings, cases: dict[str, Callable[[], object]], *, items: int, repeat: int = 1
) -> Timings:
    """Time cases in turn, waiting for the device at each end; seconds are per item."""

    def waited(case: Callable[[], object]) -> Callable[[], int]:
        def run() -> int:
            for _ in range(repeat):
                case()
            if settings.device.type == "cuda":
                torch.cuda.synchronize()
            return items

        return run

    return measure({name: waited(case) for name, case in cases.items()}, settings.rounds)


def make_teacher(settings: Settings, precision: Precision) -> Teacher:
    """Build the teacher as the label job does."""
    spec = TeacherSpec(
        architecture=settings.teacher,
        checkpoint=settings.checkpoint,
        random_weights=None if settings.checkpoint else 0,
        precision=precision,
        batch_views=BLOCK,
    )
    return load_teacher(spec, settings.augment, MixConfig(), settings.device)


def plain_model(settings: Settings, name: str, classes: int = CLASSES) -> nn.Module:
    """Build a timm model as its users do."""
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
    return model.to(settings.device)


def random_images(settings: Settings, rows: int) -> Tensor:
    """Return normal noise in the shape of images."""
    side = settings.image_size
    return torch.randn(rows, 3, side, side, device=settings.device)


def teacher_speeds(settings: Settings, teacher: Teacher) -> dict[str, float]:
    """Return images per second: as run, the same compiled, and plainly under autocast."""
    images = random_images(settings, GROUP * BLOCK)
    plain = plain_model(settings, settings.teacher).eval()

    def autocast() -> None:
        with torch.inference_mode(), torch.autocast(settings.device.type, torch.bfloat16):
            plain(images)

    cases: dict[str, Callable[[], object]] = {
        "as run": lambda: teacher.logits(images),
        "autocast": autocast,
    }
    if settings.device.type == "cuda":
        compiled = torch.compile(teacher.model)
        rows = images.to(dtype=torch.bfloat16, memory_format=torch.channels_last)

        def run_compiled() -> None:
            with torch.inference_mode():
                compiled(rows)

        cases["as run, compiled"] = run_compiled
    timings = timed(settings, cases, items=len(images))
    return {name: 1 / timings.median(name) for name in cases}


def multiply_adds(settings: Settings) -> float:
    """Return the multiply-adds of one image, counted at the convolutions and linear layers."""
    model = plain_model(settings, settings.teacher).eval()
    total = 0.0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        if isinstance(weight, Tensor):
            total += output[0].numel() * weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.inference_mode():
        model(random_images(settings, 1))
    return total


class GroupViews(Dataset[tuple[Tensor, AugmentedGroup]]):
    """The label job's augmentation: item k is group k of the shards, decoded and augmented."""

    def __init__(self, settings: Settings, teacher: Teacher) -> None:
        from pipeline.labelling.part import group_tasks
        from pipeline.shards.index import open_shard

        identity = StoreIdentity(
            root_seed=0, augment=settings.augment, mix=MixConfig(), teacher=teacher.identity
        )
        tasks = []
        for number, path in enumerate(settings.shards):
            info = open_shard(Path(path), number).info
            part = PartKey(shard=number, first_view=0, views=BLOCK)
            tasks += list(group_tasks(Path(path), info, part, identity))
        self._tasks = [tasks[k % len(tasks)] for k in range(settings.groups)]

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, item: int) -> tuple[Tensor, AugmentedGroup]:
        from pipeline.labelling.part import run_task

        group = run_task(self._tasks[item])
        # Pixels go through shared memory as a tensor; a NumPy array would go through a pipe.
        return torch.from_numpy(group.pixels), replace(group, pixels=group.pixels[:0])


def feeding(settings: Settings, teacher: Teacher, teacher_rate: float) -> dict[str, float] | None:
    """Return how all cores keep the teacher busy; None without shards, simplejpeg or numba."""
    try:
        from pipeline.views.apply import warm_up
    except ImportError:
        return None
    if not settings.shards:
        return None
    warm_up()
    workers = len(os.sched_getaffinity(0))
    dataset = GroupViews(settings, teacher)

    def load() -> Iterator[tuple[Tensor, AugmentedGroup]]:
        return iter(
            DataLoader(
                dataset,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=2,
                multiprocessing_context="fork",
                worker_init_fn=_use_one_thread,
            )
        )

    skipped = min(2 * workers, len(dataset) // 2)
    rates, busy = {}, 0.0
    for name, label in (("augment", False), ("both", True)):
        groups = load()
        for _ in range(skipped):
            next(groups)
        started, views = time.perf_counter(), 0
        for pixels, group in groups:
            views += int(group.valid.sum())
            if label:
                begun = time.perf_counter()
                teacher.label_group(with_pixels(group, pixels))
                busy += time.perf_counter() - begun
        seconds = time.perf_counter() - started
        rates[name] = views / seconds
        share = busy / seconds
    return {
        "augmented_views_per_second": rates["augment"],
        "labelled_views_per_second": rates["both"],
        "teacher_busy": share,
        "cores": workers,
        "cores_for_one_teacher": teacher_rate / (rates["augment"] / workers),
    }


def with_pixels(group: AugmentedGroup, pixels: Tensor) -> AugmentedGroup:
    """Return the group with its pixels back in place."""
    return replace(group, pixels=pixels.numpy())


def _use_one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def flips(settings: Settings, teacher: Teacher) -> dict[str, float] | None:
    """Return how many labels differ in fp32; None without shards and trained weights."""
    if settings.checkpoint is None or not settings.shards:
        return None
    exact = make_teacher(settings, "fp32")
    rows = different = 0
    dataset = GroupViews(settings, teacher)
    for item in range(min(len(dataset), 40)):
        pixels, rest = dataset[item]
        group = with_pixels(rest, pixels)
        valid = group.valid.reshape(-1)
        ours, theirs = (one.label_group(group).label[valid] for one in (teacher, exact))
        rows, different = rows + len(ours), different + int((ours != theirs).sum())
    return {"rows": rows, "flips": different, "share": different / max(1, rows)}


def student_steps(settings: Settings, name: str) -> dict[str, float]:
    """Return milliseconds of a student's step with stored labels, and with timm's teacher."""
    rows = settings.student_rows
    images = random_images(settings, rows)
    labels = torch.randint(CLASSES, (rows,), device=settings.device)
    student = timm.create_model(name, num_classes=CLASSES, img_size=settings.image_size)
    student = student.to(settings.device).train()
    optimizer = create_optimizer_v2(student, "adamw", lr=1e-4, weight_decay=0.05)
    task = TokenDistillationTask(
        student_model=student,
        teacher_model=plain_model(settings, settings.teacher),
        criterion=nn.CrossEntropyLoss(),
        distill_type="hard",
        task_loss_weight=0.5,
        device=settings.device,
        verbose=False,
    )
    task.train()
    criterion = nn.CrossEntropyLoss()

    def stored() -> Tensor:
        loss: Tensor = sum(0.5 * criterion(logits, labels) for logits in student(images))
        return loss

    def in_loop() -> Tensor:
        loss: Tensor = task(images, labels)["loss"]
        return loss

    def step(loss_of: Callable[[], Tensor]) -> Callable[[], object]:
        def run() -> None:
            with torch.autocast(settings.device.type, torch.bfloat16):
                loss = loss_of()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return run

    cases = {"store": step(stored), "in the loop": step(in_loop)}
    timings = timed(settings, cases, items=1)
    return {
        "store_ms": 1e3 * timings.median("store"),
        "in_loop_ms": 1e3 * timings.median("in the loop"),
        "in_loop_over_store": timings.ratio("in the loop", "store"),
    }


if __name__ == "__main__":
    main()
