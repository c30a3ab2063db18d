"""Figures that a test leaves open are closed after it: pyplot warns at the 21st of a process, whichever test opens it."""

import matplotlib as mpl
import pytest

mpl.use("Agg")
from matplotlib import pyplot as plt


@pytest.mark.parametrize("k", range(3))
def test_a_test_begins_without_open_figures(k):
    assert plt.get_fignums() == []
    for _ in range(15):
        plt.figure()
