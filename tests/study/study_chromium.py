"""People at a study, in a real browser."""

import contextlib

from chromium import until


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


def slot(page):
    return page.evaluate("document.body.dataset.view === 'vote' ? document.getElementById('vote').dataset.slot : null")


def until_other(page, old):
    """Until another pair is shown, or a message."""
    until(page, f"document.body.dataset.view === 'message' || document.getElementById('vote').dataset.slot !== '{old}'")
