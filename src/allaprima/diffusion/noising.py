"""Rollback: put noise back on a draft so that a teacher can go on from there (arXiv 2312.10835, section 3.3).

The paper's sigma is a *variance*; its released code passes the number as diffusers' `strength`, a share of the
schedule. Both are kept, as types, so that a number can't be taken for the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from allaprima.core.errors import SettingError
from allaprima.core.types import Samples, Times
from allaprima.diffusion.predictions import eps_of
from allaprima.diffusion.schedules import Schedule, expand


@dataclass(frozen=True)
class Variance:
    """The noise variance after rollback, in (0, 1): `x = sqrt(1 - v) x0 + sqrt(v) eps`."""

    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < 1:
            raise SettingError(f"sigma (variance)={self.value!r} is out of range: it must lie in (0, 1). Try 0.7.")


@dataclass(frozen=True)
class Strength:
    """The share of the schedule that is gone through again, in (0, 1)."""

    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < 1:
            raise SettingError(f"sigma (strength)={self.value!r} is out of range: it must lie in (0, 1). Try 0.5.")


Sigma = Variance | Strength


def start_time(schedule: Schedule, sigma: Sigma, steps: int | None = None) -> float:
    """Return the time from which the teacher goes on, in `steps` steps: a time of the teacher's own schedule.

    What is rolled back is a clean draft, so the student's schedule has no part in it: whatever its times are (integers of
    a VP model, flow times, angles), the teacher meets the draft with the noise of its own time. A variance means the same
    signal-to-noise ratio `(1 - v) / v` on each schedule.
    """
    if isinstance(sigma, Variance):
        return schedule.time_of_variance(sigma.value)
    return schedule.time_of_strength(sigma.value, steps)


def add_noise(x0: Samples, eps: Samples, t: Times, schedule: Schedule) -> Samples:
    """Return `x_t = alpha_t x0 + sigma_t eps`, the forward process. `x0, eps: (B, ...)`, `t: (B,)`."""
    return expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * eps


def ddim_step(x_t: Samples, x0: Samples, t: Times, s: Times, schedule: Schedule) -> Samples:
    """Return `x_s = alpha_s x0 + sigma_s eps_hat`, `eps_hat = (x_t - alpha_t x0) / sigma_t` (arXiv 2010.02502, eta 0).

    Args:
        x_t: Samples at times `t`, `(B, ...)`.
        x0: Their clean predictions, `(B, ...)`.
        t: `(B,)`.
        s: The times moved to, `(B,)`.
        schedule: Of both times.
    """
    return add_noise(x0, eps_of(x0, x_t, schedule.alpha(t), schedule.sigma(t)), s, schedule)
