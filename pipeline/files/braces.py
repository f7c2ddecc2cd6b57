"""Names in brace patterns, as bash and WebDataset write lists of shards: ``x-{000..127}.tar``.

They are counted before the first is made: a line of 100 characters may stand for more names than
fit into any memory.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, product
from math import prod

__all__ = ["Names", "parse_braces"]

_TOKEN = re.compile(r"\\.|[{},]|[^\\{},]+|\\", re.DOTALL)
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d+))?")
_ALPHABET = string.ascii_uppercase + string.ascii_lowercase


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names that are not made yet, and how many they are."""

    count: int
    make: Callable[[], Iterable[str]]


_Items = list["str | Names"]  # text, and what stands at a place, one after the other


def parse_braces(pattern: str) -> Names:
    """Return the names that a pattern stands for, in bash's order.

    ``{a,b}`` is a choice, ``{1..9}``, ``{01..10..3}`` and ``{a..e}`` are ranges, and other braces
    are text. A backslash makes the next character text. Raises ``ValueError`` for a brace without
    its other one. Making names that are nested too deep raises ``RecursionError``.
    """
    levels: list[list[_Items]] = [[[]]]  # choices in each brace that is open
    starts: list[int] = []
    for token in _TOKEN.finditer(pattern):
        text = token[0]
        if text == "{":
            starts.append(token.end())
            levels.append([[]])
        elif text == "}":
            if not starts:
                raise ValueError("a brace is closed that is not open")
            inner = _of_brace(levels.pop(), pattern[starts.pop() : token.start()])
            levels[-1][-1].extend(inner)
        elif text == "," and starts:
            levels[-1].append([])
        else:
            levels[-1][-1].append(text[1:] if len(text) == 2 and text[0] == "\\" else text)
    if starts:
        raise ValueError("a brace is open at the end")
    return _joined(levels[0][0])


def _of_brace(choices: Sequence[_Items], text: str) -> _Items:
    """Return what a pair of braces stands for that has ``text`` in it."""
    if len(choices) > 1:
        each = [_joined(items) for items in choices]
        return [
            Names(
                count=sum(one.count for one in each),
                make=lambda: chain.from_iterable(one.make() for one in each),
            )
        ]
    found = None if "{" in text else _range(text)
    if found is not None:
        return [found]
    items: _Items = []
    for one in ("{", *choices[0], "}"):
        if isinstance(one, str) and items and isinstance(items[-1], str):
            items[-1] += one  # or a thousand braces in each other become a million items
        else:
            items.append(one)
    return items


def _range(text: str) -> Names | None:
    """Return the numbers or letters of a range, None if the text is none."""
    if match := _NUMBERS.fullmatch(text):
        first, last, step = int(match[1]), int(match[2]), max(1, int(match[3] or 1))
        padded = any(re.match("-?0.", one) for one in match.groups()[:2])
        width = max(map(len, match.groups()[:2])) if padded else 0
        return _steps(first, last, step, lambda number: f"{number:0{width}d}")
    if match := _LETTERS.fullmatch(text):
        first, last = map(_ALPHABET.index, match.groups()[:2])
        return _steps(first, last, max(1, int(match[3] or 1)), _ALPHABET.__getitem__)
    return None


def _steps(first: int, last: int, step: int, text: Callable[[int], str]) -> Names:
    numbers = range(first, last + 1, step) if first < last else range(first, last - 1, -step)
    count = 1 + abs(last - first) // step  # `len` ends at 64 bits
    return Names(count=count, make=lambda: map(text, numbers))


def _joined(items: _Items) -> Names:
    """Return the names of items that follow each other: one of each, in all ways."""
    places = [one for one in items if isinstance(one, Names)]

    def make() -> Iterable[str]:
        each = [[one] if isinstance(one, str) else list(one.make()) for one in items]
        return map("".join, product(*each))

    return Names(count=prod(one.count for one in places), make=make)
