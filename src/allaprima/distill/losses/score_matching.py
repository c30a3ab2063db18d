"""Teacher score matching (arXiv 2410.23274, stage 1) and denoising score matching (arXiv 1907.05600; DDPM, equation 14).

Both compare clean predictions `mu(x_t, t) = x0_hat` on `x_t = alpha_t x0 + sigma_t eps`. The score is
`(alpha_t mu - x_t) / sigma_t^2`, so equal predictions are equal scores; in what unit their difference counts is `weight`'s.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.core.types import Samples, Times
from allaprima.diffusion.noising import add_noise
from allaprima.diffusion.schedules import Schedule, expand

Prediction = Callable[[Samples, Times], Samples]
"""`(x_t: (B, ...), t: (B,)) -> x0_hat: (B, ...)`: a denoiser whose condition (and guidance) is already bound."""

Weight = Callable[[Times], Times]
"""`lambda_t`: `(B,)` times -> `(B,)` weights, none negative."""


def uniform_weight(t: Times) -> Times:
    """`lambda_t = 1`: the error in units of x0."""
    return torch.ones_like(t)


def snr_weight(schedule: Schedule, limit: float = float("inf")) -> Weight:
    """`lambda_t = min(alpha_t^2 / sigma_t^2, limit)`: the error in units of eps; with limit 5, min-SNR (arXiv 2303.09556).

    Near the clean end it has no bound: give a `limit`, or times that stay away from there. Raises `SettingError` for a
    limit that isn't positive.
    """
    if not limit > 0:
        raise SettingError(f"limit={limit!r} must be positive: 5 is min-SNR's, infinity (the default) sets none.")
    return lambda t: (schedule.alpha(t) / schedule.sigma(t)).square().clamp(max=limit)


def limited_weight(schedule: Schedule, limit: float | None, floor: float = 0.0) -> Weight:
    """`snr_weight` with a limit, and never below `floor`; None weighs all times alike."""
    if limit is None:
        return uniform_weight
    weight = snr_weight(schedule, limit)
    return weight if not floor else lambda t: weight(t).clamp(min=floor)


def draw_times(
    schedule: Schedule, n: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0, whole: bool = False
) -> Times:
    """`(n,)` float64 times, uniform in `[low, high]` of the schedule, shares of `t_max` (0 the cleanest, 1 the noisiest).

    `whole` rounds to integers, for networks that were trained on those alone. Raises `SettingError` for an empty range.
    """
    if not 0 <= low < high <= 1:
        raise SettingError(
            f"times from {low!r} to {high!r}: shares with 0 <= low < high <= 1 are due, such as 0.02 and 0.98."
        )
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    t = (low + (high - low) * u) * schedule.t_max
    return t.round() if whole else t


def teacher_score_matching_loss(
    student: Prediction,
    teacher: Prediction,
    schedule: Schedule,
    x0: Samples,
    eps: Samples,
    t: Times,
    weight: Weight = uniform_weight,
) -> Float[Tensor, ""]:
    """TSM: `E_t lambda_t || mu_student(x_t, t) - sg mu_teacher(x_t, t) ||^2`, on diffused real data.

    `x0, eps: (B, ...)`, `t: (B,)`. Mean over elements and batch (the paper's squared norm over a constant). Zero where the
    student says what the teacher says; unlike in `denoising_loss` the spread of x0 given x_t costs nothing, so the teacher
    itself is at 0. Conditions and guidance belong to the callables: the paper teaches an unguided score.
    """
    x_t = add_noise(x0, eps, t, schedule)
    with torch.no_grad():
        goal = teacher(x_t, t)
    return _weighted(student(x_t, t) - goal, weight(t))


def denoising_loss(
    network: Prediction, schedule: Schedule, x0: Samples, eps: Samples, t: Times, weight: Weight = uniform_weight
) -> Float[Tensor, ""]:
    """`E_t lambda_t || mu(x_t, t) - sg x0 ||^2`, mean over elements and batch; its optimum is `E[x0 | x_t]`.

    On a generator's samples this teaches the fake score (arXiv 2311.18828, equation 6). No gradient reaches x0.
    """
    x0 = x0.detach()
    return _weighted(network(add_noise(x0, eps, t, schedule), t) - x0, weight(t))


def _weighted(difference: Samples, weight: Times) -> Float[Tensor, ""]:
    return (expand(weight, difference) * difference.square()).mean()
