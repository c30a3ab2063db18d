"""Exact denoisers of Gaussian mixtures: truth to test solvers, rollback and students against.

For data `x0 ~ sum_k p_k N(m_k, s_k^2 I)` and `x_t = alpha x0 + sigma eps`, the posterior of component k is proportional
to `p_k N(x_t; alpha m_k, (alpha^2 s_k^2 + sigma^2) I)` and its mean is
`m_k + alpha s_k^2 / (alpha^2 s_k^2 + sigma^2) (x_t - alpha m_k)`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from allaprima.core.types import Condition, Samples, Times
from allaprima.diffusion.schedules import Schedule, expand


class MixtureDenoiser:
    """`E[x0 | x_t]` of an isotropic Gaussian mixture. `means: (K, ...)`, `stds, weights: (K,)`."""

    evaluations_per_call = 1

    def __init__(
        self,
        schedule: Schedule,
        means: Float[Tensor, " k *d"],
        stds: Float[Tensor, " k"],
        weights: Float[Tensor, " k"] | None = None,
    ) -> None:
        self.schedule = schedule
        self.means, self.stds = means.double(), stds.double()
        self.log_weights = torch.zeros(len(stds)).double() if weights is None else weights.double().log()

    def __call__(self, x_t: Samples, t: Times, cond: Condition | None = None) -> Samples:
        """`(B, ...), (B,) -> (B, ...)`."""
        a, s = self.schedule.alpha(t), self.schedule.sigma(t)
        x = x_t.double()[:, None]
        m = self.means[None] * a.reshape(-1, *[1] * self.means.ndim)
        var = (a[:, None] * self.stds[None]).square() + s[:, None].square()
        diff = (x - m).flatten(2)
        log_p = self.log_weights - 0.5 * diff.square().sum(-1) / var - 0.5 * diff.shape[-1] * var.log()
        gain = a[:, None] * self.stds.square() / var
        shape = (*gain.shape, *[1] * (self.means.ndim - 1))
        mean_k = self.means[None] + gain.reshape(shape) * (x - m)
        return (log_p.softmax(1).reshape(shape) * mean_k).sum(1).to(x_t.dtype)

    def sample(self, n: int, generator: torch.Generator) -> Float64[Tensor, " {n} *d"]:
        """`n` draws of x0."""
        k = torch.multinomial(self.log_weights.softmax(0), n, replacement=True, generator=generator)
        noise = torch.randn((n, *self.means.shape[1:]), generator=generator, dtype=torch.float64)
        return self.means[k] + self.stds[k].reshape(-1, *[1] * (self.means.ndim - 1)) * noise


def gaussian_flow(x_t: Samples, t: Times, s: Times, mean: float, std: float, schedule: Schedule) -> Samples:
    """The exact probability-flow map of data N(mean, std^2) from t to s: it keeps the standardised sample.

    With s clean this is the consistency map `f = m + (x_t - alpha m) std / sqrt(alpha^2 std^2 + sigma^2)`.
    """
    alpha_t, sigma_t, alpha_s, sigma_s = (
        expand(v, x_t) for v in (schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s))
    )
    spread_t = ((alpha_t * std) ** 2 + sigma_t**2).sqrt()
    spread_s = ((alpha_s * std) ** 2 + sigma_s**2).sqrt()
    return alpha_s * mean + (x_t - alpha_t * mean) / spread_t * spread_s
