"""DeiT-Ti's training step: from a store, with its labels ignored, and with a teacher in the loop.

The teacher in the loop is RegNetY-16GF in timm's ``TokenDistillationTask``, on the student's
batch as it is. All steps take their batches from the same replay loader; weights are random.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch loads

import timm
import torch
import tyro
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.task import TokenDistillationTask
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.report import Report, describe_machine, print_table
from benchmarks.stand_in import CLASSES, write_store
from benchmarks.timing import Timings, measure
from pipeline.files.local import expand_shards
from pipeline.labelling.devices import set_threads
from pipeline.records import FIXED_ONE
from pipeline.shards.index import match_shards
from pipeline.views.apply import warm_up
from pipeline.views.mixing import mix_images, normalize
from student.order import PlanConfig, TrainingPlan
from student.replay import ReplayDataset, StudentBatch

STUDENT, TEACHER = "deit_tiny_distilled_patch16_224", "regnety_160.deit_in1k"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBenchmark:
    """Measure training steps on the CPU."""

    shards: tuple[str, ...]
    """Shards of photographs: files, brace patterns or globs, in quotes."""
    rounds: int = 5
    """Rounds; each takes one step of every case."""
    batch_size: int = 32
    """Rows of a batch."""
    json: Path | None = None
    """File to write the ratios to."""


class Steps:
    """A student, and the steps that train it; each on the next batch of the same loader."""

    def __init__(self, dataset: ReplayDataset, *, bf16: bool) -> None:
        self._dataset, self._bf16 = dataset, bf16
        self._augment = dataset.store.identity.augment
        torch.manual_seed(0)
        self._model: nn.Module = timm.create_model(STUDENT, num_classes=CLASSES)
        self._model.set_distilled_training(True)
        self._model.train()
        self._optimizer = create_optimizer_v2(self._model, "adamw", lr=1e-4, weight_decay=0.05)
        self._hard = nn.CrossEntropyLoss()
        self._soft = SoftTargetCrossEntropy()

    def with_labels(self) -> Callable[[], int]:
        """Return the step that learns the stored labels."""
        return self._step(lambda images, batch, truth: self._two_losses(images, truth, batch.label))

    def without_labels(self) -> Callable[[], int]:
        """Return the same step, with the true classes in place of the stored labels."""
        return self._step(
            lambda images, batch, truth: self._two_losses(images, truth, batch.target)
        )

    def in_loop(self) -> Callable[[], int]:
        """Return timm's step, with the teacher in the loop."""
        teacher = timm.create_model(TEACHER, pretrained=False, num_classes=CLASSES)
        task = TokenDistillationTask(
            student_model=self._model,
            teacher_model=teacher,
            criterion=self._soft,
            distill_type="hard",
            task_loss_weight=0.5,
            verbose=False,
        )
        task.train()
        return self._step(lambda images, _, truth: task(images, truth)["loss"])

    def _two_losses(self, images: Tensor, truth: Tensor, label: Tensor) -> Tensor:
        class_logits, distillation_logits = self._model(images)
        loss: Tensor = self._soft(class_logits, truth) + self._hard(distillation_logits, label)
        return 0.5 * loss

    def _step(self, loss_of: Callable[[Tensor, StudentBatch, Tensor], Tensor]) -> Callable[[], int]:
        batches = self._batches()

        def run() -> int:
            batch = next(batches)
            images = normalize(batch.pixels, self._augment.mean, self._augment.std)
            images = mix_images(images, batch.mix)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
                loss = loss_of(images, batch, _mixed_truth(batch))
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            return len(batch.pixels)

        return run

    def _batches(self) -> Iterator[StudentBatch]:
        for step in count():
            yield self._dataset[step % len(self._dataset)]


def _mixed_truth(batch: StudentBatch) -> Tensor:
    """Return smoothed and mixed one-hot targets, (B, C)."""
    smooth = F.one_hot(batch.target, CLASSES) * 0.9 + 0.1 / CLASSES
    lam = torch.from_numpy(batch.mix.lam).float()[:, None] / FIXED_ONE
    return lam * smooth + (1 - lam) * smooth[torch.from_numpy(batch.mix.partner)]


def run_benchmark(config: TrainingBenchmark, root: Path) -> dict[str, Timings]:
    """Measure all steps in fp32 and in bf16."""
    set_threads()
    warm_up()
    store = write_store(root, config.shards, views=3, image_size=224)
    paths = match_shards(store.manifest.shards, expand_shards(config.shards))
    plan = TrainingPlan(store.manifest, PlanConfig(seed=0, batch_size=config.batch_size, epochs=3))
    dataset = ReplayDataset(store, paths, plan)
    timings = {}
    for precision in ("fp32", "bf16"):
        steps = Steps(dataset, bf16=precision == "bf16")
        few = {"labels ignored": steps.without_labels(), "store": steps.with_labels()}
        timings[precision] = measure({**few, "in the loop": steps.in_loop()}, config.rounds)
        if precision == "fp32":
            timings["labels"] = measure(few, 4 * config.rounds)
    return timings


def main() -> None:
    """Measure, print tables, and write JSON if asked to."""
    config = tyro.cli(TrainingBenchmark, description=TrainingBenchmark.__doc__)
    with tempfile.TemporaryDirectory() as directory:
        timings = run_benchmark(config, Path(directory) / "bench.parquet")
    for name, one in timings.items():
        print(f"\n{name}:\n")
        print_table(one, "store", "image of a step")
    context = {
        name: {case: 1e3 * one.median(case) for case in one.seconds}
        for name, one in timings.items()
    }
    report = Report(
        ratios={
            "step_with_store": timings["labels"].ratio("store", "labels ignored"),
            "step_in_loop_over_store": timings["fp32"].ratio("in the loop", "store"),
            "step_in_loop_over_store_bf16": timings["bf16"].ratio("in the loop", "store"),
        },
        context={"machine": describe_machine(), "training_milliseconds_per_image": context},
    )
    report.show()
    report.write(config.json)


if __name__ == "__main__":
    main()
