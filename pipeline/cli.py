"""The commands ``label-store`` and ``pack-shards``: parse, call, print."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from pipeline import packing
from pipeline.errors import ConfigError, PipelineError

__all__ = ["label_store", "pack_shards"]

_LISTED = 20  # names printed before "and N more"


def pack_shards() -> None:
    """Pack a folder of images, one directory per class, into shuffled WebDataset shards."""
    with _errors_of("pack-shards"):
        config = tyro.cli(packing.PackConfig, prog="pack-shards", description=pack_shards.__doc__)
        with _Progress("pack-shards") as progress:
            report = packing.pack_shards(config, progress.show)
        for path in report.passed_over[:_LISTED]:
            print(f"pack-shards: passed over, no image: {path}")
        if len(report.passed_over) > _LISTED:
            print(f"pack-shards: and {len(report.passed_over) - _LISTED} more")
        print(
            f"pack-shards: {report.read} files read = {report.packed} packed "
            f"+ {len(report.passed_over)} passed over; {len(report.classes)} classes, "
            f"{report.shrunk} images shrunk, {report.reencoded} encoded anew; "
            f"{len(report.shards)} shards of {report.bytes / 1e6:.1f} MB in {config.out}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspect:
    """Show what a store holds; reads its manifest alone."""

    path: tyro.conf.Positional[str]
    """The store: a directory or URL that ends in .parquet."""
    json: bool = False
    """Print JSON for machines instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Check every file of a store; with --shards, redraw views and compare their digests."""

    path: tyro.conf.Positional[str]
    """The store: a directory or URL that ends in .parquet."""
    shards: tuple[str, ...] = ()
    """The shards that were labelled: files, URLs, brace patterns or globs, in quotes."""
    all: bool = False
    """Redraw every digest, not a sample: the proof for a store."""
    cache_dir: Path | None = None
    """Where shards from object storage are kept, shared by all runs of a machine; by default
    teacher-labels/shards in $XDG_CACHE_HOME or ~/.cache."""
    cache_gb: float = 100.0
    """Size of that directory; the least recently used shards go first."""
    json: bool = False
    """Print JSON for machines instead."""


def label_store() -> None:
    """Inspect and verify label stores."""
    with _errors_of("label-store"):
        command = tyro.extras.subcommand_cli_from_dict(
            {"inspect": _inspect, "verify": _verify},
            prog="label-store",
            description=label_store.__doc__,
        )
        if isinstance(command, int) and command:
            raise SystemExit(command)


def _inspect(options: tyro.conf.OmitArgPrefixes[Inspect]) -> int:
    """Show what a store holds; reads its manifest alone."""
    from pipeline.card import card_text
    from pipeline.store import read_manifest

    manifest = read_manifest(options.path)
    if options.json:
        print(json.dumps(manifest.to_json(), indent=2, sort_keys=True))
        return 0
    print(card_text(manifest))
    print("| shard | samples | rejected | views | parts | bytes |\n|---|---|---|---|---|---|")
    for shard in manifest.shards:
        entries = [entry for entry in manifest.parts if entry.part.shard == shard.number]
        print(
            f"| {shard.number}: {shard.name} | {shard.samples} "
            f"| {len(manifest.rejections.get(shard.number, ()))} "
            f"| {len(manifest.views_of_shards[shard.number])} | {len(entries)} "
            f"| {sum(entry.bytes for entry in entries)} |"
        )
    return 0


def _verify(options: tyro.conf.OmitArgPrefixes[Verify]) -> int:
    """Check every file of a store; with --shards, redraw views and compare their digests."""
    from pipeline.cache import CacheConfig
    from pipeline.verify import verify_store

    if options.all and not options.shards:
        raise ConfigError("--all redraws views, which needs the shards: give --shards")
    cache = CacheConfig.of_flags(options.cache_dir, options.cache_gb)
    report = verify_store(options.path, options.shards, every_digest=options.all, cache=cache)
    if options.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        print(
            f"{options.path}: {report.parts} parts, {report.labels} labels, {report.bytes} bytes: "
            "all checksums are right"
        )
        print(
            f"{report.samples} samples = {report.samples - report.rejected} labelled + "
            f"{report.rejected} rejected"
        )
        print(
            f"{report.digests} views have a digest, {report.redrawn} were redrawn from the shards"
        )
        for mismatch in report.mismatches[:_LISTED]:
            print(
                f"MISMATCH {mismatch.shard} {mismatch.key} view {mismatch.view}: stored "
                f"{mismatch.stored}, found {mismatch.found}"
            )
        print(f"FAILED: {len(report.mismatches)} differ" if report.mismatches else "passed")
    return 1 if report.mismatches else 0


@contextmanager
def _errors_of(command: str) -> Iterator[None]:
    """Print what the user can cure as ``<command>: error: ...`` and exit with status 1."""
    try:
        yield
    except PipelineError as error:
        print(f"{command}: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


class _Progress:
    """Shows a count on stderr: a bar on a terminal, elsewhere a line at each tenth."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._bar: tqdm | None = None
        self._tenths = 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are through."""
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(total=total, desc=self._command, unit="images")
            self._bar.update(done - self._bar.n)
        elif done * 10 // total > self._tenths:
            self._tenths = done * 10 // total
            print(f"{self._command}: {done} of {total}", file=sys.stderr, flush=True)
