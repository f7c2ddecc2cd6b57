"""All benchmarks, one after the other, each in a process of its own: `make bench SHARDS='...'`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.report import Report

ON_SHARDS = ("views", "loader", "label_job", "training")
OTHERS = ("teacher", "store", "damage")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllBenchmarks:
    """Measure everything but the GPU; takes about eight minutes on an idle machine."""

    shards: tuple[str, ...]
    """Shards of photographs: files, brace patterns or globs, in quotes."""
    json: Path | None = None
    """File to write the ratios to."""


def run(name: str, arguments: list[str], directory: Path) -> dict[str, Any]:
    """Run one benchmark and return what it wrote."""
    print(f"\n## {name}\n", flush=True)
    path = directory / f"{name}.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(path), *arguments]
    subprocess.run(command, check=True)
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def main() -> None:
    """Run all benchmarks and write one JSON file if asked to."""
    config = tyro.cli(AllBenchmarks, description=AllBenchmarks.__doc__)
    shards = ["--shards", *config.shards]
    ratios: dict[str, float | None] = {}
    context: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in (*ON_SHARDS, *OTHERS):
            arguments = shards if name in ON_SHARDS else []
            result = run(name, arguments, Path(directory))
            ratios.update(result["ratios"])
            context.update(result["context"])
    print("\n## All")
    report = Report(ratios=ratios, context=context)
    report.show()
    report.write(config.json)


if __name__ == "__main__":
    main()
