"""Which tests `make test-fast` leaves out: those that slow.txt lists are marked `slow` as they are collected.

The list is measured. `make slow-tests` runs the tests in one process with ALLAPRIMA_RECORD_SLOW=1 and writes the list
again: every test function whose cases together take `SECONDS` of CPU time or more, fixtures of a wider scope left out, and
every user of such a fixture of its file that takes `FIXTURE_SECONDS` or more. Entries of tests that didn't run stay as they
are. An entry names the file without its folder, so that files may move. One with nan is left out until it is measured.
"""

import os
from collections import Counter
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("slow.txt")
HEAD = (
    "# CPU seconds and name of tests that are marked slow, nan if not measured yet; by `make slow-tests` (tests/slow.py).\n"
)
SECONDS, FIXTURE_SECONDS = 0.5, 2.0


def name_of(item):
    """Return `test_file.py::test_function`, without folder and parameters."""
    return f"{item.path.name}::{getattr(item, 'originalname', item.name)}"


def read():
    """Return the list as a dictionary from test function to CPU seconds."""
    rows = (line.split() for line in LIST.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return {name: float(seconds) for seconds, name in rows}


@pytest.hookimpl(tryfirst=True)  # Before tests are selected by their marks.
def pytest_collection_modifyitems(items):
    names = read()
    for item in items:
        if name_of(item) in names:
            item.add_marker("slow")


def pytest_configure(config):
    if os.environ.get("ALLAPRIMA_RECORD_SLOW"):
        config.pluginmanager.register(Recorder())


def cpu_seconds():
    """Return the CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


class Recorder:
    """Measures tests and fixtures, and writes the list at the end."""

    def __init__(self):
        # Imported once a process, by whichever test comes first: it isn't that test's time.
        import diffusers  # noqa: F401
        import transformers  # noqa: F401

        self.tests, self.fixtures = Counter(), Counter()
        self.users = {}
        self.shared = 0.0
        """CPU seconds of all fixtures of a wider scope than a test."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        before = cpu_seconds() - self.shared
        result = yield
        name = name_of(item)
        self.tests[name] += cpu_seconds() - self.shared - before
        for fixture in item.fixturenames:
            self.users.setdefault((item.path.name, fixture), set()).add(name)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        if fixturedef.scope == "function":
            return (yield)
        before = cpu_seconds() - self.shared
        result = yield
        taken = cpu_seconds() - self.shared - before
        self.fixtures[Path(fixturedef.baseid).name, fixturedef.argname] += taken
        self.shared += taken
        return result

    def pytest_sessionfinish(self):
        names = {name: seconds for name, seconds in read().items() if name not in self.tests}
        names |= {name: seconds for name, seconds in self.tests.items() if seconds >= SECONDS}
        for key, seconds in self.fixtures.items():
            if seconds >= FIXTURE_SECONDS:
                names |= {name: max(seconds, self.tests[name]) for name in self.users.get(key, ())}
        LIST.write_text(HEAD + "".join(f"{names[name]:.1f} {name}\n" for name in sorted(names)), encoding="utf-8")
