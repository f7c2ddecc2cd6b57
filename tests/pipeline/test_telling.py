"""How far work is: told to whoever asked, and to nobody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.telling import ShowProgress, heard_by, step, told

Heard = list[tuple[str, str, int, int]]


def test_nobody_hears_unless_it_is_asked_for() -> None:
    heard: Heard = []
    assert list(told("abc", "reading", "letters", 3)) == ["a", "b", "c"]
    with heard_by(into(heard)):
        assert list(told("ab", "reading", "letters", 2)) == ["a", "b"]
        with heard_by(None), step("writing", "MB") as show:
            show(1, 2)
        thread = threading.Thread(target=lambda: list(told("ab", "elsewhere", "letters", 2)))
        thread.start()
        thread.join()
    list(told("abc", "reading", "letters", 3))
    assert heard == [("reading", "letters", done, 2) for done in range(3)]


def test_an_item_is_told_when_it_is_done_with() -> None:
    heard: Heard = []
    with heard_by(into(heard)):
        for number, _ in enumerate(told("ab", "reading", "letters", 2)):
            assert heard[-1][2] == number


def into(heard: Heard):
    @contextmanager
    def steps(what: str, unit: str) -> Iterator[ShowProgress]:
        yield lambda done, total: heard.append((what, unit, done, total))

    return steps
