"""Reports in a real browser: nothing is fetched, nothing complains, all works by keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.reporting.charts import Series, columns_chart, lines_chart
from pipeline.reporting.page import Bar, Page, Section, Table, render
from pipeline.store import open_store
from pipeline.tools import ReportConfig, report_store
from student.run_report import compare_runs
from tests.pipeline.tools.test_report import folder  # noqa: F401 - a fixture

pytestmark = pytest.mark.browser


@dataclass
class Opened:
    """A page in a browser, and what it said and asked for."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def shown(self) -> list[Any]:
        return [one for one in self.page.query_selector_all(".pictures > li") if one.is_visible()]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:  # noqa: F811
    store = open_store(folder / "s.parquet")
    made = report_store(
        store, [str(folder / "digits-*.tar")], ReportConfig(count=24), against=store
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    made.save(path)
    return path


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a run of strangers, whose every text is hostile."""
    root = tmp_path_factory.mktemp("run") / "<b>run"
    root.mkdir()
    hostile = "</script><script>alert(1)</script><img src=http://example.com/x.png>"
    config = {"config": {"model": hostile, hostile: hostile, "epochs": 2}}
    (root / "config.json").write_text(json.dumps(config))
    accuracy = {"top1": 0.5, "top5": 0.9, "loss": 1.5}
    evaluation = {"class_head": accuracy, "mean_of_logits": accuracy}
    lines = [
        {"kind": kind, "step": step, "epoch": step, "loss": 2 / (1 + step), "lr": 1e-3}
        | {"evaluation": evaluation, "seconds": {"data": 1, "student": 2}, "rows_per_second": 9}
        for step in range(6)
        for kind in ("train", "epoch")
    ]
    (root / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    path = root.parent / "runs.html"
    path.write_text(compare_runs([root, root]))
    return path


def opened(browser: Any, path: Path, **options: Any) -> Opened:
    context = browser.new_context(**options)
    found = Opened(page=context.new_page())
    found.page.on("console", lambda message: found.said.append(message.text))
    found.page.on("pageerror", lambda error: found.said.append(str(error)))
    found.page.on(
        "request",
        lambda request: request.url.startswith("data:") or found.asked.append(request.url),
    )
    found.page.goto(path.as_uri())
    return found


@pytest.fixture
def tab(chromium: Any, report: Path) -> Iterator[Opened]:
    found = opened(chromium, report, viewport={"width": 1280, "height": 900})
    yield found
    assert found.said == []
    assert found.asked == [report.as_uri()]
    found.page.context.close()


@pytest.mark.parametrize(
    ("kind", "width", "scheme"),
    [("report", 1280, "light"), ("report", 390, "dark"), ("run_page", 390, "light")],
)
def test_a_page_fits_its_window_and_is_accessible(
    chromium: Any, request: pytest.FixtureRequest, kind: str, width: int, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    path: Path = request.getfixturevalue(kind)
    size = {"width": width, "height": 900}
    found = opened(chromium, path, viewport=size, color_scheme=scheme)
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    found.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    results = Axe().run(found.page)
    faults = [
        (one["id"], one["nodes"][0]["html"][:200], one["nodes"][0].get("failureSummary"))
        for one in results.response["violations"]
    ]
    assert faults == []
    assert found.said == []
    assert found.asked == [path.as_uri()]
    found.page.context.close()


def test_the_browser_is_told_to_fetch_nothing_and_run_no_other_script(
    chromium: Any, report: Path, tmp_path: Path
) -> None:
    """Even if a text were not escaped."""
    hostile = "<img src=http://example.com/x.png><script>document.title = 'taken'</script>"
    path = tmp_path / "hostile.html"
    path.write_text(report.read_text().replace("<main", f"{hostile}<main", 1))
    found = opened(chromium, path)
    assert found.page.title() == "Labels of s.parquet"
    refused = [one for one in found.said if "Content Security Policy" in one]
    assert len(refused) >= 2
    found.page.context.close()


def test_light_and_dark_are_two_pages(chromium: Any, report: Path) -> None:
    colors = []
    for scheme in ("light", "dark"):
        found = opened(chromium, report, color_scheme=scheme)
        style = "getComputedStyle(document.body)"
        colors.append(found.page.evaluate(f"[{style}.backgroundColor, {style}.color]"))
        found.page.context.close()
    assert colors[0] != colors[1]
    assert colors[0][0] == "rgb(255, 255, 255)"


def test_filters_show_what_they_say(tab: Opened) -> None:
    from playwright.sync_api import expect

    page = tab.page
    everything = len(tab.shown())
    assert everything == 24
    page.select_option("select[data-facet=teacher]", "disagrees")
    wrong = tab.shown()
    assert 0 < len(wrong) < everything
    assert all(one.get_attribute("data-teacher").startswith("disagrees:") for one in wrong)
    page.select_option("select[data-facet=mixing]", "not mixed")
    assert all(one.get_attribute("data-mixing") == "not mixed" for one in tab.shown())
    assert page.inner_text(".count") == f"{len(tab.shown())} of 24 pictures"
    page.click("button[type=reset]")
    expect(page.locator(".count")).to_have_text("24 of 24 pictures")
    slider = page.query_selector("input[type=range]")
    slider.fill("1.5")
    bits = [float(one.get_attribute("data-entropy")) for one in tab.shown()]
    assert bits
    assert min(bits) >= 1.5


def test_all_of_it_works_by_keyboard(tab: Opened) -> None:
    from playwright.sync_api import expect  # waits: a browser follows a key in its own time

    page = tab.page
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    mixing = page.locator("select[data-facet=mixing]")
    mixing.focus()
    page.keyboard.type("m")  # as a user types the first letter of a choice
    expect(mixing).to_have_value("mixup")
    assert {one.get_attribute("data-mixing") for one in tab.shown()} == {"mixup"}
    page.keyboard.press("Home")
    expect(mixing).to_have_value("")
    page.keyboard.press("Tab")
    slider = page.locator("input[type=range]")
    expect(slider).to_be_focused()
    page.keyboard.press("End")  # only the greatest are left
    expect(page.locator(".count")).not_to_have_text("24 of 24 pictures")
    most = max(float(one.get_attribute("data-entropy")) for one in tab.shown())
    assert all(float(one.get_attribute("data-entropy")) > most - 0.05 for one in tab.shown())
    page.keyboard.press("Home")
    expect(page.locator(".count")).to_have_text("24 of 24 pictures")
    titles = page.locator(".pictures strong").all_text_contents()
    first = page.locator(".pictures .enlarge").first
    first.focus()
    page.keyboard.press("Enter")
    enlarged = page.locator("dialog strong")
    for key, title in (("", titles[0]), ("ArrowRight", titles[1]), ("ArrowLeft", titles[0])):
        if key:
            page.keyboard.press(key)
        expect(enlarged).to_have_text(title)
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_be_hidden()
    expect(first).to_be_focused()


def test_a_page_is_whole_without_scripts_and_on_paper(chromium: Any, report: Path) -> None:
    plain = opened(chromium, report, java_script_enabled=False)
    assert plain.page.locator(".pictures > li:visible").count() == 24
    assert plain.page.locator(".filters:visible").count() == 0
    plain.page.context.close()
    paper = opened(chromium, report, color_scheme="dark")
    pages = paper.page.pdf(format="A4")
    assert pages.startswith(b"%PDF")
    paper.page.emulate_media(media="print")
    assert paper.page.locator("nav:visible, .filters:visible").count() == 0
    background = "getComputedStyle(document.body).backgroundColor"
    assert paper.page.evaluate(background) == "rgb(255, 255, 255)"
    paper.page.context.close()


CROWDED = """[...document.querySelectorAll('svg.chart')].flatMap(chart => {
  const outer = chart.getBoundingClientRect(), found = [];
  // Of a slanted text its letters count, as its box has empty corners.
  const pieces = text => {
    if (!text.hasAttribute('transform')) return [text.getBoundingClientRect()];
    const at = text.getScreenCTM(), box = text.getBBox(), size = box.height * at.a / 3;
    return [...Array(30).keys()].map(n => {
      const point = new DOMPoint(box.x + box.width * n / 29, box.y + box.height / 2);
      const {x, y} = point.matrixTransform(at);
      return {left: x - size, right: x + size, top: y - size, bottom: y + size};
    });
  };
  const over = (a, b) => a.left < b.right && b.left < a.right
    && a.top < b.bottom - 2 && b.top < a.bottom - 2;
  const texts = [...chart.querySelectorAll('text')].map(one => [one.textContent, pieces(one)]);
  texts.forEach(([text, some], n) => {
    if (some.some(a => a.right > outer.right + 1 || a.left < outer.left - 1))
      found.push('cut: ' + text);
    for (const [other, more] of texts.slice(n + 1))
      if (some.some(a => more.some(b => over(a, b)))) found.push(text + ' over ' + other);
  });
  return found;
})"""


@pytest.mark.parametrize("width", [1280, 390])
def test_labels_of_axes_have_room(chromium: Any, tmp_path: Path, width: int) -> None:
    lines = [
        ([0, 250, 187_500], [0.1, 0.2, 1e-5], False),
        ([1, 2], [0.98123, 0.98125], True),
        ([0, 120_000], [1e-9, 2e-9], False),
        ([1_234_000, 1_240_000], [1, 2], False),
        ([0, 100_000], [12345, 12349], False),
    ]
    columns = [
        [f"{n / 10:.2f} to {(n + 1) / 10:.2f}" for n in range(10)],
        [f"{n} a class of a long name" for n in range(10)],
        [str(1000 * n) for n in range(50)],
        ["0 bird", "1 dog", "2 musical instrument"],
        [f"{n} {'a class of a very long name ' * 4}" for n in range(2)],
    ]
    charts = [
        lines_chart(
            "lines",
            [Series(name="a", points=list(zip(xs, ys, strict=True)))],
            x_label="step",
            y_label="share of views",
            shares=shares,
        )
        for xs, ys, shares in lines
    ] + [
        columns_chart("columns", [(name, 9) for name in names], x_label="class", y_label="views")
        for names in columns
    ]
    section = Section(name="charts", title="Charts", blocks=tuple(charts))
    path = tmp_path / "charts.html"
    path.write_text(render(Page(title="t", subtitle="", figures=(), sections=(section,))))
    tab = opened(chromium, path, viewport={"width": width, "height": 900})
    assert tab.page.evaluate(CROWDED) == []
    tab.page.context.close()


def crowded_tables() -> tuple[Table, ...]:
    """Return tables as reports have them, of large numbers and long names, and a wide one."""
    share, name = Bar(text="98.45 %", share=0.98), "a class of a very long name, as of ImageNet"
    return (
        Table(
            name="classes",
            header=("true class", "views", "equal", "agreement with the truth"),
            rows=((f"999 {name}", 1_234_567, 1_234_567, share),),
        ),
        Table(
            name="confused",
            header=("true class", "the teacher's", "views"),
            rows=((f"999 {name}", f"998 {name}", Bar(text="1,234,567", share=0.5)),),
        ),
        Table(
            name="evaluation",
            header=(
                "prediction from",
                "weights",
                "top-1",
                "top-5",
                "loss",
                "agrees with the teacher",
            ),
            rows=(("distillation head", "averaged", share, share, "1.0341", "98.45 %"),),
        ),
        Table(name="files", header=("shard", "bytes"), rows=(("x-of-no-space-" * 9, 123_456_789),)),
        Table(name="wide", header=tuple(f"column {n}" for n in range(30)), rows=(range(30),)),
    )


def test_tables_fit_a_narrow_screen(
    chromium: Any, report: Path, run_page: Path, tmp_path: Path
) -> None:
    crowded = tmp_path / "tables.html"
    section = Section(name="tables", title="Tables", blocks=crowded_tables())
    crowded.write_text(render(Page(title="t", subtitle="", figures=(), sections=(section,))))
    wide = """[...document.querySelectorAll('.scroll')]
        .filter(one => one.scrollWidth > one.clientWidth + 1)
        .map(one => [one.querySelector('table').id, getComputedStyle(one).overflowX])"""
    for path in (report, run_page, crowded):
        tab = opened(chromium, path, viewport={"width": 390, "height": 900})
        found = tab.page.evaluate(wide)
        assert {name for name, _ in found} <= {"wide", "final"}  # that of many runs
        assert {how for _, how in found} <= {"auto"}
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
        tab.page.context.close()
    assert found == [["wide", "auto"]]  # of the last page
