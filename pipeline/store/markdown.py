"""Markdown for reports and cards: tables, shares, lists that are cut short."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["first_lines", "markdown_table", "printable", "share"]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with one line a row; what would break a cell is escaped."""
    lines = [_line(header), "|" + "---|" * len(header)]
    lines += [_line(row) for row in rows]
    return printable("\n".join(lines) + "\n")


def printable(text: str) -> str:
    """Return a text of lines in which what a terminal would act upon is written as an escape."""
    return "".join(one if one.isprintable() or one == "\n" else repr(one)[1:-1] for one in text)


def _line(cells: Sequence[object]) -> str:
    texts = (" ".join(str(cell).replace("|", "\\|").split()) for cell in cells)
    return "|" + "|".join(f" {text} " if text else " " for text in texts) + "|"


def share(part: int, whole: int) -> str:
    """Return ``part`` of ``whole`` in per cent, a dash where there is no whole."""
    return f"{100 * part / whole:.2f} %" if whole else "-"


def first_lines(lines: Sequence[str], limit: int) -> list[str]:
    """Return the first lines, and how many more there are."""
    more = len(lines) - limit
    return [*lines[:limit], f"and {more} more"] if more > 0 else list(lines)
