"""What the Parquet store takes and how fast it is, on made-up labels of 1,000 classes.

Run by `make bench`, or alone by `python -m benchmarks.store`; `docs/PERFORMANCE.md` has results.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import tyro

from benchmarks.realistic import make_identity, make_rows
from benchmarks.report import Report, describe_machine
from benchmarks.timing import Timings, measure, pin_to_one_core
from pipeline.columns import ColumnConfig, Columns
from pipeline.files.local import open_folder
from pipeline.identity import StoreIdentity
from pipeline.records import PartKey, PartRows, ShardInfo
from pipeline.store import ParquetStore, claim_store, commit_part, finish_store, open_store
from pipeline.store.card import card_text
from pipeline.store.manifest import (
    Agreement,
    Manifest,
    PartEntry,
    read_manifest,
    write_manifest,
)
from pipeline.store.parquet import encode_part
from pipeline.store.provenance import processor
from pipeline.views.fingerprints import fingerprints

SOFT = ColumnConfig(confidence=True, topk=5)
PART_VIEWS = (150, 300)
READS = 16  # of a round: one alone would measure what other cases left in the caches


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreBenchmark:
    """Measure size, encoding, reading and opening of stores, on one core."""

    samples: int = 1250
    """Samples of a shard."""
    parts: int = 8000
    """Parts of the store whose opening is timed, two a shard."""
    rounds: int = 7
    """Rounds; each runs every case once."""
    folder: Path | None = None
    """Where to write trial stores: a disk whose speed is wanted; the temporary directory."""
    json: Path | None = None
    """File to write the figures to."""


def first_views(rows: PartRows, views: int, *, soft: bool) -> PartRows:
    """Return the first views of a part, with its optional columns or without."""
    rows = rows.cut(replace(rows.part, views=views))
    return rows if soft else replace(rows, columns=Columns())


def sizes(samples: int) -> tuple[dict[str, float], dict[bool, PartRows]]:
    """Return bytes per view by case, and the rows of 150 views, mixed or not."""
    found: dict[str, float] = {}
    kept: dict[bool, PartRows] = {}
    for mixed in (False, True):
        identity = make_identity(mixed=mixed, columns=SOFT)
        whole = make_rows(samples, max(PART_VIEWS), identity)
        for views in PART_VIEWS:
            for soft in (False, True):
                rows = first_views(whole, views, soft=soft)
                case = f"{'mixed' if mixed else 'unmixed'}_{views}{'_soft' if soft else ''}"
                found[f"store_bytes_{case}"] = len(encode_part(rows)) / rows.label.size
        kept[mixed] = first_views(whole, min(PART_VIEWS), soft=True)
    return found, kept


def write_store(root: Path, rows: PartRows, identity: StoreIdentity) -> ParquetStore:
    """Write a store of one part in the Parquet directory ``root``."""
    info = ShardInfo(
        number=rows.part.shard,
        name="synthetic.tar",
        key_hash=rows.key_hash,
        content_hash=rows.content_hash,
        samples=rows.samples,
        bytes=0,
    )
    prints = fingerprints(identity)
    claim_store(root, identity, prints)
    commit_part(root, replace(rows, identity=identity.digest))
    finish_store(root, identity, prints, [info], card_text)
    return ParquetStore(open_folder(root), read_manifest(root))


def encoding(rows: PartRows) -> Callable[[], int]:
    """Return a case that encodes a part; it counts labels."""

    def run() -> int:
        encode_part(rows)
        return rows.label.size

    return run


def committing(root: Path, rows: PartRows, numbers: Iterator[int]) -> Callable[[], int]:
    """Return a case that encodes, writes and flushes a new part; it counts labels."""

    def run() -> int:
        part = replace(rows.part, first_view=rows.part.views * next(numbers))
        commit_part(root, replace(rows, part=part))
        return rows.label.size

    return run


def reading(store: ParquetStore, *, how: str) -> Callable[[], int]:
    """Return a case that reads a shard at one view.

    ``how``: ``again`` from a part that this process has decoded already; ``warm`` a file
    that the system has in memory, checked and decoded; ``cold`` from the disk.
    """
    views = iter(count())
    end = store.manifest.view_range.stop
    path = Path(store.root.name) / store.manifest.parts[0].part.path
    store.read_view(0, 0)

    def run() -> int:
        for _ in range(READS):
            reader = store if how == "again" else ParquetStore(store.root, store.manifest)
            if how == "cold":
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            reader.read_view(0, next(views) % end)
        return READS

    return run


def large_manifest(parts: int) -> Manifest:
    """Return a manifest of this many parts, two a shard, with some rejections."""

    def digest(*names: object) -> str:
        return hashlib.sha256(repr(names).encode()).hexdigest()

    shards = tuple(
        ShardInfo(
            number=number,
            name=f"shard-{number:06d}.tar",
            key_hash=digest("keys", number),
            content_hash=digest("content", number),
            samples=1250,
            bytes=137_000_000 + number,
        )
        for number in range(-(-parts // 2))
    )
    entries = tuple(
        PartEntry(
            part=PartKey(shard=shard.number, first_view=first, views=150),
            bytes=230_000 + shard.number,
            sha256=digest("part", shard.number, first),
            rows=1250 * 150,
        )
        for shard in shards
        for first in (0, 150)
    )[:parts]
    identity = make_identity(mixed=True, columns=ColumnConfig())
    return Manifest(
        identity=identity,
        fingerprints=fingerprints(identity),
        shards=shards,
        image_hashes={shard.number: digest("images", shard.number) for shard in shards},
        formats={shard.number: ("jpeg",) for shard in shards},
        rejections={},
        parts=entries,
        agreement=Agreement(known=1, equal=1),
        card="0" * 64,
    )


def opening(root: Path) -> Callable[[], int]:
    """Return a case that opens a store."""

    def run() -> int:
        open_store(root)
        return 1

    return run


def run_benchmark(config: StoreBenchmark, folder: Path) -> tuple[dict[str, float], Timings]:
    """Measure everything; return the figures by name, and the timings of all cases."""
    figures, rows = sizes(config.samples)
    soft = rows[True]
    hard = first_views(soft, soft.part.views, soft=False)
    stores = {
        name: write_store(
            folder / f"{name}.parquet", part, make_identity(mixed=True, columns=columns)
        )
        for name, part, columns in (("hard", hard, ColumnConfig()), ("soft", soft, SOFT))
    }
    large = folder / "large.parquet"
    large.mkdir()
    write_manifest(large, large_manifest(config.parts))
    numbers = iter(count(1))
    cases: dict[str, Callable[[], int]] = {
        "encode, hard": encoding(hard),
        "encode and commit, hard": committing(folder / "out", hard, numbers),
        "encode and commit, soft": committing(folder / "out", soft, numbers),
    }
    for name, store in stores.items():
        for how in ("again", "warm", "cold"):
            cases[f"read one view of a shard, {name}, {how}"] = reading(store, how=how)
    cases[f"open {config.parts} parts"] = opening(large)
    timings = measure(cases, config.rounds)
    warm = timings.median("read one view of a shard, hard, warm")
    figures |= {
        "store_commit_labels_per_second": 1 / timings.median("encode and commit, hard"),
        "store_commit_labels_per_second_soft": 1 / timings.median("encode and commit, soft"),
        "store_read_warm_milliseconds": 1e3 * warm,
        "store_open_seconds": timings.median(f"open {config.parts} parts"),
    }
    return figures, timings


def main() -> None:
    """Measure, print tables, and write JSON if asked to."""
    config = tyro.cli(StoreBenchmark, description=StoreBenchmark.__doc__)
    core = pin_to_one_core()
    with tempfile.TemporaryDirectory(dir=config.folder) as name:
        figures, timings = run_benchmark(config, Path(name))
    print(f"{processor()}, core {core}, {config.samples} samples, {config.rounds} rounds\n")
    print("| bytes per view | 150 views a part | 300 views a part |\n|---|---|---|")
    for label, case, end in (
        ("unmixed", "unmixed", ""),
        ("mixed", "mixed", ""),
        ("unmixed, confidence and top 5", "unmixed", "_soft"),
        ("mixed, confidence and top 5", "mixed", "_soft"),
    ):
        cells = [f"{figures[f'store_bytes_{case}_{views}{end}']:.3f}" for views in PART_VIEWS]
        print(f"| {label} | {' | '.join(cells)} |")
    print("\n| case | median | least .. most |\n|---|---|---|")
    for case in timings.seconds:
        print(f"| {case} | {cell(case, timings)} |")
    context = {
        "samples": config.samples,
        "parts": config.parts,
        "rounds": config.rounds,
        "milliseconds": {case: 1e3 * timings.median(case) for case in timings.seconds},
    }
    report = Report(ratios=figures, context={"machine": describe_machine(), "store": context})
    report.show()
    report.write(config.json)


def cell(case: str, timings: Timings) -> str:
    """Return a case's median and spread: million labels per second, or milliseconds."""
    seconds = timings.seconds[case]
    if case.startswith("encode"):
        return (
            f"{1e-6 / timings.median(case):.2f} M labels/s "
            f"| {1e-6 / max(seconds):.2f} .. {1e-6 / min(seconds):.2f}"
        )
    least, most = 1e3 * min(seconds), 1e3 * max(seconds)
    return f"{1e3 * timings.median(case):.2f} ms | {least:.2f} .. {most:.2f}"


if __name__ == "__main__":
    main()
