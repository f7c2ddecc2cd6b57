"""The manifest: every part with its checksum, every shard, every rejection.

It is written last, as JSON that begins with the checksum of all that follows, so a store
either has a whole and true manifest or is unfinished.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256 as new_sha256
from itertools import compress
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.classes import check_names
from pipeline.columns import COLUMNS, ColumnConfig
from pipeline.errors import ChecksumError, IncompleteStoreError, PipelineError, StoreError
from pipeline.files.folder import MAX_FILE_BYTES
from pipeline.files.local import Location, open_folder
from pipeline.growth import convert, from_plain, install, many_from_plain, one_line, to_plain
from pipeline.identity import (
    FORMAT_VERSION,
    MUCH_JSON,
    StoreIdentity,
    canonical_json,
    check_version,
    read_fields,
    read_json,
)
from pipeline.records import (
    PartKey,
    PartRows,
    Rejection,
    ShardInfo,
    accepted_mask,
    count_masked,
)
from pipeline.store.parts import PartEntries, PartEntry, PartKeys, digests_of, distinct
from pipeline.store.subset import SubsetOf

__all__ = [
    "CARD_PATH",
    "IDENTITY_PATH",
    "MANIFEST_PATH",
    "MAX_COMPANION_BYTES",
    "MAX_MANIFEST_BYTES",
    "MAX_PART_VIEWS",
    "MAX_ROWS",
    "META_PREFIX",
    "RUNS_PATH",
    "UNREAD_FIELDS",
    "USER_PATH",
    "Agreement",
    "Manifest",
    "PartEntry",
    "SampleCounts",
    "check_claims",
    "check_companion_paths",
    "companion_limit",
    "identity_bytes",
    "listed_manifest",
    "listed_parts",
    "most_bytes",
    "most_rows",
    "part_of_path",
    "parts_of_paths",
    "read_manifest",
    "read_values",
    "require_own_files",
    "seal",
    "unseal",
    "write_manifest",
]

MANIFEST_PATH = "_manifest.json"
IDENTITY_PATH = "_meta/identity.json"
RUNS_PATH = "_meta/runs/"
CARD_PATH = "_README.md"
META_PREFIX = "_meta/"
USER_PATH = "_meta/user/"
"""Where people put what belongs to a store and is not ours: a license, notes, a citation."""

MAX_ROWS = 1 << 26
"""Rows of a part without optional columns: see ``most_rows``."""
_PART_MEMORY, _PLAIN_BYTES, _UNPACKED = 1 << 31, 32, 6
"""A part is decoded whole, and takes 32 bytes a row, and six times those of its optional columns:
k zeros a row take next to nothing in a file."""
MAX_PART_VIEWS = 1 << 20
"""Views of a part, which costs time and memory by them even if it has no rows."""
MAX_VIEW = 1 << 31
_ROW_BYTES, _PART_BYTES = 300, 1 << 26
"""What rows take at most before they are packed, beside optional columns, and a part without any:
a file may be of nothing but zeros that take no disk."""
_NAMED = 8  # shards in a sentence
_FIELDS = frozenset(
    {
        "format_version",
        "needs",
        "identity",
        "identity_digest",
        "fingerprints",
        "card",
        "notes",
        "shards",
        "image_hashes",
        "formats",
        "rejections",
        "omitted",  # of a subset
        "subset_of",  # of a subset
        "parts",
        "agreement",
        "classes",  # where they have names
        "zarr",  # of a Zarr store, which reads it itself
        "file",  # of a store in one file
    }
)
_PART_NUMBERS = ("shard", "first_view", "views", "bytes", "rows")
_PART_FIELDS = frozenset({"path", "sha256", *_PART_NUMBERS})
_AT_A_TIME = 4096  # parts that are written at once
_PIECE_BYTES = 1 << 20  # of JSON, in which parts are read at once
UNREAD_FIELDS = frozenset({"parts"})
"""What ``unseal`` leaves to ``Manifest.from_json``: a million records would take gigabytes."""
MAX_MANIFEST_BYTES = 1 << 30
MAX_USER_BYTES = 1 << 20
MAX_USER_FILES = 64
MAX_COMPANION_BYTES = 1 << 26
"""Of the card, the identity, a run's record, and the metadata of an array."""
_CURE = "restore the file, or remove it and run the label job again, which writes it anew"
_MALFORMED = (
    *(KeyError, TypeError, ValueError, AttributeError, RecursionError),
    msgspec.MsgspecError,
)


_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_RUN_PATH = re.compile(RUNS_PATH + _NAME + r"\.json")
_USER_PATH = re.compile(USER_PATH + _NAME)
# Each part has one path: shard=07 would be a second name of shard 7.
_NUMBER, _VIEW = r"(0|[1-9][0-9]{0,17})", r"([0-9]{5}|[1-9][0-9]{5,17})"
_PART_PATH = re.compile(rf"shard={_NUMBER}/view-{_VIEW}-{_VIEW}\.parquet")

_NUMBERS = re.compile("[0-9]+")


def part_of_path(path: str) -> PartKey | None:
    """Return the part whose file has this path, None for any other path."""
    match = _PART_PATH.fullmatch(path)
    if match is None:
        return None
    shard, first, end = (int(number) for number in match.groups())
    return PartKey(shard=shard, first_view=first, views=end - first)


def parts_of_paths(paths: Sequence[str]) -> tuple[PartKeys, NDArray[np.bool_]]:
    """Return the parts whose files have some of these paths, and which of the paths they are."""
    known = np.array([_PART_PATH.fullmatch(path) is not None for path in paths], np.bool_)
    # All numbers of all paths at once: much faster than path by path.
    found = _NUMBERS.findall("\n".join(compress(paths, known.tolist())))
    numbers = np.array(found, np.bytes_).astype(np.int64).reshape(-1, 3)
    numbers[:, 2] -= numbers[:, 1]
    return PartKeys(numbers.T), known


def require_own_files(paths: Iterable[str], known: Callable[[str], bool], store: str) -> None:
    """Raise ``StoreError`` for a file at ``paths`` that is none of a store's.

    Other readers of Parquet and Zarr would take it for labels. What is below ``_meta`` is for
    ``check_companion_paths``.
    """
    foreign = [
        path
        for path in paths
        if path not in (MANIFEST_PATH, CARD_PATH)
        and not path.startswith(META_PREFIX)
        and not known(path)
    ]
    if foreign:
        more = f" (nor are {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise StoreError(
            f"{store}: {foreign[0]!r} is no file of the store{more}, and other readers may take it "
            f"for labels; move it away (notes and licenses may lie in {USER_PATH})"
        )


def companion_limit(path: str) -> int:
    """Return how many bytes a file beside the labels has at most."""
    return MAX_USER_BYTES if path.startswith(USER_PATH) else MAX_COMPANION_BYTES


def check_companion_paths(paths: Collection[str], store: str) -> list[str]:
    """Return the paths of the files beside a store's labels, which are of a closed list.

    They become files' names when a store is written again, so a received store must not choose
    them. Raises ``StoreError`` for any other, and for two that differ by case alone.
    """
    seen: set[str] = set()
    for path in paths:
        known = path in (CARD_PATH, IDENTITY_PATH) or (
            _RUN_PATH.fullmatch(path) or _USER_PATH.fullmatch(path)
        )
        if not known or path.casefold() in seen:
            raise StoreError(
                f"{store}: {path!r} is no name of a file beside the labels ({CARD_PATH}, "
                f"{IDENTITY_PATH}, {RUNS_PATH}NAME.json, {USER_PATH}NAME); remove it, or if the "
                "store came from others, trust none of it and get it anew"
            )
        seen.add(path.casefold())
    users = sum(path.startswith(USER_PATH) for path in paths)
    if users > MAX_USER_FILES:
        raise StoreError(
            f"{store}: {users} files in {USER_PATH}, which holds at most {MAX_USER_FILES}; keep "
            "them elsewhere"
        )
    return list(paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How many labels have a known true class, and how many of those equal it."""

    known: int
    equal: int

    @staticmethod
    def of_rows(rows: PartRows) -> Agreement:
        """Count the labels of one part; a target of -1 is unknown."""
        known = rows.target >= 0
        equal = rows.label[known] == rows.target[known, None]
        return Agreement(known=equal.size, equal=int(equal.sum()))

    @staticmethod
    def total(counts: Iterable[Agreement]) -> Agreement:
        """Return the sum of counts."""
        counts = tuple(counts)
        return Agreement(
            known=sum(one.known for one in counts), equal=sum(one.equal for one in counts)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCounts:
    """How many samples of a store's shards are labelled, do not decode, or are left out."""

    indexed: int  # the sum of the others
    labelled: int
    rejected: int

    @property
    def omitted(self) -> int:
        """Samples that a subset leaves out."""
        return self.indexed - self.labelled - self.rejected

    @property
    def in_words(self) -> str:
        """The sum, for people."""
        left_out = f" + {self.omitted} omitted" if self.omitted else ""
        return (
            f"{self.indexed} samples = {self.labelled} labelled + {self.rejected} rejected"
            + left_out
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished store holds. Shards are ordered by number, parts by (shard, view)."""

    identity: StoreIdentity
    fingerprints: Mapping[str, int]  # see ``pipeline.views.fingerprints``
    shards: tuple[ShardInfo, ...]
    image_hashes: Mapping[int, str]  # by shard number: SHA-256 of all its encoded images
    formats: Mapping[int, tuple[str, ...]]  # by shard number: of its images, sorted
    rejections: Mapping[int, tuple[Rejection, ...]]  # by shard number, where there are any
    parts: Sequence[PartEntry]
    agreement: Agreement  # of all labels with the true classes
    card: str = ""  # SHA-256 of the card
    notes: Mapping[str, Any] = field(default_factory=dict)  # kept, and not needed to read labels
    omitted: Mapping[int, str] = field(default_factory=dict)  # by shard number, where there are any
    subset_of: tuple[SubsetOf, ...] = ()  # one for each time that it was thinned, the first first
    classes: tuple[str, ...] | None = None  # names by index, which nothing depends on

    @cached_property
    def identity_digest(self) -> str:
        """The identity's digest, worked out once."""
        return self.identity.digest

    @cached_property
    def by_shard(self) -> Mapping[int, ShardInfo]:
        """Shards by number."""
        return {shard.number: shard for shard in self.shards}

    @cached_property
    def view_range(self) -> range:
        """The views that every shard has: from the first on, without a gap."""
        shard, first, views, *_ = self._numbers[:, np.lexsort(self._numbers[1::-1])]
        begins = np.flatnonzero(np.diff(shard, prepend=-1))
        gaps = (shard[1:] == shard[:-1]) & (first[1:] != first[:-1] + views[:-1])
        if 0 < len(begins) == len(self.shards) and not gaps.any():  # nearly always
            ends = (first + views)[np.append(begins[1:], len(shard)) - 1]
            return range(int(first[begins].max()), int(ends.min()))
        common: list[range] | None = None
        for shard in self.shards:
            runs = _runs(entry.part for entry in self.parts_of_shard(shard.number))
            common = runs if common is None else _intersection(common, runs)
        return common[0] if common else range(0)

    def of_shards(self, numbers: Collection[int]) -> Manifest:
        """Return what is said of some of the shards; ``agreement`` stays that of all.

        The same manifest if they are all there are.
        """
        kept = set(numbers)
        if kept >= self.by_shard.keys():
            return self

        def some(values: Mapping[int, Any]) -> dict[int, Any]:
            return {number: one for number, one in values.items() if number in kept}

        return replace(
            self,
            shards=tuple(one for one in self.shards if one.number in kept),
            image_hashes=some(self.image_hashes),
            formats=some(self.formats),
            rejections=some(self.rejections),
            omitted=some(self.omitted),
            parts=self._some_parts(np.isin(self._numbers[0], list(kept))),
        )

    def left_out(self, used: Collection[int]) -> str:
        """Return in words which shards are not among those that are used; nothing if none."""
        out = [shard for shard in self.shards if shard.number not in set(used)]
        if not out:
            return ""
        named = ", ".join(one.name for one in out[:_NAMED])
        more = f" and {len(out) - _NAMED} more" if len(out) > _NAMED else ""
        lost, whole = sum(self.accepted_samples(one.number) for one in out), self.counts.labelled
        return (
            f"a subset: {len(self.shards) - len(out)} of {len(self.shards)} shards, "
            f"{whole - lost} of {whole} labelled samples; without {named}{more}"
        )

    @property
    def rows(self) -> int:
        """Labels in the store."""
        return int(self._numbers[3].sum())

    @property
    def bytes(self) -> int:
        """Bytes of all parts."""
        return int(self._numbers[4].sum())

    @cached_property
    def _numbers(self) -> NDArray[np.int64]:
        """Shard, first view, views, rows and bytes of all parts, (5, N)."""
        parts = self.parts
        if isinstance(parts, PartEntries):
            return np.vstack([parts.parts.columns, parts.rows, parts.bytes])
        numbers = [
            (one.part.shard, one.part.first_view, one.part.views, one.rows, one.bytes)
            for one in parts
        ]
        return np.array(numbers, np.int64).reshape(-1, 5).T

    @property
    def part_keys(self) -> PartKeys:
        """Which parts there are."""
        return PartKeys(self._numbers[:3])

    @cached_property
    def digest(self) -> str:
        """SHA-256 with which a Parquet directory's file of this manifest begins."""
        return _sha256_of(_body_of(self))

    @cached_property
    def counts(self) -> SampleCounts:
        """How many samples there are of each kind, in all shards."""
        return SampleCounts(
            indexed=sum(shard.samples for shard in self.shards),
            labelled=int(self._accepted_samples[1].sum()),
            rejected=sum(map(len, self.rejections.values())),
        )

    @cached_property
    def _accepted_samples(self) -> NDArray[np.int64]:
        """Each shard's number, and how many of its samples have labels, (2, shards)."""
        found = np.array([(one.number, one.samples) for one in self.shards], np.int64)
        for index, shard in enumerate(self.shards):
            if shard.number in self.rejections or shard.number in self.omitted:
                found[index, 1] = self.accepted_samples(shard.number)
        return found.reshape(-1, 2).T

    def accepted_samples(self, shard: int) -> int:
        """Return how many samples of a shard have labels."""
        samples = self.by_shard[shard].samples
        omitted = count_masked(self.omitted.get(shard, ""), samples)
        return samples - len(self.rejections.get(shard, ())) - omitted

    def accepted(self, shard: int) -> NDArray[np.bool_]:
        """Return which samples of a shard have labels, (samples,)."""
        return accepted_mask(
            self.by_shard[shard].samples,
            self.rejections.get(shard, ()),
            self.omitted.get(shard, ""),
        )

    def find_part(self, shard: int, view: int) -> PartEntry:
        """Return the part that holds a view of a shard."""
        indices = self._indices_of_shard(shard)
        _, first, views, *_ = self._numbers[:, indices]
        for index in indices[(first <= view) & (view < first + views)]:
            return self.parts[int(index)]
        raise IncompleteStoreError(
            f"the store has no labels for shard {shard} at view {view}; run the label job "
            f"again with `first_view` and `views` that include {view}"
        )

    def parts_of_shard(self, shard: int) -> tuple[PartEntry, ...]:
        """Return the parts of a shard, by view."""
        return tuple(self.parts[index] for index in self._indices_of_shard(shard).tolist())

    def _indices_of_shard(self, shard: int) -> NDArray[np.int64]:
        numbers, order = self._shards_of_parts
        first, end = np.searchsorted(numbers, [shard, shard + 1])
        return order[first:end]

    @cached_property
    def _shards_of_parts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The parts' shards in order, and the index of each one's part, (N,) and (N,)."""
        order = np.argsort(self._numbers[0], kind="stable")
        return self._numbers[0][order], order

    def _some_parts(self, wanted: NDArray[np.bool_]) -> Sequence[PartEntry]:
        if isinstance(self.parts, PartEntries):
            return self.parts[wanted]
        return tuple(compress(self.parts, wanted.tolist()))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; ``from_json`` is the inverse."""
        return {
            "format_version": FORMAT_VERSION,
            "needs": self.identity.needs,
            "identity": self.identity.to_json(),
            "identity_digest": self.identity_digest,
            "fingerprints": dict(self.fingerprints),
            "card": self.card,
            "notes": dict(self.notes),
            "shards": [to_plain(shard) for shard in self.shards],
            "image_hashes": _by_name(self.image_hashes),
            "formats": {str(shard): list(names) for shard, names in self.formats.items()},
            "rejections": {
                str(shard): [to_plain(one) for one in rejections]
                for shard, rejections in self.rejections.items()
            },
            "parts": [
                {
                    "path": entry.part.path,
                    "shard": entry.part.shard,
                    "first_view": entry.part.first_view,
                    "views": entry.part.views,
                    "bytes": entry.bytes,
                    "sha256": entry.sha256,
                    "rows": entry.rows,
                }
                for entry in self.parts
            ],
            "agreement": to_plain(self.agreement),
            **({"omitted": _by_name(self.omitted)} if self.omitted else {}),
            **({"subset_of": [to_plain(one) for one in self.subset_of]} if self.subset_of else {}),
            **({} if self.classes is None else {"classes": list(self.classes)}),
        }

    @staticmethod
    def from_json(values: Mapping[str, Any], name: str) -> Manifest:
        """Build the manifest of the store ``name`` from ``to_json``'s values.

        Raises ``StoreError`` if it is malformed, or claims what no label job does.
        """
        check_version(values.get("format_version"), name)
        try:
            manifest = Manifest._read(values)
            check_claims(manifest)
        except (*_MALFORMED, PipelineError) as error:
            what = (
                str(error) if isinstance(error, PipelineError) else f"it is malformed ({error!r})"
            )
            raise StoreError(
                f"{name}: its manifest is refused: {what}; restore it, or get the store anew from "
                "where it came from"
            ) from error
        return manifest

    @staticmethod
    def _read(values: Mapping[str, Any]) -> Manifest:
        needs = convert(values["needs"], str, "needs")
        for name in sorted(values.keys() - _FIELDS):
            raise StoreError(f"its field {name!r} is not known to this release; {install(needs)}")
        identity = StoreIdentity.from_json(values["identity"], needs)
        if values["identity_digest"] != identity.digest:
            raise StoreError(
                f"its identity has the digest {identity.digest}, but it says "
                f"{values['identity_digest']}"
            )
        return Manifest(
            identity=identity,
            fingerprints=convert(values["fingerprints"], dict[str, int], "fingerprints"),
            shards=_shard_infos(values["shards"], needs),
            image_hashes=_of_shards(values, "image_hashes", str),
            formats=_of_shards(values, "formats", tuple[str, ...]),
            rejections={
                shard: tuple(from_plain(Rejection, one, "rejections", needs) for one in rejections)
                for shard, rejections in _of_shards(values, "rejections", list[Any]).items()
            },
            parts=_part_entries(values["parts"], needs),
            agreement=_agreement(values["agreement"], needs),
            card=convert(values["card"], str, "card"),
            notes=convert(values["notes"], dict[str, Any], "notes"),
            omitted=_of_shards(values, "omitted", str) if "omitted" in values else {},
            subset_of=tuple(
                from_plain(SubsetOf, one, "subset_of", needs)
                for one in convert(values.get("subset_of", []), list[Any], "subset_of")
            ),
            classes=check_names(values["classes"], "classes") if "classes" in values else None,
        )


def _runs(parts: Iterable[PartKey]) -> list[range]:
    """Return the views of a shard's parts as ranges with gaps between them, sorted."""
    runs: list[range] = []
    for part in sorted(parts):
        if runs and runs[-1].stop >= part.first_view:
            runs[-1] = range(runs[-1].start, max(runs[-1].stop, part.end_view))
        else:
            runs.append(range(part.first_view, part.end_view))
    return runs


def _intersection(ours: Sequence[range], theirs: Sequence[range]) -> list[range]:
    """Return what is in some of either; both are sorted, with gaps between their ranges."""
    common: list[range] = []
    first = second = 0
    while first < len(ours) and second < len(theirs):
        one, other = ours[first], theirs[second]
        found = range(max(one.start, other.start), min(one.stop, other.stop))
        if len(found):
            common.append(found)
        if one.stop < other.stop:
            first += 1
        else:
            second += 1
    return common


def check_claims(manifest: Manifest) -> None:
    """Raise ``StoreError`` for claims that no label job makes, before they size any memory."""
    if manifest.classes is not None and len(manifest.classes) > manifest.identity.teacher.classes:
        raise StoreError("the manifest names more classes than the teacher has")
    numbers = [shard.number for shard in manifest.shards]
    if numbers != sorted(set(numbers)) or any(number < 0 for number in numbers):
        raise StoreError("the manifest's shards are not in order")
    unknown = {
        *distinct(manifest._numbers[0]).tolist(),
        *manifest.rejections,
        *manifest.image_hashes,
        *manifest.formats,
        *manifest.omitted,
    } - set(numbers)
    if unknown:
        raise StoreError(f"the manifest has parts of unknown shards {sorted(unknown)}")
    # What a part lists, its file must have; without one a shard may say any number of samples.
    bare = set(numbers) - set(distinct(manifest._numbers[0]).tolist())
    if bare and len(manifest.parts):
        raise StoreError(f"the manifest has no parts of shards {sorted(bare)[:_NAMED]}")
    for number, rejections in manifest.rejections.items():
        rejected, samples = [one.index for one in rejections], manifest.by_shard[number].samples
        if rejected != sorted(set(rejected)) or not all(0 <= one < samples for one in rejected):
            raise StoreError(f"the manifest's rejections of shard {number} are not in order")
    for number, text in manifest.omitted.items():
        if not text:
            raise StoreError(f"the manifest omits no sample of shard {number}, in a way of its own")
        manifest.accepted(number)  # raises if it does not fit the shard
    _check_parts(manifest)


def _check_parts(manifest: Manifest) -> None:
    """Raise ``StoreError`` for a part that no shard can have, or that is not in order."""
    shard, first, views, rows, size = manifest._numbers
    impossible = (views < 1) | (first < 0) | (first > MAX_VIEW) | (views > MAX_VIEW - first)
    if impossible.any():
        part = manifest.parts[int(impossible.argmax())].part
        raise StoreError(f"the manifest's part {part.path} has impossible views")
    numbers, accepted = manifest._accepted_samples
    samples = accepted[np.searchsorted(numbers, shard)]
    most_here = most_rows(manifest.identity.columns)
    wrong = (rows > most_here) | (views > MAX_PART_VIEWS)
    wrong |= (rows % views != 0) | (rows // views != samples)
    for index in np.flatnonzero(wrong)[:1].tolist():
        entry = manifest.parts[index]
        raise StoreError(
            f"the manifest claims {entry.rows} rows for {entry.part.path}; its shard and views "
            f"give {int(samples[index]) * entry.part.views}, and a part has at most {most_here}, "
            f"of {MAX_PART_VIEWS} views at most"
        )
    most = most_bytes(rows, manifest.identity.columns)
    for index in np.flatnonzero(size > most)[:1].tolist():
        raise StoreError(
            f"the manifest claims {size[index]} bytes for {manifest.parts[index].part.path}, and "
            f"{rows[index]} rows take at most {most[index]}"
        )
    after = (shard[1:] > shard[:-1]) | (
        (shard[1:] == shard[:-1]) & (first[1:] >= first[:-1] + views[:-1])
    )
    if not after.all():
        index = int(after.argmin())
        last, part = manifest.parts[index].part, manifest.parts[index + 1].part
        raise StoreError(f"the manifest's parts {last.path}, {part.path} are not in order")


def most_bytes(rows: NDArray[np.int64], columns: ColumnConfig) -> NDArray[np.int64]:
    """Return the bytes that parts of so many rows have at most, (N,), in whatever format."""
    return np.minimum(rows * (_ROW_BYTES + _width(columns)) + _PART_BYTES, MAX_FILE_BYTES)


def most_rows(columns: ColumnConfig) -> int:
    """Return how many rows a part has at most, so that it takes about 2 GB when it is decoded."""
    return _PART_MEMORY // (_PLAIN_BYTES + _UNPACKED * _width(columns))


def _width(columns: ColumnConfig) -> int:
    """Return the bytes of the optional columns in a row."""
    return sum(
        np.dtype(COLUMNS[name].dtype).itemsize * math.prod(shape)
        for name, shape in columns.shapes().items()
    )


def _by_name(values: Mapping[int, str]) -> dict[str, str]:
    return {str(number): one for number, one in values.items()}


def _of_shards(values: Mapping[str, Any], name: str, kind: Any) -> dict[int, Any]:
    """Return what a field has for each shard, whose number is spelled in one way alone."""
    found = {int(n): one for n, one in convert(values[name], dict[str, kind], name).items()}
    if list(map(str, found)) != list(values[name]):
        raise ValueError(f"{name} has other names than shards' numbers")
    return found


def _shard_infos(values: Any, needs: str) -> tuple[ShardInfo, ...]:
    shards = many_from_plain(ShardInfo, values, "shards", needs)
    for shard in shards:
        low, high = sorted((shard.number, shard.samples, shard.bytes))[::2]
        if low < 0 or high >= 1 << 40:
            raise ValueError(f"shard {shard.number} has {shard.samples} samples")
        name = shard.name
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"shard {shard.number} is called {name!r}, which is no file's name")
    return shards


def _agreement(values: Mapping[str, Any], needs: str) -> Agreement:
    one = from_plain(Agreement, values, "agreement", needs)
    if one.known < 0 or one.equal < 0:
        raise ValueError(f"agreement of {one.equal} of {one.known} labels")
    return one


def _part_entries(values: Any, needs: str) -> PartEntries:
    """Return the parts that a manifest lists, given as JSON that is not read yet or as values."""
    if not isinstance(values, msgspec.Raw):
        return _checked_entries(convert(values, list[Any], "parts"), needs)
    pieces = map(msgspec.json.decode, _pieces(bytes(values)))
    return PartEntries.joined(*(_checked_entries(piece, needs) for piece in pieces))


def _pieces(text: bytes) -> Iterator[bytes]:
    """Cut JSON's text of a list of objects into lists of some of them.

    Text between two objects is taken for what it is wherever it stands: no path has it, and a piece
    that is cut in a string is no JSON.
    """
    if not text.startswith(b"["):
        raise ValueError("its parts are no list")
    start = 1
    while start < len(text):
        cut = text.find(b"},{", start + _PIECE_BYTES)
        end = len(text) - 1 if cut < 0 else cut + 1
        yield b"[%b]" % text[start:end]
        start = end + 1


def _checked_entries(values: Sequence[Any], needs: str) -> PartEntries:
    for one in values:
        if one.keys() != _PART_FIELDS:
            raise _unlike_a_part(one, needs)
    numbers = np.array([_whole_numbers(values, name) for name in _PART_NUMBERS])
    parts, (size, rows) = PartKeys(numbers[:3]), numbers[3:]
    for one, path in zip(values, parts.paths(), strict=True):
        if one["path"] != path:
            raise ValueError(f"path {one['path']!r} should be {path!r}")
    if ((size < 0) | (size >= 1 << 40)).any():
        raise ValueError("a part has impossible bytes")
    return PartEntries(parts, size, digests_of([one["sha256"] for one in values]), rows)


def _whole_numbers(values: Sequence[Any], name: str) -> NDArray[np.int64]:
    column = [one[name] for one in values]
    if not set(map(type, column)) <= {int}:
        raise ValueError(f"the parts' {name} has numbers that are not whole")
    if column and max(-min(column), max(column)) >= 1 << 60:
        raise ValueError(f"the parts' {name} has impossible numbers")
    return np.array(column, np.int64)


def _unlike_a_part(values: Mapping[str, Any], needs: str) -> Exception:
    for name in sorted(values.keys() - _PART_FIELDS):
        return StoreError(f"parts.{one_line(name)} is not known to this release; {install(needs)}")
    return KeyError(min(_PART_FIELDS - values.keys()))


def listed_manifest(root: Location) -> Manifest | None:
    """Return the store's manifest, None if there is none yet."""
    return read_manifest(root) if open_folder(root).exists(MANIFEST_PATH) else None


def listed_parts(root: Location) -> dict[PartKey, PartEntry]:
    """Return the parts that the store's manifest lists, none if there is no manifest."""
    manifest = listed_manifest(root)
    return {} if manifest is None else {entry.part: entry for entry in manifest.parts}


def identity_bytes(identity: StoreIdentity, fingerprints: Mapping[str, int]) -> bytes:
    """Return the file that says what a job must share with a store to write to it."""
    values = {
        "needs": identity.needs,
        "identity": identity.to_json(),
        "fingerprints": dict(fingerprints),
    }
    return canonical_json(values) + b"\n"


def _body(values: Mapping[str, Any]) -> bytes:
    return canonical_json(values) + b"\n"


def _body_of(manifest: Manifest) -> Iterator[bytes]:
    """Yield ``_body`` of a manifest's values in pieces, without a million of them at once."""
    parts = manifest.parts
    if not isinstance(parts, PartEntries):
        yield _body(manifest.to_json())
        return
    values = replace(manifest, parts=()).to_json()
    before = canonical_json({name: one for name, one in values.items() if name < "parts"})
    after = _body({name: one for name, one in values.items() if name > "parts"})
    for text in (before, after):
        read_json(
            text, MUCH_JSON
        )  # what a manifest says beside its parts is read back to see that it can be
    yield before[:-1] + b',"parts":['
    entry = '{"bytes":%d,"first_view":%d,"path":"%s","rows":%d,"sha256":"%s","shard":%d,"views":%d}'
    for start in range(0, len(parts), _AT_A_TIME):
        some = parts[start : start + _AT_A_TIME]
        shard, first, views = some.parts.columns.tolist()
        paths, digests = some.parts.paths(), some.digests()
        columns = (some.bytes.tolist(), first, paths, some.rows.tolist(), digests, shard, views)
        texts = ",".join(map(entry.__mod__, zip(*columns, strict=True)))
        yield (b"," if start else b"") + texts.encode()
    yield b"]," + after[1:]


_SEAL = re.compile(rb'^\{"sha256":"([0-9a-f]{64})",')


def seal(values: Mapping[str, Any]) -> bytes:
    """Return canonical JSON of the values, after a first field with its SHA-256.

    The checksum is of all bytes after its comma, with a brace before them: those of the
    canonical JSON itself, and its line end. Raises ``StoreError`` for what could not be read back.
    """
    body = _body(values)
    with _holding():
        read_json(body, MUCH_JSON)
        return _seal([body])


@contextmanager
def _holding() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise StoreError(f"no manifest can hold this: {error}; no manifest was written") from error


def _sha256_of(pieces: Iterable[bytes | memoryview]) -> str:
    found = new_sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def _seal(body: Iterable[bytes]) -> bytes:
    first, *more = body
    size = len(first) + sum(map(len, more))
    if size > MAX_MANIFEST_BYTES - 100:  # the seal's
        raise ValueError(f"it has {size} bytes, more than {MAX_MANIFEST_BYTES}")
    seal = b'{"sha256":"%b",' % _sha256_of([first, *more]).encode()
    return b"".join([seal, first[1:], *more])


def unseal(data: bytes, name: str, unread: Collection[str] = ()) -> dict[str, Any]:
    """Return the values of ``seal``; raises ``ChecksumError`` if a byte was changed.

    Fields that are ``unread`` stay the JSON that they are, a ``msgspec.Raw``; then the others are
    read one by one, and of those that no manifest has one is named.
    """
    found = _SEAL.match(data)
    if found is None:
        raise ChecksumError(f"{name} is no manifest, it does not begin with a sha256; {_CURE}")
    actual, expected = _sha256_of([b"{", memoryview(data)[found.end() :]]), found[1].decode()
    if actual != expected:
        raise ChecksumError(f"{name}: sha256 is {actual}, it says {expected}; {_CURE}")
    try:
        if not unread:
            return dict(read_json(b"{" + data[found.end() :], MUCH_JSON))
        # With its seal, since all after it would be a copy of a gigabyte.
        values = read_fields(data, _FIELDS | {"sha256"}, unread)
    except (ValueError, TypeError) as error:
        raise ChecksumError(f"{name} is no manifest ({error!r}); {_CURE}") from error
    return {field: one for field, one in values.items() if field != "sha256"}


def write_manifest(root: Location, manifest: Manifest) -> None:
    """Write the manifest with its own checksum, in one step."""
    with _holding():
        data = _seal(_body_of(manifest))
    open_folder(root).replace(MANIFEST_PATH, data)


def read_values(root: Location) -> dict[str, Any]:
    """Read the manifest of a store in a directory and check its checksum; its parts stay JSON.

    Raises ``IncompleteStoreError`` if there is none, ``ChecksumError`` if it was changed.
    """
    folder = open_folder(root)
    try:
        data = folder.read_bytes(MANIFEST_PATH, MAX_MANIFEST_BYTES)
    except FileNotFoundError as error:
        what = "an unfinished store" if folder.exists(IDENTITY_PATH) else "no store"
        raise IncompleteStoreError(
            f"{folder} is {what}: it has no {MANIFEST_PATH}; give the path of a finished store, "
            "or run the command that was writing it again (the label job does only what is missing)"
        ) from error
    return unseal(data, folder.at(MANIFEST_PATH), UNREAD_FIELDS)


def read_manifest(root: Location) -> Manifest:
    """Read the manifest of a store in a directory; raises what ``read_values`` does."""
    return Manifest.from_json(read_values(root), str(open_folder(root)))
