"""Streamed moments against all at once, closed forms and published statistics."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_fakes import Pixels, pictures

from allaprima.core.errors import SettingError
from allaprima.evaluation.frechet import (
    FrechetDistance,
    Moments,
    MomentSums,
    frechet_distance,
    frechet_of_moments,
    moments_of,
)


def normal(n, d, seed, offset=0.0):
    return offset + torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(2, 40),
    d=st.integers(1, 12),
    size=st.integers(1, 15),
    offset=st.sampled_from([0.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_moments_are_numpys_for_any_split(n, d, size, offset, seed):
    x = normal(n, d, seed, offset)
    sums = MomentSums()
    for part in x.split(size):
        sums.add(part)
    found = sums.moments()
    assert found.count == n and len(found.factor) <= max(n + 1, d)
    assert np.allclose(found.mean, x.mean(0), rtol=1e-12)
    assert np.allclose(found.covariance, np.atleast_2d(np.cov(x.numpy(), rowvar=False)), atol=1e-9 if not offset else 1e-7)


def test_memory_does_not_grow_with_the_number_of_pictures():
    sums = MomentSums()
    for i in range(50):
        sums.add(normal(7, 5, i))
        assert len(sums._factor) + sum(map(len, sums._waiting)) <= 2 * 5 + 7
    assert sums.moments().factor.shape == (5, 5)


def test_asking_in_between_changes_nothing():
    x, sums = normal(30, 6, 0), MomentSums()
    for part in x.split(4):
        sums.add(part)
        if sums.count > 1:
            sums.moments()
    assert np.allclose(sums.moments().covariance, moments_of(x).covariance, atol=1e-12)


def test_the_metric_is_the_function_also_with_fewer_pictures_than_dimensions():
    for n, m in [(100, 90), (9, 60), (7, 8)]:
        a, b, net = pictures(n, 1), pictures(m, 2, high=0.7), Pixels(dim=30)
        given_pictures = FrechetDistance(net)
        for part in a.split(11):
            given_pictures.update(part)
        for part in b.split(7):
            given_pictures.update(a[:0], references=part)
        truth = frechet_distance(net.features(a), net.features(b))
        assert given_pictures.compute().value == pytest.approx(truth, rel=1e-9)
        given_moments = FrechetDistance(net, moments_of(net.features(b)))
        given_moments.update(a)
        assert given_moments.compute().value == pytest.approx(truth, rel=1e-9)
        assert given_moments.protocol()["references"] == m


def test_gaussians_with_known_moments_have_the_closed_form():
    # Commuting covariances: sum of (s_a - s_b)^2, whatever their common axes.
    q = torch.linalg.qr(normal(6, 6, 0)).Q
    s_a, s_b = torch.tensor([1.0, 2, 3, 0.1, 0, 0]).double(), torch.tensor([2.0, 0.5, 3, 0, 1, 0]).double()
    m_a, m_b = normal(1, 6, 1)[0], normal(1, 6, 2)[0]
    a = Moments.from_covariance(100, m_a, q @ torch.diag(s_a**2) @ q.T)
    b = Moments.from_covariance(90, m_b, q @ torch.diag(s_b**2) @ q.T)
    truth = float((m_a - m_b).square().sum() + (s_a - s_b).square().sum())
    assert frechet_of_moments(a, b) == pytest.approx(truth, rel=1e-7)
    assert frechet_of_moments(a, a) == pytest.approx(0, abs=1e-7)


def test_published_statistics_give_what_the_samples_give():
    x, y = normal(50, 8, 3), normal(40, 8, 4, offset=0.3)
    covariance = torch.from_numpy(np.cov(y.numpy(), rowvar=False))
    found = frechet_of_moments(moments_of(x), Moments.from_covariance(40, y.mean(0), covariance))
    assert found == pytest.approx(frechet_distance(x, y), rel=1e-9)
    with pytest.raises(SettingError, match="eigenvalue -1"):
        Moments.from_covariance(5, torch.zeros(2), torch.diag(torch.tensor([2.0, -1.0])))
    with pytest.raises(SettingError, match="for 3 means"):
        Moments.from_covariance(5, torch.zeros(3), torch.eye(2))


def test_only_inception_is_called_fid():
    inception = Pixels()
    inception.name = "inception-fid"
    assert FrechetDistance(inception).name == "fid"
    assert FrechetDistance(Pixels()).name == "frechet (pixels)"


def test_two_references_and_two_networks_are_refused():
    metric = FrechetDistance(Pixels(), moments_of(normal(9, 4, 0)))
    with pytest.raises(SettingError, match="not both"):
        metric.update(pictures(3), references=pictures(3))
    metric.update(pictures(1))
    with pytest.raises(SettingError, match="has 1 pictures: at least 2"):
        metric.compute()
    sums = MomentSums()
    sums.add(normal(3, 4, 0))
    with pytest.raises(SettingError, match="5 dimensions after 4"):
        sums.add(normal(3, 5, 0))
    with pytest.raises(SettingError, match="4 and 5 dimensions"):
        frechet_of_moments(moments_of(normal(9, 4, 0)), moments_of(normal(9, 5, 0)))
