"""What jobs note of the parts that they committed, so that nobody has to read these to know it.

A receipt counts where a file of its size is under the part's path; all other parts are read. It is
no proof: `verify` reads everything, and whoever reads a part compares its SHA-256. The files are
hidden, and may be deleted: then the next job reads the parts that they told of.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files.local import Location, open_folder, sha256
from pipeline.growth import from_plain, to_plain
from pipeline.records import PartKey, ShardInfo, accepted_mask
from pipeline.store.commit import Committed, ShardImages
from pipeline.store.manifest import (
    MAX_MANIFEST_BYTES,
    META_PREFIX,
    Agreement,
    PartEntry,
    seal,
    unseal,
)

__all__ = ["Receipts", "read_receipts"]

_log = logging.getLogger(__name__)

RECEIPTS_PATH = META_PREFIX + ".jobs/receipts-"
_READS = 16  # of files at a time
_LEAST = 64  # parts in a file, unless the job ends
_SHARE = 64  # of all parts, a file has one in so many: their number grows with the logarithm
_DIGEST = re.compile(r"[0-9a-f]{64}")


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
        if pending:
            data = seal(_to_json(pending, self._identity, self._content))
            with suppress(PipelineError):
                self._folder.commit_new(f"{RECEIPTS_PATH}{sha256(data)[:16]}.json", data)


def _to_json(
    parts: Iterable[Committed], identity: str, content: Mapping[int, str]
) -> dict[str, Any]:
    shards: dict[str, Any] = {}
    entries = []
    for one in parts:
        entry, part = one.entry, one.entry.part
        shards[str(part.shard)] = {**to_plain(one.images), "content_hash": content[part.shard]}
        entries.append(
            [
                *(part.shard, part.first_view, part.views),
                *(entry.bytes, entry.sha256, entry.rows),
                *(one.agreement.known, one.agreement.equal),
            ]
        )
    return {"identity": identity, "shards": shards, "parts": entries}


def read_receipts(
    root: Location, identity: str, shards: Mapping[int, ShardInfo]
) -> list[Committed]:
    """Return what is noted of the parts of this store and these shards.

    A part of which two receipts differ is left out: it was removed, and committed anew.
    """
    folder = open_folder(root)
    found: dict[PartKey, Committed] = {}
    twice: set[PartKey] = set()

    def read(path: str) -> list[Committed]:
        try:
            data = folder.read_bytes(path, MAX_MANIFEST_BYTES)
            return list(_from_json(unseal(data, folder.at(path)), identity, shards))
        except FileNotFoundError:
            return []
        except (PipelineError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("%s is damaged (%s); its parts are read instead", folder.at(path), error)
            return []

    with ThreadPoolExecutor(_READS) as pool:
        for committed in pool.map(read, folder.list(RECEIPTS_PATH)):
            for one in committed:
                if found.setdefault(one.entry.part, one) != one:
                    twice.add(one.entry.part)
    return [one for part, one in found.items() if part not in twice]


def _from_json(
    values: Mapping[str, Any], identity: str, shards: Mapping[int, ShardInfo]
) -> Iterator[Committed]:
    if values["identity"] != identity:
        return  # the parts are refused by their own identity
    images = {}
    for number, one in values["shards"].items():
        info = shards.get(int(number))
        if info is not None and one.pop("content_hash") == info.content_hash:
            found = from_plain(ShardImages, one, "receipts")
            accepted_mask(
                info.samples, found.rejections, found.omitted
            )  # raises if it does not fit
            images[int(number)] = found
    for shard, first_view, views, size, digest, rows, known, equal in values["parts"]:
        numbers = (shard, first_view, views, size, rows, known, equal)
        if {type(one) for one in numbers} != {int} or not _DIGEST.fullmatch(digest):
            raise ValueError(f"a part of {numbers}")
        if shard in images:
            part = PartKey(shard=shard, first_view=first_view, views=views)
            yield Committed(
                entry=PartEntry(part=part, bytes=size, sha256=digest, rows=rows),
                images=images[shard],
                agreement=Agreement(known=known, equal=equal),
            )
