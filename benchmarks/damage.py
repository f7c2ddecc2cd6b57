"""Damaged stores: flipped bits and cut files of each format, and how many go unnoticed.

Run by `make bench`, or alone by `python -m benchmarks.damage`.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.realistic import make_identity, make_rows
from benchmarks.report import Report, describe_machine
from benchmarks.store import SOFT, first_views, write_store
from pipeline.errors import PipelineError
from pipeline.store import LabelStore, open_store
from pipeline.store.export import export_store
from pipeline.tools.verify import verify_store

FORMATS = {"directory": "labels.parquet", "zarr": "labels.zarr", "single_file": "one.parquet"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DamageBenchmark:
    """Damage stores, one bit or one cut at a time, and count what is not noticed."""

    flips: int = 1000
    """Single bits flipped, at random offsets of all of a store's files."""
    cuts: int = 100
    """Files cut to a random length."""
    samples: int = 60
    """Samples of the store."""
    views: int = 12
    """Views of the store."""
    json: Path | None = None
    """File to write the figures to."""


def write_formats(config: DamageBenchmark, folder: Path) -> dict[str, Path]:
    """Write one store in each format."""
    identity = make_identity(mixed=True, columns=SOFT)
    rows = first_views(make_rows(config.samples, config.views, identity), config.views, soft=True)
    paths = {name: folder / path for name, path in FORMATS.items()}
    write_store(paths["directory"], replace(rows, identity=identity.digest), identity)
    export_store(paths["directory"], paths["zarr"])
    export_store(paths["directory"], paths["single_file"], single_file=True)
    return paths


def all_labels(store: LabelStore) -> NDArray[np.int64]:
    """Return all that a student may use of a store, as one array."""
    found: list[NDArray[np.int64]] = []
    for view in store.manifest.view_range:
        read = store.read_view(0, view)
        names = ("label", "seed", "target", "digest", "accepted")
        columns = [*(getattr(read, name) for name in names), *read.columns.values()]
        found += [one.reshape(-1).astype(np.int64) for one in columns]
    return np.concatenate(found)


def damages(path: Path, config: DamageBenchmark) -> Iterator[str]:
    """Damage a store in place, one way after the other, and mend it each time."""
    random = np.random.default_rng(0)
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    sizes = np.array([file.stat().st_size for file in files])
    for number in range(config.flips + config.cuts):
        chosen = int(random.choice(len(files), p=sizes / sizes.sum()))
        file, whole = files[chosen], files[chosen].read_bytes()
        offset = int(random.integers(len(whole)))
        if number < config.flips:
            bit = 1 << int(random.integers(8))
            file.write_bytes(whole[:offset] + bytes([whole[offset] ^ bit]) + whole[offset + 1 :])
            yield "flip"
        else:
            file.write_bytes(whole[:offset])
            yield "cut"
        file.write_bytes(whole)


def count_outcomes(path: Path, config: DamageBenchmark) -> Counter[str]:
    """Return how often damage was refused by a reader, found by ``verify``, or silent."""
    labels = all_labels(open_store(path))
    outcomes: Counter[str] = Counter()
    for _ in damages(path, config):
        try:
            used = all_labels(open_store(path))
        except PipelineError:
            outcomes["refused before a label is used"] += 1
            continue
        if not np.array_equal(used, labels):
            outcomes["other labels, silently"] += 1
            continue
        try:
            verify_store(path)
        except PipelineError:
            outcomes["no label touched, found by verify"] += 1
        else:
            outcomes["no label touched, not found"] += 1
    return outcomes


def main() -> None:
    """Count, print, and write JSON if asked to."""
    config = tyro.cli(DamageBenchmark, description=DamageBenchmark.__doc__)
    with tempfile.TemporaryDirectory() as directory:
        paths = write_formats(config, Path(directory))
        found = {name: count_outcomes(path, config) for name, path in paths.items()}
    for name, outcomes in found.items():
        print(f"{name}: " + ", ".join(f"{count} {what}" for what, count in outcomes.items()))
    silent = {
        f"silent_damage_{name}": float(
            outcomes["other labels, silently"] + outcomes["no label touched, not found"]
        )
        for name, outcomes in found.items()
    }
    context = {name: dict(outcomes) for name, outcomes in found.items()}
    report = Report(ratios=silent, context={"machine": describe_machine(), "damage": context})
    report.show()
    report.write(config.json)


if __name__ == "__main__":
    main()
