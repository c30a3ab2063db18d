"""Trajectory consistency sampling (arXiv 2402.19159, algorithm 4): jump to a cleaner time than asked, add fresh noise."""

from __future__ import annotations

import math

import torch

from allaprima.core.errors import SettingError
from allaprima.core.types import Samples, Times
from allaprima.diffusion.predictions import eps_of
from allaprima.diffusion.schedules import DiscreteVP, Schedule, expand
from allaprima.diffusion.solvers.consistency import Consistency, lcm_grid
from allaprima.diffusion.solvers.solver import Phases, State, Step

ETA = 0.3
"""The paper's gamma, by the name and with the default that diffusers has."""


class TCD:
    """`x_m = alpha_m x0 + sigma_m eps_hat` at `m = floor((1 - eta) s)`, then noise back up to s. Times are LCM's.

    `eta` 0 is DDIM, 1 multistep consistency sampling. As in diffusers' `TCDScheduler` the last move is to time 0, not to the
    clean end, and takes no fresh noise.
    """

    needs_noise = True

    def __init__(self, schedule: Schedule, eta: float = ETA) -> None:
        if not 0 <= eta <= 1:
            raise SettingError(f"eta={eta!r} is out of range: 0, nothing fresh, to 1, all of the noise. Try {ETA}.")
        self.schedule, self.eta = schedule, eta
        self._whole = isinstance(schedule, DiscreteVP)
        self._times = Consistency(schedule, lcm_grid if self._whole else None)

    def timesteps(self, n: int, start: float | None = None) -> list[Step]:
        """One evaluation a step; `s` of the last is 0."""
        steps = self._times.timesteps(n, start)
        return [*steps[:-1], Step(steps[-1].t, 0.0)]

    def init(self, x: Samples) -> State:
        """No memory."""
        return {}

    def step(
        self, x_t: Samples, x0: Samples, t: Times, s: Times, state: State,
        noise: Samples | None = None, phase: Phases | None = None, noise_to: Times | None = None,
    ) -> tuple[Samples, State]:  # fmt: skip
        """Move to `s` by way of `m`."""
        if noise is None:
            raise SettingError("trajectory consistency sampling needs fresh noise; none was given.")
        k = self.schedule
        m = (1 - self.eta) * s
        m = torch.floor(m) if self._whole else m
        alpha_m, alpha_s = k.alpha(m), k.alpha(s)
        x_m = expand(alpha_m, x0) * x0 + expand(k.sigma(m), x0) * eps_of(x0, x_t, k.alpha(t), k.sigma(t))
        keep = torch.where(s > 0, alpha_s / alpha_m, torch.ones_like(s))
        fresh = (1 - keep.square()).clamp(min=0).sqrt()
        return expand(keep, x0) * x_m + expand(fresh, x0) * noise, state


def eta_of(text: str) -> float:
    """The number in `tcd:0.5`. Raises `SettingError` for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise SettingError(f"eta={text!r} is no number: write it as in tcd:0.5.")
    return value
