"""Rollback: put noise back on a draft so that a teacher can go on from there (arXiv 2312.10835, section 3.3).

The paper's sigma is a *variance*; its released code passes the number as diffusers' `strength`, a share of the
schedule. Both are kept, as types, so that a number can't be taken for the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from allaprima.core.errors import SettingError
from allaprima.core.types import Samples, Times
from allaprima.diffusion.schedule import Schedule, expand


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


def start_time(schedule: Schedule, sigma: Sigma) -> float:
    """The time from which the teacher goes on."""
    if isinstance(sigma, Variance):
        return schedule.time_of_variance(sigma.value)
    return schedule.time_of_strength(sigma.value)


def rollback(x0: Samples, eps: Samples, t: Times, schedule: Schedule) -> Samples:
    """`x_t = alpha_t x0 + sigma_t eps`. `x0, eps: (B, ...)`, `t: (B,)`."""
    return expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * eps
