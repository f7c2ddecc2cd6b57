"""A WebDataset shard (one tar file) as an index of samples, with bytes read by offset."""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import mmap
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, PipelineError, ShardError
from pipeline.files.cache import RemoteShard, ShardFile
from pipeline.files.kinds import HEAD_BYTES, what_it_is_instead
from pipeline.files.local import open_folder
from pipeline.growth import convert
from pipeline.identity import MUCH_JSON, canonical_json, read_json
from pipeline.records import Sample, ShardInfo
from pipeline.shards.tar import Member, bytes_after, first_set, plain_member, regular_members
from pipeline.telling import told

__all__ = [
    "IMAGE_EXTENSIONS",
    "INDEX_SUFFIX",
    "Shard",
    "ShardContents",
    "ShardSummary",
    "Summarize",
    "UniqueKeys",
    "index_bytes",
    "index_path",
    "is_key",
    "match_shards",
    "open_indexed_shard",
    "open_known_shard",
    "open_shard",
    "read_index",
    "summarize_here",
    "summarize_shard",
]

_log = logging.getLogger(__name__)

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
TARGET_EXTENSIONS = ("cls", "json")

INDEX_SUFFIX = ".idx"
"""Of the file that lies beside a shard and says what is in it: see `docs/FORMAT.md`."""

Members: TypeAlias = list[list[str | int]]
"""Extension and bytes of each member of a sample, in file order."""

SAY_SECONDS = 10.0  # between two words about a shard that is waited for
_AHEAD = 4  # shards fetched at a time while others are indexed
_LARGEST_INDEX = 1 << 28  # bytes: of a million samples
_MOST_TARGETS = 1 << 16
_MOST_MEMBERS = 1 << 12  # of a sample, all of which are in memory at once
_SORTED_FROM = 16  # samples; fewer are in order by chance
_NAMED = 8  # missing shards, or members of a sample, in an error
_HASHED_TOGETHER = 1024  # samples
_LARGEST_TARGET = 1 << 24  # bytes
_UNFIT = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What no key may hold: control characters, line ends, and bytes that are not UTF-8."""
_SPECIAL = re.compile(r"^__[^/]*__($|/)")  # names that WebDataset keeps for itself


Summarize: TypeAlias = "Callable[[Sequence[tuple[int, ShardFile]]], Iterable[ShardSummary]]"
"""Summarizes shards, given with their numbers, in their order."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """An open shard: its samples in file order, and its bytes, mapped into memory."""

    path: ShardFile
    info: ShardInfo
    samples: tuple[Sample, ...]
    _data: mmap.mmap = field(repr=False)

    def image_bytes(self, index: int) -> memoryview:
        """Return the encoded image of the sample at ``index``."""
        sample = self.samples[index]
        start = sample.image_offset
        return memoryview(self._data)[start : start + sample.image_bytes]

    def require_labelled(
        self, indices: Sequence[int], keys: Sequence[str], target: Sequence[int]
    ) -> None:
        """Raise ``ShardError`` unless the samples at ``indices`` are those that a store says.

        Its keys and true classes stand in its rows, which hashes of the shard say nothing of.
        """
        for index, key, stored in zip(indices, keys, target, strict=True):
            sample = self.samples[index]
            if sample.key != key or sample.target != stored:
                raise ShardError(
                    f"{self.path}: sample {sample.key!r} has target {sample.target}, the store "
                    f"says {key!r:.200} has {stored}; use the very shards that were labelled, or "
                    "label these"
                )

    @property
    def summary(self) -> ShardSummary:
        """What a job has to know of it."""
        keys, targets = zip(*((one.key, one.target) for one in self.samples), strict=True)
        return ShardSummary.of(self.info, keys, targets)

    @cached_property
    def contents(self) -> ShardContents:
        """What a part keeps of it; reads the whole shard, once."""
        from pipeline.views.apply import image_format  # numba, for which `--help` must not wait

        digest, formats = hashlib.sha256(), set()
        for index in range(len(self.samples)):
            image = self.image_bytes(index)
            digest.update(image)
            formats.add(image_format(image))
        return ShardContents(
            info=self.info,
            samples=self.samples,
            image_hash=digest.hexdigest(),
            formats=tuple(sorted(filter(None, formats))),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardContents:
    """What a part keeps of its shard: all but the images, so it can be told to other processes."""

    info: ShardInfo
    samples: tuple[Sample, ...]
    image_hash: str  # SHA-256 of all encoded images, one after the other
    formats: tuple[str, ...]  # of its images by their first bytes, sorted


def open_shard(path: ShardFile, number: int) -> Shard:
    """Map a shard and index it; ``number`` is its index in the job's list of shards.

    A shard in object storage is fetched into the cache first, unless it is there.

    Each sample needs exactly one image and one target, ``<key>.cls`` (an integer as text)
    or ``<key>.json`` (field ``label``). Raises ``ShardError`` naming the shard and sample.
    """
    try:
        if _size(path) == 0:
            raise ShardError(f"{path}: the shard is empty; fetch or pack it again")
        with _open(path) as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ShardError(f"{path}: cannot read the shard: {error}") from error
    instead = what_it_is_instead(data[:HEAD_BYTES])
    if instead is not None:
        raise ShardError(f"{path}: the shard {instead}")
    samples: list[Sample] = []
    hashes = _Hashes()
    for sample, members in _described(path, data):
        samples.append(sample)
        hashes.add(sample.key, sample.target, members)
    if not samples:
        raise ShardError(f"{path}: the shard holds no samples")
    return Shard(
        path=path,
        info=hashes.info(number, path.name, len(data)),
        samples=tuple(samples),
        _data=data,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSummary:
    """What a job has to know of a shard before anybody opens it."""

    info: ShardInfo
    key_hashes: NDArray[np.uint64]  # (samples,), 8 bytes of BLAKE2b of each key
    max_target: int
    max_target_key: str  # of a sample that has it
    is_class_sorted: bool

    @staticmethod
    def of(info: ShardInfo, keys: Sequence[str], targets: Sequence[int]) -> ShardSummary:
        """Summarize a shard's samples, in their order."""
        highest = max(range(len(targets)), key=targets.__getitem__)
        hashes = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
        return ShardSummary(
            info=info,
            key_hashes=np.frombuffer(hashes, np.uint64),
            max_target=targets[highest],
            max_target_key=keys[highest],
            is_class_sorted=len(targets) >= _SORTED_FROM and list(targets) == sorted(targets),
        )


def summarize_shard(path: ShardFile, number: int) -> ShardSummary:
    """Summarize a shard by the index beside it, and without one by the shard itself.

    What an index says is not proved here: whoever opens the shard compares it, see
    ``open_known_shard``. Raises what ``read_index`` and ``open_shard`` do.
    """
    found = read_index(path, number)
    return open_shard(path, number).summary if found is None else found


class UniqueKeys:
    """Sees to it that a key names one sample of a data set, at 8 bytes of memory a sample."""

    def __init__(self) -> None:
        self._paths: list[ShardFile] = []
        self._hashes: list[NDArray[np.uint64]] = []

    def add(self, path: ShardFile, summary: ShardSummary) -> None:
        """Take in the keys of one more shard."""
        self._paths.append(path)
        self._hashes.append(summary.key_hashes)

    def check(self) -> None:
        """Raise ``ShardError`` for a key that two shards have; opens those whose hashes meet."""
        hashes = np.sort(np.concatenate([np.empty(0, np.uint64), *self._hashes]))
        twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        seen: dict[str, int] = {}
        for number, path in enumerate(self._paths):
            # By sorting: the table that NumPy 2.0 would choose overflows on hashes.
            known = np.isin(self._hashes[number], twice, kind="sort")
            indices = np.flatnonzero(known).tolist()
            samples = open_shard(path, number).samples if indices else ()
            if indices and len(samples) != len(self._hashes[number]):
                raise ShardError(
                    f"{index_path(path)} says of {path} what is not so: it has "
                    f"{len(samples)} samples; delete the index, and run again"
                )
            for key in (samples[index].key for index in indices):
                first = seen.setdefault(key, number)
                if first != number:
                    raise ShardError(
                        f"{self._paths[first]} and {path} both have the key {key!r}, but seeds "
                        "and labels go by key, so it must name one sample of the data set; pack "
                        "the shards again with the name of its shard in front of each key: the "
                        "README says how, under 'Shards of your own'"
                    )


class _ListHash:
    """The SHA-256 of the canonical JSON of a list, which is never in memory as a whole."""

    def __init__(self) -> None:
        self._digest, self._begun = hashlib.sha256(b"["), False
        self._pending: list[Any] = []

    def add(self, value: Any) -> None:
        """Add the list's next value."""
        self._pending.append(value)
        if len(self._pending) == _HASHED_TOGETHER:
            self._flush()

    def finish(self) -> str:
        """Return the hash of the list."""
        self._flush()
        self._digest.update(b"]")
        return self._digest.hexdigest()

    def _flush(self) -> None:
        if self._pending:
            self._digest.update(b"," * self._begun + canonical_json(self._pending)[1:-1])
            self._pending, self._begun = [], True


class _Hashes:
    """The hashes that tell a shard from others, of its samples in their order."""

    def __init__(self) -> None:
        self._keys, self._content, self._samples = _ListHash(), _ListHash(), 0

    def add(self, key: str, target: int, members: Members) -> None:
        """Take in the next sample."""
        self._keys.add(key)
        self._content.add([key, target, members])
        self._samples += 1

    def info(self, number: int, name: str, size: int) -> ShardInfo:
        """Return what a store remembers of a shard of these samples."""
        return ShardInfo(
            number=number,
            name=name,
            key_hash=self._keys.finish(),
            content_hash=self._content.finish(),
            samples=self._samples,
            bytes=size,
        )


def summarize_here(shards: Sequence[tuple[int, ShardFile]]) -> Iterator[ShardSummary]:
    """Summarize shards in their order; a few are fetched ahead.

    A file system that hangs is waited for out loud, and ends no later than the process.
    """
    ahead: deque[tuple[ShardFile, Future[ShardSummary]]] = deque()
    for number, path in shards:
        if len(ahead) == _AHEAD:
            yield _waited_for(*ahead.popleft())
        ahead.append((path, _begin_to_summarize(path, number)))
    while ahead:
        yield _waited_for(*ahead.popleft())


def _begin_to_summarize(path: ShardFile, number: int) -> Future[ShardSummary]:
    """Summarize a shard in a thread of its own, which nobody waits for at the end of the process.

    A pool's are waited for, and a file system that hangs holds its reader for ever.
    """
    future: Future[ShardSummary] = Future()

    def summarize() -> None:
        try:
            future.set_result(summarize_shard(path, number))
        except BaseException as error:
            future.set_exception(error)

    # In a copy of this thread's context, to which the fetching is told.
    threading.Thread(
        target=copy_context().run, args=(summarize,), daemon=True, name=f"shard {number}"
    ).start()
    return future


def _waited_for(path: ShardFile, future: Future[ShardSummary]) -> ShardSummary:
    """Return what a thread finds, and say now and then that it has found nothing yet."""
    began = time.monotonic()
    while not wait([future], SAY_SECONDS).done:
        if isinstance(path, Path):  # the fetching of others tells of itself, and has an end
            _log.warning(
                "%s was not read in %.0f s; does its file system answer? It is waited for",
                path,
                time.monotonic() - began,
            )
    return future.result()


def index_path(path: ShardFile) -> str:
    """Return where the index of a shard lies: beside it, under its name and ``INDEX_SUFFIX``."""
    return f"{path}{INDEX_SUFFIX}"


def index_bytes(file: BinaryIO, name: str) -> bytes:
    """Return the index of a shard that was written to ``file``, from the bytes that are there."""
    file.flush()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        samples = [
            [one.key, one.target, one.image_offset, one.image_bytes, members]
            for one, members in _described(Path(name), data)
        ]
        return canonical_json({"bytes": len(data), "samples": samples}) + b"\n"


def read_index(path: ShardFile, number: int) -> ShardSummary | None:
    """Return what the index beside a shard says of it, None without one.

    Raises ``ShardError`` for one that is malformed, or of a shard of another size.
    """
    found = _read_rows(path, number)
    if found is None:
        return None
    rows, info = found
    return ShardSummary.of(info, [row[0] for row in rows], [row[1] for row in rows])


def _read_rows(path: ShardFile, number: int) -> tuple[list[Any], ShardInfo] | None:
    """Return the index of a shard: key, target, offset, bytes and members of each sample."""
    side = index_path(path)
    folder, _, name = side.rpartition("/")
    cure = "delete it, or pack the shard again, and run again"
    try:
        # A sample has two members, so it takes more of the shard than of the index.
        data = open_folder(folder or ".").read_bytes(name, min(_LARGEST_INDEX, _size(path)))
    except FileNotFoundError:
        return None
    except PipelineError as error:
        if isinstance(path, Path):
            raise
        # Object storage says so of what is not there to whoever may not list it.
        _log.info("%s: so the shard is opened to be indexed", error)
        return None
    try:
        values = read_json(data, MUCH_JSON)
        if values.keys() != {"bytes", "samples"}:
            raise ValueError("it has other fields than bytes and samples")
        rows, size = values["samples"], convert(values["bytes"], int, "bytes")
        hashes = _Hashes()
        for key, target, offset, length, members in rows:
            if not is_key(key):
                raise ValueError(f"{key!r} is no key")
            if type(target) is not int or not 0 <= target < _MOST_TARGETS:
                raise ValueError(f"{key!r} has the target {target!r}")
            if not (type(offset) is type(length) is int and min(offset, length) >= 0):
                raise ValueError(f"{key!r} has an image of {length!r} bytes at {offset!r}")
            _require_members(key, members, length)
            hashes.add(key, target, members)
        if len({row[0] for row in rows}) != len(rows) or not rows:
            raise ValueError("it has no samples, or a key twice")
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ShardError(f"{side} is no index of a shard ({error!r:.200}); {cure}") from error
    if size != _size(path):
        raise ShardError(
            f"{side} is the index of a shard of {size} bytes, and {path} has {_size(path)}; {cure}"
        )
    return rows, hashes.info(number, path.name, size)


def is_key(key: Any) -> bool:
    """Return whether a sample of a shard can have this key."""
    found = _split(f"{key}.x") if isinstance(key, str) else None
    return found is not None and found[0] == key and not _UNFIT.search(key)


def _split(name: str) -> tuple[str, str] | None:
    """Return a member's key and extension, None if it is part of no sample.

    It is WebDataset's rule, ``^((?:.*/|)[^.]+)[.]([^/]*)$``: the key ends at the first dot behind
    the last slash, and a part of the path that begins with a dot belongs to the part before it.
    As a regular expression it takes hours for a name of a million slashes.
    """
    base = name.rfind("/") + 1
    dot = name.find(".", base)
    before = name.rfind("/", 0, max(0, base - 1)) + 1
    if dot < 0 or (dot == base and (not base or "." in name[before:base])):
        return None
    return name[:dot], name[dot + 1 :]


def _require_members(key: str, members: Any, image_bytes: int) -> None:
    plain = all(
        type(extension) is str and type(size) is int and size >= 0 for extension, size in members
    )
    images = [size for extension, size in members if extension in IMAGE_EXTENSIONS]
    if not plain or images != [image_bytes]:
        raise ValueError(f"{key!r} has the members {members!r}")


def open_known_shard(path: ShardFile, known: ShardInfo) -> Shard:
    """Open a shard that a store or a job knows; raises ``ShardError`` if it is another one now."""
    shard = open_shard(path, known.number)
    if shard.info == known:
        return shard
    if _says_its_index(path, known):
        raise _not_so(path)
    cure = "use the very shards that were labelled, or label these"
    if shard.info.key_hash != known.key_hash:
        raise ShardError(
            f"{path} has {shard.info.samples} samples with other keys than the {known.samples} "
            f"of {known.name} that were labelled; {cure}"
        )
    if shard.info.content_hash != known.content_hash:
        raise ShardError(
            f"{path} has the keys of {known.name}, but its images were encoded again or its "
            f"targets changed since they were labelled; {cure}; to shards with the same pixels, as "
            "lossless packing makes them, `label-store rebind` binds the store"
        )
    return shard


def open_indexed_shard(path: ShardFile, known: ShardInfo) -> Shard:
    """Open a shard that a store knows without reading it, if an index beside it says what is where.

    A sample is compared with the shard where its image is first asked for. Samples must fill the
    file, so none is left out or in another order, also where it is the index that ``known`` is of.
    Raises as ``open_known_shard``, which opens a shard without an index, or one that is fetched
    whole.
    """
    if not isinstance(path, Path) or not path.is_file() or path.stat().st_size != known.bytes:
        return open_known_shard(path, known)
    found = _read_rows(path, known.number)
    if found is None or found[1] != known:
        return open_known_shard(path, known)
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    shard = _IndexedShard(
        path=path,
        info=known,
        samples=tuple(
            Sample(
                key=key,
                target=target,
                image_name=f"{key}.{members[_image_of(members)][0]}",
                image_offset=offset,
                image_bytes=length,
            )
            for key, target, offset, length, members in found[0]
        ),
        _data=data,
        _members=tuple(row[-1] for row in found[0]),
    )
    shard.compare_extent()
    return shard


def _image_of(members: Members) -> int:
    """Return which of a sample's members is its image."""
    return next(index for index, one in enumerate(members) if one[0] in IMAGE_EXTENSIONS)


@dataclass(frozen=True, kw_only=True)
class _IndexedShard(Shard):
    """A shard whose samples stand in the index beside it."""

    _members: tuple[Members, ...] = field(repr=False)
    _compared: set[int] = field(default_factory=set, repr=False)

    def compare_extent(self) -> None:
        """Raise ``ShardError`` unless the shard has these samples, in their order, and no others.

        Nothing but its end is read, unless it has members besides or extended headers.
        """
        at = bytes_after(0, 0)
        for sample, members in zip(self.samples, self._members, strict=True):
            image = _image_of(members)
            for number, (_, size) in enumerate(members):
                if number == image and at != sample.image_offset:
                    return self._compare_all()
                at = bytes_after(at, int(size))
        if first_set(self._data, at - bytes_after(0, 0), self.path) is not None:
            self._compare_all()
        return None

    def image_bytes(self, index: int) -> memoryview:
        """Return the encoded image of a sample; raises ``ShardError`` if it is not there."""
        if index not in self._compared:
            if not self._is_there(index):
                self._compare_all()
            self._compared.add(index)
        return super().image_bytes(index)

    def _is_there(self, index: int) -> bool:
        """Return whether plain headers say of a sample's members what the index does."""
        sample, members = self.samples[index], self._members[index]
        at, parts = sample.image_offset, dict[str, Member]()
        for _, size in reversed(members[: _image_of(members)]):
            at -= bytes_after(0, int(size))
        for extension, size in members:
            found = plain_member(self._data, at)
            name = None if found is None else _split(found.name)
            if found is None or name is None or found.size != size:
                return False
            if (name[0], name[1].lower()) != (sample.key, extension):
                return False
            parts[str(extension)], at = found, bytes_after(at, found.size)
        return _same_image(_sample(self.path, self._data, sample.key, parts), sample)

    def _compare_all(self) -> None:
        """Read the whole shard, which may have extended headers."""
        whole = open_known_shard(self.path, self.info)
        if not all(map(_same_image, whole.samples, self.samples)):
            raise _not_so(self.path)
        self._compared.update(range(len(self.samples)))


def _same_image(one: Sample, other: Sample) -> bool:
    """Return whether two samples are of one class, and have their image at one offset."""
    return (one.target, one.image_offset, one.image_bytes) == (
        *(other.target, other.image_offset, other.image_bytes),
    )


def _not_so(path: ShardFile) -> ShardError:
    return ShardError(
        f"{index_path(path)} says of {path} what is not so: it was changed, or is of another "
        "shard; delete it, and run again"
    )


def _says_its_index(path: ShardFile, known: ShardInfo) -> bool:
    """Return whether what is known of a shard stands in the index beside it."""
    try:
        said = read_index(path, known.number)
    except PipelineError:
        return False
    return said is not None and said.info == known


def _open(path: ShardFile) -> BinaryIO:
    return path.open() if isinstance(path, RemoteShard) else path.open("rb")


def _size(path: ShardFile) -> int:
    return path.size if isinstance(path, RemoteShard) else path.stat().st_size


def match_shards(
    known: Sequence[ShardInfo],
    paths: Sequence[ShardFile],
    name: str = "shards",
    *,
    subset: bool | None = False,
) -> dict[int, ShardFile]:
    """Return the file of each shard that a store knows, by number, in the order of the store.

    With ``subset`` some of the shards are enough, one at least; None says that whoever asks has
    no such choice. Names and sizes are compared first, which costs no reading; contents are then
    checked as shards are opened. If some do not fit, all are told apart by content, as the indices
    beside them say, or the files, so renamed and moved shards are recognized. Raises ``ShardError``
    for shards that are not among the files, and for a file that the store does not know.
    """
    found, others = _by_name(known, paths), []
    if len(set(found.values())) != len(paths) or len(found) != len(paths):
        opened = told(paths, "telling shards apart", "shards", len(paths))
        by_content = {summarize_shard(path, 0).info.content_hash: path for path in opened}
        found = {
            info.number: by_content.pop(info.content_hash)
            for info in known
            if info.content_hash in by_content
        }
        others = sorted(map(str, by_content.values()))
    missing = [info for info in known if info.number not in found]
    if missing and not (subset and found):
        if found:
            alone = ", or set `subset` to use those that are here alone"
            cure = "give them too" + (alone if subset is False else "")
        else:
            cure = "give the very files that were labelled"
            cure += ", all or some of them" if subset else ""
        raise ShardError(_missing_shards(known, missing, others, name, cure))
    if others:
        raise ShardError(
            f"the store has no labels for {len(others)} of the given shards, the first is "
            f"{others[0]}; leave them out, or run the label job on all shards"
        )
    return found


def _missing_shards(
    known: Sequence[ShardInfo],
    missing: Sequence[ShardInfo],
    others: Sequence[str],
    name: str,
    cure: str,
) -> str:
    lines = [f"{one.name} ({one.samples} samples)" for one in missing[:_NAMED]]
    lines += [f"and {len(missing) - _NAMED} more"] if len(missing) > _NAMED else []
    return (
        f"{len(missing)} of the {len(known)} shards that were labelled are not among `{name}`:"
        + "".join(f"\n  {line}" for line in lines)
        + (f"\n  {others[0]} is none of them: its contents differ" if others else "")
        + f"\n  cure: {cure}. A shard that was packed again is another one: label it. If its "
        "pixels are the same, as lossless packing leaves them, `label-store rebind` binds the "
        "store to it"
    )


def _by_name(known: Sequence[ShardInfo], paths: Sequence[ShardFile]) -> dict[int, ShardFile]:
    by_name: dict[tuple[str, int], list[ShardFile]] = {}
    for path in paths:
        by_name.setdefault((path.name, _size(path)), []).append(path)
    return {
        info.number: same[0]
        for info in known
        if len(same := by_name.get((info.name, info.bytes), [])) == 1
    }


def _grouped(path: ShardFile, data: mmap.mmap) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield each key with its members by extension, in file order."""
    cure = "seeds and labels go by key, so pack the shard with unique keys"
    seen: set[str] = set()
    last_key: str | None = None
    parts: dict[str, Member] = {}
    for member in regular_members(data, path):
        split = _split(member.name)
        if split is None or _SPECIAL.match(member.name):
            continue
        if _UNFIT.search(member.name):
            raise ShardError(
                f"{path}: the member {member.name!r} has a name that is not UTF-8 or holds "
                "control characters, so it cannot be a key; rename the file and pack the "
                "shard again"
            )
        key, extension = split[0], split[1].lower()
        if key != last_key:
            if last_key is not None:
                yield last_key, parts
            if key in seen:
                raise ShardError(
                    f"{path}: two samples have the key {key!r}, or its members lie apart; {cure}, "
                    "the members of a key in a row"
                )
            seen.add(key)
            last_key, parts = key, {}
        if extension in parts:
            raise ShardError(f"{path}: two members are named {f'{key}.{extension}'!r}; {cure}")
        parts[extension] = member
        if len(parts) > _MOST_MEMBERS:
            raise ShardError(
                f"{path}: sample {key!r} has more than {_MOST_MEMBERS} members; keys end at the "
                "first dot of a name, so give each sample a key of its own"
            )
    if last_key is not None:
        yield last_key, parts


def _described(path: ShardFile, data: mmap.mmap) -> Iterator[tuple[Sample, Members]]:
    """Yield each sample with extension and bytes of its members, in file order."""
    for key, parts in _grouped(path, data):
        members: Members = [[extension, part.size] for extension, part in parts.items()]
        yield _sample(path, data, key, parts), members


def _sample(path: ShardFile, data: mmap.mmap, key: str, parts: Mapping[str, Member]) -> Sample:
    images = [extension for extension in IMAGE_EXTENSIONS if extension in parts]
    if not images or not any(extension in parts for extension in TARGET_EXTENSIONS):
        _require_together(path, data, key, parts)
    if len(images) != 1:
        more = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
        found = ", ".join(heapq.nsmallest(_NAMED, parts)) + more
        raise ShardError(
            f"{path}: sample {key!r} has {len(images)} images (members: {found}); each sample "
            f"needs exactly one of {', '.join('.' + name for name in IMAGE_EXTENSIONS)}"
        )
    image = parts[images[0]]
    return Sample(
        key=key,
        target=_target(path, data, key, parts),
        image_name=image.name,
        image_offset=image.offset,
        image_bytes=image.size,
    )


def _require_together(
    path: ShardFile, data: mmap.mmap, key: str, parts: Mapping[str, Member]
) -> None:
    """Raise ``ShardError`` if a sample lacks members that are elsewhere, or is a hidden file."""
    if key.endswith("/"):
        name = next(iter(parts.values())).name
        raise ShardError(
            f"{path}: {name!r} is a hidden file, by WebDataset's rule a sample {key!r}; delete "
            "such files and pack the shard again (`COPYFILE_DISABLE=1` keeps a Mac's tar from "
            "adding them)"
        )
    for member in regular_members(data, path):
        split = _split(member.name)
        if split and split[0] == key and parts.get(split[1].lower()) != member:
            raise ShardError(
                f"{path}: the members of sample {key!r} lie apart, {member.name!r} is not beside "
                "the others; pack the shard again with the members of a key in a row: sorted by "
                "name they are"
            )


def _target(path: ShardFile, data: mmap.mmap, key: str, parts: Mapping[str, Member]) -> int:
    cure = "each sample needs <key>.cls with its class index, or <key>.json with a label field"
    present = [extension for extension in TARGET_EXTENSIONS if extension in parts]
    if not present:
        raise ShardError(f"{path}: sample {key!r} has no .cls and no .json member; {cure}")
    member = parts[present[0]]
    if member.size > _LARGEST_TARGET:
        raise ShardError(f"{path}: {member.name} has {member.size} bytes; {cure}")
    text = data[member.offset : member.offset + member.size]
    try:
        target = int(text) if present[0] == "cls" else json.loads(text)["label"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ShardError(
            f"{path}: {member.name} holds no class index ({error!r}); {cure}"
        ) from error
    if not isinstance(target, int) or isinstance(target, bool) or not 0 <= target < _MOST_TARGETS:
        raise ShardError(f"{path}: {member.name} holds {target!r:.80}, not a class index; {cure}")
    return target
