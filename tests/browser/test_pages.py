"""Reports in a real browser: nothing is fetched, nothing complains, all works by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.store import open_store
from pipeline.tools import ReportConfig, report_store
from tests.pipeline.tools.test_report import folder  # noqa: F401 - a fixture

pytestmark = pytest.mark.browser

WIDTHS = (1280, 390)


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
        store, [str(folder / "digits-*.tar")], ReportConfig(count=40), against=store
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    made.save(path)
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_fits_its_window_and_is_accessible(
    chromium: Any, report: Path, width: int, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    size = {"width": width, "height": 900}
    found = opened(chromium, report, viewport=size, color_scheme=scheme)
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    for one in found.page.query_selector_all("details"):
        one.evaluate("one => { one.open = true; }")
    results = Axe().run(found.page)
    faults = [
        (one["id"], one["nodes"][0]["html"][:200], one["nodes"][0].get("failureSummary"))
        for one in results.response["violations"]
    ]
    assert faults == []
    assert found.said == []
    assert found.asked == [report.as_uri()]
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
    page = tab.page
    everything = len(tab.shown())
    assert everything == 40
    page.select_option("select[data-facet=teacher]", "disagrees")
    wrong = tab.shown()
    assert 0 < len(wrong) < everything
    assert all(one.get_attribute("data-teacher").startswith("disagrees:") for one in wrong)
    page.select_option("select[data-facet=mixing]", "not mixed")
    assert all(one.get_attribute("data-mixing") == "not mixed" for one in tab.shown())
    assert page.inner_text(".count") == f"{len(tab.shown())} of 40 pictures"
    page.click("button[type=reset]")
    page.wait_for_function("document.querySelector('.count').textContent === '40 of 40 pictures'")
    slider = page.query_selector("input[type=range]")
    slider.fill("1.5")
    bits = [float(one.get_attribute("data-entropy")) for one in tab.shown()]
    assert bits
    assert min(bits) >= 1.5


def test_all_of_it_works_by_keyboard(tab: Opened) -> None:
    page = tab.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.focus("select[data-facet=mixing]")
    page.keyboard.type("m")  # as a user types the first letter of a choice
    assert {one.get_attribute("data-mixing") for one in tab.shown()} == {"mixup"}
    page.keyboard.press("Home")
    page.keyboard.press("Tab")
    page.keyboard.press("End")  # of the slider: only the greatest is left
    most = max(float(one.get_attribute("data-entropy")) for one in tab.shown())
    assert all(float(one.get_attribute("data-entropy")) > most - 0.05 for one in tab.shown())
    page.keyboard.press("Home")
    page.focus(".pictures li:nth-child(1) .enlarge")
    page.keyboard.press("Enter")
    first = page.inner_text("dialog strong")
    assert first == page.inner_text(".pictures li:nth-child(1) strong")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("dialog strong") == page.inner_text(".pictures li:nth-child(2) strong")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("dialog strong") == first
    page.keyboard.press("Escape")
    assert not page.is_visible("dialog")
    assert page.evaluate("document.activeElement.closest('li').matches(':first-child')")


def test_a_page_is_whole_without_scripts_and_on_paper(chromium: Any, report: Path) -> None:
    plain = opened(chromium, report, java_script_enabled=False)
    assert plain.page.locator(".pictures > li:visible").count() == 40
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
