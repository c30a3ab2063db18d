"""The Frechet distance against its closed form and scipy's matrix square root."""

import numpy as np
import pytest
import torch
from scipy import linalg

from allaprima.core.errors import SettingError
from allaprima.evaluation.frechet import frechet_distance


def gaussian(n, mean, std, seed=0):
    return mean + std * torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_closed_form_of_gaussians():
    m, s = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 0.5])
    m2, s2 = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([2.0, 2.0, 1.0])
    truth = float((m - m2).square().sum() + (s - s2).square().sum())
    found = frechet_distance(gaussian(40_000, m, s), gaussian(50_000, m2, s2, seed=1))
    assert found == pytest.approx(truth, rel=0.03)


@pytest.mark.parametrize(("n", "m"), [(200, 150), (8, 300), (12, 9)])
def test_equals_the_matrix_square_root_also_with_fewer_samples_than_dimensions(n, m):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(20, 20))
    a, b = rng.normal(size=(n, 20)) @ mix, rng.normal(size=(m, 20)) + 0.3
    s_a, s_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(s_a @ s_b + 1e-12 * np.eye(20)).real
    truth = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s_a + s_b - 2 * root)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(truth, rel=1e-3)


def test_zero_for_the_same_set_and_symmetric():
    a, b = gaussian(30, torch.zeros(5), torch.ones(5)), gaussian(40, torch.ones(5), torch.ones(5), seed=2)
    assert frechet_distance(a, a[torch.randperm(30)]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_shapes_that_are_no_feature_sets():
    with pytest.raises(SettingError, match=r"\(N, D\) and \(M, D\)"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(SettingError, match="N, M >= 2"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(4, 3))
