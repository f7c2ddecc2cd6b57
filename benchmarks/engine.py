"""The trainer's step beside that of a bare loop: the same student, loss and optimizer.

Batches are made before, so neither waits for a loader. The bare loop is what one would write by
hand: views on the device, normalized and mixed, both losses, AdamW. It logs and checks nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch loads

import torch
import tyro
from timm.optim import create_optimizer_v2
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report import Report, describe_machine, print_table
from benchmarks.stand_in import write_store
from benchmarks.timing import Timings, measure
from pipeline.views.mixing import MixRows, mixed_views
from student.config import TrainConfig
from student.engine import Trainer
from student.inputs import open_inputs
from student.metrics import MetricsLog
from student.replay import ReplayDataset, StudentBatch

TINY = ("patch_size=8", "embed_dim=48", "depth=2", "num_heads=3")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBenchmark:
    """Measure steps of the trainer and of a bare loop on the CPU, in turn."""

    shards: tuple[str, ...]
    """Shards of photographs: files, brace patterns or globs, in quotes."""
    rounds: int = 20
    """Rounds; each takes some steps of both."""
    steps: int = 1
    """Steps of a round."""
    batch_size: int = 16
    """Rows of a batch."""
    image_size: int = 224
    """Side of the images in pixels."""
    model_args: tuple[str, ...] = ()
    """Of the student, DeiT-Ti: patch_size=8 embed_dim=48 depth=2 num_heads=3 with --image-size 32
    takes some milliseconds a step."""
    threads: int = 1
    """Of PyTorch."""
    json: Path | None = None
    """File to write the ratios to."""


def engine_step(trainer: Trainer, batches: Iterator[StudentBatch], log: MetricsLog) -> int:
    """Take one step as ``Trainer.run`` does; return its rows."""
    trainer._update(batches)
    trainer._report(log, [])
    return trainer.config.plan.batch_size


def bare_step(trainer: Trainer, batches: Iterator[StudentBatch]) -> Callable[[], int]:
    """Return a step by hand, of the same kind of student."""
    model, views = trainer.model, trainer.identity.augment
    classes = trainer.identity.teacher.classes
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-4, weight_decay=0.05)

    def soft(logits: Tensor, target: Tensor) -> Tensor:
        return -(target * F.log_softmax(logits, dim=-1)).sum(-1).mean()

    def step() -> int:
        batch = next(batches)
        rows = MixRows.of(batch.mix)
        images = mixed_views(batch.pixels, rows, views.mean, views.std)
        smooth = F.one_hot(batch.target, classes) * 0.9 + 0.1 / classes
        other = F.one_hot(batch.partner_target, classes) * 0.9 + 0.1 / classes
        lam = rows.lam.float()[:, None]
        optimizer.zero_grad(set_to_none=True)
        class_logits, distillation_logits = model(images)
        loss = 0.5 * soft(class_logits, lam * smooth + (1 - lam) * other)
        loss = loss + 0.5 * F.cross_entropy(distillation_logits, batch.label)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return len(batch.pixels)

    return step


def run_benchmark(config: EngineBenchmark, root: Path) -> Timings:
    """Measure both steps."""
    labels = root / "bench.parquet"
    write_store(labels, config.shards, views=3, image_size=config.image_size)
    trainers = []
    for name in ("engine", "bare"):
        settings = TrainConfig.of_settings(
            labels=str(labels),
            shards=config.shards,
            output=str(root / name),
            model_args=config.model_args,
            batch_size=config.batch_size,
            epochs=100,
            cycle_views=True,
            checkpoint_epochs=1000,  # which the bare loop does not write
            drop_path=0.0,
            device="cpu",
            threads=config.threads,
            workers=0,
        )
        trainers.append(Trainer(settings, open_inputs(settings)))
    engine, bare = trainers
    data = engine._data
    assert isinstance(data, ReplayDataset)
    batches = [data[step] for step in range(4)]
    by_hand, given = bare_step(bare, cycle(batches)), cycle(batches)
    torch.manual_seed(0)
    with MetricsLog(engine.output.directory, start=0) as log:
        return measure(
            {
                "engine": lambda: sum(engine_step(engine, given, log) for _ in range(config.steps)),
                "bare loop": lambda: sum(by_hand() for _ in range(config.steps)),
            },
            config.rounds,
        )


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    config = tyro.cli(EngineBenchmark, description=EngineBenchmark.__doc__)
    with tempfile.TemporaryDirectory() as directory:
        timings = run_benchmark(config, Path(directory))
    print_table(timings, "bare loop", "image of a step")
    report = Report(
        ratios={
            "step_engine_over_bare": timings.cpu_ratio("engine", "bare loop"),
            "step_engine_over_bare_by_the_clock": timings.ratio("engine", "bare loop"),
        },
        context={"machine": describe_machine()},
    )
    report.show()
    report.write(config.json)


if __name__ == "__main__":
    main()
