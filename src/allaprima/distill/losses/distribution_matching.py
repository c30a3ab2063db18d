"""Distribution matching (arXiv 2311.18828, equations 7 and 8; arXiv 2405.14867; students of arXiv 2410.23274, stage 2).

The gradient of the KL divergence between a generator's and the teacher's distribution, both diffused, is a difference of
scores. With clean predictions in their place, divided sample by sample by how far the teacher's is from the sample:

    g = (mu_fake(x_t, t) - mu_real(x_t, t)) / mean_elements |x - mu_real(x_t, t)|

A step along `-g` moves a sample to where the teacher finds it likelier and away from where the generator crowds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from allaprima.core.types import Samples, Times
from allaprima.diffusion.noising import add_noise
from allaprima.diffusion.schedules import Schedule
from allaprima.distill.losses.score_matching import Prediction, draw_times

LOW, HIGH = 0.02, 0.98
"""Shares of the schedule between which the gradient's times lie: at its ends one of the scores says nothing."""


def draw_matching_times(
    schedule: Schedule, n: int, generator: torch.Generator, whole: bool = False, low: float = LOW, high: float = HIGH
) -> Times:
    """`(n,)` times for the gradient, uniform in [low, high] of the schedule; the fake score is taught on all."""
    return draw_times(schedule, n, generator, low, high, whole)


@torch.no_grad()
def matching_gradient(
    x: Samples,
    fake: Prediction,
    real: Prediction,
    schedule: Schedule,
    eps: Samples,
    t: Times,
    floor: float = 1e-6,
) -> Samples:
    """`g: (B, ...)`, without gradient through either score; 0 where the generator's samples are the teacher's.

    Args:
        x, eps: generated samples and fresh noise, `(B, ...)`.
        fake: the fake score, a denoiser of the generator's samples, *without* guidance.
        real: the teacher *with* guidance. Swapped, the generator would flee what guidance asks for.
        t: `(B,)`, see `draw_matching_times`.
        floor: smallest normaliser, in units of x. A sample on which the teacher agrees to the bit would divide by 0.

    The normaliser is each sample's own: over the batch, one far sample would slow all the others, and a sample's gradient
    would depend on its batch mates.
    """
    x_t = add_noise(x, eps, t, schedule)
    mu_real = real(x_t, t)
    scale = (x - mu_real).abs().flatten(1).mean(1).clamp(min=floor).reshape(-1, *[1] * (x.ndim - 1))
    return (fake(x_t, t) - mu_real) / scale


def matching_loss(x: Samples, g: Samples) -> Float[Tensor, ""]:
    """`0.5 mse(x, sg(x - g))`: its gradient by x is `g` over the number of elements. Its value says how large g is."""
    return 0.5 * F.mse_loss(x, (x - g).detach())


def regression_loss(
    generated: Samples, image: Samples, distance: Callable[[Samples, Samples], Tensor] = F.mse_loss
) -> Float[Tensor, ""]:
    """Paired regression (arXiv 2311.18828, equation 9): `E d(G(z), y)`, y the teacher's picture of the same noise z.

    `generated, image: (B, ...)`; `distance` gives one number or one a sample (the paper's is LPIPS). The pairs should cover
    *all* conditions, also those a student will never be asked for: filtering them by the student's own costs modes
    (arXiv 2410.23274, section 4.2).
    """
    return distance(generated, image.detach()).mean()
