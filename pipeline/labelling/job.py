"""The label job without its schedule: checks, parts to do, and the end.

``jobs/`` runs it on Ray or in one process; both go through the functions here, so both
write the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from pipeline.classes import ClassNames, agreed_names, class_in_words, names_beside, read_names
from pipeline.errors import (
    REJECTION_WORDS,
    ClassesError,
    ConfigError,
    IdentityError,
    RejectionError,
    ReplayError,
    ShardError,
    StoreError,
)
from pipeline.files.cache import CacheConfig, RemoteShard, ShardFile
from pipeline.files.local import expand_shards, open_folder
from pipeline.identity import (
    StoreIdentity,
    TeacherIdentity,
)
from pipeline.labelling.config import LabelConfig
from pipeline.labelling.part import GroupTask, group_tasks, read_contents
from pipeline.labelling.redraw import redraw, sample_cells
from pipeline.records import PartKey, ShardInfo
from pipeline.shards.index import (
    ShardContents,
    Summarize,
    UniqueKeys,
    open_known_shard,
    summarize_here,
)
from pipeline.store import (
    Committed,
    CommittedParts,
    Cut,
    Manifest,
    PartKeys,
    Receipts,
    begun_classes,
    begun_fingerprints,
    begun_identity,
    claim_cut,
    claim_store,
    committed_parts,
    cut_views,
    find_parts,
    finish_store,
    pack_store,
    packed_store,
    parts_root,
    read_committed,
    read_receipts,
    require_listed,
    require_no_subset,
    require_planned,
    runs_without,
    unpack_store,
)
from pipeline.store.card import card_text
from pipeline.store.manifest import most_rows
from pipeline.store.parts import among, codes, covered_views, distinct
from pipeline.store.provenance import record_run, version_differences
from pipeline.telling import told
from pipeline.views.fingerprints import (
    BITS,
    different_fingerprints,
    fingerprints,
    what_they_watch,
)

__all__ = [
    "DescribedTeacher",
    "IndexedShards",
    "JobPlan",
    "PartOrder",
    "Progress",
    "begin_job",
    "check_begun",
    "check_identity",
    "find_shards",
    "finish_job",
    "index_shards",
    "plan_job",
    "receipts_of",
    "require_fingerprints",
    "require_same_views",
    "write_run",
]

DIGESTS = 300
"""Stored digests that are redrawn before a job adds to a store, spread over its parts."""

_FETCHED = 16  # parts that are looked at where shards are in object storage: each may be fetched


Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedShards:
    """The job's shards and what their indices say."""

    paths: tuple[ShardFile, ...]
    infos: tuple[ShardInfo, ...]
    max_target: int
    max_target_at: str  # "shard, sample" of the highest class, for messages
    warnings: tuple[str, ...]
    classes: ClassNames | None = None

    @property
    def samples(self) -> int:
        """Indexed samples of all shards."""
        return sum(info.samples for info in self.infos)


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedTeacher:
    """Who a teacher's process has loaded, as the others of a job must have."""

    identity: TeacherIdentity
    fingerprints: Mapping[str, int]  # of normalizing and mixing on its device
    software: Mapping[str, str]  # versions of what its function is made of, by name


@dataclass(frozen=True, slots=True, kw_only=True)
class PartOrder:
    """One part to label: where from, as what, and where to."""

    part: PartKey
    path: ShardFile
    shard: ShardInfo
    identity: StoreIdentity
    fingerprints: Mapping[str, int]  # the store's
    out: str
    software: Mapping[str, str] = field(default_factory=dict)  # of the job's teachers, by name

    def tasks(self) -> Iterator[GroupTask]:
        """Yield the augmentation tasks of the part."""
        return group_tasks(self.path, self.shard, self.part, self.identity, self.fingerprints)

    def contents(self) -> ShardContents:
        """Return what the part keeps of its shard; reads all of it."""
        return read_contents(self.path, self.shard)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """A job whose settings, shards and store agree, and what is left to do."""

    config: LabelConfig
    identity: StoreIdentity
    fingerprints: Mapping[str, int]
    shards: IndexedShards
    done: CommittedParts
    missing: PartKeys
    cut: Cut  # of its views
    classes: tuple[str, ...] | None  # names, which the store will have
    stored_classes: tuple[str, ...] | None  # those that it has
    software: Mapping[str, str] = field(default_factory=dict)  # of its teachers, by name

    @property
    def adds(self) -> bool:
        """Whether the store will hold more than it does."""
        return bool(self.missing) or self.classes != self.stored_classes

    @property
    def parts(self) -> PartKeys:
        """All parts that the store will have, there already or not."""
        return PartKeys.joined(self.done.parts, self.missing)

    @property
    def missing_labels(self) -> int:
        """Labels of what is left to do if no image is rejected."""
        samples = np.array([info.samples for info in self.shards.infos], np.int64)
        return int((samples[self.missing.shard] * self.missing.views).sum())

    def order(self, part: PartKey) -> PartOrder:
        """Return all that a teacher's process needs to label ``part``."""
        return PartOrder(
            part=part,
            path=self.shards.paths[part.shard],
            shard=self.shards.infos[part.shard],
            identity=self.identity,
            fingerprints=self.fingerprints,
            out=parts_root(self.config.out),
            software=self.software,
        )


def find_shards(patterns: Sequence[str], cache: CacheConfig | None = None) -> tuple[ShardFile, ...]:
    """Return a job's shard files; nothing of them is read. See ``expand_shards``."""
    # Absolute, for they are opened by processes that were started elsewhere.
    return tuple(
        path.absolute() if isinstance(path, Path) else path
        for path in expand_shards(patterns, cache)
    )


def index_shards(
    shards: Sequence[str] | Sequence[ShardFile],
    cache: CacheConfig | None = None,
    classes: str | None = None,
    read: Summarize = summarize_here,
) -> IndexedShards:
    """Index all shards of a job, given as files or patterns.

    ``read`` summarizes them, here or elsewhere: by the index that ``pack-shards`` left beside a
    shard, or by opening it, which fetches it into the cache if it is in object storage. Names of
    classes are those that lie beside the shards, and those of ``classes``.

    Raises ``ShardError`` for files that are no whole shards, and for a key that two of them
    have, whose views would be drawn from one seed; ``ClassesError`` for names that differ.
    """
    given = None if classes is None else read_names(classes)
    patterns = [one for one in shards if isinstance(one, str)]
    files = [one for one in shards if not isinstance(one, str)]
    paths = find_shards(patterns, cache) if patterns or not files else tuple(files)
    named = agreed_names(given, names_beside(paths))
    infos: list[ShardInfo] = []
    keys = UniqueKeys()
    highest, highest_at, sorted_shards = -1, "", 0
    read_ones = told(read(list(enumerate(paths))), "indexing", "shards", len(paths))
    for path, one in zip(paths, read_ones, strict=True):
        infos.append(one.info)
        keys.add(path, one)
        if one.max_target > highest:
            highest, highest_at = one.max_target, f"{path}, sample {one.max_target_key!r}"
        sorted_shards += one.is_class_sorted
    keys.check()
    warnings = []
    if sorted_shards:
        warnings.append(
            f"{sorted_shards} of {len(paths)} shards hold their samples sorted by class: pairs "
            "will be of like classes, and a student's batches too; packing shuffles"
        )
    return IndexedShards(
        paths=paths,
        infos=tuple(infos),
        max_target=highest,
        max_target_at=highest_at,
        warnings=tuple(warnings),
        classes=named,
    )


def check_begun(config: LabelConfig, shards: int) -> None:
    """Refuse settings that do not fit the store at ``out``, as far as that shows without a teacher.

    Writes nothing. Raises ``IdentityError`` naming fields that differ, ``StoreError`` for views
    that another job has cut otherwise; ``shards`` are as many as the job has.
    """
    begun = begun_identity(config.out)
    if begun is None:
        return
    begun_fingerprints(config.out, config.identity(begun.teacher))
    if packed_store(config.out) is None:
        root = parts_root(config.out)
        cut = cut_views(root, config.view_range, config.views_per_part)
        _missing_parts(root, cut, config.view_range, range(shards), find_parts(root))


def _missing_parts(
    root: str, cut: Cut, views: range, shards: Iterable[int], done: PartKeys
) -> PartKeys:
    """Return the parts of these shards and views that are not done, as the store cuts them.

    ``shards`` are in order.
    """
    cells, numbers = cut.cells_of(views), np.fromiter(shards, np.int64)
    starts = np.array([cell.start for cell in cells], np.int64)
    ends = np.array([cell.stop for cell in cells], np.int64)
    done = done[among(done.shard, numbers)]
    row, cell = np.searchsorted(numbers, done.shard), np.searchsorted(starts, done.first_view)
    fits = cell < len(cells)
    fits[fits] = (starts[cell[fits]] == done.first_view[fits]) & (
        ends[cell[fits]] == done.end_view[fits]
    )
    wanted = np.ones((len(numbers), len(cells)), np.bool_)
    wanted[row[fits], cell[fits]] = False
    # Where parts are no cells, as after another cut, it is told view by view.
    odd = distinct(row[~fits])
    wanted[odd] = False
    rows, columns = np.nonzero(wanted)
    found = np.array([numbers[rows], starts[columns], (ends - starts)[columns]], np.int64)
    missing = PartKeys(found.reshape(3, -1))
    if odd.size:
        more = _missing_views(cells, numbers[odd].tolist(), done[np.isin(row, odd)])
        missing = PartKeys.of(sorted([*missing, *more]))
    of_one = PartKeys(missing.columns * np.array([[0], [1], [1]]))  # the same for most shards
    first = np.unique(codes(of_one)[0], return_index=True)[1]
    ranges = [range(one.first_view, one.end_view) for one in of_one[first]]
    cut.require_agreement(root, views, ranges)
    return missing


def _missing_views(cells: Sequence[range], shards: Iterable[int], done: PartKeys) -> list[PartKey]:
    covered = covered_views(done, range(cells[0].start, max(one.stop for one in cells)))
    return [
        PartKey(shard=number, first_view=run.start, views=len(run))
        for number in shards
        for cell in cells
        for run in runs_without(covered[number], cell)
    ]


def check_identity(config: LabelConfig, teacher: TeacherIdentity) -> None:
    """Raise ``IdentityError`` if the store at ``out`` was begun with other settings."""
    begun_fingerprints(config.out, config.identity(teacher))


def plan_job(
    config: LabelConfig,
    shards: IndexedShards,
    teacher: TeacherIdentity,
    floats: Mapping[str, int],
    software: Mapping[str, str] = MappingProxyType({}),
) -> JobPlan:
    """Check that shards, teacher and store fit, and list what is missing; writes nothing.

    ``floats`` are the fingerprints of normalizing and mixing on the teacher's device, ``software``
    the versions that all teachers of the job must have.
    """
    if shards.max_target >= teacher.classes:
        raise ShardError(
            f"{shards.max_target_at} has class {_class_of(shards)}, but the teacher "
            f"{teacher.architecture} has {teacher.classes} classes (0..{teacher.classes - 1}); "
            "check `teacher`, `num_classes`, and that the shards' .cls are its class indices"
        )
    if shards.classes is not None and len(shards.classes.names) > teacher.classes:
        raise ClassesError(
            f"{shards.classes.source} names {len(shards.classes.names)} classes, but the teacher "
            f"{teacher.architecture} has {teacher.classes}; give the names of the teacher's classes"
        )
    identity = config.identity(teacher)
    ours = {**fingerprints(identity), **floats}
    theirs = begun_fingerprints(config.out, identity) or ours
    require_fingerprints(config.out, identity, ours, theirs)
    stored_classes = begun_classes(config.out)
    classes = agreed_names(ClassNames.of(stored_classes, config.out), shards.classes)
    infos = {info.number: info for info in shards.infos}
    done = committed_parts(config.out, identity, infos)
    root, views = parts_root(config.out), config.view_range
    cut = cut_views(root, views, config.views_per_part)
    missing = _missing_parts(root, cut, views, infos, done.parts)
    if missing:
        _require_small(missing, infos, most_rows(identity.columns))
        require_no_subset(config.out, done)
    plan = JobPlan(
        config=config,
        identity=identity,
        fingerprints=theirs,
        shards=shards,
        done=done,
        missing=missing,
        cut=cut,
        classes=None if classes is None else classes.names,
        stored_classes=stored_classes,
        software=dict(software),
    )
    require_listed(config.out, plan.parts)
    return plan


def _require_small(parts: PartKeys, shards: Mapping[int, ShardInfo], most: int) -> None:
    """Raise ``ConfigError`` for a part of more rows than any may have, before it is labelled."""
    numbers = np.array(sorted(shards), np.int64)
    samples = np.array([shards[number].samples for number in numbers.tolist()], np.int64)
    rows = samples[np.searchsorted(numbers, parts.shard)] * parts.views
    largest = int(rows.argmax())
    if rows[largest] > most:
        part = parts[largest]
        raise ConfigError(
            f"`views_per_part` is too large: {part.path} would have {rows[largest]} rows, and with "
            f"these columns a part has at most {most}; use {most * part.views // rows[largest]}"
        )


def _class_of(shards: IndexedShards) -> str:
    names = None if shards.classes is None else shards.classes.names
    return class_in_words(shards.max_target, names)


def require_fingerprints(
    out: str, identity: StoreIdentity, ours: Mapping[str, int], theirs: Mapping[str, int]
) -> None:
    """Raise ``IdentityError`` if a machine or device makes other pixels or floats than a store's.

    Other last bits are refused too: one store has floats of one kind, or their digests prove
    nothing.
    """
    different = different_fingerprints(ours, theirs)
    if different:
        raise IdentityError(
            f"{out} was begun where these give other pixels: "
            f"{what_they_watch(identity, different)}; install the versions named in "
            f"{out}/_meta/runs"
            + " and the kind of device" * any(name.endswith(BITS) for name in different)
            + ", or use another `out`"
        )


def require_same_views(plan: JobPlan) -> int:
    """Redraw some ``DIGESTS`` stored digests of the parts that are there; return how many.

    Of both kinds, from parts all over the store, before anything is paid for. Raises
    ``ReplayError`` at the first that differs.
    """
    folder = open_folder(parts_root(plan.config.out))
    remote = any(isinstance(path, RemoteShard) for path in plan.shards.paths)
    chosen = _spread(plan.done, _FETCHED if remote else DIGESTS)
    redrawn = 0
    for committed in told(chosen, "redrawing what is there", "parts", len(chosen)):
        part = committed.entry.part
        rows = read_committed(plan.config.out, committed.entry)
        shard = open_known_shard(plan.shards.paths[part.shard], plan.shards.infos[part.shard])
        cells = sample_cells(rows, -(-DIGESTS // len(chosen)))
        redrawn += len(cells)
        for one in redraw(plan.identity, shard, rows, cells):
            raise ReplayError(
                f"{folder.at(part.path)}: view {one.view} of {one.key!r} of {one.shard} has "
                f"{one.column} {one.found} here, and {one.stored} in the store: these are not the "
                f"views that were labelled ({version_differences(folder)}); verify the store with "
                "its shards: if that finds a shard's bytes changed, restore it; else install the "
                "versions of the store, or use another `out`"
            )
    return redrawn


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """Return some of a sequence, evenly spread."""
    indices = np.linspace(0, len(items) - 1, min(most, len(items))).astype(int)
    return [items[index] for index in indices]


class Progress:
    """Counts what a job has done, and stops one that rejects too much."""

    def __init__(self, plan: JobPlan) -> None:
        self._plan = plan
        self._rejected: dict[int, int] = {}  # by shard
        self._samples = plan.shards.samples
        self.rejected = 0
        self.labels = 0
        self.parts = 0
        self._started = time.monotonic()
        firsts = np.unique(plan.done.image, return_index=True)[1]
        for index in sorted(firsts.tolist()):
            if plan.done.images[plan.done.image[index]].rejections:
                self._count_rejections(plan.done[index])

    def add(self, committed: Committed) -> None:
        """Count a part that was just committed; raises ``RejectionError`` over the limit.

        Raises ``StoreError`` if its labels and rejections are not its samples x views.
        """
        part = committed.entry.part
        samples = self._plan.shards.infos[part.shard].samples
        if committed.entry.rows != (samples - len(committed.rejections)) * part.views:
            raise StoreError(
                f"{part.path} has {committed.entry.rows} labels and {len(committed.rejections)} "
                f"rejected of {samples} samples at {part.views} views, which do not add up; "
                "delete it and run again"
            )
        self.labels += committed.entry.rows
        self.parts += 1
        self._count_rejections(committed)

    @property
    def labels_per_second(self) -> float:
        """Labels committed per second of this run."""
        return self.labels / max(1e-9, self.seconds)

    @property
    def seconds(self) -> float:
        """Time since labelling began."""
        return time.monotonic() - self._started

    def _count_rejections(self, committed: Committed) -> None:
        shard, count = committed.entry.part.shard, len(committed.rejections)
        self.rejected += count - self._rejected.get(shard, 0)
        self._rejected[shard] = count
        config, samples = self._plan.config, self._samples
        if self.rejected > config.max_rejected * samples:
            reasons = "; ".join(
                f"{one.key!r}: {REJECTION_WORDS[one.reason]}" for one in committed.rejections[:3]
            )
            raise RejectionError(
                f"{self.rejected} of {samples} images do not decode, more than `max_rejected` "
                f"{config.max_rejected:g} allows; the latest, in "
                f"{self._plan.shards.infos[shard].name}: {reasons}; raise "
                "`max_rejected`, or mend the shards and give another `out`"
            )


def begin_job(plan: JobPlan) -> None:
    """Claim the directory where parts are committed; a finished Zarr store is taken apart first."""
    out = plan.config.out
    if plan.adds:
        unpack_store(out)
    if packed_store(out) is None:
        claim_store(parts_root(out), plan.identity, plan.fingerprints)
    if plan.missing:
        claim_cut(parts_root(out), plan.cut)


def receipts_of(plan: JobPlan) -> Receipts:
    """Return where to note the parts that the job commits, so that no job need read them."""
    return Receipts(parts_root(plan.config.out), plan.identity.digest, plan.shards.infos)


def finish_job(plan: JobPlan, run: Mapping[str, Any]) -> Manifest:
    """Verify the whole store, write its manifest and card, and this run's provenance.

    Raises ``IncompleteStoreError`` and writes no manifest if a part of the plan is not there.
    """
    out = plan.config.out
    packed = packed_store(out)
    if packed is not None:  # a Zarr store to which nothing was to be added
        require_planned(out, plan.parts, packed.manifest.part_keys)
        return packed.manifest
    write_run(plan, run)
    root, infos = parts_root(out), {info.number: info for info in plan.shards.infos}
    manifest = finish_store(
        root,
        plan.identity,
        plan.fingerprints,
        plan.shards.infos,
        card_text,
        plan.parts,
        known=read_receipts(root, plan.identity.digest, infos),
        classes=plan.classes,
    )
    pack_store(out)
    return manifest


def write_run(plan: JobPlan, run: Mapping[str, Any]) -> None:
    """Record how a run went: settings, versions, hardware, times. Never compared."""
    if packed_store(plan.config.out) is not None:
        return  # the directory of its new parts was deleted; one without the old would replace it
    root = parts_root(plan.config.out)
    # Again, for a record alone where the store was deleted would be no store to go on with.
    claim_store(root, plan.identity, plan.fingerprints)
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(plan.config).items()
    }
    record_run(open_folder(root), "label-teacher", {"settings": settings, **run})
