"""A page in one file: its parts, and the template that makes HTML of them.

What stands in the records is text, whoever chose it: the template escapes all of it. The page may
ask for nothing and run no other script than its own, and says so to the browser.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from pipeline.errors import ConfigError
from pipeline.store.card import printable

_LARGE_SVG = 50_000  # letters; others have some thousands
_LONGEST_NUMBER = 24  # letters, of those that there are
_LONGEST_WORD = 18  # letters of a word that keeps to one line
_NUMERIC = re.compile(r"[-\d.,e+]+( %)?")

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = [
    "Bar",
    "Chart",
    "Facet",
    "Gallery",
    "Legend",
    "Matrix",
    "Page",
    "Picture",
    "Section",
    "Statements",
    "Table",
    "Text",
    "render",
    "require_page_name",
    "shortened",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A cell of a table with a bar behind its text."""

    text: str
    share: float  # of the cell's width, 0 to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Paragraphs."""

    kind: ClassVar = "text"
    paragraphs: tuple[str, ...]
    half: bool = False  # of the page's width, beside a chart


@dataclass(frozen=True, slots=True, kw_only=True)
class Statements:
    """What was checked, one line each; ``passed`` None where nothing was judged."""

    kind: ClassVar = "statements"
    verdict: str
    passed: bool | None
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of texts, numbers and bars; the first cell names its row."""

    kind: ClassVar = "table"
    header: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    caption: str = ""
    more: int = 0  # rows that are left out
    folded: bool = False  # behind its caption, until that is opened
    half: bool = False  # of the page's width, where there is room for two
    name: str = ""  # by which a test, or a link, finds it


@dataclass(frozen=True, slots=True, kw_only=True)
class Legend:
    """A line of a chart."""

    name: str
    color: str  # a class of the page's style
    dash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """An SVG element, and its numbers."""

    kind: ClassVar = "chart"
    caption: str
    svg: str
    table: Table
    legend: tuple[Legend, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Shares, 0 to 1, by row and column; darker is more."""

    kind: ClassVar = "matrix"
    caption: str
    names: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...]
    name: str = ""  # by which a test, or a link, finds it


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image with what there is to say of it."""

    source: str  # a data: URL
    alt: str
    title: str
    lines: tuple[str, ...]
    facets: Mapping[str, str | float]  # by the name of a ``Facet``
    stressed: str = ""  # that of them that must not be overlooked
    context: str = ""  # a small image beside them, a data: URL
    context_alt: str = ""
    pixelated: bool = False  # small, shown enlarged


@dataclass(frozen=True, slots=True, kw_only=True)
class Facet:
    """A filter: one of the values that pictures have, or all numbers from one on."""

    name: str
    title: str
    least: bool = False  # a number from which on pictures are shown
    grouped: bool = False  # values such as "fruit: apple" can be shown as "fruit" too


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Pictures to filter."""

    kind: ClassVar = "gallery"
    caption: str
    facets: tuple[Facet, ...]
    pictures: tuple[Picture, ...]

    @property
    def choices(self) -> list[Facet]:
        """The facets of which there is more than one value, so that there is a choice."""
        values = {
            one: {picture.facets[one.name] for picture in self.pictures} for one in self.facets
        }
        return [one for one in self.facets if len(values[one]) > 1]

    def values(self, facet: Facet) -> list[tuple[str, int]]:
        """Return the values that pictures have of a facet, with how many have each."""
        found: dict[str, int] = {}
        for one in self.pictures:
            value = str(one.facets[facet.name])
            group, colon, _ = value.partition(": ")
            for name in (group, value) if facet.grouped and colon else (value,):
                found[name] = found.get(name, 0) + 1
        return sorted(found.items(), key=lambda one: _in_order(one[0]))

    def highest(self, facet: Facet) -> float:
        """Return the greatest number that a picture has of a facet."""
        return max((float(one.facets[facet.name]) for one in self.pictures), default=0.0)


def _in_order(value: str) -> tuple[bool, int, str]:
    """Return a key that sorts classes, ``7 cat``, by their number."""
    number = value.partition(" ")[0]
    is_number = number.isascii() and number.isdigit()
    return not is_number, int(number) if is_number else 0, value


Block: TypeAlias = Text | Statements | Table | Chart | Matrix | Gallery


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a page with a title; ``name`` is what links point to."""

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A whole page."""

    title: str
    subtitle: str
    figures: tuple[tuple[str, str], ...]  # (what, number): the few that matter most
    sections: tuple[Section, ...]
    note: str = ""  # below them: what a reader must know to judge them
    warning: str = ""
    foot: str = ""


def render(page: Page) -> str:
    """Return a page as HTML."""
    style, script = _file("style.css"), _file("script.js")
    return _template().render(
        page=page,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def shortened(page: Page, rows: int) -> Page:
    """Return a page with so many rows of a table at most, and long texts cut.

    For one that must fit into a size, whatever the files that it is made of say.
    """
    sections = [
        replace(one, blocks=tuple(_shorter(block, rows) for block in one.blocks))
        for one in page.sections
    ]
    texts = {
        name: _cut(getattr(page, name)) for name in ("title", "subtitle", "note", "warning", "foot")
    }
    figures = tuple((_cut(what), _cut(number)) for what, number in page.figures)
    return replace(page, sections=tuple(sections), figures=figures, **texts)


def _shorter(block: Block, rows: int) -> Block:
    if isinstance(block, Table):
        return _shorter_table(block, rows)
    if isinstance(block, Chart):
        # What makes a drawing large are the names in it, which the table beside it has too.
        svg = block.svg if len(block.svg) <= _LARGE_SVG else ""
        return replace(block, svg=svg, table=_shorter_table(block.table, rows))
    if isinstance(block, Statements):
        lines = tuple(map(_cut, block.lines[:rows]))
        return replace(block, verdict=_cut(block.verdict), lines=lines)
    if isinstance(block, Text):
        return replace(block, paragraphs=tuple(_cut(one, 2000) for one in block.paragraphs))
    return block


def _shorter_table(table: Table, rows: int) -> Table:
    return replace(
        table,
        caption=_cut(table.caption),
        header=tuple(map(_cut, table.header)),
        rows=tuple(tuple(map(_cut_cell, row)) for row in table.rows[:rows]),
        more=table.more + max(0, len(table.rows) - rows),
    )


def _cut(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _cut_cell(value: object) -> object:
    if isinstance(value, Bar):
        return replace(value, text=_cut(value.text))
    return _cut(value) if isinstance(value, str) else value


def require_page_name(path: Path, name: str = "out") -> None:
    """Raise ``ConfigError`` for another suffix than .html."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"`{name}` is {path}: the name of a page ends in .html")


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("pipeline.reporting"),
        autoescape=True,
        finalize=_spelled_out,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["counted"] = _counted
    environment.filters["parted"] = _parted
    environment.filters["aligned"] = _aligned
    # ElementTree has escaped its texts; what is left to do does not touch elements.
    environment.filters["drawn"] = lambda svg: Markup(printable(svg))
    environment.filters["numbers"] = _number_columns
    return environment.get_template("page.html")


def _is_numeric(value: object) -> bool:
    text = str(value)  # a digest may have digits alone, and must not keep to one line
    return len(text) <= _LONGEST_NUMBER and bool(_NUMERIC.fullmatch(text))


def _aligned(value: object, numeric: bool) -> str:
    """Return the class of a cell: a number's, a text's, or that of one no line could hold."""
    long = any(len(word) > _LONGEST_WORD for word in re.split(r"[\s_/-]", str(value)))
    return "number" if numeric else "long" if long else "words"


def _parted(value: object) -> object:
    """Return a name or path as HTML that breaks behind its parts before it does elsewhere."""
    from markupsafe import Markup, escape

    text = _spelled_out(value)
    if not isinstance(text, str) or not set(text) & {"_", "/"}:
        return text
    return Markup("<wbr>").join(map(escape, re.split(r"(?<=[_/])(?=.)", text)))


def _number_columns(table: Table) -> set[int]:
    """Return the columns of numbers alone, aligned by their ends; the first one names rows."""
    cells = [[one for one in many if one != ""] for many in zip(*table.rows, strict=False)]
    return {
        column
        for column, many in enumerate(cells)
        if column and many and all(isinstance(one, Bar) or _is_numeric(one) for one in many)
    }


def _counted(value: object) -> object:
    """Return whole numbers with their thousands apart."""
    return f"{value:,}" if isinstance(value, int) else value


def _spelled_out(value: Any) -> Any:
    """Return a text with marks of direction and the like written as escapes."""
    return printable(value) if type(value) is str else value


@cache
def _file(name: str) -> str:
    return (files("pipeline.reporting") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return b64encode(sha256(text.encode()).digest()).decode()
