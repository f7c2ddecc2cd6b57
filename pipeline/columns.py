"""The optional columns of a store: what it may keep of a teacher's probabilities, in one table.

A column is one entry of ``COLUMNS``, and one field of ``ColumnConfig`` unless it shares one.
Labelling, every format, the tools and the trainer walk the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.growth import settle

__all__ = [
    "COLUMNS",
    "LOG_STEPS",
    "SHARE_STEPS",
    "Column",
    "ColumnConfig",
    "Columns",
    "Ranked",
    "are_classes",
    "columns_fit",
    "keep_columns",
]

MAX_TOPK = 255
SHARE_STEPS = 255
"""The number that stands for a share of 1."""
LOG_STEPS = 64
"""Steps of a nat in which logarithms are stored, so one is off by 1/128 at most, down to -1023.

Four times finer ones take up to half as many bytes more for errors that only a store of all
classes shows (.1 instead of .4 % of a gradient); docs/FORMAT.md has the table.
"""

Labels: TypeAlias = NDArray[np.uint16]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnConfig:
    """What a store keeps of the teacher's probabilities, beside its labels.

    Each field is a word of the setting `keep`; a number among them asks for lists of so many.
    A field that a later release adds is ``grown(founding=False, since=...)``, or 0 for a number.

    >>> ColumnConfig.from_text("confidence,topk=5").topk
    5
    """

    confidence: bool = False  # probability of the label
    margin: bool = False  # that, less the second highest probability
    topk: int = 0  # classes of highest probability; 0 for none

    def __post_init__(self) -> None:
        settle(self)
        for name in _NUMBERED:
            value = getattr(self, name)
            if not 0 <= value <= MAX_TOPK:
                raise ConfigError(f"`{name}` is {value}; use 1..{MAX_TOPK}, or 0 for none")

    @staticmethod
    def words() -> tuple[str, ...]:
        """Return the names of all that can be asked for."""
        return tuple(field.name for field in dataclasses.fields(ColumnConfig))

    @staticmethod
    def from_text(text: str) -> ColumnConfig:
        """Return what words such as ``confidence,margin,topk=5`` ask for, nothing for none.

        Raises ``ConfigError`` for words that are unknown, doubled or without their number.
        """
        found: dict[str, Any] = {}
        for word in (part.strip() for part in text.split(",") if part.strip()):
            name, equals, number = word.partition("=")
            value: bool | int = True
            if name in _NUMBERED and number.isascii() and number.isdigit() and int(number) > 0:
                value = int(number)
            elif name not in ColumnConfig.words() or name in _NUMBERED or equals:
                known = [one + "=K" * (one in _NUMBERED) for one in ColumnConfig.words()]
                raise ConfigError(
                    f"`keep` is {text!r}: {word!r} is not known; use words of "
                    f"{', '.join(known[:-1])} and {known[-1]} (K in 1..{MAX_TOPK}), with commas "
                    "between them"
                )
            if name in found:
                raise ConfigError(f"`keep` is {text!r} and names {name} twice; name it once")
            found[name] = value
        return ColumnConfig(**found)

    def to_text(self) -> str:
        """Return the words for these columns; ``from_text`` is the inverse."""
        asked = ((word, getattr(self, word)) for word in ColumnConfig.words())
        return ",".join(f"{word}={n}" if word in _NUMBERED else word for word, n in asked if n)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return what one label has in each column that is kept, by name: () or (k,)."""
        asked = {column.name: getattr(self, column.word) for column in COLUMNS.values()}
        return {
            name: (value,) if COLUMNS[name].listed else () for name, value in asked.items() if value
        }


_NUMBERED = {one.name for one in dataclasses.fields(ColumnConfig) if type(one.default) is int}


class Columns(Mapping[str, NDArray[Any]]):
    """The optional columns that labels have, by name; a list's k is the last axis."""

    __slots__ = ("_arrays",)

    def __init__(self, arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        given = arrays or {}
        if unknown := sorted(given.keys() - COLUMNS.keys()):
            raise ValueError(f"{unknown[0]!r} is not a column; add it to COLUMNS")
        self._arrays = {name: given[name] for name in COLUMNS if name in given}

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def config(self) -> ColumnConfig:
        """What was asked for to get these."""
        asked: dict[str, Any] = {}
        for name, values in self.items():
            column = COLUMNS[name]
            if column.listed:
                asked[column.word] = values.shape[-1]
            elif column.word not in _NUMBERED:
                asked[column.word] = True
        return ColumnConfig(**asked)

    def map(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Columns:
        """Return the columns with each array changed alike."""
        return Columns({name: change(values) for name, values in self.items()})

    def only(self, kept: ColumnConfig) -> Columns:
        """Return those that a configuration keeps."""
        return Columns({name: self[name] for name in kept.shapes()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """What a teacher thinks of N views: classes by falling probability, equal ones by number."""

    classes: NDArray[np.int64]  # (N, R), all classes, or as many as the columns look at
    log_prob: NDArray[np.float64]  # (N, R), of the softmax over all classes
    log_rest: NDArray[np.float64]  # (N, R), of all classes after these together; -inf for none

    @staticmethod
    def of_sorted(classes: NDArray[np.int64], log_prob: NDArray[np.float64], count: int) -> Ranked:
        """Return the first ``count`` of all classes, (N, C), that are sorted already."""
        prob = np.exp(log_prob)
        # Summed from the smallest on: 1 less the others' sum would lose small ones.
        rest = np.zeros_like(prob)
        rest[:, :-1] = np.cumsum(prob[:, :0:-1], axis=1)[:, ::-1]
        with np.errstate(divide="ignore"):
            log_rest = np.log(rest[:, :count])
        return Ranked(classes=classes[:, :count], log_prob=log_prob[:, :count], log_rest=log_rest)

    @property
    def prob(self) -> NDArray[np.float64]:
        """Probabilities, (N, R)."""
        return np.exp(self.log_prob)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One optional column, from the teacher to the trainer.

    ``holds`` says what its numbers are: classes; shares of 1, in steps of 1/255; or logarithms of
    shares, which are never above 0, as steps of 1/64 below it, 65535 for all that is less.
    """

    name: str  # in every format, and in ``Columns``
    word: str  # the field of ``ColumnConfig`` that asks for it
    card: str = ""  # what a store's card calls it, with {k}; nothing where another entry says it
    dtype: str = "uint8"  # of its elements
    holds: Literal["classes", "shares", "logarithms"] = "shares"
    listed: bool = False  # whether it has k values a label, and not one
    fill: int = 0  # in Zarr, where no label is
    encoding: str = "BYTE_STREAM_SPLIT"  # in Parquet
    bytes_per_value: tuple[float, float]  # in stores unmixed and mixed, by benchmarks/store.py
    ranks: int = 1  # how many classes ``of`` looks at; that of a word with a k sees k at least
    of: Callable[[Ranked, int], NDArray[Any]]  # of ranks and k: (N,), or for lists (N, k)
    fits: Callable[[Labels, Columns], bool] = lambda label, columns: True  # with both of them

    def stored(self, ranked: Ranked, k: int) -> NDArray[Any]:
        """Return what a store keeps; ``read`` is the inverse, to half a step."""
        values = self.of(ranked, k)
        if self.holds == "shares":
            values = np.rint(values * SHARE_STEPS)
        elif self.holds == "logarithms":
            values = np.minimum(np.rint(-values * LOG_STEPS), np.iinfo(self.dtype).max)
        return values.astype(self.dtype)

    def read(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return what stored values stand for: classes as int64, or float32."""
        if self.holds == "classes":
            return stored.astype(np.int64)
        values = stored.astype(np.float32)
        steps = SHARE_STEPS if self.holds == "shares" else -LOG_STEPS
        return values / np.float32(steps)


def _margin_fits(_label: Labels, columns: Columns) -> bool:
    most = columns.get("confidence")
    return most is None or bool((columns["margin"] <= most).all())


def _logarithms_fit(_label: Labels, columns: Columns) -> bool:
    """Return whether logarithms fall, and they and the rest add up to 1, to half a step each."""
    log, rest = columns["topk_logprob"], columns["topk_rest"]
    share = np.exp(COLUMNS["topk_logprob"].read(log).astype(np.float64))
    total = share.sum(-1) + np.exp(COLUMNS["topk_rest"].read(rest).astype(np.float64))
    off = np.expm1(0.51 / LOG_STEPS)
    confidence = columns.get("confidence")
    sure = share[..., 0]
    first = sure if confidence is None else COLUMNS["confidence"].read(confidence)
    return bool(
        (log[..., 1:] >= log[..., :-1]).all()
        and (np.abs(total - 1) <= off).all()
        and (np.abs(sure - first) <= off + 0.51 / SHARE_STEPS).all()
    )


# Parquet keeps small integers in four bytes; split into streams, three of them are zeros and
# compress to nothing. Class numbers of one sample repeat from view to view, and zstd finds
# that only in plain order.
_ALL = (
    Column(
        name="confidence",
        word="confidence",
        card="confidence",
        bytes_per_value=(0.90, 0.90),
        of=lambda ranked, k: ranked.prob[:, 0],
    ),
    Column(
        name="margin",
        word="margin",
        card="margin",
        bytes_per_value=(0.95, 0.95),
        ranks=2,
        of=lambda ranked, k: ranked.prob[:, 0] - ranked.prob[:, 1],
        fits=_margin_fits,
    ),
    Column(
        name="topk_label",
        word="topk",
        card="the {k} likeliest classes with probabilities",
        dtype="uint16",
        holds="classes",
        listed=True,
        fill=65535,
        encoding="PLAIN",
        bytes_per_value=(0.90, 1.20),
        of=lambda ranked, k: ranked.classes[:, :k],
        fits=lambda label, columns: bool((columns["topk_label"][..., 0] == label).all()),
    ),
    Column(
        name="topk_logprob",
        word="topk",
        dtype="uint16",
        holds="logarithms",
        listed=True,
        fill=65535,
        bytes_per_value=(1.15, 1.15),
        of=lambda ranked, k: ranked.log_prob[:, :k],
        fits=_logarithms_fit,
    ),
    Column(
        name="topk_rest",
        word="topk",
        dtype="uint16",
        holds="logarithms",
        fill=65535,
        bytes_per_value=(0.90, 0.90),
        of=lambda ranked, k: ranked.log_rest[:, k - 1],
    ),
)
COLUMNS: Mapping[str, Column] = {column.name: column for column in _ALL}
"""All columns by name, in their order in a file."""


def keep_columns(config: ColumnConfig, rank: Callable[[int], Ranked]) -> Columns:
    """Return the columns asked for, of what ``rank`` gives for a number of classes."""
    asked = {name: int(getattr(config, COLUMNS[name].word)) for name in config.shapes()}
    if not asked:
        return Columns()
    ranked = rank(max(max(COLUMNS[name].ranks, k) for name, k in asked.items()))
    return Columns({name: COLUMNS[name].stored(ranked, k) for name, k in asked.items()})


def columns_fit(label: Labels, columns: Columns, classes: int) -> bool:
    """Return whether labels are classes, and what is stored beside them does not contradict."""
    return are_classes(label, columns, classes) and all(
        COLUMNS[name].fits(label, columns) for name in columns
    )


def are_classes(label: Labels, columns: Columns, classes: int) -> bool:
    """Return whether labels, and the classes that columns list, are some of a teacher's."""
    listed = (values for name, values in columns.items() if COLUMNS[name].holds == "classes")
    return all(int(one.max(initial=0)) < classes for one in (label, *listed))
