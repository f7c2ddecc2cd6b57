"""The commands ``label-store`` and ``pack-shards``: parse, call, print."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias, get_args

import tyro

from pipeline.cli.console import (
    Progress,
    as_typed,
    counted,
    described,
    first_of,
    flags_of,
    parse_flags,
    require_command,
    running,
    say,
    say_lines,
    some_of,
    tell,
    tell_next,
    tell_page,
    words_given,
)
from pipeline.cli.following import (
    shards_of,
    tell_after_packing,
    tell_look,
    tell_report,
    tell_training,
    tell_verify,
)
from pipeline.errors import ConfigError
from pipeline.files.kinds import read_list
from pipeline.shards import packing

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.files.cache import CacheConfig
    from pipeline.tools import KeptSamples
    from pipeline.tools.against import Student
    from pipeline.tools.relabel import RelabelReport
    from pipeline.tools.verify import Mismatch, VerifyReport

__all__ = ["label_store", "pack_shards"]

OpenStudent: TypeAlias = "Callable[[Path], Student]"

_FIRST = ("--images", "--out", "--classes", "--part", "--max-side")
_EXAMPLE = ("--images", "images/train", "--out", "shards/train", "--max-side", "500")
_STORES = (".parquet", ".zarr", ".parquet/", ".zarr/")
_LISTED, _LISTED_FILES = 20, 5  # names printed before "and N more"; those of files are long


def pack_shards(
    arguments: Sequence[str] | None = None,
    program: str = "pack-shards",
    write: packing.WriteShards | None = None,
) -> None:
    """Pack a folder of images, one directory per class, into shuffled WebDataset shards."""
    arguments = words_given(arguments)
    again = "interrupted; run the same command again"
    with running(program, flags_of(packing.PackConfig), again, arguments):
        config: packing.PackConfig = parse_flags(
            packing.PackConfig,
            program,
            arguments,
            description=described(str(pack_shards.__doc__), _FIRST, program, *_EXAMPLE),
        )
        with Progress("images") as progress:
            report = packing.pack_shards(config, progress.show, write)
        for line in _passed_over(report):
            say(f"{program}: {line}")
        if report.turned:
            say(
                f"{program}: EXIF orientation, which is ignored, is other than 1 in "
                f"{report.turned} of the packed JPEGs: views show them as they are stored, on "
                "their side or mirrored. To turn them, before packing: exiftran -ai FILES (no "
                "loss), or mogrify -auto-orient FILES"
            )
        if report.absent:
            say(
                f"{program}: no images of {len(report.absent)} of {len(report.classes)} classes: "
                + first_of(report.absent, _LISTED)
            )
        say(
            f"{program}: {report.read} files{_part_of(config)} read = {report.packed} packed "
            f"+ {len(report.passed_over)} passed over; {len(report.classes)} classes, "
            f"{report.shrunk} images shrunk, {report.reencoded} encoded anew"
            + (f", {report.marked} given restart markers; " if config.lossless else "; ")
            + f"{counted(len(report.shards), 'shard')} of {report.bytes / 1e6:.1f} MB in "
            + config.out
        )
        tell_after_packing(config)


def _part_of(config: packing.PackConfig) -> str:
    low, high = config.part
    return "" if (low, high) == (0, 1) else f" of the part {low:g} to {high:g}"


def _passed_over(report: packing.PackReport) -> Iterator[str]:
    """Yield a line for each reason, with how many files it met and the first of them."""
    others = {*report.untaken, *report.broken, *report.undecodable}
    for files, why in (
        ([path for path in report.passed_over if path not in others], "no images"),
        (
            report.untaken,
            "images of kinds that are not taken; convert them to JPEG, PNG or WebP",
        ),
        (
            report.broken,
            "named as images, but with other first bytes (empty, of another kind, or cut off in "
            "their header)",
        ),
        (report.undecodable, "which do not decode (damaged, cut off, or too large)"),
    ):
        if files:
            yield f"passed over {len(files)}, {why}: {first_of(files, _LISTED_FILES)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspect:
    """Show a store's card: teacher, views, shards, rejections, runs. Reads no part."""

    store: tyro.conf.Positional[str]
    """The store: a path or URL that ends in .parquet or .zarr."""
    json: bool = False
    """Print JSON for machines instead."""

    def run(self) -> None:
        from pipeline.store import open_store
        from pipeline.store.card import inspect_store

        _show(inspect_store(open_store(self.store)), as_json=self.json)
        _verify_next(self.store)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Check every file of a store; with --shards, redraw views and compare their digests."""

    store: tyro.conf.Positional[str]
    """The store: a path or URL that ends in .parquet or .zarr."""
    shards: tuple[str, ...] = ()
    """The shards that were labelled: their directory, files, URLs, or patterns in quotes."""
    all: bool = False
    """Redraw every digest, not a sample: the proof for a store."""
    subset: bool = False
    """Be content with some of the store's shards: views of the others are not redrawn."""
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

    def run(self) -> None:
        from pipeline.files.cache import CacheConfig
        from pipeline.store import open_store
        from pipeline.tools.verify import verify_store

        if (self.all or self.relabel or self.subset) and not self.shards:
            raise ConfigError(
                "--all, --relabel and --subset are for views that are redrawn, which needs the "
                "shards: give --shards"
            )
        weights = self.teacher_checkpoint or self.teacher_random_weights is not None
        if not self.relabel and (weights or self.allow_flips):
            raise ConfigError(
                "--teacher-checkpoint, --teacher-random-weights and --allow-flips are for "
                "labelling again: give --relabel too"
            )
        cache = CacheConfig.of_flags(self.cache_dir, self.cache_gb)
        with Progress("labels") as progress:
            report = verify_store(
                self.store,
                self.shards,
                every_digest=self.all,
                subset=self.subset,
                cache=cache,
                show=progress.show,
            )
        relabelled = _relabel(self, cache) if self.relabel else None
        failed = bool(report.mismatches) or (relabelled is not None and not relabelled.passed)
        if self.json:
            found = dataclasses.asdict(report)
            if relabelled is not None:
                found["relabelled"] = dataclasses.asdict(relabelled)
            say_lines(json.dumps(found | {"passed": not failed}, indent=2))
        else:
            _print_checks(self.store, report, relabelled)
            say("FAILED" if failed else "passed")
        if failed:
            raise SystemExit(1)
        shards = shards_of(self.store, self.shards)
        if not self.all and not shards:
            tell("with --shards it redraws views too, and with --all it proves the store")
            return
        if not self.all:
            tell_verify(self.store, shards)
            return
        manifest = open_store(self.store).manifest
        tell_look(self.store, manifest, self.shards)
        tell_training(self.store, manifest, self.shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Count a store's labels: classes, agreement with the true class, spread over views."""

    store: tyro.conf.Positional[str]
    """The store."""
    json: bool = False
    """Print JSON for machines instead."""

    def run(self) -> None:
        from pipeline.store import open_store
        from pipeline.tools import store_stats

        with Progress("parts") as progress:
            report = store_stats(open_store(self.store), show=progress.show)
        _show(report, as_json=self.json)
        tell_report(self.store, shards=shards_of(self.store))


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """Compare the labels of two stores on the views that both have."""

    a: tyro.conf.Positional[str]
    """A store."""
    b: tyro.conf.Positional[str]
    """Another of the same root seed, augmentation and mixing, such as another teacher's."""
    json: bool = False
    """Print JSON for machines instead."""

    def run(self) -> None:
        from pipeline.store import open_store
        from pipeline.tools import diff_stores

        _show(diff_stores(open_store(self.a), open_store(self.b)), as_json=self.json)
        tell_report(self.a, "--against", self.b, shards=shards_of(self.a))


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """Join stores of one identity that hold other shards or other views."""

    stores: tyro.conf.Positional[tuple[str, ...]]
    """Two stores or more; a shard keeps its number unless an earlier store uses it."""
    out: str
    """The store to write; its name ends in .parquet."""
    json: bool = False
    """Print JSON for machines instead."""

    def run(self) -> None:
        from pipeline.store import open_store
        from pipeline.tools import merge_stores

        stores = [open_store(location) for location in self.stores]
        with Progress("parts") as progress:
            report = merge_stores(stores, self.out, progress.show)
        _show(report, as_json=self.json)
        _verify_next(self.out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """Join stores of several teachers on the same views: by a majority, or by their mean."""

    stores: tyro.conf.Positional[tuple[str, ...]]
    """Three stores or more, two for a mean, of one root seed, augmentation and mixing."""
    out: str
    """The store to write; its name ends in .parquet."""
    by: Literal["majority", "mean"] = "majority"
    """majority: the label that most give, ties to the earlier store, and the share of teachers
    that gave it as confidence. mean: of their probabilities, which the stores must keep (topk=K);
    the K of the first is kept."""
    json: bool = False
    """Print JSON for machines instead."""

    def run(self) -> None:
        from pipeline.store import open_store
        from pipeline.tools import voted_store

        stores = [open_store(location) for location in self.stores]
        with Progress("parts") as progress:
            report = voted_store(stores, self.out, progress.show, by=self.by)
        _show(report, as_json=self.json)
        _verify_next(self.out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extend:
    """Print the command of a label job that adds views to a store, with its own settings."""

    store: tyro.conf.Positional[str]
    """The store."""
    views: int
    """Views to add."""
    shards: tuple[str, ...] = ()
    """The store's shards, all of them; those of its last label job by default."""

    def run(self) -> None:
        from pipeline.store import open_store
        from pipeline.tools import extend_command

        say(as_typed(*extend_command(open_store(self.store), self.views, self.shards)))
        tell("run this command")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thin:
    """Write a smaller store: of some views, shards or samples, or without optional columns.

    What is said of samples must hold together. One that is left out has no rows, and its image
    is still mixed into its partner's: shards stay whole, and are needed.
    """

    store: tyro.conf.Positional[str]
    """The store."""
    out: str
    """The store to write; its name ends in .parquet."""
    views: str | None = None
    """Views to keep: the first and the one after the last, as 0:100; all by default."""
    drop: tuple[str, ...] = ()
    """Columns to leave out: confidence, margin, topk."""
    shard_numbers: str | None = None
    """Shards to keep, by their numbers in the card: 0-127,130."""
    classes: str | None = None
    """True classes to keep: 0,5,7-9, or a file of them."""
    keys: Path | None = None
    """File with the keys of the samples to keep, one in a line."""
    sample_share: float | None = None
    """Share of the samples to keep, such as 0.1: which ones, a hash of seed and key decides, so
    0.01 lies in 0.1, whatever the store."""
    sample_seed: int = 0
    """Seed of that hash."""
    json: bool = False
    """Print JSON for machines instead."""

    def kept(self) -> KeptSamples | None:
        """Return which samples to keep, None for all."""
        from pipeline.store.subset import parse_numbers
        from pipeline.tools import KeptSamples

        rules = (self.shard_numbers, self.classes, self.keys, self.sample_share)
        if all(one is None for one in rules):
            return None
        classes, shards = self.classes, self.shard_numbers
        if classes is not None and Path(classes).is_file():
            classes = ",".join(_words_of(Path(classes)))
        return KeptSamples(
            shard_numbers=None if shards is None else parse_numbers(shards, "shard_numbers"),
            classes=None if classes is None else parse_numbers(classes, "classes"),
            keys=None if self.keys is None else tuple(_lines_of(self.keys)),
            sample_share=self.sample_share,
            sample_seed=self.sample_seed,
        )

    def run(self) -> None:
        from pipeline.store import open_store
        from pipeline.tools import thin_store

        drop = tuple(name for text in self.drop for name in text.split(",") if name)
        views, kept, store = _view_range(self.views), self.kept(), open_store(self.store)
        if views is None and kept is None and not drop:
            raise ConfigError(
                "nothing to leave out: give --views, --drop, --shard-numbers, --classes, --keys or "
                "--sample-share"
            )
        with Progress("parts") as progress:
            report = thin_store(
                store, self.out, views=views, drop=drop, kept=kept, show=progress.show
            )
        _show(report, as_json=self.json)
        _verify_next(self.out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Write how each view was drawn and mixed as a Parquet table, to be queried."""

    store: tyro.conf.Positional[str]
    """The store."""
    shards: tuple[str, ...]
    """The shards that were labelled: their directory, files, URLs, or patterns in quotes."""
    out: Path
    """The file to write, at which there is nothing."""
    views: str | None = None
    """Views to write: the first and the one after the last, as 0:100; all by default."""
    subset: bool = False
    """Be content with some of the store's shards."""
    cache_dir: Path | None = None
    """Where shards from object storage are kept, as verify has it."""
    cache_gb: float = 100.0
    """Size of that directory."""
    json: bool = False
    """Print JSON for machines instead."""

    def run(self) -> None:
        from pipeline.files.cache import CacheConfig
        from pipeline.store import open_store
        from pipeline.tools import write_views

        with Progress("parts") as progress:
            report = write_views(
                open_store(self.store),
                self.shards,
                self.out,
                views=_view_range(self.views),
                subset=self.subset,
                cache=CacheConfig.of_flags(self.cache_dir, self.cache_gb),
                show=progress.show,
            )
        _show(report, as_json=self.json)
        tell_next("python", "-c", f"import pandas; print(pandas.read_parquet({str(self.out)!r}))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """Draw views as the student sees them, with truth, label and how they were made, as a PNG.

    Each is redrawn from the shards, and compared with its digest where the store has one.
    """

    store: tyro.conf.Positional[str]
    """The store."""
    shards: tuple[str, ...]
    """Shards that were labelled, all or some: a directory, files, URLs, or patterns in quotes."""
    out: Path
    """The picture to write; its name ends in .png."""
    key: tuple[str, ...] = ()
    """Samples to show, by their keys; some from all over the store by default."""
    views: str | None = None
    """Views to show, by their numbers: 0-15 or 0,5,7-9; all by default."""
    disagree: bool = False
    """Show what the teacher calls otherwise than the truth; last where it names the image that is
    mixed in."""
    true_class: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Show one true class, by its name or number."""
    high_entropy: bool = False
    """Show what the teacher is least sure of, by the probabilities that are stored."""
    count: int | None = None
    """Views to show at most, 1 to 1024: 16 by default, or all of the keys."""
    original: bool = False
    """Show each image as it is in the shard too, with the boxes of the crops."""
    cache_dir: Path | None = None
    """Where shards from object storage are kept, as verify has it."""
    cache_gb: float = 100.0
    """Size of that directory."""

    def run(self) -> None:
        from pipeline.classes import class_number
        from pipeline.files.cache import CacheConfig
        from pipeline.store import open_store
        from pipeline.store.subset import parse_numbers
        from pipeline.tools import ViewChoice, draw_views, save_sheet, show_views
        from pipeline.tools.show import require_sheet_name

        require_sheet_name(self.out)
        store, wanted = open_store(self.store), self.true_class
        names = store.manifest.classes
        choice = ViewChoice(
            keys=self.key,
            views=None if self.views is None else parse_numbers(self.views, "views"),
            disagree=self.disagree,
            target=None if wanted is None else class_number(wanted, names, store.root),
            high_entropy=self.high_entropy,
            count=self.count,
        )
        with Progress("parts") as progress:
            views = draw_views(
                store,
                self.shards,
                choice,
                cache=CacheConfig.of_flags(self.cache_dir, self.cache_gb),
                show=progress.show,
            )
        sheet = show_views(views, original=self.original)
        path = save_sheet(sheet, self.out)
        verified = sum(bool(one.digests) for one in views)
        partners = sum(one.names_partner for one in views)
        more = " (there may be more: --count)" if len(views) == self.count else ""
        say(
            f"{path}: {counted(len(views), 'view')}{more}, {sheet.width} x {sheet.height} pixels; "
            + (
                f"pixels of {verified} are those of their digests"
                if verified
                else "none has a digest, as view 0 and one in 64 have"
            )
            + (f"; in {partners} the teacher names the image mixed in" if partners else "")
        )
        tell_report(self.store, shards=self.shards)
        tell_training(self.store, store.manifest, self.shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Write a page about a store: card, verification, agreement, classes, and pictures to filter.

    It is one HTML file that asks for nothing, to be opened, printed or sent.
    """

    store: tyro.conf.Positional[str]
    """The store."""
    out: Path
    """The page to write; its name ends in .html."""
    shards: tuple[str, ...] = ()
    """Shards that were labelled, all or some, for pictures and to redraw digests: files, URLs,
    brace patterns or globs, in quotes."""
    against: str | None = None
    """Another store of the same views, or a training run (its directory, or a checkpoint), to
    compare labels with; a student is shown some 1,024 views of --shards."""
    images: bool = True
    """Leave out pictures, of data that may not be shared. Keys and names of classes stay."""
    count: int = 360
    """Pictures at most."""
    megabytes: float = 15.0
    """Size of the page at most: pictures beyond it are left out, and long tables cut."""
    cache_dir: Path | None = None
    """Where shards from object storage are kept, as verify has it."""
    cache_gb: float = 100.0
    """Size of that directory."""

    def run(self, open_student: OpenStudent | None = None) -> None:
        from pipeline.files.cache import CacheConfig
        from pipeline.reporting.page import require_page_name
        from pipeline.store import open_store
        from pipeline.tools.report import ReportConfig, report_store

        require_page_name(self.out)
        config = ReportConfig(images=self.images, count=self.count, megabytes=self.megabytes)
        store = open_store(self.store)
        other = student = None
        if self.against is not None and open_student and not self.against.endswith(_STORES):
            student = open_student(Path(self.against))
        elif self.against is not None:
            other = open_store(self.against)
        with Progress("parts") as progress:
            report = report_store(
                store,
                self.shards,
                config,
                against=other,
                student=student,
                cache=CacheConfig.of_flags(self.cache_dir, self.cache_gb),
                show=progress.show,
            )
        size, failed = report.save(self.out), len(report.verification.mismatches)
        pictures = counted(report.pictures, "picture")
        say(f"{self.out}: {report.stats.labels} labels, {pictures}, {size / 1e6:.1f} MB")
        if failed:
            say(f"FAILED: {failed} views are not those that were labelled; the page names them")
            raise SystemExit(1)
        tell_page(self.out)
        if self.against is None:
            tell_training(self.store, store.manifest, shards_of(self.store, self.shards))


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Write a store again in another format; nothing is lost on the way, or back."""

    source: tyro.conf.Positional[str]
    """The store."""
    target: tyro.conf.Positional[str]
    """The store to write: a path that ends in .zarr or .parquet, at which there is nothing."""
    single_file: bool = False
    """Write one Parquet file, not a directory of them."""
    public: bool = False
    """For publishing: leave paths, settings and the machine out of the records of runs."""

    def run(self) -> None:
        from pipeline.store import export_store

        store = export_store(
            self.source, self.target, single_file=self.single_file, public=self.public
        )
        say(
            f"{self.target}: {store.manifest.rows} labels, {store.stored_bytes} bytes, the same as "
            f"in {self.source}"
        )
        _verify_next(self.target)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebind:
    """Write a store with the same labels for shards of other bytes and the same pixels.

    Such as lossless packing writes. Every digest is redrawn from them, and one pixel that differs
    refuses them, by name.
    """

    store: tyro.conf.Positional[str]
    """The store."""
    shards: tuple[str, ...]
    """The new shards, all of them: their directory, files, URLs, or patterns in quotes."""
    out: str
    """The store to write; its name ends in .parquet."""
    originals: tuple[str, ...] = ()
    """The shards that were labelled: all pixels of all images are compared with theirs, those too
    that no view with a digest shows."""
    cache_dir: Path | None = None
    """Where shards from object storage are kept, as verify has it."""
    cache_gb: float = 100.0
    """Size of that directory."""
    json: bool = False
    """Print JSON for machines instead."""

    def run(self) -> None:
        from pipeline.files.cache import CacheConfig
        from pipeline.store import open_store
        from pipeline.tools import rebind_store

        with Progress("steps") as progress:
            report = rebind_store(
                open_store(self.store),
                self.shards,
                self.out,
                originals=self.originals,
                cache=CacheConfig.of_flags(self.cache_dir, self.cache_gb),
                show=progress.show,
            )
        _show(report, as_json=self.json)
        _verify_next(self.out, self.shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """Mend a store that jobs have cut in two ways: of parts that overlap, some are removed."""

    store: tyro.conf.Positional[str]
    """The store, to which no job may add meanwhile."""
    json: bool = False
    """Print JSON for machines instead."""

    def run(self) -> None:
        from pipeline.tools import repair_store

        _show(repair_store(self.store), as_json=self.json)
        tell_next("label-store", "status", self.store)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Tell how far a store's label jobs are: parts, who is at work, speed, time left."""

    store: tyro.conf.Positional[str]
    """The store, as the label job was given it; from any machine that sees it."""
    json: bool = False
    """Print JSON for machines instead."""

    def run(self) -> None:
        from pipeline.tools import store_status

        status = store_status(self.store)
        _show(status, as_json=self.json)
        if status.state == "finished":
            _verify_next(self.store)
        elif status.state == "labelling":
            tell_next("label-store", "status", self.store)
        else:
            shards = shards_of(self.store)
            tell("run the label job again" + "; or, if all parts are there:" * bool(shards))
            if shards:
                tell_next("label-store", "finalize", self.store, "--shards", *some_of(shards))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalize:
    """Write the manifest of a store whose parts are all there; needs neither teacher nor Ray."""

    store: tyro.conf.Positional[str]
    """The store, to which no job adds now."""
    shards: tuple[str, ...]
    """Its shards, all of them, in the order of the label job."""
    classes: str | None = None
    """Names of the classes, as the label job was given them."""
    max_rejected: float = 0.01
    """Share of undecodable images above which no manifest is written."""
    cache_dir: Path | None = None
    """Where shards from object storage are kept, as verify has it."""
    cache_gb: float = 100.0
    """Size of that directory."""
    json: bool = False
    """Print JSON for machines instead."""

    def run(self) -> None:
        from pipeline.files.cache import CacheConfig
        from pipeline.tools import finalize_store

        report = finalize_store(
            self.store,
            self.shards,
            classes=self.classes,
            max_rejected=self.max_rejected,
            cache=CacheConfig.of_flags(self.cache_dir, self.cache_gb),
        )
        _show(report, as_json=self.json)
        _verify_next(self.store, self.shards)


StoreCommand: TypeAlias = (
    Inspect
    | Verify
    | Stats
    | Diff
    | Merge
    | Vote
    | Extend
    | Thin
    | Views
    | Show
    | Report
    | Export
    | Rebind
    | Repair
    | Status
    | Finalize
)


def label_store(
    arguments: Sequence[str] | None = None,
    program: str = "label-store",
    open_student: OpenStudent | None = None,
) -> None:
    """Inspect, verify, compare and reuse label stores."""
    # ``open_student`` is given by who knows students, for reports against one.
    arguments = words_given(arguments)
    with running(program, {}, arguments=arguments):
        known = {one.__name__.lower(): str(one.__doc__) for one in get_args(StoreCommand)}
        if not arguments:
            say_lines(f"usage: {program} {{{','.join(known)}}} ...\n")
            for name, text in known.items():
                say(f"  {name:9} {text.splitlines()[0]}")
            say_lines(f"\n{program} COMMAND --help explains a command.")
            raise SystemExit(2)
        if not arguments[0].startswith("-"):
            require_command(arguments[0], known)
        # A class is its subcommand; its docstring is the help.
        command: StoreCommand = parse_flags(
            StoreCommand,
            program,
            arguments,
            description=label_store.__doc__,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
        with running(program, flags_of(type(command))):
            if isinstance(command, Report):
                command.run(open_student)
            else:
                command.run()


def _verify_next(store: str, shards: Sequence[str] = ()) -> None:
    """Name the command that proves a store."""
    tell_verify(store, shards_of(store, shards))


def _view_range(text: str | None) -> range | None:
    """Return the views that a flag names, None for all."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    if match is None:
        raise ConfigError(f"--views {text}: give two numbers, as 0:100")
    return range(int(match[1]), int(match[2]))


def _lines_of(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty."""
    try:
        return [line.removesuffix("\r") for line in read_list(path) if line.strip()]
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path} cannot be read ({why}); give a text file") from error


def _words_of(path: Path) -> list[str]:
    return [word for line in _lines_of(path) for word in re.split(r"[,\s]+", line) if word]


def _relabel(options: Verify, cache: CacheConfig) -> RelabelReport:
    from pipeline.tools.relabel import RelabelConfig, relabel_store

    config = RelabelConfig(
        groups=options.relabel,
        checkpoint=options.teacher_checkpoint,
        random_weights=options.teacher_random_weights,
        device=options.device,
        allow_flips=options.allow_flips,
    )
    return relabel_store(options.store, options.shards, config, subset=options.subset, cache=cache)


def _print_checks(store: str, report: VerifyReport, relabelled: RelabelReport | None) -> None:
    say(f"{store}: {report.in_words()[0]}")
    for line in report.in_words()[1:]:
        say(line)
    _print_mismatches("MISMATCH", report.mismatches)
    if relabelled is not None:
        say(
            f"{relabelled.rows} views in {relabelled.groups} groups were labelled again: "
            f"{len(relabelled.flips)} labels differ ({relabelled.flip_share:.3%}, "
            f"{relabelled.allow_flips:.3%} allowed), {relabelled.changed} more rows have "
            "other probabilities"
        )
        _print_mismatches("FLIP", relabelled.flips)


def _print_mismatches(what: str, mismatches: Sequence[Mismatch]) -> None:
    for one in mismatches[:_LISTED]:
        say(
            f"{what} {one.shard} {one.key} view {one.view}, {one.column}: stored {one.stored}, "
            f"found {one.found}"
        )
    if len(mismatches) > _LISTED:
        say(f"{what} ... and {len(mismatches) - _LISTED} more")


class _Report(Protocol):
    """What a tool found, for machines and for people."""

    def to_json(self) -> dict[str, Any]: ...

    def to_markdown(self) -> str: ...


def _show(report: _Report, *, as_json: bool) -> None:
    if as_json:
        say_lines(json.dumps(report.to_json(), indent=2, sort_keys=True))
    else:
        say_lines(report.to_markdown())
