"""Pages: all text is escaped, nothing is fetched, and numbers are beside charts."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.reporting.charts import Series, columns_chart, lines_chart, number_text
from pipeline.reporting.images import SMALL, image_url
from pipeline.reporting.page import (
    Bar,
    Chart,
    Facet,
    Gallery,
    Matrix,
    Page,
    Picture,
    Section,
    Statements,
    Table,
    Text,
    render,
)
from tests.pages import Element, read_page

HOSTILE = (
    "</script><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "<!--",
    "]]>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;&amp;",
)


def page_of(text: str) -> Page:
    """Return a page with a text wherever there can be one."""
    series = [Series(name=text, points=[(0, 1), (1, 2)]), Series(name="b", points=[(0, 2)])]
    picture = Picture(
        source=image_url(np.zeros((4, 4, 3), np.uint8)),
        alt=text,
        title=text,
        lines=(text,),
        stressed=text,
        facets={"kind": text, "bits": 1.5},
        context="data:image/png;base64,",
        context_alt=text,
    )
    other = replace(picture, facets={"kind": f"{text} b", "bits": 0.5})
    facets = (Facet(name="kind", title=text), Facet(name="bits", title=text, least=True))
    table = Table(caption=text, header=(text,), rows=((text, Bar(text=text, share=0.5)),))
    blocks = (
        Text(paragraphs=(text,)),
        Statements(verdict=text, passed=True, lines=(text,)),
        table,
        columns_chart(text, [(text, 3)], x_label=text, y_label=text),
        lines_chart(text, series, x_label=text, y_label=text),
        Matrix(caption=text, names=(text, "b"), shares=((0, 1), (1, 0))),
        Gallery(caption=text, facets=facets, pictures=(picture, other)),
    )
    return Page(
        title=text,
        subtitle=text,
        figures=((text, text),),
        sections=(Section(name="one", title=text, blocks=blocks),),
        warning=text,
        foot=text,
    )


def elements(page: Element) -> list[tuple[str, list[str]]]:
    return [(one.tag, sorted(one.attributes)) for one in page.walk()]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_text_wherever_it_stands(text: str) -> None:
    page = read_page(render(page_of(text)))
    plain = read_page(render(page_of("plain")))
    assert elements(page) == elements(plain)
    seen = page.text.count(" ".join(text.split())) + sum(
        value == text for one in page.walk() for value in one.attributes.values()
    )
    assert seen >= 25


@given(st.text(min_size=1, max_size=30))
def test_no_text_changes_the_elements_of_a_page(text: str) -> None:
    assert elements(read_page(render(page_of(text)))) == elements(
        read_page(render(page_of("plain")))
    )


def test_a_filter_has_a_choice() -> None:
    def filters(*facets: dict[str, str | float]) -> list[str]:
        page = page_of("x")
        gallery = page.sections[0].blocks[-1]
        assert isinstance(gallery, Gallery)
        pictures = tuple(replace(gallery.pictures[0], facets=one) for one in facets)
        section = replace(page.sections[0], blocks=(replace(gallery, pictures=pictures),))
        shown = read_page(render(replace(page, sections=(section,))))
        return [
            one.attributes["data-facet"] for one in shown.walk() if "data-facet" in one.attributes
        ]

    one = {"kind": "a", "bits": 1.0}
    assert filters(one, one) == []
    assert filters(one, one | {"kind": "b"}) == ["kind"]
    assert filters(one, one | {"bits": 0.5}) == ["bits"]


def test_marks_that_would_reverse_or_hide_text_are_spelled_out() -> None:
    html = render(page_of("a\u202eb\u200bc"))
    assert "\u202e" not in html
    assert "a\\u202eb\\u200bc" in html


def test_the_browser_runs_the_pages_script_alone_and_fetches_nothing() -> None:
    html = render(page_of("x"))
    page = read_page(html)
    (policy,) = [
        one.attributes["content"]
        for one in page.all("meta")
        if one.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(one.strip().split(" ", 1) for one in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert "http:" not in html
    assert re.findall(r"https?://[^\s\"']+", html) == []


def test_a_chart_has_its_numbers_beside_it() -> None:
    chart = columns_chart("c", [("0 to 1", 30), ("1 to 2", 1200)], x_label="bits", y_label="n")
    page = read_page(chart.svg)
    columns = page.all("rect")
    heights = [float(one.attributes["height"]) for one in columns]
    assert heights[1] / heights[0] == pytest.approx(40, rel=0.01)
    assert [one.text for one in columns] == ["0 to 1: 30", "1 to 2: 1,200"]
    assert chart.table.rows == (("0 to 1", 30), ("1 to 2", 1200))


def test_only_what_can_be_a_number_keeps_to_one_line() -> None:
    cells = ("1,234,567", "-1.5e-300", "98.45 %", "7" * 64, "2026-01-01 12", "")
    table = Table(header=(), rows=(("x", *cells),))
    section = Section(name="one", title="t", blocks=(table,))
    page = read_page(render(Page(title="t", subtitle="", figures=(), sections=(section,))))
    found = [one.text for one in page.all("td", **{"class": "number"})]
    assert found == ["1,234,567", "-1.5e-300", "98.45 %"]


def test_a_column_is_aligned_by_its_ends_where_all_of_it_are_numbers() -> None:
    rows = (("root seed", 0, 3, ""), ("views", "0..7 of all", "61.30 %", "-"))
    table = Table(header=("", "what", "how many", "more"), rows=rows)
    section = Section(name="one", title="t", blocks=(table,))
    page = read_page(render(Page(title="t", subtitle="", figures=(), sections=(section,))))
    found = [one.text for one in page.all("td", **{"class": "number"})]
    assert found == ["3", "", "61.30 %", "-"]
    assert [one.text for one in page.all("th", **{"class": "number"})] == ["how many", "more"]


def test_a_name_breaks_at_its_parts_and_a_word_only_where_no_line_could_hold_it() -> None:
    digest = "7a704dd793aa32365bb2a74fd0f5e6ba"
    table = Table(
        header=("prediction from",), rows=(("distillation head", "electric_ray", digest),)
    )
    section = Section(name="one", title="t", blocks=(table,))
    html = render(Page(title="t", subtitle="", figures=(), sections=(section,)))
    assert ">electric_<wbr>ray<" in html
    assert [one.text for one in read_page(html).all("td", **{"class": "long"})] == [digest]
    assert read_page(html).all("th", **{"class": "long"}) == []


def texts_of(chart: Chart, **attributes: str) -> list[str]:
    return [one.text for one in read_page(chart.svg).all("text", **attributes)]


def test_axes_are_named_and_their_numbers_have_the_unit() -> None:
    points = [(3, 0.1), (17, 0.28)]
    chart = lines_chart(
        "c", [Series(name="a", points=points)], x_label="step", y_label="share", shares=True
    )
    assert texts_of(chart, **{"text-anchor": "end"}) == ["10 %", "15 %", "20 %", "25 %", "30 %"]
    ticks = {"class": "tick", "text-anchor": "middle"}
    assert texts_of(chart, **ticks) == ["5", "10", "15"]
    columns = columns_chart("c", [("0 cat", 1), ("1 dog", 2)], x_label="step", y_label="share")
    assert texts_of(columns, **{"text-anchor": "end"}) == ["0", "1", "2"]
    assert texts_of(columns, **ticks) == ["0 cat", "1 dog"]
    for one in (chart, columns):
        across, up = read_page(one.svg).all("text", **{"class": "axis"})
        assert (across.text, up.text) == ("step", "share")
        assert float(across.attributes["y"]) > 240  # below the plot, and the other above it
        assert float(up.attributes["y"]) < 20


def test_a_few_columns_all_have_a_label_that_is_cut_where_it_must_be() -> None:
    names = ["0 bird", "1 dog", "2 musical instrument"]
    ticks = {"class": "tick", "text-anchor": "middle"}
    few = columns_chart("c", [(one, 1) for one in names], x_label="x", y_label="y")
    assert texts_of(few, **ticks) == ["0 bird", "1 dog", "2 musical..."]
    many = columns_chart("c", [(one, 1) for one in names * 20], x_label="x", y_label="y")
    assert len(texts_of(many, **ticks)) == 3
    assert set(texts_of(many, **ticks)) <= {"0 bird", "1 dog", "2 musical i..."}


def test_names_of_some_columns_are_all_there_slanted_and_inside_the_picture() -> None:
    names = [f"{n} {name}" for n, name in enumerate(["bird", "cat", "rubber_eraser", "dog"] * 4)]
    for some in (names[:6], names):
        chart = columns_chart("c", [(one, 1) for one in some], x_label="x", y_label="y")
        (svg,) = read_page(chart.svg).all("svg")
        height = float(svg.attributes["viewbox"].split()[3])
        texts = [one for one in svg.all("text") if "transform" in one.attributes]
        assert [one.text.partition(" ")[0] for one in texts] == [str(n) for n in range(len(some))]
        for one in texts:
            length = 9.6 * len(one.text)
            assert float(one.attributes["y"]) + 0.58 * length < height - 16  # above the axis's name
    bins = [(f"{n / 16:.3f} to {(n + 1) / 16:.3f}", 1) for n in range(16)]
    numbers = columns_chart("c", bins, x_label="x", y_label="y")
    assert "rotate" not in numbers.svg


def test_a_line_goes_through_its_points() -> None:
    points = [(0, 0.25), (10, 0.5), (20, 0.125)]
    chart = lines_chart(
        "c", [Series(name="a", points=points)], x_label="x", y_label="y", shares=True
    )
    (line,) = read_page(chart.svg).all("polyline")
    drawn = [tuple(map(float, one.split(","))) for one in line.attributes["points"].split()]
    (x0, y0), (x1, y1), (x2, y2) = drawn
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert (y0 - y1) / (y2 - y1) == pytest.approx(0.25 / 0.375, abs=0.01)
    assert chart.table.rows == (("0", "25.00 %"), ("10", "50.00 %"), ("20", "12.50 %"))


def test_a_long_line_is_drawn_as_means_and_what_is_not_finite_is_left_out() -> None:
    points = [(float(n), math.nan if n == 7 else float(n % 2)) for n in range(4801)]
    chart = lines_chart("c", [Series(name="a", points=points)], x_label="x", y_label="y")
    (line,) = read_page(chart.svg).all("polyline")
    assert 200 <= len(line.attributes["points"].split()) <= 240
    assert len(chart.table.rows) <= 120
    empty = lines_chart("c", [Series(name="a", points=[])], x_label="x", y_label="y")
    assert read_page(empty.svg).all("polyline") == []


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12))
def test_ticks_are_few_and_round_and_cover_the_range(low: float, span: float) -> None:
    from pipeline.reporting.charts import _ticks

    high = low + span
    ticks = _ticks(low, high)
    steps = np.diff(ticks)
    assert 2 <= len(ticks) <= 8
    slack = 1e-6 * steps[0] + 1e-9 * abs(low)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=True, allow_infinity=True),
            st.floats(allow_nan=True, allow_infinity=True),
        ),
        max_size=6,
    ),
    st.booleans(),
    st.booleans(),
)
@example([(0.0, 5e-324), (1.0, 5e-324)], False, False)
@example([(5e-324, 0.0), (1e-323, 1.0)], False, True)
@example([(0.0, -1.7e308), (1.0, 1.7e308)], True, False)
@example([(1.0, 1.0), (1.0000000000000002, 1.0000000000000002)], False, False)
@example([(math.inf, 1.0), (1.0, 2.0)], False, False)
@example([(float(n), 1.7e308) for n in range(500)], False, False)
def test_any_float_can_be_drawn(
    points: list[tuple[float, float]], shares: bool, from_zero: bool
) -> None:
    points.sort(key=lambda one: one[0])
    series = [Series(name="a", points=points)]
    chart = lines_chart("c", series, x_label="x", y_label="y", shares=shares, from_zero=from_zero)
    page = read_page(chart.svg)
    numbers = [
        float(word)
        for one in page.walk()
        for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "points")
        for word in one.attributes.get(name, "").replace(",", " ").split()
    ]
    assert all(-1 <= one <= 481 for one in numbers)
    assert sum("tick" in one.attributes.get("class", "") for one in page.walk()) < 40
    assert all(len(cell) < 24 for row in chart.table.rows for cell in row)
    assert sum(map(math.isfinite, {x for x, y in points if math.isfinite(y)})) >= len(
        chart.table.rows
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234, "1,234"),
        (0.5, "0.5"),
        (1e-5, "1.00e-05"),
        (12345.678, "12,346"),
        (1e300, "1.000e+300"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number_text(value) == text


def test_small_images_are_kept_to_the_bit() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (SMALL, SMALL, 3), np.uint8)
    assert image_url(noise).startswith("data:image/png;base64,")
    assert image_url(np.zeros((SMALL + 1, 8, 3), np.uint8)).startswith("data:image/jpeg;base64,")
