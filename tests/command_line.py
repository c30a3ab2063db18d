"""The command line, run in the tests' own process."""

import sys

import pytest

from allaprima.cli import main


def allaprima(*args, expect=0):
    """Run, and assert the exit code."""
    old, sys.argv = sys.argv, ["allaprima", *map(str, args)]
    try:
        with pytest.raises(SystemExit) as e:
            main()
    finally:
        sys.argv = old
    assert (e.value.code or 0) == expect
