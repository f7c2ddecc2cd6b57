"""Whose subset a store is, and numbers in short: ``0-126,128``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.growth import settle

__all__ = ["SubsetOf", "number_ranges", "parse_numbers"]

_MOST = 1 << 24  # numbers in a text, before a forged or mistyped one takes the memory
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetOf:
    """The store that a subset was taken from, and what was kept; all that is given holds."""

    identity: str  # digest of the source's identity
    manifest: str  # SHA-256 of the source's manifest, as a Parquet directory has it
    samples: int  # labelled ones of the source
    shards: str | None = None  # their numbers, by ``number_ranges``
    classes: str | None = None  # true classes, by ``number_ranges``
    keys: str | None = None  # SHA-256 of the sorted keys, with a line end after each
    share: float | None = None  # samples whose ``pipeline.views.rng.sample_share`` is below it
    share_seed: int | None = None

    def __post_init__(self) -> None:
        settle(self)

    @property
    def in_words(self) -> str:
        """What was kept, for people."""
        rules = (
            ("shards", self.shards),
            ("classes", self.classes),
            ("keys of the list", None if self.keys is None else self.keys[:12]),
            ("a share", None if self.share is None else f"{self.share:g} by {self.share_seed}"),
        )
        kept = "; ".join(f"{name} {value}" for name, value in rules if value is not None)
        return f"{kept}; of {self.samples} samples of the store {self.manifest[:12]}"


def number_ranges(numbers: Iterable[int]) -> str:
    """Return whole numbers as sorted ranges, such as ``0-126,128``; nothing for none."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def parse_numbers(text: str, name: str) -> tuple[int, ...]:
    """Return the numbers of ``number_ranges``, sorted; raises ``ConfigError`` naming ``name``."""
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last - first + len(found) >= _MOST:
            raise ConfigError(f"`{name}` has {part!r}; use numbers and ranges, such as 0-126,128")
        found.update(range(first, last + 1))
    return tuple(sorted(found))
