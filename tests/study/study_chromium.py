"""A real browser at a study; skips where there is none."""

import contextlib
import os
import shutil
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def study_browser():
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no browser: apt-get install chromium (make test does, where it may)")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e .[dev]")
    with playwright.sync_playwright() as p:
        made = p.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield made
        made.close()


@contextlib.contextmanager
def annotator(browser, **context):
    """A browser profile of one person; fails the test when a script throws or the page's policy is broken."""
    with contextlib.closing(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})) as own:
        own.set_default_timeout(60_000)
        faults = []

        def watch(page):
            page.on("pageerror", lambda e: faults.append(str(e)))
            page.on("console", lambda m: faults.append(m.text) if "Policy" in m.text or "Trusted" in m.text else None)

        own.on("page", watch)
        yield own
        assert not faults, faults


def begin(page, url, token):
    page.goto(f"{url}/#token={token}")
    page.click("#begin")
    until(page, "['vote', 'message'].includes(document.body.dataset.view)")


def until(page, expression, seconds=60):
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never true: {expression}"
        page.wait_for_timeout(15)


def slot(page):
    return page.evaluate("document.body.dataset.view === 'vote' ? document.getElementById('vote').dataset.slot : null")


def until_other(page, old):
    """Until another pair is shown, or a message."""
    until(page, f"document.body.dataset.view === 'message' || document.getElementById('vote').dataset.slot !== '{old}'")
