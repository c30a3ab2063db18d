"""Consistency distillation with guidance outside the student (arXiv 2312.10835, appendix A; arXiv 2303.01469).

`f(x_t, t, w) = (x_t - sigma_t eps_w) / alpha_t` with `eps_w = eps_u + w (eps_c - eps_u)`, which is the guided clean
prediction. There is no c_skip: the boundary condition holds because alpha is 1 at the clean end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allaprima.core.types import Samples, Times
from allaprima.diffusion.schedules import Schedule, expand

GuidedPrediction = Callable[[Samples, Times, Times], Samples]
"""`(x_t: (B,C,H,W), t: (B,), w: (B,)) -> x0_hat`, guided with scale w."""


def lcm_scalings(t: Times) -> tuple[Times, Times]:
    """c_skip and c_out at times `t: (B,)`, 1 and 0 at time 0 (arXiv 2310.04378, appendix; as diffusers' `LCMScheduler`).

    `c_skip = d^2 / ((10 t)^2 + d^2)`, `c_out = 10 t / sqrt((10 t)^2 + d^2)`, `d = 0.5` being the data's spread.
    """
    u, d2 = 10 * t, 0.5**2
    return d2 / (u * u + d2), u / (u * u + d2).sqrt()


def with_lcm_boundary(predict: GuidedPrediction) -> GuidedPrediction:
    """`f(x_t, t, w) = c_skip(t) x_t + c_out(t) x0_hat`, the identity at time 0 whatever the network says."""

    def bounded(x_t: Samples, t: Times, w: Times) -> Samples:
        skip, out = lcm_scalings(t)
        return expand(skip, x_t) * x_t + expand(out, x_t) * predict(x_t, t, w)

    return bounded


def ddim_step(x_t: Samples, x0: Samples, t: Times, s: Times, schedule: Schedule) -> Samples:
    """`x_s = alpha_s x0 + sigma_s (x_t - alpha_t x0) / sigma_t` (arXiv 2010.02502, eta 0). `t, s: (B,)`."""
    alpha_t, sigma_t = expand(schedule.alpha(t), x_t), expand(schedule.sigma(t), x_t)
    alpha_s, sigma_s = expand(schedule.alpha(s), x_t), expand(schedule.sigma(s), x_t)
    return alpha_s * x0 + sigma_s * (x_t - alpha_t * x0) / sigma_t


def consistency_loss(
    student: GuidedPrediction,
    target: GuidedPrediction,
    teacher: GuidedPrediction,
    schedule: Schedule,
    grid: Sequence[float],
    x0: Samples,
    eps: Samples,
    index: Int[Tensor, " b"],
    w: Times,
    huber: float | None = None,
    end: float | None = None,
    elementwise: bool = False,
) -> Float[Tensor, ""]:
    """`|| f(x_t, t, w) - sg f_ema(x_s, s, w) ||^2`, mean over the batch, uniform in time.

    Args:
        grid: decreasing times, the paper's 981, 961, ..., 1; the time after the last is `end`.
        x0, eps: data and noise, `(B, C, H, W)`.
        index: `(B,)` positions of t in `grid`; s is the next one.
        w: `(B,)` guidance scales, the same for student, target and teacher.
        huber: c of the pseudo-Huber distance `sqrt(d^2 + c^2) - c` in place of the square (arXiv 2310.14189).
        end: where f is the identity; None is the clean end, where that is so for any network.
        elementwise: the Huber distance of each number, as diffusers' training scripts have it, not of each sample.
    """
    last = schedule.t_clean if end is None else end
    times = torch.tensor([*grid, last], dtype=torch.float64)
    t, s = times[index], times[index + 1]
    x_t = expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * eps
    with torch.no_grad():
        x_s = ddim_step(x_t, teacher(x_t, t, w), t, s, schedule)
        # At the end f is the identity, so nothing is asked of the network there.
        ended = expand((s == last).double(), x0)
        goal = torch.where(ended > 0, x_s, target(x_s, s.clamp(min=min(grid)), w))
    d2 = (student(x_t, t, w) - goal).square().flatten(1)
    if huber is not None and elementwise:
        return ((d2 + huber**2).sqrt() - huber).mean()
    d2 = d2.mean(1)
    if huber is not None:
        d2 = (d2 + huber**2).sqrt() - huber
    return d2.mean()


def endpoint_loss(student: GuidedPrediction, x_t: Samples, t: Times, w: Times, end: Samples) -> Float[Tensor, ""]:
    """`|| f(x_t, t, w) - x_end ||^2`, mean over the batch: the consistency loss whose s is the clean end at once.

    `x_t: (B, C, H, W)` are points of the teacher's guided trajectories (scale `w: (B,)`) at times `t: (B,)`, `end` where
    each trajectory ends. The fixed point is that of `consistency_loss` (f maps a point to the end of its trajectory,
    arXiv 2303.01469, definition 1), without the errors that bootstrapping over a whole grid of links gathers.
    """
    return (student(x_t, t, w) - end).square().flatten(1).mean(1).mean()
