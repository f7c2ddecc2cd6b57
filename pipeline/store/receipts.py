"""What jobs note of the parts that they committed, so that nobody has to read these to know it.

A receipt counts where a file of its size is under the part's path; all other parts are read. It is
no proof: `verify` reads everything, and whoever reads a part compares its SHA-256. The files are
hidden, and may be deleted: then the next job reads the parts that they told of.
"""

from __future__ import annotations

import logging
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.files.local import Location, open_folder, sha256
from pipeline.growth import convert, from_plain, to_plain
from pipeline.records import Rejection, ShardInfo, accepted_mask
from pipeline.store.committed import Committed, CommittedParts, ShardImages
from pipeline.store.manifest import META_PREFIX, seal, unseal
from pipeline.store.parts import PartEntries, PartKeys, among, digests_of, distinct

__all__ = ["MAX_RECEIPTS_BYTES", "Receipts", "read_receipts"]

_log = logging.getLogger(__name__)

RECEIPTS_PATH = META_PREFIX + ".jobs/receipts-"
MAX_RECEIPTS_BYTES = 1 << 24
"""Of a file: one of a million parts has 3 MB. A larger one is read by nobody, nor written."""
_READS = 16  # of files at a time
_LEAST = 64  # parts in a file, unless the job ends
_SHARE = 64  # of all parts, a file has one in so many: their number grows with the logarithm


class Receipts:
    """Notes parts in their store, many in one file. Of a job that is killed, the last ones lack."""

    def __init__(self, root: Location, identity: str, shards: Sequence[ShardInfo]) -> None:
        self._folder, self._identity = open_folder(root), identity
        self._content = {one.number: one.content_hash for one in shards}
        self._noted = 0
        self._pending: list[Committed] = []

    def add(self, committed: Committed) -> None:
        """Note a part, at once or with others."""
        self._pending.append(committed)
        if len(self._pending) >= max(_LEAST, self._noted // _SHARE):
            self.close()

    def close(self) -> None:
        """Write what is not written yet. A store that cannot take it has the parts all the same."""
        pending, self._pending = self._pending, []
        self._noted += len(pending)
        for parts in _agreeing(pending):
            self._write(parts)

    def _write(self, parts: Sequence[Committed]) -> None:
        data = seal(_to_json(parts, self._identity, self._content))
        if len(data) <= MAX_RECEIPTS_BYTES:
            with suppress(PipelineError):
                self._folder.commit_new(f"{RECEIPTS_PATH}{sha256(data)[:16]}.json", data)
        elif len(parts) > 1:  # a part whose own is too large is read
            self._write(parts[: len(parts) // 2])
            self._write(parts[len(parts) // 2 :])


def _agreeing(parts: Sequence[Committed]) -> Iterator[Sequence[Committed]]:
    """Yield parts in groups, in each of which one thing is said of a shard's images."""
    while parts:
        first: dict[int, ShardImages] = {}
        agree = [first.setdefault(one.entry.part.shard, one.images) == one.images for one in parts]
        yield [one for one, ok in zip(parts, agree, strict=True) if ok]
        parts = [one for one, ok in zip(parts, agree, strict=True) if not ok]


def _to_json(
    parts: Sequence[Committed], identity: str, content: Mapping[int, str]
) -> dict[str, Any]:
    columns = CommittedParts.of(parts)
    images = {one.entry.part.shard: one.images for one in parts}
    numbers = np.vstack(
        [columns.parts.columns, columns.entries.bytes, columns.entries.rows, columns.agreement]
    )
    return {
        "identity": identity,
        "parts": _packed(numbers.astype("<i8")),
        "sha256": _packed(columns.entries.sha256),
        "shards": _packed(np.array(list(images), "<i8")),
        "content_hashes": _packed(digests_of([content[shard] for shard in images])),
        "image_hashes": _packed(digests_of([one.hash for one in images.values()])),
        "formats": [",".join(one.formats) for one in images.values()],
        "rejections": {
            str(shard): [to_plain(rejection) for rejection in one.rejections]
            for shard, one in images.items()
            if one.rejections
        },
        "omitted": {str(shard): one.omitted for shard, one in images.items() if one.omitted},
    }


def _packed(values: NDArray[Any]) -> str:
    return b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _unpacked(text: Any, kind: str, *shape: int) -> NDArray[Any]:
    """Return what ``_packed`` took; raises ``ValueError`` or ``TypeError`` for anything else."""
    return np.frombuffer(b64decode(text, validate=True), kind).reshape(shape)


def read_receipts(root: Location, identity: str, shards: Mapping[int, ShardInfo]) -> CommittedParts:
    """Return what is noted of the parts of this store and these shards.

    A part of which two receipts differ is left out: it was removed, and committed anew.
    """
    folder = open_folder(root)

    def read(path: str) -> CommittedParts:
        try:
            data = folder.read_bytes(path, MAX_RECEIPTS_BYTES)
            return _from_json(unseal(data, folder.at(path)), identity, shards)
        except FileNotFoundError:
            return CommittedParts.of(())
        except (PipelineError, ValueError, LookupError, TypeError, AttributeError) as error:
            _log.warning("%s is damaged (%s); its parts are read instead", folder.at(path), error)
            return CommittedParts.of(())

    with ThreadPoolExecutor(_READS) as pool:
        return CommittedParts.joined(
            *pool.map(read, folder.list(RECEIPTS_PATH))
        ).without_contradictions()


def _from_json(
    values: Mapping[str, Any], identity: str, shards: Mapping[int, ShardInfo]
) -> CommittedParts:
    if values["identity"] != identity:
        return CommittedParts.of(())  # the parts are refused by their own identity
    named = _unpacked(values["shards"], "<i8", -1)
    images = _images_of(values, len(named))
    numbers = _unpacked(values["parts"], "<i8", 7, -1).astype(np.int64)
    part, (size, rows), agreement = numbers[:3], numbers[3:5], numbers[5:]
    digest = _unpacked(values["sha256"], "u1", -1, 32)
    content = _unpacked(values["content_hashes"], "u1", -1, 32).tobytes().hex()
    labelled = np.full(len(named), -1, np.int64)  # samples; -1 where the shard is another
    for index, number in enumerate(named.tolist()):
        info, found = shards.get(number), images[index]
        if info is not None and info.content_hash == content[64 * index : 64 * (index + 1)]:
            labelled[index] = info.samples
            if found.rejections or found.omitted:
                labelled[index] = _labelled(info.samples, found)
    order = np.argsort(named)
    if len(distinct(named)) != len(named) or not among(part[0], named).all():
        raise ValueError("its shards are not those of its parts")
    image = order[np.searchsorted(named, part[0], sorter=order)]
    kept: NDArray[np.bool_] = labelled[image] >= 0
    fits = (
        (part[2] > 0) & (rows // part[2].clip(1) == labelled[image]) & (rows % part[2].clip(1) == 0)
    )
    known, equal = agreement
    if not (~kept | (fits & (equal >= 0) & (equal <= known) & (known <= rows))).all():
        raise ValueError("its parts have other rows than their shards")
    entries = PartEntries(PartKeys(part), size, digest, rows)
    return CommittedParts(entries, agreement, image, images)[kept]


def _labelled(samples: int, images: ShardImages) -> int:
    """Return how many samples have labels; raises ``ValueError`` for samples that there are not."""
    rejected = [one.index for one in images.rejections]
    if rejected != sorted(set(rejected) & set(range(samples))):
        raise ValueError(f"rejections {rejected[:8]} of {samples} samples")
    return int(accepted_mask(samples, images.rejections, images.omitted).sum())


def _images_of(values: Mapping[str, Any], count: int) -> list[ShardImages]:
    """Return what is said of so many shards, in their order."""
    hashes = _unpacked(values["image_hashes"], "u1", count, 32).tobytes().hex()
    rejections = convert(values["rejections"], dict[str, list[Any]], "rejections")
    omitted = convert(values["omitted"], dict[str, str], "omitted")
    formats = convert(values["formats"], list[str], "formats")
    # Many shards have the same few: a list for each would be a third of the time.
    names = {text: tuple(filter(None, text.split(","))) for text in set(formats)}
    numbers = map(str, _unpacked(values["shards"], "<i8", count).tolist())
    return [
        ShardImages(
            hash=hashes[64 * index : 64 * (index + 1)],
            formats=names[text],
            rejections=tuple(
                [from_plain(Rejection, one, "receipts") for one in rejections.get(number, ())]
            ),
            omitted=omitted.get(number, ""),
        )
        for index, (number, text) in enumerate(zip(numbers, formats, strict=True))
    ]
