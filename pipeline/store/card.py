"""The card of a store: what it is, in words, for whoever finds the directory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.classes import class_text
from pipeline.columns import COLUMNS, ColumnConfig
from pipeline.errors import REJECTION_WORDS
from pipeline.identity import AugmentConfig, MixConfig
from pipeline.records import ShardInfo
from pipeline.store import LabelStore, Manifest
from pipeline.store.provenance import Run, read_runs

__all__ = [
    "StoreCard",
    "card_text",
    "first_lines",
    "inspect_store",
    "markdown_table",
    "printable",
    "share",
]

RUN_HEADER = ("finished", "by", "new labels", "labels that fp32 changes", "processor", "versions")

_LISTED = 24  # shards and rejections named before "and N more"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCard:
    """A store in words. Without runs it is a pure function of the manifest."""

    manifest: Manifest
    runs: tuple[Run, ...] = ()
    stored_bytes: int | None = None  # of all files with labels, as this format keeps them

    def to_json(self) -> dict[str, Any]:
        """Return the card as plain JSON values."""
        manifest, views = self.manifest, self.manifest.view_range
        return {
            "format_version": manifest.identity.format_version,
            "identity": manifest.identity.to_json(),
            "identity_digest": manifest.identity.digest,
            "fingerprints": dict(manifest.fingerprints),
            "shards": [_shard_json(manifest, shard) for shard in manifest.shards],
            "samples": manifest.counts.indexed,
            "rejected": manifest.counts.rejected,
            "omitted": manifest.counts.omitted,
            "subset_of": [asdict(one) for one in manifest.subset_of],
            "views": {"first": views.start, "end": views.stop},
            "parts": len(manifest.parts),
            "labels": manifest.rows,
            "bytes": manifest.bytes,
            "stored_bytes": self.stored_bytes,
            "bytes_per_label": manifest.bytes / manifest.rows if manifest.rows else None,
            "agreement": asdict(manifest.agreement),
            "classes": None if manifest.classes is None else list(manifest.classes),
            "runs": [asdict(run) for run in self.runs],
        }

    def to_markdown(self) -> str:
        """Return the card as Markdown."""
        note = self.manifest.identity.teacher.derivation
        opening = _OPENING if note is None else _DERIVED.format(note=note)
        reading = _READING + (_MIXED_VIEWS if note is None else "")
        reading += _SUBSET if self.manifest.omitted else ""
        sections = [opening, markdown_table(("", ""), self.facts()), reading]
        sections += ["## Shards\n\n" + _shards(self.manifest)]
        if self.manifest.rejections:
            sections += ["## Rejected images\n\n" + _rejections(self.manifest)]
        sections += [
            "## Runs\n\n" + (markdown_table(RUN_HEADER, self.run_rows()) if self.runs else _NO_RUNS)
        ]
        return printable("\n".join(sections))

    def facts(self) -> list[tuple[str, str]]:
        """Return what the store is, as (what, in words)."""
        facts = [*_facts(self.manifest)]
        if self.stored_bytes is not None:
            facts.append(("files with labels", f"{self.stored_bytes} bytes"))
        return facts

    def run_rows(self) -> list[tuple[object, ...]]:
        """Return the records of runs, a row of ``RUN_HEADER`` each."""
        return [*map(_run_row, self.runs)]


def card_text(manifest: Manifest) -> str:
    """Return the store's README, a pure function of its manifest."""
    return StoreCard(manifest=manifest).to_markdown()


def inspect_store(store: LabelStore) -> StoreCard:
    """Return the card of a store with its runs; reads no part."""
    return StoreCard(
        manifest=store.manifest, runs=read_runs(store.root), stored_bytes=store.stored_bytes
    )


_OPENING = """\
# Teacher labels

Labels of a teacher on augmented views, and the seeds that replay those views from the
shards, bit for bit. Made by `label-teacher`, checked by `label-store verify`.
"""

_DERIVED = """\
# Derived labels

**No teacher gave these labels to these views: {note}.** Views, seeds and digests are those of
the store that this one was derived from, and replay from the shards, bit for bit. It is for
comparisons; what would run the teacher (`--teacher-in-loop`, `--relabel`) refuses it.
"""

_READING = """\
## Reading

- Train: `train-student --labels THIS_STORE --shards 'SHARDS'`. Size, augmentation, mixing and
  classes come from the store.
- Check: `label-store verify THIS_STORE`, and with `--shards 'SHARDS' --all` every digest.
- As a table, one row per image and view: `pandas.read_parquet`, `pyarrow.dataset` and DuckDB
  read a Parquet directory as it stands. `key` is the image, `view` the number of its
  augmentation, `target` the true class (-1 if unknown), `label` the teacher's class.
"""

_MIXED_VIEWS = """
The labels belong to mixed views, so on them a good teacher agrees with the true class less
often than on plain images.
"""

_SUBSET = """
This is a subset: samples that it omits have no rows. Groups and pairs are those of the whole store,
so where views are mixed, images of omitted samples are still mixed in: shards stay whole.
"""

_NO_RUNS = (
    "Versions, machines, dates, and the share of labels that fp32 would change, are in\n"
    "`_meta/runs`; `label-store inspect` shows them.\n"
)


def _facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    identity, views = manifest.identity, manifest.view_range
    teacher, agreement = identity.teacher, manifest.agreement
    per_view = manifest.bytes / manifest.rows if manifest.rows else 0.0
    last = f"{views.start}..{views.stop - 1}" if views else "none"
    yield "teacher", f"{teacher.architecture}, {teacher.classes} classes, {teacher.precision}"
    if manifest.classes is not None:
        yield "classes", _classes(manifest.classes)
    yield "weights (SHA-256)", teacher.weights
    yield "views", f"{last} of every sample, {identity.augment.image_size} px"
    yield "augmentation", _augmentation(identity.augment)
    yield "mixing", _mixing(identity.mix)
    yield "columns", _columns(identity.columns)
    yield "root seed", str(identity.root_seed)
    yield "shards", str(len(manifest.shards))
    for one in manifest.subset_of:
        yield "a subset", one.in_words
    yield "samples", manifest.counts.in_words.replace(" samples", "", 1)
    yield "labels", f"{manifest.rows}, {per_view:.3f} bytes each ({manifest.bytes} bytes)"
    yield (
        "agreement with the true class",
        f"{share(agreement.equal, agreement.known)} of {agreement.known} labels whose class is "
        "known",
    )
    yield "identity", identity.digest


def _classes(names: Sequence[str]) -> str:
    texts = [class_text(number, names) for number in range(len(names))]
    return ", ".join(first_lines(texts, _LISTED))


def _augmentation(augment: AugmentConfig) -> str:
    erasing = f", erasing {augment.erase_probability:g}" if augment.erase_probability else ""
    return f"{augment.crop} crop, flip {augment.hflip:g}, {augment.policy}{erasing}"


def _mixing(mix: MixConfig) -> str:
    if not mix.probability:
        return "none"
    return (
        f"mixup {mix.mixup_alpha:g} / CutMix {mix.cutmix_alpha:g} in pairs, probability "
        f"{mix.probability:g}"
    )


def _columns(columns: ColumnConfig) -> str:
    names = [
        COLUMNS[name].card.format(k=math.prod(shape)) for name, shape in columns.shapes().items()
    ]
    return ", ".join(["label", *filter(None, names)])


def _shards(manifest: Manifest) -> str:
    shown = [_shard_json(manifest, shard) for shard in manifest.shards[:_LISTED]]
    table = markdown_table(
        ("shard", "samples", "rejected", "views", "parts", "bytes of labels"),
        [
            (
                f"{one['number']}: {one['name']}",
                one["samples"],
                len(one["rejections"]),
                one["views"],
                one["parts"],
                one["label_bytes"],
            )
            for one in shown
        ],
    )
    more = len(manifest.shards) - len(shown)
    return table + (f"\nand {more} more, which `--json` lists.\n" if more else "")


def _rejections(manifest: Manifest) -> str:
    lines = [
        f"- {manifest.by_shard[number].name}: `{one.key}`: {one.reason}: "
        f"{REJECTION_WORDS[one.reason]}"
        for number, rejections in sorted(manifest.rejections.items())
        for one in rejections
    ]
    return "\n".join(first_lines(lines, _LISTED)) + "\n"


def _run_row(run: Run) -> tuple[object, ...]:
    if run.error:
        return run.name, "", "", f"cannot be read: {run.error}", "", ""
    versions = ", ".join(f"{name} {one}" for name, one in (run.versions or {}).items())
    flips = f"{run.flips} of {run.flip_rows}" if run.flip_rows else "not measured"
    return run.finished, run.tool, run.labels, flips, run.processor, versions


def _shard_json(manifest: Manifest, shard: ShardInfo) -> dict[str, Any]:
    entries = manifest.parts_of_shard(shard.number)
    return {
        **asdict(shard),
        "rejections": [asdict(one) for one in manifest.rejections.get(shard.number, ())],
        "views": sum(entry.part.views for entry in entries),
        "parts": len(entries),
        "label_bytes": sum(entry.bytes for entry in entries),
    }


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with one line a row; what would break a cell is escaped."""
    lines = [_line(header), "|" + "---|" * len(header)]
    lines += [_line(row) for row in rows]
    return printable("\n".join(lines) + "\n")


def printable(text: str) -> str:
    """Return a text of lines in which what a terminal would act upon is written as an escape."""
    return "".join(one if one.isprintable() or one == "\n" else repr(one)[1:-1] for one in text)


def _line(cells: Sequence[object]) -> str:
    texts = (" ".join(str(cell).replace("|", "\\|").split()) for cell in cells)
    return "|" + "|".join(f" {text} " if text else " " for text in texts) + "|"


def share(part: int, whole: int) -> str:
    """Return ``part`` of ``whole`` in per cent, a dash where there is no whole."""
    return f"{100 * part / whole:.2f} %" if whole else "-"


def first_lines(lines: Sequence[str], limit: int) -> list[str]:
    """Return the first lines, and how many more there are."""
    more = len(lines) - limit
    return [*lines[:limit], f"and {more} more"] if more > 0 else list(lines)
