"""RegNetY-16GF's forward pass: as the label job runs it, against plain PyTorch in fp32.

Weights are random; they cost as much as trained ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import tyro
from torch import Tensor, nn

from benchmarks.report import Report, describe_machine, print_table
from benchmarks.timing import Timings, measure
from pipeline.identity import AugmentConfig, MixConfig, Precision
from pipeline.labelling.devices import choose_device, set_threads
from pipeline.labelling.teacher import TeacherSpec, load_teacher

PLAIN = "plain, fp32"
OURS: dict[Precision, str] = {
    "fp32": "as the job runs it, fp32",
    "bf16": "as the job runs it, bf16",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherBenchmark:
    """Measure the teacher's forward pass on the CPU."""

    architecture: str = "regnety_160.deit_in1k"
    """timm's name of the teacher."""
    rows: int = 48
    """Views of a batch; the job's batch on a CPU has 48."""
    rounds: int = 3
    """Rounds; each runs every case once."""
    json: Path | None = None
    """File to write the ratios to."""


def run_benchmark(config: TeacherBenchmark) -> Timings:
    """Measure all cases."""
    set_threads()
    images = torch.randn(config.rows, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    plain = timm.create_model(config.architecture, pretrained=False).eval()
    cases: dict[str, Callable[[], int]] = {PLAIN: _plain(plain, images)}
    for precision, name in OURS.items():
        spec = TeacherSpec(architecture=config.architecture, random_weights=0, precision=precision)
        teacher = load_teacher(spec, AugmentConfig(), MixConfig(), choose_device("cpu"))
        cases[name] = _counted(teacher.logits, images)
    return measure(cases, config.rounds)


def _plain(model: nn.Module, images: Tensor) -> Callable[[], int]:
    def forward(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(batch)
        return logits

    return _counted(forward, images)


def _counted(forward: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], int]:
    def run() -> int:
        return len(forward(images))

    return run


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    config = tyro.cli(TeacherBenchmark, description=TeacherBenchmark.__doc__)
    timings = run_benchmark(config)
    print_table(timings, PLAIN, "image")
    context = {case: 1e3 * timings.median(case) for case in timings.seconds}
    report = Report(
        ratios={"teacher_bf16": timings.ratio(PLAIN, OURS["bf16"])},
        context={"machine": describe_machine(), "teacher_milliseconds": context},
    )
    report.show()
    report.write(config.json)


if __name__ == "__main__":
    main()
