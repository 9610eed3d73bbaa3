"""Pages in headless Chromium, opened from the disk: fixtures for the tests of all pages."""

from __future__ import annotations

import contextlib
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


def wait_until(page, expression, seconds=30):
    """Wait for a JavaScript expression to be true. Playwright's own way is forbidden by the pages,
    which allow no `eval`."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never true: {expression}"
        page.wait_for_timeout(50)


@contextlib.contextmanager
def launched(*more):
    """Headless Chromium, with more arguments; the test skips where there is none."""
    if find_spec("playwright") is None:
        pytest.skip("needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        words = ["--no-sandbox", *more]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=words)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def chromium():
    with launched() as browser:
        yield browser


@pytest.fixture
def visit(chromium):
    """Open a file; at the end, nothing may have been complained of or asked of a host."""
    wrong = []
    contexts = []

    def check(request):
        if not request.url.startswith("file:"):
            wrong.append(request.url)

    def open_page(file, **options):
        context = chromium.new_context(viewport={"width": 1200, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", check)
        page.goto(Path(file).resolve().as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong
