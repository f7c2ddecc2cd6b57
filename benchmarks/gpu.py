"""What one GPU and its cores do: the teacher, its feeding, and students with and without it.

`python -m benchmarks.gpu --json gpu.json` takes less than nine minutes, and needs no data: without
`--shards` it makes photographs. It needs PyTorch, timm, NumPy, PyArrow, simplejpeg, numba
and Pillow; where Ray and tyro are there, a whole label job runs on Ray too. `--device cpu --smoke`
tries all of it anywhere, at sizes that say nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.optim import create_optimizer_v2
from timm.task import TokenDistillationTask
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import Timings, measure
from pipeline.identity import AugmentConfig, MixConfig, Precision, StoreIdentity
from pipeline.labelling.devices import set_threads
from pipeline.labelling.part import group_tasks, run_task
from pipeline.labelling.teacher import Teacher, TeacherSpec, load_teacher
from pipeline.records import AugmentedGroup, PartKey, ViewMix
from pipeline.shards.index import open_shard
from pipeline.views import mixing

GROUP = 16  # samples of a teacher batch
CLASSES = 1000
IMAGENET_VIEWS = 1_281_167 * 300
CORES = 16  # of the machine that the headline speaks of
AIMS = {"teacher_share_of_matrix_rate": 0.43, "teacher_busy": 0.97, "imagenet_hours": 10.0}
MINUTES = 7.0  # after which no further section begins, so that all ends before nine


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
    seconds: float  # of each way of feeding
    matrix: int  # side of the matrices
    rounds: int
    photographs: int  # made where no shards are given
    views: int  # of a teacher batch; on a GPU a block
    batches: int  # one after the other, so that the first and last count little

    @property
    def augment(self) -> AugmentConfig:
        """DeiT's recipe at the size."""
        return AugmentConfig(image_size=self.image_size)

    @property
    def weights(self) -> str:
        """Which weights the teacher has; random ones cost as much, but their flips say nothing."""
        return "random" if self.checkpoint is None else self.checkpoint.name


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything and write JSON."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__)
    deits = [f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base")]
    parser.add_argument("--shards", nargs="*", default=[], help="photographs; else some are made")
    parser.add_argument("--teacher", default="regnety_160.deit_in1k")
    parser.add_argument("--checkpoint", type=Path, help="trained weights, for the flip rate")
    parser.add_argument("--students", nargs="*", default=deits)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--student-rows", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each way of feeding")
    parser.add_argument("--matrix", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photographs", type=int, default=320)
    parser.add_argument("--views", type=int, default=MixConfig().block_views, help="of a batch")
    parser.add_argument("--batches", type=int, default=8, help="of a round")
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, which say nothing")
    parser.add_argument("--json", type=Path)
    given = vars(parser.parse_args(arguments))
    if given["device"] == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU; give --device cpu --smoke to try the benchmark out")
    json_path, only = given.pop("json"), given.pop("only")
    if given.pop("smoke"):
        given |= SMOKE
    given["device"] = torch.device(given["device"])
    set_threads()
    with tempfile.TemporaryDirectory() as directory:
        values: dict[str, Any] = {
            name: tuple(one) if isinstance(one, list) else one for name, one in given.items()
        }
        settings = Settings(**values)
        if not settings.shards:
            made = make_photographs(Path(directory), settings.photographs)
            settings = replace(settings, shards=made)
        results: dict[str, Any] = {"machine": describe_machine(settings)}
        results |= measure_all(settings, only, began + 60 * MINUTES)
    results["minutes"] = (time.perf_counter() - began) / 60
    text = json.dumps(results, indent=2)
    print(text)
    if json_path is not None:
        json_path.write_text(text + "\n")
    sys.exit(bool(results["failed"]))


SMOKE: dict[str, Any] = {
    "teacher": "regnety_002",
    "students": ["deit_tiny_distilled_patch16_224"],
    "image_size": 32,
    "student_rows": 4,
    "seconds": 0.5,
    "matrix": 64,
    "rounds": 1,
    "photographs": 36,
    "views": 3,
    "batches": 2,
}


def describe_machine(settings: Settings) -> dict[str, Any]:
    """Return what figures depend on."""
    cuda = settings.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "aims": AIMS,
        "weights": settings.weights,
        "settings": {name: str(value) for name, value in asdict(settings).items()},
    }


def measure_all(settings: Settings, only: Sequence[str], deadline: float) -> dict[str, Any]:
    """Return what the sections say, each told of those before it.

    Those that fail, and those that there is no time for, are named, and lose none of the others.
    """
    found: dict[str, Any] = {}
    late: list[str] = []
    failed: dict[str, str] = {}
    for name in (name for name in SECTIONS if name in only):
        if time.perf_counter() > deadline:
            late.append(name)
            continue
        began = time.perf_counter()
        try:
            found |= SECTIONS[name](settings, found)
        except Exception as error:
            traceback.print_exc()
            failed[name] = repr(error)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return {**found, "left_out_for_time": late, "failed": failed}


def make_photographs(directory: Path, count: int) -> tuple[str, ...]:
    """Write so many JPEGs of 500 x 375 pixels and about 100 KB into shards; return their paths."""
    paths = [directory / f"photographs-{number}.tar" for number in range(2)]
    with multiprocessing.get_context("fork").Pool() as pool:
        images = pool.map(photograph, range(count))
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for index in range(number, count, len(paths)):
                target = str(index % CLASSES).encode()
                for name, data in (("jpg", images[index]), ("cls", target)):
                    member = tarfile.TarInfo(f"{index:06d}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return tuple(map(str, paths))


def photograph(number: int, height: int = 375, width: int = 500) -> bytes:
    """Return a JPEG that takes as long to decode as a photograph: noise of many sizes."""
    random = np.random.default_rng(number)
    pixels = np.full((height, width, 3), 128.0)
    for octave in range(1, 8):
        side, share = 2**octave, 2 ** (-0.55 * (octave - 1))
        coarse = random.normal(0, 60 * share, (side, side, 1))
        coarse = coarse + random.normal(0, 40 * share, (side, side, 3))
        for channel in range(3):
            image = Image.fromarray(coarse[..., channel].astype(np.float32))
            pixels[..., channel] += np.asarray(
                image.resize((width, height), Image.Resampling.BICUBIC)
            )
    pixels += random.normal(0, 12, (height, width, 1))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


def matrix_section(settings: Settings, _: dict[str, Any]) -> dict[str, Any]:
    """Measure the device's bf16 products."""
    return {"matrix_tflops_bf16": matrix_rate(settings) / 1e12}


def teacher_section(settings: Settings, found: dict[str, Any]) -> dict[str, Any]:
    """Measure the teacher alone, and of the same batch other ways to run it."""
    teacher = make_teacher(settings, "bf16")
    speeds = teacher_speeds(settings, teacher)
    flops = 2 * multiply_adds(settings)
    rate = 1e12 * found.get("matrix_tflops_bf16", math.nan)
    forward = teacher._forward
    mean, std = settings.augment.mean, settings.augment.std
    place = forward._input
    return {
        "teacher_images_per_second": speeds,
        "teacher_over_autocast": speeds["pipeline"] / speeds["autocast"],
        "teacher_share_of_matrix_rate": speeds["pipeline"] * flops / rate,
        "teacher_is_a_graph": forward._run != forward._run_plainly,
        "views_are_mixed_in_one_kernel": mixing._is_fused(
            place.device, place.dtype, settings.image_size, mean, std
        ),
    }


def feeding_section(settings: Settings, found: dict[str, Any]) -> dict[str, Any]:
    """Feed the teacher by all cores, and say how long ImageNet takes."""
    fed = feeding(settings, make_teacher(settings, "bf16"))
    of_core = fed["augmented_views_per_second"] / fed["cores"]
    teacher = found.get("teacher_images_per_second", {}).get("pipeline", math.nan)
    rate = min(teacher, CORES * of_core)
    return {
        "feeding": {**fed, "cores_for_one_teacher": teacher / of_core},
        "imagenet_hours": {
            f"one GPU and {CORES} cores, estimated": IMAGENET_VIEWS / rate / 3600,
            "this machine, by what it labelled": IMAGENET_VIEWS
            / fed["labelled_views_per_second"]
            / 3600,
        },
    }


def flips_section(settings: Settings, _: dict[str, Any]) -> dict[str, Any]:
    """Count the labels that bf16 changes."""
    return {"flips_against_fp32": flips(settings)}


def students_section(settings: Settings, _: dict[str, Any]) -> dict[str, Any]:
    """Measure students' steps."""
    return {"students": {name: student_steps(settings, name) for name in settings.students}}


def ray_section(settings: Settings, found: dict[str, Any]) -> dict[str, Any]:
    """Run a whole label job on Ray, as the command does, and return what it says of itself."""
    if find_spec("ray") is None or find_spec("tyro") is None:
        return {"label_job_on_ray": None}
    rate = found.get("feeding", {}).get("labelled_views_per_second", 0.0)
    samples = sum(open_shard(Path(path), 0).info.samples for path in settings.shards)
    block = MixConfig().block_views
    blocks = max(1, round(rate * settings.seconds / samples / block))
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "labels.parquet"
        weights = ("--teacher-random-weights", "0")
        if settings.checkpoint is not None:
            weights = ("--teacher-checkpoint", str(settings.checkpoint))
        flags = {
            "--out": str(out),
            "--teacher": settings.teacher,
            "--image-size": str(settings.image_size),
            "--precision": "bf16",
            "--device": settings.device.type,
            "--views": str(block * blocks),
            "--views-per-part": str(block * min(blocks, 10)),
        }
        command = [sys.executable, "-m", "jobs.label_teacher", "--shards", *settings.shards]
        command += [
            "--allow-low-agreement",
            *weights,
            *(word for one in flags.items() for word in one),
        ]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (record,) = (out / "_meta" / "runs").iterdir()
        told = json.loads(record.read_text())
    names = ("labels", "seconds", "labels_per_second", "teacher_busy_share")
    return {"label_job_on_ray": {name: told[name] for name in names}}


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
        batch_views=settings.views,
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
    """Return images per second: from staged views to labels, and the network in other ways."""
    rows = GROUP * settings.views
    images, group = random_images(settings, rows), noise_group(settings)
    plain = plain_model(settings, settings.teacher).eval()

    def pipeline() -> None:
        for _ in teacher.label_groups([group] * settings.batches):
            pass

    def launched() -> None:
        for _ in range(settings.batches):
            teacher.logits(images)

    def autocast() -> None:
        with torch.inference_mode(), torch.autocast(settings.device.type, torch.bfloat16):
            for _ in range(settings.batches):
                plain(images)

    cases: dict[str, Callable[[], object]] = {
        "pipeline": pipeline,
        "kernel by kernel": launched,
        "autocast": autocast,
    }
    pipeline()  # takes memory, makes the graph
    began, busy = time.perf_counter(), teacher.busy_seconds
    pipeline()
    busy = (teacher.busy_seconds - busy) / (time.perf_counter() - began)
    timings = timed(settings, cases, items=rows * settings.batches)
    return {**{name: 1 / timings.median(name) for name in cases}, "share of busy time": busy}


def noise_group(settings: Settings) -> AugmentedGroup:
    """Return a group for one whole batch, as augmentation gives it, of noise."""
    views, side = settings.views, settings.image_size
    shape = (GROUP, views)
    random = np.random.default_rng(0)
    mix = ViewMix.unmixed(GROUP * views)
    mix.kind[:] = random.integers(1, 3, len(mix.kind))
    mix.partner[:] = (mix.partner + views) % len(mix.partner)
    mix.lam[:] = random.integers(0, 1 << 16, len(mix.lam))
    mix.box[:] = (side // 8, side // 4, side // 2, side // 2)
    none = np.zeros(shape, np.bool_)
    return AugmentedGroup(
        shard=0,
        members=tuple(range(GROUP)),
        first_view=0,
        pixels=random.integers(0, 256, (*shape, side, side, 3), np.uint8),
        valid=~none,
        mix=mix,
        digest=np.zeros(shape, np.uint32),
        has_digest=none,
        has_mixed_digest=none,
        rejections=(),
        decode_seconds=0.0,
        augment_seconds=0.0,
    )


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
    """The label job's augmentation: item k is a group of the shards, decoded and augmented."""

    def __init__(self, settings: Settings, teacher: Teacher) -> None:
        identity = StoreIdentity(
            root_seed=0, augment=settings.augment, mix=MixConfig(), teacher=teacher.identity
        )
        self._tasks = []
        for number, path in enumerate(settings.shards):
            info = open_shard(Path(path), number).info
            part = PartKey(shard=number, first_view=0, views=settings.views)
            self._tasks += list(group_tasks(Path(path), info, part, identity))

    def __len__(self) -> int:
        return 1 << 40  # as many as there is time for

    def __getitem__(self, item: int) -> tuple[Tensor, AugmentedGroup]:
        group = run_task(self._tasks[item % len(self._tasks)])
        # Pixels go through shared memory as a tensor; a NumPy array would go through a pipe.
        return torch.from_numpy(group.pixels), replace(group, pixels=group.pixels[:0])


def feeding(settings: Settings, teacher: Teacher) -> dict[str, float]:
    """Return how fast all cores augment, and how busy they keep the teacher."""
    from pipeline.views.apply import warm_up

    warm_up()
    workers = len(os.sched_getaffinity(0))
    dataset = GroupViews(settings, teacher)

    def groups() -> Iterator[AugmentedGroup]:
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=range(len(dataset)),
            num_workers=workers,
            prefetch_factor=2,
            multiprocessing_context="fork",
            worker_init_fn=_use_one_thread,
        )
        for pixels, group in loader:
            yield with_pixels(group, pixels)

    def for_a_while(source: Iterator[AugmentedGroup]) -> tuple[int, float, float]:
        for _ in islice(source, 3 * workers):  # those that lay ready
            pass
        views, busy, began = 0, teacher.busy_seconds, time.perf_counter()
        for group in source:
            views += int(group.valid.sum())
            if time.perf_counter() - began > settings.seconds:
                break
        return views, time.perf_counter() - began, teacher.busy_seconds - busy

    def labelled() -> Iterator[AugmentedGroup]:
        for group, _ in teacher.label_groups(groups()):
            yield group

    views, seconds, _ = for_a_while(groups())
    augmented = views / seconds
    views, seconds, busy = for_a_while(labelled())
    return {
        "augmented_views_per_second": augmented,
        "labelled_views_per_second": views / seconds,
        # A batch that was under way at the start counts whole.
        "teacher_busy": min(1.0, busy / seconds),
        "cores": workers,
    }


def with_pixels(group: AugmentedGroup, pixels: Tensor) -> AugmentedGroup:
    """Return the group with its pixels back in place."""
    return replace(group, pixels=pixels.numpy())


def _use_one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def flips(settings: Settings) -> dict[str, Any]:
    """Return how many labels of views differ in fp32; of trained weights only it says something."""
    teacher, exact = (make_teacher(settings, one) for one in PRECISIONS)
    rows = different = 0
    dataset = GroupViews(settings, teacher)
    for item in range(10 if settings.rounds > 1 else 1):  # 2,400 views, as the job's trial
        pixels, rest = dataset[item]
        group = with_pixels(rest, pixels)
        valid = group.valid.reshape(-1)
        ours, theirs = (one.label_group(group).label[valid] for one in (teacher, exact))
        rows, different = rows + len(ours), different + int((ours != theirs).sum())
    share = different / max(1, rows)
    return {"rows": rows, "flips": different, "share": share, "weights": settings.weights}


PRECISIONS: tuple[Precision, Precision] = ("bf16", "fp32")


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
        "rows": rows,
        "store_ms": 1e3 * timings.median("store"),
        "in_loop_ms": 1e3 * timings.median("in the loop"),
        "in_loop_over_store": timings.ratio("in the loop", "store"),
    }


SECTIONS: dict[str, Callable[[Settings, dict[str, Any]], dict[str, Any]]] = {
    "matrix": matrix_section,
    "teacher": teacher_section,
    "feeding": feeding_section,
    "students": students_section,
    "flips": flips_section,
    "ray": ray_section,
}
"""What is measured, in this order."""


if __name__ == "__main__":
    main()
