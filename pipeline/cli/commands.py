"""The commands ``label-store`` and ``pack-shards``: parse, call, print."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import tyro
from tqdm import tqdm

from pipeline.errors import ConfigError, PipelineError
from pipeline.shards import packing

if TYPE_CHECKING:
    from pipeline.files.cache import CacheConfig
    from pipeline.tools.relabel import RelabelReport
    from pipeline.tools.verify import Mismatch

__all__ = ["label_store", "pack_shards"]

_LISTED = 20  # names printed before "and N more"


def pack_shards() -> None:
    """Pack a folder of images, one directory per class, into shuffled WebDataset shards."""
    with _errors_of("pack-shards"):
        config = tyro.cli(packing.PackConfig, prog="pack-shards", description=pack_shards.__doc__)
        with _Progress("pack-shards", "images") as progress:
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
    """Show a store's card: teacher, views, shards, rejections, runs. Reads no part."""

    store: tyro.conf.Positional[str]
    """The store: a path or URL that ends in .parquet or .zarr."""
    json: bool = False
    """Print JSON for machines instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Check every file of a store; with --shards, redraw views and compare their digests."""

    store: tyro.conf.Positional[str]
    """The store: a path or URL that ends in .parquet or .zarr."""
    shards: tuple[str, ...] = ()
    """The shards that were labelled: files, URLs, brace patterns or globs, in quotes."""
    all: bool = False
    """Redraw every digest, not a sample: the proof for a store."""
    relabel: int = 0
    """Label so many groups again, with the store's own teacher; needs --shards."""
    teacher_checkpoint: Path | None = None
    """Weights of the store's teacher, for --relabel; without, timm's pretrained ones."""
    teacher_random_weights: int | None = None
    """Seed of the store's teacher, for --relabel, if its weights are untrained."""
    allow_flips: float = 0.0
    """Share of relabelled views whose label may differ, on hardware of another kind."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where --relabel runs the teacher."""
    cache_dir: Path | None = None
    """Where shards from object storage are kept, shared by all runs of a machine; by default
    teacher-labels/shards in $XDG_CACHE_HOME or ~/.cache."""
    cache_gb: float = 100.0
    """Size of that directory; the least recently used shards go first."""
    json: bool = False
    """Print JSON for machines instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Count a store's labels: classes, agreement with the true class, spread over views."""

    store: tyro.conf.Positional[str]
    """The store."""
    json: bool = False
    """Print JSON for machines instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """Compare the labels of two stores on the views that both have."""

    a: tyro.conf.Positional[str]
    """A store."""
    b: tyro.conf.Positional[str]
    """Another of the same root seed, augmentation and mixing, such as another teacher's."""
    json: bool = False
    """Print JSON for machines instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """Join stores of one identity that hold other shards or other views."""

    stores: tyro.conf.Positional[tuple[str, ...]]
    """Two stores or more; a shard keeps its number unless an earlier store uses it."""
    out: str
    """The store to write; its name ends in .parquet."""
    json: bool = False
    """Print JSON for machines instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extend:
    """Print the label-teacher command that adds views to a store, with its own settings."""

    store: tyro.conf.Positional[str]
    """The store."""
    views: int
    """Views to add."""
    shards: tuple[str, ...] = ()
    """The store's shards, all of them; those of its last label job by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thin:
    """Write a smaller store: of some of the views, or without optional columns."""

    store: tyro.conf.Positional[str]
    """The store."""
    out: str
    """The store to write; its name ends in .parquet."""
    views: str | None = None
    """Views to keep: the first and the one after the last, as 0:100; all by default."""
    drop: tuple[str, ...] = ()
    """Columns to leave out: confidence, margin, topk."""
    json: bool = False
    """Print JSON for machines instead."""

    def view_range(self) -> range | None:
        """Return the views to keep, None for all."""
        if self.views is None:
            return None
        match = re.fullmatch(r"(\d+):(\d+)", self.views)
        if match is None:
            raise ConfigError(f"--views {self.views}: give two numbers, as 0:100")
        return range(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Write a store again in another format; nothing is lost on the way, or back."""

    source: tyro.conf.Positional[str]
    """The store."""
    target: tyro.conf.Positional[str]
    """The store to write: a path that ends in .zarr or .parquet, at which there is nothing."""
    single_file: bool = False
    """Write one Parquet file, not a directory of them."""


StoreCommand: TypeAlias = Inspect | Verify | Stats | Diff | Merge | Extend | Thin | Export


def label_store() -> None:
    """Inspect, verify, compare and reuse label stores."""
    with _errors_of("label-store"):
        # A class is its subcommand; its docstring is the help.
        command: StoreCommand = tyro.cli(
            StoreCommand,
            prog="label-store",
            description=label_store.__doc__,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
        match command:
            case Inspect():
                _inspect(command)
            case Verify():
                _verify(command)
            case Stats():
                _stats(command)
            case Diff():
                _diff(command)
            case Merge():
                _merge(command)
            case Extend():
                _extend(command)
            case Thin():
                _thin(command)
            case Export():
                _export(command)


def _inspect(options: Inspect) -> None:
    from pipeline.store import open_store
    from pipeline.store.card import inspect_store

    _show(inspect_store(open_store(options.store)), as_json=options.json)


def _export(options: Export) -> None:
    from pipeline.store import export_store

    store = export_store(options.source, options.target, single_file=options.single_file)
    print(
        f"{options.target}: {store.manifest.rows} labels, {store.stored_bytes} bytes, the same as "
        f"in {options.source}"
    )


def _verify(options: Verify) -> None:
    from pipeline.files.cache import CacheConfig
    from pipeline.tools.verify import verify_store

    if (options.all or options.relabel) and not options.shards:
        raise ConfigError("--all and --relabel redraw views, which needs the shards: give --shards")
    weights = options.teacher_checkpoint or options.teacher_random_weights is not None
    if not options.relabel and (weights or options.allow_flips):
        raise ConfigError(
            "--teacher-checkpoint, --teacher-random-weights and --allow-flips are for labelling "
            "again: give --relabel too"
        )
    cache = CacheConfig.of_flags(options.cache_dir, options.cache_gb)
    report = verify_store(options.store, options.shards, every_digest=options.all, cache=cache)
    relabelled = _relabel(options, cache) if options.relabel else None
    failed = bool(report.mismatches) or (relabelled is not None and not relabelled.passed)
    if options.json:
        found = dataclasses.asdict(report)
        if relabelled is not None:
            found["relabelled"] = dataclasses.asdict(relabelled)
        print(json.dumps(found | {"passed": not failed}, indent=2))
    else:
        print(
            f"{options.store}: {report.parts} parts, {report.labels} labels, {report.bytes} bytes: "
            "all checksums are right"
        )
        print(
            f"{report.samples} samples = {report.samples - report.rejected} labelled + "
            f"{report.rejected} rejected"
        )
        print(
            f"{report.digests} views have a digest, {report.redrawn} were redrawn from the shards"
        )
        _print_mismatches("MISMATCH", report.mismatches)
        if relabelled is not None:
            print(
                f"{relabelled.rows} views in {relabelled.groups} groups were labelled again: "
                f"{len(relabelled.flips)} labels differ ({relabelled.flip_share:.3%}, "
                f"{relabelled.allow_flips:.3%} allowed), {relabelled.changed} more rows have "
                "other probabilities"
            )
            _print_mismatches("FLIP", relabelled.flips)
        print("FAILED" if failed else "passed")
    if failed:
        raise SystemExit(1)


def _relabel(options: Verify, cache: CacheConfig) -> RelabelReport:
    from pipeline.tools.relabel import RelabelConfig, relabel_store

    config = RelabelConfig(
        groups=options.relabel,
        checkpoint=options.teacher_checkpoint,
        random_weights=options.teacher_random_weights,
        device=options.device,
        allow_flips=options.allow_flips,
    )
    return relabel_store(options.store, options.shards, config, cache=cache)


def _print_mismatches(what: str, mismatches: Sequence[Mismatch]) -> None:
    for one in mismatches[:_LISTED]:
        print(
            f"{what} {one.shard} {one.key} view {one.view}: stored {one.stored}, found {one.found}"
        )
    if len(mismatches) > _LISTED:
        print(f"{what} ... and {len(mismatches) - _LISTED} more")


def _stats(options: Stats) -> None:
    from pipeline.store import open_store
    from pipeline.tools import store_stats

    _show(store_stats(open_store(options.store)), as_json=options.json)


def _diff(options: Diff) -> None:
    from pipeline.store import open_store
    from pipeline.tools import diff_stores

    _show(diff_stores(open_store(options.a), open_store(options.b)), as_json=options.json)


def _merge(options: Merge) -> None:
    from pipeline.store import open_store
    from pipeline.tools import merge_stores

    stores = [open_store(place) for place in options.stores]
    with _Progress("label-store", "parts") as progress:
        report = merge_stores(stores, options.out, progress.show)
    _show(report, as_json=options.json)


def _extend(options: Extend) -> None:
    from pipeline.store import open_store
    from pipeline.tools import extend_command

    print(shlex.join(extend_command(open_store(options.store), options.views, options.shards)))


def _thin(options: Thin) -> None:
    from pipeline.store import open_store
    from pipeline.tools import thin_store

    drop = tuple(name for text in options.drop for name in text.split(",") if name)
    views, store = options.view_range(), open_store(options.store)
    if views is None and not drop:
        raise ConfigError("nothing to leave out: give --views, --drop or both")
    with _Progress("label-store", "parts") as progress:
        report = thin_store(store, options.out, views=views, drop=drop, show=progress.show)
    _show(report, as_json=options.json)


class _Report(Protocol):
    """What a tool found, for machines and for people."""

    def to_json(self) -> dict[str, Any]: ...

    def to_markdown(self) -> str: ...


def _show(report: _Report, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.to_json(), indent=2, sort_keys=True))
    else:
        print(report.to_markdown(), end="")


@contextmanager
def _errors_of(command: str) -> Iterator[None]:
    """Print what the user can cure as ``<command>: error: ...`` and exit with status 1."""
    try:
        yield
        sys.stdout.flush()  # here, where its errors are understood
    except PipelineError as error:
        print(f"{command}: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


class _Progress:
    """Shows a count on stderr: a bar on a terminal, elsewhere a line at each tenth."""

    def __init__(self, command: str, unit: str) -> None:
        self._command = command
        self._unit = unit
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
                self._bar = tqdm(total=total, desc=self._command, unit=self._unit)
            self._bar.update(done - self._bar.n)
        elif done * 10 // total > self._tenths:
            self._tenths = done * 10 // total
            print(f"{self._command}: {done} of {total}", file=sys.stderr, flush=True)
