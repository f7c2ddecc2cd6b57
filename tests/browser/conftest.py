"""A headless Chromium that is there already: these tests install and download none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CURE = (
    "no Chromium for the tests of the pages: install one (Debian: `apt-get install chromium`), or "
    "name it in $CHROMIUM; and its driver with `pip install -e '.[browser]'`"
)


def find_browser() -> str:
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, BROWSERS)]
    paths = [one for one in found if one]
    if not paths:
        pytest.fail(CURE, pytrace=False)
    return paths[0]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Return a browser; the tests fail, and say what to install, where there is none."""
    path = find_browser()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail(CURE, pytrace=False)
    with sync_playwright() as playwright:
        # Root, as in a container, has no sandbox.
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()
