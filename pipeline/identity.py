"""Frozen configuration: how views are drawn and mixed, and what a store's identity is.

A configuration is checked when it is built, and never reads the environment. Each field's
docstring is its help text on the command line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeAlias

import msgspec

from pipeline.columns import ColumnConfig
from pipeline.errors import ConfigError, StoreError
from pipeline.growth import (
    from_plain,
    install,
    needed_release,
    one_line,
    require,
    settle,
    to_plain,
)

__all__ = [
    "FORMAT_VERSION",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MUCH_JSON",
    "PILLOWS_LIMIT",
    "PRESETS",
    "AugmentConfig",
    "ColumnConfig",
    "MixConfig",
    "Precision",
    "Preset",
    "StoreIdentity",
    "TeacherIdentity",
    "canonical_json",
    "check_version",
    "derivation_of",
    "different_fields",
    "memory_of_json",
    "mixing_of_preset",
    "read_fields",
    "read_json",
]

FORMAT_VERSION = 2
"""Version of the store's layout and of everything that a seed determines."""

TRIPLE_VIEWS = 3
"""Views that repeated augmentation shows together, and that share one pairing."""

PILLOWS_LIMIT = 178_956_970
"""Pixels beyond which Pillow takes an image for a decompression bomb."""

_FACTORS = (0.001, 1000.0)
"""Ratios and deviations beyond them round to nothing or overflow where a view is drawn."""
_LEAST_ALPHA = 0.01
"""Below it, draws from Beta(alpha, alpha) are tried again and again, and in the end for ever."""
_MAX_BATCH_PIXELS = 1 << 28
"""Of a teacher's batch, 3 GB of float32: a received store chooses no more memory than this."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Preset: TypeAlias = Literal["deit", "crop-flip", "three-augment", "center"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
Triple: TypeAlias = tuple[float, float, float]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """How a view is drawn. The defaults are DeiT's, the preset ``deit``.

    >>> AugmentConfig(image_size=384, crop="center", policy="none", erase_probability=0).crop
    'center'
    """

    image_size: int = 224
    """Side of the square view, in pixels."""
    crop: Literal["random-resized", "center"] = "random-resized"
    """How the crop is chosen."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area (random-resized)."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Smallest and largest width / height of the crop (random-resized)."""
    center_fraction: float = 0.875
    """Share of the shorter side that a center crop keeps."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    policy: Literal["none", "rand-augment", "three-augment"] = "rand-augment"
    """Operations after crop and flip: RandAugment as timm's rand-m9-mstd0.5-inc1, or
    DeiT III's 3-Augment."""
    rand_ops: int = 2
    """RandAugment: operations per view."""
    rand_probability: float = 0.5
    """RandAugment: probability of each operation."""
    rand_magnitude: float = 9.0
    """RandAugment: mean magnitude, 0 to 10."""
    rand_magnitude_std: float = 0.5
    """RandAugment: standard deviation of the magnitude, which is clipped to 0..10."""
    color_jitter: float = 0.3
    """3-Augment: brightness, contrast and color factors are uniform in 1 -/+ this."""
    erase_probability: float = 0.25
    """Probability of erasing one box with per-pixel noise."""
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    """Smallest and largest share of the view that is erased."""
    erase_ratio: tuple[float, float] = (0.3, 1 / 0.3)
    """Smallest and largest height / width of the erased box."""
    mean: Triple = IMAGENET_MEAN
    """Per-channel mean of pixels in [0, 1]: normalization, fill color, erasing noise."""
    std: Triple = IMAGENET_STD
    """Per-channel standard deviation of pixels in [0, 1]."""
    max_pixels: int = 64_000_000
    """Images of more pixels by their header are rejected before they are decoded; a decoder takes
    up to 18 bytes for each."""

    def __post_init__(self) -> None:
        settle(self)
        _require(1 <= self.image_size <= 4096, f"`image_size` is {self.image_size}; use 1..4096")
        require(
            self,
            "max_pixels",
            1 <= self.max_pixels <= PILLOWS_LIMIT,
            f"use 1..{PILLOWS_LIMIT}, beyond which Pillow decodes nothing",
        )
        for name in ("hflip", "rand_probability", "erase_probability"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"`{name}` is {value}; a probability is in 0..1")
        for name in ("crop_scale", "erase_area"):
            low, high = getattr(self, name)
            _require(0 < low <= high <= 1, f"`{name}` is {low}..{high}; use 0 < low <= high <= 1")
        least, most = _FACTORS
        for name in ("crop_ratio", "erase_ratio"):
            low, high = getattr(self, name)
            _require(
                least <= low <= high <= most,
                f"`{name}` is {low}..{high}; use {least} <= low <= high <= {most:g}",
            )
        _require(0 < self.center_fraction <= 1, "`center_fraction` must be in (0, 1]")
        _require(0 <= self.rand_ops <= 16, f"`rand_ops` is {self.rand_ops}; use 0..16")
        _require(0 <= self.rand_magnitude <= 10, "`rand_magnitude` must be in 0..10")
        _require(0 <= self.rand_magnitude_std <= 10, "`rand_magnitude_std` must be in 0..10")
        _require(0 <= self.color_jitter <= 1, "`color_jitter` must be in 0..1")
        _require(all(0 <= value <= 1 for value in self.mean), "`mean` must be in 0..1")
        _require(
            all(least <= value <= most for value in self.std), f"`std` must be in {least}..{most:g}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MixConfig:
    """How samples are grouped and paired, and how the members of a pair are mixed."""

    probability: float = 1.0
    """Probability that a pair is mixed at a view; 0 switches mixing off."""
    mixup_alpha: float = 0.8
    """Mixup's share is drawn from Beta(alpha, alpha), alpha in [.01, 1]; 0 for CutMix only."""
    cutmix_alpha: float = 1.0
    """CutMix's area is drawn from Beta(alpha, alpha), alpha in [.01, 1]; 0 for mixup only."""
    switch_probability: float = 0.5
    """Probability of CutMix where both are on."""
    group_size: int = 16
    """Samples that are decoded and labelled together (G)."""
    block_views: int = 15
    """Consecutive views that share one grouping, a multiple of 3 (K)."""

    def __post_init__(self) -> None:
        settle(self)
        for name in ("probability", "switch_probability"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"`{name}` is {value}; a probability is in 0..1")
        for name in ("mixup_alpha", "cutmix_alpha"):
            alpha = getattr(self, name)
            _require(
                alpha == 0 or _LEAST_ALPHA <= alpha <= 1,
                f"`{name}` is {alpha}; use 0, or {_LEAST_ALPHA}..1",
            )
        _require(
            self.probability == 0 or self.mixup_alpha > 0 or self.cutmix_alpha > 0,
            "`mixup_alpha` and `cutmix_alpha` are both 0; set `probability` to 0 for no mixing",
        )
        _require(
            4 <= self.group_size <= 256 and self.group_size % 2 == 0,
            f"`group_size` is {self.group_size}; use an even number in 4..256",
        )
        _require(
            0 < self.block_views < 1 << 20 and self.block_views % TRIPLE_VIEWS == 0,
            f"`block_views` is {self.block_views}; use a multiple of {TRIPLE_VIEWS}, to 1048575",
        )


PRESETS: Mapping[Preset, AugmentConfig] = {
    "deit": AugmentConfig(),
    "crop-flip": AugmentConfig(policy="none", erase_probability=0.0),
    "three-augment": AugmentConfig(policy="three-augment", erase_probability=0.0),
    "center": AugmentConfig(crop="center", hflip=0.0, policy="none", erase_probability=0.0),
}


def mixing_of_preset(preset: Preset) -> bool:
    """Return whether views of this preset are mixed unless the user says otherwise."""
    return preset != "center"


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherIdentity:
    """What makes two teachers the same for a store."""

    architecture: str  # timm's name, and in brackets how labels were derived, if they were
    weights: str  # SHA-256 over names, types, shapes and bytes of the state dict
    classes: int
    precision: Precision
    batch_views: int  # views of a group in one teacher batch: with G, the batch's shape

    def __post_init__(self) -> None:
        settle(self)
        require(self, "classes", 1 <= self.classes < 1 << 16, "use 1..65535")
        require(self, "batch_views", self.batch_views >= 1, "use 1 or more")

    @property
    def derivation(self) -> str | None:
        """How labels were derived that this teacher did not give to the views of their store."""
        return derivation_of(self.architecture)

    def derived(self, note: str) -> TeacherIdentity:
        """Return who is named as the teacher of labels that were derived as ``note`` says.

        Raises ``ConfigError`` if there is no note, or one with brackets or several lines, or
        if this teacher's labels were derived already.
        """
        _require(
            bool(note.strip()) and note.isprintable() and not set(note) & set("()"),
            f"the note of a derived store is {note!r}; say in a few words, without brackets, "
            "what its labels belong to",
        )
        _require(
            self.derivation is None,
            f"the labels of {self.architecture} are derived already; use the store that they "
            "come from",
        )
        return dataclasses.replace(self, architecture=f"{self.architecture} ({note.strip()})")


def derivation_of(architecture: str) -> str | None:
    """Return the note behind a teacher's name, None for the name of a model alone."""
    _, bracket, note = architecture.partition(" (")
    return note.removesuffix(")") if bracket else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreIdentity:
    """What must match for two label jobs to write one store."""

    root_seed: int
    augment: AugmentConfig
    mix: MixConfig
    teacher: TeacherIdentity
    columns: ColumnConfig = field(default_factory=ColumnConfig)
    format_version: int = field(default=FORMAT_VERSION)

    def __post_init__(self) -> None:
        settle(self)
        topk, classes = self.columns.topk, self.teacher.classes
        _require(topk <= classes, f"`topk` is {topk}, but the teacher has {classes} classes")
        views, size = self.mix.group_size * self.teacher.batch_views, self.augment.image_size
        _require(
            views * size**2 <= _MAX_BATCH_PIXELS,
            f"`batch_views` is {self.teacher.batch_views}: with `group_size` {self.mix.group_size} "
            f"and `image_size` {size} a batch of the teacher has {views * size**2} pixels, and may "
            f"have {_MAX_BATCH_PIXELS}; make one of them smaller",
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, which is what a store holds."""
        return hashlib.sha256(canonical_json(self.to_json())).hexdigest()

    @property
    def needs(self) -> str:
        """The oldest release that can read the identity."""
        return needed_release(self)

    def to_json(self) -> dict[str, Any]:
        """Return the canonical form, as plain JSON values; ``from_json`` is the inverse."""
        return to_plain(self)

    @staticmethod
    def from_json(values: Any, needs: str = "") -> StoreIdentity:
        """Build an identity from ``to_json``'s values; ``needs`` is what their file says it needs.

        Raises ``StoreError`` for a version, field or value that this release does not know, and
        for values in another form than the canonical one.
        """
        version = values.get("format_version") if isinstance(values, Mapping) else None
        check_version(version, "the store")
        identity = from_plain(StoreIdentity, values, "identity", needs)
        different = different_fields(identity.to_json(), values)
        if different:
            raise StoreError(
                f"the store's identity is not in canonical form ({'; '.join(different)}), so its "
                "digest says nothing; get the store anew from where it came from"
            )
        return identity


def check_version(version: object, name: str) -> None:
    """Raise ``StoreError`` unless this release knows the format version of what is named."""
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise StoreError(
            f"{name} has format version {version!r}, this release reads {FORMAT_VERSION}; "
            + install("")
        )


def canonical_json(value: object) -> bytes:
    """Return the one JSON text of ``value``: sorted keys, no spaces, ASCII."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def read_json(data: bytes | str, most: int = 1 << 28) -> Any:
    """Return the values of JSON that others may have made.

    Raises ``ValueError`` for what no release writes, and what would break who works with it:
    numbers that are not finite or have more than 40 digits, values nested more than 32 deep, and
    values that may take more than ``most`` bytes of memory.
    """
    if memory_of_json(data) > most:
        raise ValueError(f"its values may take more than {most >> 20} MiB of memory")
    try:
        values = json.loads(
            data, parse_constant=_refuse_number, parse_int=_integer, parse_float=_finite
        )
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level = [values]
    for _ in range(_DEEPEST):
        level = [child for one in level for child in _inside(one) if type(child) in (dict, list)]
        if not level:
            return values
    raise ValueError(_TOO_DEEP)


def read_fields(data: bytes, known: Collection[str], unread: Collection[str]) -> dict[str, Any]:
    """Return the values of a large JSON object as ``read_json`` does, but for some of its fields.

    Those that are ``unread`` stay the JSON that they are, a ``msgspec.Raw``. Of fields that are not
    ``known`` the first alone is there, as None. Raises what ``read_json`` does.
    """
    names, values = tuple(sorted(known)), {}
    try:
        found = _decoded(data, _fields(names, strict=True))
    except ValueError as error:
        other = _OTHER_FIELD.match(str(error))
        if other is None:
            raise
        found, values = _decoded(data, _fields(names, strict=False)), {other[1][:_SHOWN]: None}
    for name in names:
        text = getattr(found, name)
        if text is not msgspec.UNSET:
            values[name] = text if name in unread else read_json(bytes(text), MUCH_JSON)
    return values


def _decoded(data: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        raise ValueError(_TOO_DEEP if deep else str(error)) from None


@cache
def _fields(names: tuple[str, ...], *, strict: bool) -> type[Any]:
    """Return a record of JSON texts: a dictionary of them would hold whatever fields there are."""
    fields = [(name, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for name in names]
    return msgspec.defstruct("Fields", fields, forbid_unknown_fields=strict)


def memory_of_json(data: bytes | str) -> int:
    """Return about how many bytes JSON's text and values take at most, which may be a hundredfold.

    An empty list has three bytes of text, an object of one value six.
    """
    if isinstance(data, str):
        data = data.encode(errors="surrogatepass")
    marks = sum(size * data.count(mark) for mark, size in _MEMORY_OF.items())
    # One character beyond Latin makes a text four times as wide.
    narrow = data.isascii() and b"\\u" not in data
    return marks + len(data) * (3 if narrow else 9)


MUCH_JSON = 5 << 28
"""Bytes of memory that a manifest or an index may take as JSON: that of 500,000 shards."""
_MEMORY_OF = {b",": 72, b"[": 96, b"{": 104, b":": 100}  # of CPython 3.11, measured
_DEEPEST = 32
_TOO_DEEP = f"values are nested more than {_DEEPEST} deep"
_OTHER_FIELD = re.compile("Object contains unknown field `(.*)`", re.DOTALL)
_SHOWN = 80  # characters of such a name


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _refuse_number(text: str) -> Any:
    raise ValueError(f"the number {text[:40]}")


def _integer(text: str) -> int:
    # Python's own limit of 4300 digits lets through what overflows a float.
    return int(text) if len(text) <= 40 else _refuse_number(text)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_number(text)


def different_fields(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return ``path: ours / theirs`` for each leaf in which two JSON objects differ."""
    lines: list[str] = []
    for name in sorted({*ours, *theirs}):
        left, right, shown = ours.get(name), theirs.get(name), one_line(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            lines += [f"{shown}.{line}" for line in different_fields(left, right)]
        elif canonical_json(left) != canonical_json(right):
            lines.append(f"{shown}: {left!r} / {right!r}")
    return lines
