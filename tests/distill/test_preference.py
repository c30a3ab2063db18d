"""Losses for an oracle's labels: gradients and optima in closed form."""

import pytest
import torch

from allaprima.distill.losses.preference import bradley_terry_loss, gain_loss

G = torch.Generator().manual_seed(0)
A, B, GAIN = (torch.randn(9, generator=G, dtype=torch.float64) for _ in range(3))
PREFERENCE = torch.tensor([0, 0, 0, 0.5, 0.5, 0.25, 1, 1, 1], dtype=torch.float64)


def gradients(loss, *inputs):
    leaves = [x.clone().requires_grad_(True) for x in inputs]
    return torch.autograd.grad(loss(*leaves), leaves)


def test_the_bradley_terry_gradient():
    by_a, by_b = gradients(lambda a, b: bradley_terry_loss(a, b, PREFERENCE), A, B)
    assert torch.allclose(by_a, (torch.sigmoid(A - B) - PREFERENCE) / 9)
    assert torch.equal(by_b, -by_a)


def test_swapping_a_pair_changes_nothing():
    assert torch.allclose(bradley_terry_loss(A, B, PREFERENCE), bradley_terry_loss(B, A, 1 - PREFERENCE))


def test_a_tie_is_best_when_equal():
    tie = torch.tensor([0.5], dtype=torch.float64)
    at = [float(bradley_terry_loss(A[:1] + d, A[:1], tie)) for d in (-0.1, 0.0, 0.1)]
    assert at[1] == pytest.approx(torch.log(torch.tensor(2.0)).item())
    assert min(at[0], at[2]) > at[1]


def test_the_gain_gradients():
    (square,) = gradients(lambda x: gain_loss(x, GAIN), A)
    assert torch.allclose(square, 2 * (A + GAIN) / 9)
    (pinball,) = gradients(lambda x: gain_loss(x, GAIN, 0.3), A)
    assert torch.allclose(pinball, torch.where(A < -GAIN, -0.3, 0.7).double() / 9)


@pytest.mark.parametrize("quantile", [None, 0.2, 0.5, 0.9])
def test_the_best_constant_is_minus_the_mean_or_the_quantile(quantile):
    gain = torch.randn(4001, generator=G, dtype=torch.float64).exp()
    best = -gain.mean() if quantile is None else (-gain).quantile(quantile)

    def at(x):
        return float(gain_loss(torch.full_like(gain, x), gain, quantile))

    assert at(best) < min(at(best - 0.05), at(best + 0.05))
