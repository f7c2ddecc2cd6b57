"""How far long work is: whoever does it tells, and whoever asked to be told hears it.

A loop deep in the library (a shard that is fetched, a part whose views are redrawn) need not hand a
function down for that. By default nobody hears; other threads and processes are not heard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeAlias, TypeVar

__all__ = ["ShowProgress", "Steps", "heard_by", "step", "told"]

Item = TypeVar("Item")

ShowProgress: TypeAlias = Callable[[int, int], None]
"""Takes how much is done, and how much there is."""

Steps: TypeAlias = Callable[[str, str], AbstractContextManager[ShowProgress]]
"""Opens a step of work: what it does, and the unit that it counts."""


def _unheard(_what: str, _unit: str) -> AbstractContextManager[ShowProgress]:
    return nullcontext(lambda done, total: None)


_steps: ContextVar[Steps] = ContextVar("steps", default=_unheard)


@contextmanager
def heard_by(steps: Steps | None) -> Iterator[None]:
    """Have all work in this context told to ``steps``; to nobody if it is None."""
    before = _steps.set(steps or _unheard)
    try:
        yield
    finally:
        _steps.reset(before)


def step(what: str, unit: str) -> AbstractContextManager[ShowProgress]:
    """Open a step, such as ``step("fetching x.tar", "MB")``; its value is told how far it is."""
    return _steps.get()(what, unit)


def told(items: Iterable[Item], what: str, unit: str, total: int) -> Iterator[Item]:
    """Pass ``total`` items through, and tell of each that is done with."""
    with step(what, unit) as show:
        show(0, total)
        for number, one in enumerate(items, 1):
            yield one
            show(number, total)
