"""What a label job of many parts costs beside its labels: to plan, to resume, to finish.

Run alone: `python -m benchmarks.scale`; `docs/PERFORMANCE.md` has results.
"""

from __future__ import annotations

import io
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from PIL import Image
from webdataset import TarWriter

from benchmarks.realistic import make_identity, make_rows
from benchmarks.report import Report, describe_machine
from pipeline.columns import ColumnConfig, Columns
from pipeline.identity import StoreIdentity
from pipeline.labelling.job import index_shards
from pipeline.records import PartKey, PartRows, ShardInfo
from pipeline.shards.index import index_bytes, index_path
from pipeline.store import Receipts, claim_store, committed_parts, finish_store, read_receipts
from pipeline.store.card import card_text
from pipeline.store.manifest import MANIFEST_PATH
from pipeline.store.parquet import encode_part
from pipeline.views.fingerprints import fingerprints

SAMPLES, VIEWS = 1250, 150


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleBenchmark:
    """Measure how a label job's cost beside its labels grows with its parts."""

    parts: tuple[int, ...] = (100, 1000)
    """Parts that are committed, of 1,250 samples at 150 views each."""
    shards: int = 100
    """Shards that are indexed, of 1,250 samples each."""
    folder: Path | None = None
    """Where to write trial stores: a disk whose speed is wanted; the temporary directory."""
    json: Path | None = None
    """File to write the figures to."""


def part_rows(identity: StoreIdentity) -> PartRows:
    """Return made-up rows of one part."""
    rows = make_rows(SAMPLES, VIEWS, make_identity(mixed=True, columns=ColumnConfig(topk=1)))
    return replace(rows, columns=Columns(), identity=identity.digest)


def write_parts(root: Path, rows: PartRows, identity: StoreIdentity, parts: int) -> list[ShardInfo]:
    """Write an unfinished store of this many parts, all with the same rows."""
    claim_store(root, identity, fingerprints(identity))
    data = encode_part(rows)
    for number in range(parts):
        path = root / PartKey(shard=number, first_view=0, views=VIEWS).path
        path.parent.mkdir()
        path.write_bytes(data)
    return [
        ShardInfo(
            number=number,
            name=f"shard-{number:06d}.tar",
            key_hash=rows.key_hash,
            content_hash=rows.content_hash,
            samples=rows.samples,
            bytes=0,
        )
        for number in range(parts)
    ]


def write_shards(folder: Path, shards: int) -> list[Path]:
    """Write shards of small images: to index one depends on its members' number."""
    image = encode_jpeg()
    paths = [folder / f"s-{number:06d}.tar" for number in range(shards)]
    for number, path in enumerate(paths):
        with path.open("x+b") as file, TarWriter(file, encoder=False) as tar:
            for index in range(SAMPLES):
                tar.write({"__key__": f"{number:06d}-{index:06d}", "jpg": image, "cls": b"7"})
    return paths


def encode_jpeg() -> bytes:
    """Return a small JPEG."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return file.getvalue()


def indexing(folder: Path, shards: int) -> dict[str, float]:
    """Return the milliseconds that a shard takes to be indexed, opened or by an index beside it."""
    figures: dict[str, float] = {}
    paths = write_shards(folder, shards)
    for how in ("opened", "by_its_index"):
        with timed(figures, f"index_{how}_milliseconds_a_shard", shards):
            index_shards(paths)
        for path in paths:
            with path.open("rb") as file:
                Path(index_path(path)).write_bytes(index_bytes(file, path.name))
    return figures


@contextmanager
def timed(figures: dict[str, float], name: str, per: int) -> Iterator[None]:
    """Note how many milliseconds each of some things took."""
    started = time.perf_counter()
    yield
    figures[name] = 1e3 * (time.perf_counter() - started) / per


def resume(folder: Path, parts: int) -> dict[str, float]:
    """Return the milliseconds that a committed part takes when a job resumes, and at its end."""
    identity = make_identity(mixed=True, columns=ColumnConfig())
    root, rows = folder / f"{parts}.parquet", part_rows(identity)
    shards = write_parts(root, rows, identity, parts)
    infos, prints = {one.number: one for one in shards}, fingerprints(identity)
    figures: dict[str, float] = {}
    for how in ("files", "receipts"):
        (root / MANIFEST_PATH).unlink(missing_ok=True)
        with timed(figures, f"resume_by_{how}_milliseconds_a_part_{parts}", parts):
            committed = committed_parts(root, identity, infos)
        assert len(committed) == parts
        with timed(figures, f"finish_by_{how}_milliseconds_a_part_{parts}", parts):
            known = read_receipts(root, identity.digest, infos)
            finish_store(root, identity, prints, shards, card_text, known=known)
        with closing(Receipts(root, identity.digest, shards)) as receipts:
            for one in committed:
                receipts.add(one)
    return figures


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    config = tyro.cli(ScaleBenchmark, description=ScaleBenchmark.__doc__)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=config.folder) as name:
        figures |= indexing(Path(name), config.shards)
        for parts in config.parts:
            figures |= resume(Path(name), parts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    report = Report(ratios=figures, context={"machine": describe_machine(), "peak_megabytes": peak})
    report.show()
    report.write(config.json)


if __name__ == "__main__":
    main()
