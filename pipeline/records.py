"""The records that pass between stages. Nothing here knows PyTorch.

Fixed-point numbers are integers in units of 2**-16 (``FIXED_ONE`` is 1.0).
Boxes are in pixels, and end before ``top + height`` and ``left + width``.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import Columns
from pipeline.errors import RejectionReason
from pipeline.growth import grown

__all__ = [
    "FIXED_BITS",
    "FIXED_ONE",
    "NO_PARTNER",
    "AppliedOp",
    "AugmentedGroup",
    "Box",
    "ImageSize",
    "MixKind",
    "MixParams",
    "PartHeader",
    "PartKey",
    "PartRows",
    "Pixels",
    "Rejection",
    "Sample",
    "ShardInfo",
    "ShardView",
    "TeacherLabels",
    "ViewMix",
    "ViewParams",
    "accepted_mask",
    "count_masked",
    "decode_mask",
    "encode_mask",
    "spread",
]

Pixels: TypeAlias = NDArray[np.uint8]
"""An image or view, (height, width, 3), RGB."""

FIXED_BITS = 16
FIXED_ONE = 1 << FIXED_BITS

NO_PARTNER = -1
"""Stands for "unmixed" wherever a partner's index is expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSize:
    """The size of a decoded image, in pixels."""

    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def area(self) -> int:
        """The number of pixels inside."""
        return self.height * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image of a shard, and where its bytes lie in the tar file."""

    key: str
    target: int  # true class
    image_name: str  # member name, for messages
    image_offset: int  # bytes from the start of the shard
    image_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardInfo:
    """What a store remembers of a shard, to know it again."""

    number: int  # index in the job's list of shards
    name: str  # file name without directory, for messages
    key_hash: str  # SHA-256 of the ordered keys: the shard's name in every stream
    content_hash: str  # SHA-256 of key, target and byte length of each member
    samples: int  # indexed samples, rejected ones included
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A sample whose image does not decode."""

    index: int  # index in the shard
    key: str
    reason: RejectionReason


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedOp:
    """An operation with its drawn argument; both mean what the operation's file says."""

    op: str  # its name: see ``pipeline.views.ops``
    argument: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewParams:
    """All that was drawn for one view: plain integers, no pixels."""

    crop: Box  # in the decoded image
    hflip: bool
    ops: tuple[AppliedOp, ...]  # in order
    erase: Box | None  # in the view
    erase_noise: int  # 64-bit seed of the erased pixels; 0 without erasing


class MixKind(StrEnum):
    """How a view is mixed with its partner's."""

    NONE = "none"
    MIXUP = "mixup"
    CUTMIX = "cutmix"

    @property
    def code(self) -> int:
        """A stable small integer for arrays and digests: 0, 1 or 2."""
        return ("none", "mixup", "cutmix").index(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixParams:
    """How the two members of a pair are mixed at one view; both share it."""

    kind: MixKind
    lam: int  # fixed-point share of a member's own image
    box: Box | None  # cutmix: where the partner's pixels go

    @staticmethod
    def none() -> MixParams:
        """Return the parameters of an unmixed view."""
        return MixParams(kind=MixKind.NONE, lam=FIXED_ONE, box=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewMix:
    """Mix parameters of N rows, as arrays that travel to the device."""

    partner: NDArray[np.int64]  # (N,), row of the partner; the row itself if unmixed
    kind: NDArray[np.uint8]  # (N,), ``MixKind.code``
    lam: NDArray[np.int32]  # (N,), fixed-point share of the own image
    box: NDArray[np.int32]  # (N, 4), top, left, height, width; zeros unless cutmix

    @staticmethod
    def unmixed(rows: int) -> ViewMix:
        """Return parameters that leave every row as it is."""
        return ViewMix(
            partner=np.arange(rows, dtype=np.int64),
            kind=np.zeros(rows, np.uint8),
            lam=np.full(rows, FIXED_ONE, np.int32),
            box=np.zeros((rows, 4), np.int32),
        )

    def set_row(self, row: int, partner: int, params: MixParams) -> None:
        """Mix ``row`` with ``partner`` by ``params``."""
        self.partner[row] = partner
        self.kind[row] = params.kind.code
        self.lam[row] = params.lam
        if params.box is not None:
            box = params.box
            self.box[row] = (box.top, box.left, box.height, box.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentedGroup:
    """The views of one group at V consecutive views: the teacher's input.

    P is the group size of the configuration; indices beyond the group's members, and those of
    rejected members, hold zeros and are not ``valid``. Rows are numbered
    ``index * V + view - first_view``; a row's partner is a row of the same view.
    """

    shard: int
    members: tuple[int, ...]  # sample indices in the shard
    first_view: int
    pixels: Pixels  # (P, V, S, S, 3)
    valid: NDArray[np.bool_]  # (P, V)
    mix: ViewMix  # P * V rows
    digest: NDArray[np.uint32]  # (P, V)
    has_digest: NDArray[np.bool_]  # (P, V)
    has_mixed_digest: NDArray[np.bool_]  # (P, V), of which the teacher digests the mixed image
    rejections: tuple[Rejection, ...]
    decode_seconds: float
    augment_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherLabels:
    """Labels of N rows, and what was asked for of the probabilities."""

    label: NDArray[np.uint16]  # (N,), argmax of the logits
    columns: Columns = field(default_factory=Columns)  # (N,) or (N, k) each
    mixed_digest: NDArray[np.uint32] | None = None  # (N,), 0 where there is none; None: unasked

    def map(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> TeacherLabels:
        """Return label and columns with each of their arrays changed alike."""
        return TeacherLabels(label=change(self.label), columns=self.columns.map(change))

    @staticmethod
    def joined(pieces: Sequence[TeacherLabels], axis: int = 0) -> TeacherLabels:
        """Return label and columns of several batches as one."""
        return TeacherLabels(
            label=np.concatenate([one.label for one in pieces], axis),
            columns=Columns(
                {
                    name: np.concatenate([one.columns[name] for one in pieces], axis)
                    for name in pieces[0].columns
                }
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PartKey:
    """One shard x one range of views: the unit of planning, retry and commit."""

    shard: int
    first_view: int
    views: int

    @property
    def end_view(self) -> int:
        """One past the last view."""
        return self.first_view + self.views

    @property
    def path(self) -> str:
        """Where the part lies in the store, relative, with ``/``."""
        return f"shard={self.shard}/view-{self.first_view:05d}-{self.end_view:05d}.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartHeader:
    """What a part says of itself beside its rows, in whatever format they are kept."""

    part: PartKey
    identity: str  # digest of the store's identity
    key_hash: str  # of the shard
    content_hash: str
    image_hash: str  # SHA-256 of all encoded images, in order
    formats: tuple[str, ...]  # of its images: jpeg, png, webp, sorted
    samples: int  # indexed in the shard: labelled, rejected and omitted
    rejections: tuple[Rejection, ...]  # in shard order
    omitted: str = grown(founding="", since="0.1.0")  # by a subset, see ``encode_mask``

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """Which of the indexed samples are labelled, (samples,)."""
        return accepted_mask(self.samples, self.rejections, self.omitted)

    @property
    def labelled(self) -> int:
        """How many samples are labelled; reads no more than the header, however large it says."""
        return self.samples - len(self.rejections) - count_masked(self.omitted, self.samples)

    @property
    def header(self) -> PartHeader:
        """The header alone, where there are rows with it."""
        return PartHeader(**self.header_values())

    def header_values(self) -> dict[str, Any]:
        """Return the header's fields by name."""
        return {one.name: getattr(self, one.name) for one in fields(PartHeader)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRows(PartHeader):
    """All that one part stores. N labelled samples, in shard order; V views."""

    keys: tuple[str, ...]  # (N,)
    target: NDArray[np.int32]  # (N,)
    seed: NDArray[np.int64]  # (N,)
    label: NDArray[np.uint16]  # (N, V)
    digest: NDArray[np.uint32]  # (N, V), 0 where there is none
    has_digest: NDArray[np.bool_]  # (N, V)
    mixed_digest: NDArray[np.uint32]  # (N, V), 0 where ``has_mixed_digest`` says there is none
    columns: Columns = field(default_factory=Columns)  # (N, V) or (N, V, k) each

    @property
    def all_keys(self) -> tuple[str, ...]:
        """The keys of all indexed samples, in shard order; empty for omitted ones."""
        keys = spread(np.array(self.keys, object), self.accepted, "")
        for rejection in self.rejections:
            keys[rejection.index] = rejection.key
        return tuple(keys)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays by name, those of optional columns among them."""
        names = ("target", "seed", "label", "digest", "has_digest", "mixed_digest")
        return {**{name: getattr(self, name) for name in names}, **self.columns}

    def cut(self, part: PartKey, kept: NDArray[np.bool_] | slice = slice(None)) -> PartRows:
        """Return the rows at the views of ``part``, of all labelled samples or some."""
        first = part.first_view - self.part.first_view
        views = slice(first, first + part.views)
        return replace(
            self,
            part=part,
            keys=tuple(np.array(self.keys, object)[kept]),
            target=self.target[kept],
            seed=self.seed[kept],
            label=self.label[kept, views],
            digest=self.digest[kept, views],
            has_digest=self.has_digest[kept, views],
            mixed_digest=self.mixed_digest[kept, views],
            columns=self.columns.map(lambda values: values[kept, views]),
        )

    def omit(self, kept: NDArray[np.bool_]) -> PartRows:
        """Return the rows of some labelled samples, (N,); the others are omitted as well."""
        omitted = decode_mask(self.omitted, self.samples)
        omitted[np.flatnonzero(self.accepted)[~kept]] = True
        return replace(self.cut(self.part, kept), omitted=encode_mask(omitted))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardView:
    """What a store knows of one shard at one view, by the samples' index in the shard.

    N counts the indexed samples, rejected and omitted ones included; theirs are not ``accepted``
    and hold zeros, and the keys of omitted ones are empty.
    """

    shard: int
    view: int
    keys: tuple[str, ...]  # (N,)
    accepted: NDArray[np.bool_]  # (N,)
    target: NDArray[np.int32]  # (N,)
    seed: NDArray[np.int64]  # (N,)
    label: NDArray[np.uint16]  # (N,)
    digest: NDArray[np.uint32]  # (N,)
    has_digest: NDArray[np.bool_]  # (N,)
    mixed_digest: NDArray[np.uint32]  # (N,)
    columns: Columns = field(default_factory=Columns)  # (N,) or (N, k) each


def accepted_mask(
    samples: int, rejections: Iterable[Rejection], omitted: str = ""
) -> NDArray[np.bool_]:
    """Return which of a shard's samples are neither rejected nor omitted, (samples,).

    Raises ``ValueError`` if ``omitted`` is no text of ``encode_mask``, or names a rejected sample.
    """
    accepted = ~decode_mask(omitted, samples)
    rejected = [one.index for one in rejections]
    if omitted and not accepted[rejected].all():
        raise ValueError("a rejected sample is omitted too")
    accepted[rejected] = False
    return accepted


def encode_mask(mask: NDArray[np.bool_]) -> str:
    """Return which samples of a shard are meant, as a bitmap in base64; nothing for none.

    Sample i is bit ``i % 8``, counted from the lowest, of byte ``i // 8``.
    """
    if not mask.any():
        return ""
    return b64encode(np.packbits(mask, bitorder="little").tobytes()).decode()


def decode_mask(text: str, samples: int) -> NDArray[np.bool_]:
    """Return the mask of a text of ``encode_mask``, (samples,); another is a ``ValueError``."""
    if not text:
        return np.zeros(samples, np.bool_)
    bits = np.unpackbits(_bytes_of(text, samples), bitorder="little")
    mask = bits[:samples].astype(np.bool_)
    if encode_mask(mask) != text:
        raise ValueError(f"{text[:40]!r} names no samples, or some beyond the {samples}")
    return mask


def count_masked(text: str, samples: int) -> int:
    """Return how many samples a text of ``encode_mask`` names."""
    return int(np.bitwise_count(_bytes_of(text, samples)).sum()) if text else 0


def _bytes_of(text: str, samples: int) -> NDArray[np.uint8]:
    data = b64decode(text, validate=True)
    if len(data) != -(-samples // 8):
        raise ValueError(f"{len(data)} bytes for {samples} samples")
    return np.frombuffer(data, np.uint8)


def spread(values: NDArray[Any], accepted: NDArray[np.bool_], fill: Any = 0) -> NDArray[Any]:
    """Return values of the labelled samples at the indices of all indexed ones."""
    whole = np.full((len(accepted), *values.shape[1:]), fill, values.dtype)
    whole[accepted] = values
    return whole
