"""Conditional diffusion distillation, CoDi (arXiv 2310.01407): a few-step model that reads a picture, in one stage.

The student says `x0_hat` of `x_t` and a condition. A point at the next, cleaner time s is made in one of three ways:

- `prev` (the paper's equation): `x_s = alpha_s x0_hat + sigma_s eps`, with the noise that made `x_t`;
- `own_ddim` (its pseudo-code, and its release): the same with the student's own `eps_hat`, a DDIM step;
- `teacher_ddim`: a DDIM step of the frozen base, which doesn't read the condition.

There the student's slow copy is asked, and its noise is what the student's noise at t should be; besides, x0_hat should be
x0: `d_eps(sg eps_ema(x_s, s), eps_hat(x_t, t)) + weight d_x(x0, x0_hat)`. Both distances are mean squares.

The second term is not an ornament: under `own_ddim` any constant x0_hat has a first term of zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.core.types import Samples, Times
from allaprima.diffusion.predictions import eps_of
from allaprima.diffusion.schedules import Schedule, expand

Predict = Callable[[Samples, Times], Samples]
"""`(x_t: (B,C,H,W), t: (B,)) -> x0_hat`, with its condition inside."""
Predictor = Literal["prev", "own_ddim", "teacher_ddim"]


def next_point(
    kind: Predictor, x_t: Samples, x0_hat: Samples, eps: Samples, t: Times, s: Times, schedule: Schedule,
    teacher: Predict | None = None,
) -> Samples:  # fmt: skip
    """`x_s` by one of the three predictors. Raises `SettingError` for `teacher_ddim` without a teacher."""
    alpha_s, sigma_s = expand(schedule.alpha(s), x_t), expand(schedule.sigma(s), x_t)
    if kind == "prev":
        return alpha_s * x0_hat + sigma_s * eps
    if kind == "teacher_ddim":
        if teacher is None:
            raise SettingError("predictor='teacher_ddim' needs the teacher: give it, or choose prev or own_ddim.")
        x0_hat = teacher(x_t, t)
    return alpha_s * x0_hat + sigma_s * eps_of(x0_hat, x_t, schedule.alpha(t), schedule.sigma(t))


def conditional_loss(
    student: Predict,
    target: Predict,
    schedule: Schedule,
    x0: Samples,
    eps: Samples,
    t: Times,
    s: Times,
    kind: Predictor = "prev",
    teacher: Predict | None = None,
    x_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Equations 8 and 9 of the paper, mean over the batch.

    Args:
        x0, eps: data and noise, `(B, C, H, W)`.
        t, s: `(B,)`, s cleaner than t and not the clean end, where there is no noise to compare.
        target: the student's slow copy; nothing is sent back through it, nor through the point it is asked at.
        x_weight: of the second term; 0 is for experiments alone.
    """
    if bool((schedule.sigma(s) <= 0).any()):
        raise SettingError("s is the clean end: there is no noise to compare there. Draw s from the grid's inner times.")
    x_t = expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * eps
    x0_hat = student(x_t, t)
    eps_hat = eps_of(x0_hat, x_t, schedule.alpha(t), schedule.sigma(t))
    with torch.no_grad():
        x_s = next_point(kind, x_t, x0_hat.detach(), eps, t, s, schedule, teacher)
        goal = eps_of(target(x_s, s), x_s, schedule.alpha(s), schedule.sigma(s))
    return (eps_hat - goal).square().mean() + x_weight * (x0_hat - x0).square().mean()
