"""The sliced Wasserstein distance against closed forms."""

import pytest
import torch
from sliced_wasserstein import sliced_wasserstein

from allaprima.core.errors import SettingError


def points(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(a, b):
    return sliced_wasserstein(a, b, torch.Generator().manual_seed(0), 500 if a.shape[1] > 1 else 1)


def test_a_shift_is_its_length_over_the_root_of_the_dimensions():
    a = points(200, 4, 0)
    shift = torch.tensor([3.0, 0.0, 4.0, 0.0])
    assert distance(a, a + shift) == pytest.approx(5 / 2, rel=0.05)


def test_of_two_gaussians_on_a_line_it_is_their_wasserstein_distance():
    a, b = points(20_000, 1, 0), 0.7 + 1.5 * points(20_000, 1, 1)
    assert distance(a, b) == pytest.approx((0.7**2 + 0.5**2) ** 0.5, rel=0.02)


def test_the_order_of_points_does_not_count_and_a_lost_mode_does():
    a = torch.cat([points(100, 2, 0) - 5, points(100, 2, 1) + 5])
    assert distance(a, a[torch.randperm(200)]) == pytest.approx(0, abs=1e-12)
    again = torch.cat([points(100, 2, 2) - 5, points(100, 2, 3) + 5])
    lost = points(200, 2, 4) + 5
    assert distance(a, lost) > 10 * distance(a, again)


def test_sets_of_different_sizes_are_refused():
    with pytest.raises(SettingError, match="Draw as many from either"):
        distance(points(3, 2, 0), points(4, 2, 0))
