"""Precision, recall, density and coverage against loops over all pairs, and their extremes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_fakes import Pixels, pictures

from allaprima.core.errors import SettingError
from allaprima.evaluation import precision_recall as module
from allaprima.evaluation.precision_recall import PrecisionRecall, precision_recall


def brute_force(painted, real, k):
    def radius(x, i):
        return sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)[k - 1]

    r_real = [radius(real, i) for i in range(len(real))]
    r_painted = [radius(painted, i) for i in range(len(painted))]
    inside = np.array([[np.linalg.norm(p - r) <= q for r, q in zip(real, r_real, strict=True)] for p in painted])
    back = np.array([[np.linalg.norm(p - r) <= q for r in real] for p, q in zip(painted, r_painted, strict=True)])
    return {
        "precision": inside.any(1).mean(),
        "recall": back.any(0).mean(),
        "density": inside.sum() / (k * len(painted)),
        "coverage": inside.any(0).mean(),
    }


@pytest.mark.parametrize("rows", [5, 1024])
@pytest.mark.parametrize(("n", "m", "k", "shift"), [(20, 30, 3, 0.0), (31, 17, 1, 1.0), (12, 14, 5, 1e5)])
def test_equals_the_loops(monkeypatch, rows, n, m, k, shift):
    monkeypatch.setattr(module, "ROWS", rows)
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(n, 3)) * 1.5 + shift, rng.normal(size=(m, 3)) + shift + 1.2
    found = precision_recall(torch.from_numpy(a), torch.from_numpy(b), k)
    assert found == pytest.approx(brute_force(a, b, k), rel=1e-12)
    assert 0 < found["precision"] < 1 and 0 < found["recall"] <= 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 4))
def test_equal_sets_are_one_and_disjoint_supports_zero(seed, k):
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    same = precision_recall(x, x[torch.randperm(9)], k)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    assert set(precision_recall(x, x + 1000, k).values()) == {0.0}


def test_one_picture_painted_again_and_again_is_precise_and_recalls_nothing():
    real = pictures(50, 1).flatten(1)
    found = precision_recall(real[:1].repeat(20, 1), real)
    assert found["precision"] == 1
    assert found["recall"] == 1 / 50
    assert found["coverage"] < 0.2


def test_too_few_pictures_are_named():
    metric = PrecisionRecall(Pixels(), k=3)
    metric.update(pictures(3), references=pictures(9))
    with pytest.raises(SettingError, match="has 3 pictures: at least 4"):
        metric.compute()
    with pytest.raises(SettingError, match="k=3 with 3 painted and 9 real"):
        precision_recall(pictures(3).flatten(1), pictures(9).flatten(1))
    with pytest.raises(SettingError, match="k=0"):
        PrecisionRecall(Pixels(), k=0)
    with pytest.raises(SettingError, match=r"\(N, D\)"):
        precision_recall(torch.zeros(9, 2), torch.zeros(9, 3))
