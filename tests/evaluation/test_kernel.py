"""KID against a double loop, and that it is unbiased."""

import numpy as np
import pytest
import torch
from metric_fakes import Pixels, pictures

from allaprima.core.errors import SettingError
from allaprima.evaluation import kernel
from allaprima.evaluation.kernel import KernelDistance, kernel_distance


def double_sum(a, b):
    d = a.shape[1]

    def k(x, y):
        return (float(x @ y) / d + 1) ** 3

    n, m = len(a), len(b)
    aa = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    bb = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return aa + bb - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


@pytest.mark.parametrize("rows", [4, 1024])
def test_equals_the_double_sum_also_in_blocks(monkeypatch, rows):
    monkeypatch.setattr(kernel, "ROWS", rows)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 5)), rng.normal(size=(13, 5)) + 0.4
    assert kernel_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(double_sum(a, b), rel=1e-10)


def test_same_distribution_is_zero_on_average_and_below_it_half_the_time():
    rng = np.random.default_rng(1)
    draws = np.array([kernel_distance(*torch.from_numpy(rng.normal(size=(2, 20, 4)))) for _ in range(600)])
    error = draws.std() / len(draws) ** 0.5
    assert abs(draws.mean()) < 4 * error
    assert (draws < 0).mean() > 0.3
    # Negative control: keeping k(x, x) in the sums, as a biased estimate does, adds far more than the error.
    bias = 2 * float(((rng.normal(size=(4000, 4)) ** 2).sum(1) / 4 + 1).__pow__(3).mean() - 1) / 20
    assert bias > 20 * error


def test_the_mean_over_subsets_estimates_the_whole_and_has_a_spread():
    net = Pixels()
    metric = KernelDistance(net, net.features(pictures(300, 1, high=0.6)), subsets=200, subset_size=40)
    metric.update(pictures(300, 2))
    found = metric.compute()
    assert found.more["all"] > 0
    assert abs(found.value - found.more["all"]) < 4 * found.more["std"] / 200**0.5
    assert found.more["std"] > 0
    assert metric.compute().value == found.value


def test_subsets_larger_than_the_sets_are_refused():
    metric = KernelDistance(Pixels(), subset_size=10)
    metric.update(pictures(12), references=pictures(9))
    with pytest.raises(SettingError, match="subset_size=10 with 12 pictures and 9 references: at most 9"):
        metric.compute()
    with pytest.raises(SettingError, match="subset_size=1"):
        KernelDistance(Pixels(), subset_size=1)
    with pytest.raises(SettingError, match=r"\(M, 4\) is due"):
        KernelDistance(Pixels(), torch.zeros(5, 3))
    with pytest.raises(SettingError, match="not all finite"):
        KernelDistance(Pixels(), torch.full((5, 4), torch.nan))
    with pytest.raises(SettingError, match="N, M >= 2"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(4, 3))
