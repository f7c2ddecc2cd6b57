"""Numbers of shards in short: ``0-126,128``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.errors import ConfigError

__all__ = ["number_ranges", "parse_numbers"]

_MOST = 1 << 24  # numbers in a text, before a forged or mistyped one takes the memory
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


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
