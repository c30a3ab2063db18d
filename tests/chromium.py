"""Debian's chromium, driven by playwright, which downloads nothing; tests skip where there is none."""

import contextlib
import os
import shutil
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def browser():
    """Not for a whole session: while it is open, its event loop is this thread's, and `asyncio.run` has no place."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no browser: apt-get install chromium (make test does, where it may)")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e .[dev]")
    with playwright.sync_playwright() as p:
        # Root's chromium has no sandbox; it sees this test's own pages only.
        made = p.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield made
        made.close()


@contextlib.contextmanager
def opened(made, url, **context):
    """A page that fails the test when a script throws, or the page's policy is broken."""
    with contextlib.closing(made.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})) as own:
        page = own.new_page()
        page.set_default_timeout(60_000)  # a busy machine's browser is slow
        faults = []
        page.on("pageerror", lambda e: faults.append(str(e)))
        page.on("console", lambda m: faults.append(m.text) if "Security Policy" in m.text or "Trusted" in m.text else None)
        page.goto(url)
        yield page
        assert not faults, faults


def until(page, expression, seconds=60):
    """Wait for an expression to be true. Playwright's own waiting evaluates strings, which the page's policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        if time.monotonic() > deadline:
            said = page.evaluate("document.body.innerText")
            raise AssertionError(f"never true: {expression}; the page says {said[:600]!r}")
        page.wait_for_timeout(20)
