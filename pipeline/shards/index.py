"""A WebDataset shard (one tar file) as an index of samples, with bytes read by offset."""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShardError
from pipeline.files.cache import RemoteShard, ShardFile
from pipeline.files.kinds import HEAD_BYTES, what_it_is_instead
from pipeline.identity import canonical_json
from pipeline.records import Sample, ShardInfo
from pipeline.shards.tar import Member, regular_members
from pipeline.views.apply import image_format

__all__ = [
    "IMAGE_EXTENSIONS",
    "Shard",
    "UniqueKeys",
    "match_shards",
    "open_known_shard",
    "open_shard",
    "open_shards",
]

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
TARGET_EXTENSIONS = ("cls", "json")

_AHEAD = 4  # shards fetched at a time while others are indexed
_NAMED = 8  # missing shards in an error
_HASHED_TOGETHER = 1024  # samples
_LARGEST_TARGET = 1 << 24  # bytes
_KEY = re.compile(
    r"((?:.*/|)[^.]+)[.]([^/]*)\Z", re.DOTALL
)  # WebDataset's rule: up to the first dot
_UNFIT = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What no key may hold: control characters, line ends, and bytes that are not UTF-8."""
_SPECIAL = re.compile(r"^__[^/]*__($|/)")  # names that WebDataset keeps for itself


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

    @property
    def image_hash(self) -> str:
        """SHA-256 of all encoded images, one after the other; reads the whole shard."""
        return self._images[0]

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of its images by their first bytes, sorted; reads the whole shard."""
        return self._images[1]

    @cached_property
    def _images(self) -> tuple[str, tuple[str, ...]]:
        digest, formats = hashlib.sha256(), set()
        for index in range(len(self.samples)):
            image = self.image_bytes(index)
            digest.update(image)
            formats.add(image_format(image))
        return digest.hexdigest(), tuple(sorted(filter(None, formats)))


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
    keys, content = _ListHash(), _ListHash()
    for key, parts in _grouped(path, data):
        sample = _sample(path, data, key, parts)
        samples.append(sample)
        keys.add(key)
        content.add([key, sample.target, [[ext, part.size] for ext, part in parts.items()]])
    if not samples:
        raise ShardError(f"{path}: the shard holds no samples")
    info = ShardInfo(
        number=number,
        name=path.name,
        key_hash=keys.finish(),
        content_hash=content.finish(),
        samples=len(samples),
        bytes=len(data),
    )
    return Shard(path=path, info=info, samples=tuple(samples), _data=data)


class UniqueKeys:
    """Sees to it that a key names one sample of a data set, at 8 bytes of memory a sample."""

    def __init__(self) -> None:
        self._paths: list[ShardFile] = []
        self._hashes: list[NDArray[np.uint64]] = []

    def add(self, shard: Shard) -> None:
        """Take in the keys of one more shard."""
        hashes = b"".join(
            hashlib.blake2b(one.key.encode(), digest_size=8).digest() for one in shard.samples
        )
        self._paths.append(shard.path)
        self._hashes.append(np.frombuffer(hashes, np.uint64))

    def check(self) -> None:
        """Raise ``ShardError`` for a key that two shards have; opens those whose hashes meet."""
        hashes = np.sort(np.concatenate([np.empty(0, np.uint64), *self._hashes]))
        twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        seen: dict[str, int] = {}
        for number, path in enumerate(self._paths):
            indices = np.flatnonzero(np.isin(self._hashes[number], twice)).tolist()
            samples = open_shard(path, number).samples if indices else ()
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


def open_shards(paths: Sequence[ShardFile]) -> Iterator[Shard]:
    """Open shards one after the other, numbered in order; a few are fetched ahead."""
    with ThreadPoolExecutor(_AHEAD) as pool:
        ahead: deque[Future[Shard]] = deque()
        for number, path in enumerate(paths):
            ahead.append(pool.submit(open_shard, path, number))
            if len(ahead) > _AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def open_known_shard(path: ShardFile, known: ShardInfo) -> Shard:
    """Open a shard that a store knows; raises ``ShardError`` if it is another one now."""
    shard = open_shard(path, known.number)
    cure = "use the very shards that were labelled, or label these"
    if shard.info.key_hash != known.key_hash:
        raise ShardError(
            f"{path} has {shard.info.samples} samples with other keys than the {known.samples} "
            f"of {known.name} that were labelled; {cure}"
        )
    if shard.info.content_hash != known.content_hash:
        raise ShardError(
            f"{path} has the keys of {known.name}, but its images were encoded again or its "
            f"targets changed since they were labelled; {cure}"
        )
    return shard


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
    checked as shards are opened. If some do not fit, all files are opened and told apart by
    content, so renamed and moved shards are recognized. Raises ``ShardError`` for shards that
    are not among the files, and for a file that the store does not know.
    """
    found, others = _by_name(known, paths), []
    if len(set(found.values())) != len(paths) or len(found) != len(paths):
        by_content = {open_shard(path, 0).info.content_hash: path for path in paths}
        found = {
            info.number: by_content.pop(info.content_hash)
            for info in known
            if info.content_hash in by_content
        }
        others = sorted(map(str, by_content.values()))
    missing = [info for info in known if info.number not in found]
    if missing and not (subset and found):
        raise ShardError(_missing_shards(known, missing, others, name, subset is not None))
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
    choice: bool,
) -> str:
    lines = [f"{one.name} ({one.samples} samples)" for one in missing[:_NAMED]]
    lines += [f"and {len(missing) - _NAMED} more"] if len(missing) > _NAMED else []
    return (
        f"{len(missing)} of the {len(known)} shards that were labelled are not among `{name}`:"
        + "".join(f"\n  {line}" for line in lines)
        + (f"\n  {others[0]} is another one" if others else "")
        + "\n  cure: give them too"
        + (", or set `subset` to use those that are here alone" if choice else "")
        + "; shards that were packed, encoded or labelled again do not fit: use the very shards "
        "that were labelled, or label these"
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
        match = _KEY.match(member.name)
        if match is None or _SPECIAL.match(member.name):
            continue
        if _UNFIT.search(member.name):
            raise ShardError(
                f"{path}: the member {member.name!r} has a name that is not UTF-8 or holds "
                "control characters, so it cannot be a key; rename the file and pack the "
                "shard again"
            )
        key, extension = match[1], match[2].lower()
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
    if last_key is not None:
        yield last_key, parts


def _sample(path: ShardFile, data: mmap.mmap, key: str, parts: Mapping[str, Member]) -> Sample:
    images = [extension for extension in IMAGE_EXTENSIONS if extension in parts]
    if len(images) != 1:
        found = ", ".join(sorted(parts))
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
    if not isinstance(target, int) or isinstance(target, bool) or not 0 <= target < 1 << 16:
        raise ShardError(f"{path}: {member.name} holds {target!r:.80}, not a class index; {cure}")
    return target
