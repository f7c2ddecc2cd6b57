"""What is known of committed parts: of one in a record, of all of a store's in columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.records import PartHeader, PartRows, Rejection
from pipeline.store.manifest import Agreement
from pipeline.store.parts import PartEntries, PartEntry, PartKeys, among, codes

__all__ = ["Committed", "CommittedParts", "ShardImages"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardImages:
    """What labelling found of a shard's images: the same in all of its parts."""

    hash: str  # SHA-256 of all encoded images, in order
    formats: tuple[str, ...]
    rejections: tuple[Rejection, ...]
    omitted: str  # by a subset, see ``mask_text``

    @staticmethod
    def of(header: PartHeader) -> ShardImages:
        """Return what a part says of its shard's images."""
        return ShardImages(
            hash=header.image_hash,
            formats=header.formats,
            rejections=header.rejections,
            omitted=header.omitted,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A part that is in the store, whether by this commit or an earlier one."""

    entry: PartEntry
    images: ShardImages
    agreement: Agreement

    @property
    def rejections(self) -> tuple[Rejection, ...]:
        """The part's samples without labels."""
        return self.images.rejections

    @staticmethod
    def of_rows(entry: PartEntry, rows: PartRows) -> Committed:
        """Return what is kept of the part's rows."""
        return Committed(
            entry=entry, images=ShardImages.of(rows.header), agreement=Agreement.of_rows(rows)
        )


@dataclass(frozen=True, slots=True, eq=False)
class CommittedParts(Sequence[Committed]):
    """N parts that are in the store; what is said of a shard's images is kept once."""

    entries: PartEntries
    agreement: NDArray[np.int64]  # (2, N), known and equal labels
    image: NDArray[np.int64]  # (N,), index in ``images``
    images: Sequence[ShardImages]  # no two are the same
    __hash__ = None  # type: ignore[assignment]

    @staticmethod
    def of(many: Iterable[Committed]) -> CommittedParts:
        """Return some parts in columns."""
        if isinstance(many, CommittedParts):
            return many
        many, known = list(many), dict[ShardImages, int]()
        counts = [(one.agreement.known, one.agreement.equal) for one in many]
        image = [known.setdefault(one.images, len(known)) for one in many]
        return CommittedParts(
            PartEntries.of(one.entry for one in many),
            np.array(counts, np.int64).reshape(-1, 2).T,
            np.array(image, np.int64),
            list(known),
        )

    @staticmethod
    def joined(*many: CommittedParts) -> CommittedParts:
        """Return all parts of some, one after the other."""
        many = tuple(one for one in many if len(one))
        if len(many) == 1:
            return many[0]
        known = dict[ShardImages, int]()
        image = [np.empty(0, np.int64)]
        for one in many:
            indices = [known.setdefault(images, len(known)) for images in one.images]
            image.append(np.array(indices, np.int64)[one.image])
        if not many:
            return CommittedParts.of(())
        return CommittedParts(
            PartEntries.joined(*(one.entries for one in many)),
            np.concatenate([one.agreement for one in many], axis=1),
            np.concatenate(image),
            list(known),
        )

    @property
    def parts(self) -> PartKeys:
        """Which parts they are."""
        return self.entries.parts

    @property
    def total(self) -> Agreement:
        """How many labels of all parts are known, and equal."""
        known, equal = self.agreement.sum(axis=1).tolist()
        return Agreement(known=known, equal=equal)

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Committed: ...
    @overload
    def __getitem__(self, index: slice | NDArray[Any]) -> CommittedParts: ...
    def __getitem__(self, index: Any) -> Committed | CommittedParts:
        if isinstance(index, slice | np.ndarray):
            return CommittedParts(
                self.entries[index], self.agreement[:, index], self.image[index], self.images
            )
        known, equal = self.agreement[:, index].tolist()
        return Committed(
            entry=self.entries[index],
            images=self.images[self.image[index]],
            agreement=Agreement(known=known, equal=equal),
        )

    def __iter__(self) -> Iterator[Committed]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def in_order(self) -> CommittedParts:
        """Return them by (shard, view)."""
        return self[np.argsort(codes(self.parts)[0], kind="stable")]

    def without_contradictions(self) -> CommittedParts:
        """Return each part once, and none of which two things are said."""
        code = codes(self.parts)[0]
        order = np.argsort(code, kind="stable")
        sorted_code = code[order]
        values = np.vstack([self.entries.bytes, self.entries.rows, self.agreement, self.image])[
            :, order
        ]
        digest = self.entries.sha256[order]
        again = sorted_code[1:] == sorted_code[:-1]
        other = (values[:, 1:] != values[:, :-1]).any(axis=0) | (digest[1:] != digest[:-1]).any(
            axis=1
        )
        first = np.concatenate([np.ones(1, np.bool_), ~again])[: len(code)]
        contradicted = among(sorted_code, sorted_code[1:][again & other])
        return self[order[first & ~contradicted]]
