"""Euler on the probability-flow ODE: first order, for flow and VP models alike."""

from __future__ import annotations

from allaprima.core.types import Samples, Times
from allaprima.diffusion.noising import ddim_step
from allaprima.diffusion.predictions import eps_of
from allaprima.diffusion.schedules import Schedule, expand
from allaprima.diffusion.solvers.solver import BaseSolver, Phases, State, scales_noise


def variance_exploding(x_t: Samples, x0: Samples, t: Times, schedule: Schedule) -> tuple[Samples, Samples, Times]:
    """`y = x / alpha`, `d y / d rho = eps_hat` and `rho = sigma / alpha`, the coordinates of arXiv 2206.00364."""
    a, s = schedule.alpha(t), schedule.sigma(t)
    return x_t / expand(a, x_t), eps_of(x0, x_t, a, s), s / a


class Euler(BaseSolver):
    """`y_s = y_t + (rho_s - rho_t) eps_hat`; for a flow model this is `x_s = x_t + (s - t) v_hat` exactly."""

    def __init__(self, schedule: Schedule, last_time: float | None = None) -> None:
        super().__init__(schedule, last_time)
        self.scales_noise = scales_noise(schedule)

    def step(
        self, x_t: Samples, x0: Samples, t: Times, s: Times, state: State,
        noise: Samples | None = None, phase: Phases | None = None, noise_to: Times | None = None,
    ) -> tuple[Samples, State]:  # fmt: skip
        """Move from `t` to `s`."""
        # alpha_t is 0 at a flow's noisiest time, so y is not formed: DDIM's step is the same line.
        return ddim_step(x_t, x0, t, s, self.schedule), state
