"""What every benchmark prints and writes: ratios or figures, and what they were measured on."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import Timings
from pipeline.store.provenance import processor, versions

__all__ = ["AIMS", "Report", "describe_machine", "print_table"]

AIMS: Mapping[str, tuple[str, float]] = {
    "view_1_per_decode": (">=", 3.0),
    "view_3_per_decode": (">=", 5.0),
    "view_15_per_decode": (">=", 10.0),
    "view_1_restart": (">=", 3.3),
    "view_1_packed": (">=", 5.3),
    "view_15_packed": (">=", 13.0),
    "crop_flip_vs_dali": (">=", 2.2),
    "crop_flip_vs_albumentations": (">=", 1.0),
    "loader_overhead": ("<=", 1.05),
    "two_workers": (">=", 1.9),
    "two_threads": (">=", 1.9),
    "first_batch_milliseconds": ("<=", 150),
    "worker_private_mb": ("<=", 200),
    "teacher_bf16": (">=", 4.0),
    "teacher_busy": (">=", 0.95),
    "step_with_store": ("<=", 1.03),
    "step_in_loop_over_store": (">=", 4.0),
    "step_engine_over_bare": ("<=", 1.01),  # by CPU time
    "store_bytes_unmixed_150": ("<=", 0.75),
    "store_bytes_mixed_150": ("<=", 1.30),
    "store_bytes_unmixed_300": ("<=", 0.60),
    "store_bytes_mixed_300": ("<=", 1.15),
    "store_bytes_unmixed_150_soft": ("<=", 13.0),
    "store_bytes_mixed_150_soft": ("<=", 15.2),
    "store_commit_labels_per_second": (">=", 1e6),
    "store_read_warm_milliseconds": ("<=", 3.0),
    "store_open_seconds": ("<=", 0.2),
    "silent_damage_directory": ("<=", 0),
    "silent_damage_zarr": ("<=", 0),
    "silent_damage_single_file": ("<=", 0),
}
"""What we aim at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The results of one or several benchmarks."""

    ratios: Mapping[str, float | None]  # medians; None for what cannot be measured here
    context: Mapping[str, Any] = field(default_factory=dict)

    def show(self) -> None:
        """Print each ratio beside its aim."""
        print()
        for name, value in self.ratios.items():
            sign, aim = AIMS.get(name, ("", None))
            text = "not measured" if value is None else f"{value:.3g}"
            print(f"{name}: {text}" + (f" (aim: {sign} {aim:g})" if aim is not None else ""))

    def write(self, path: Path | None) -> None:
        """Write JSON to ``path``, if there is one."""
        if path is not None:
            values = {"ratios": dict(self.ratios), "context": dict(self.context)}
            path.write_text(json.dumps(values, indent=2) + "\n")


def describe_machine() -> dict[str, Any]:
    """Return what figures depend on."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "versions": {**versions(), "numpy": np.__version__},
    }


def print_table(timings: Timings, base: str, item: str) -> None:
    """Print each case's milliseconds per ``item``, and its speed as a multiple of ``base``.

    By the clock, and by CPU time where that was taken.
    """
    print(f"| one {item} | ms, median | times '{base}', median | least .. most | by CPU time |")
    print("|---|---|---|---|---|")
    for case in timings.seconds:
        ratios = timings.ratios(base, case)
        print(
            f"| {case} | {1e3 * timings.median(case):.2f} | {timings.ratio(base, case):.2f} "
            f"| {min(ratios):.2f} .. {max(ratios):.2f} "
            f"| {f'{timings.cpu_ratio(base, case):.2f}' if timings.cpu_seconds else ''} |"
        )
