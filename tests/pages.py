"""Reads a page as a browser would: its elements, tables by their ids, and pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "input", "br", "hr"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text inside, spaces joined."""
        parts = [one if isinstance(one, str) else one.text for one in self.children]
        return " ".join(" ".join(parts).split())

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Return the elements below with this tag and these attributes, in order."""
        found = []
        for one in self.children:
            if isinstance(one, Element):
                has = all(one.attributes.get(name) == value for name, value in attributes.items())
                found += [one] * (one.tag == tag and has) + one.all(tag, **attributes)
        return found

    def walk(self) -> list[Element]:
        """Return all elements below."""
        inside = [one for one in self.children if isinstance(one, Element)]
        return [found for one in inside for found in (one, *one.walk())]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "wbr":  # where a line may break, which is no part of the text
            return
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open[-1].tag == tag, f"</{tag}> ends <{self.open[-1].tag}>"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        children = self.open[-1].children
        if children and isinstance(children[-1], str):
            children[-1] += data
        else:
            children.append(data)


def read_page(html: str) -> Element:
    """Return a page; fails for one whose elements are not closed in order."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [reader.root], "an element is left open"
    return reader.root


def table_of(page: Element, name: str) -> list[list[str]]:
    """Return the cells of a table's rows, without its header."""
    (table,) = page.all("table", id=name)
    (body,) = table.all("tbody")
    rows = body.all("tr")
    return [[cell.text for cell in row.children if isinstance(cell, Element)] for row in rows]


def number(text: str) -> float:
    """Return a number as the page writes it; shares as shares of 1."""
    if text.endswith(" %"):
        return float(text[:-2]) / 100
    return float(text.replace(",", ""))


def pictures_of(page: Element) -> list[Element]:
    """Return the items of the page's gallery, none if it has no gallery."""
    return [
        item
        for many in page.all("ul")
        if "pictures" in many.attributes.get("class", "")
        for item in many.all("li")
    ]
