"""Euler on the probability-flow ODE: first order, for flow and VP models alike."""

from __future__ import annotations

from allaprima.core.types import Samples, Times
from allaprima.diffusion.predictions import eps_of
from allaprima.diffusion.schedules import Schedule, expand
from allaprima.diffusion.solvers.solver import Phases, State, Step, scales_noise, steps_on_schedule, steps_until


def variance_exploding(x_t: Samples, x0: Samples, t: Times, schedule: Schedule) -> tuple[Samples, Samples, Times]:
    """`y = x / alpha`, `d y / d rho = eps_hat` and `rho = sigma / alpha`, the coordinates of arXiv 2206.00364."""
    a, s = schedule.alpha(t), schedule.sigma(t)
    return x_t / expand(a, x_t), eps_of(x0, x_t, a, s), s / a


class Euler:
    """`y_s = y_t + (rho_s - rho_t) eps_hat`; for a flow model this is `x_s = x_t + (s - t) v_hat` exactly."""

    needs_noise = False

    def __init__(self, schedule: Schedule, last_time: float | None = None) -> None:
        self.schedule, self.last_time = schedule, last_time
        self.scales_noise = scales_noise(schedule)

    def timesteps(self, n: int, start: float | None = None) -> list[Step]:
        """One evaluation a step."""
        if self.last_time is not None:
            return steps_until(self.schedule, n, start, self.last_time)
        return steps_on_schedule(self.schedule, n, start)

    def init(self, x: Samples) -> State:
        """No memory."""
        return {}

    def step(
        self, x_t: Samples, x0: Samples, t: Times, s: Times, state: State,
        noise: Samples | None = None, phase: Phases | None = None, noise_to: Times | None = None,
    ) -> tuple[Samples, State]:  # fmt: skip
        """Move from `t` to `s`."""
        k = self.schedule
        # alpha_t is 0 at a flow's noisiest time, so y is not formed: x_s = alpha_s x0 + sigma_s eps_hat is the same line.
        eps = eps_of(x0, x_t, k.alpha(t), k.sigma(t))
        return expand(k.alpha(s), x_t) * x0 + expand(k.sigma(s), x_t) * eps, state
