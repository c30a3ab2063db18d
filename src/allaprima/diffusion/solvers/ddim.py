"""DDIM, eta 0 (arXiv 2010.02502, equation 12)."""

from __future__ import annotations

from allaprima.core.types import Samples, Times
from allaprima.diffusion.schedules import Schedule, expand
from allaprima.diffusion.solvers.solver import Phases, State, Step, steps_on_schedule, steps_until


class DDIM:
    """`x_s = alpha_s x0 + sigma_s (x_t - alpha_t x0) / sigma_t`; first order."""

    needs_noise = False

    def __init__(self, schedule: Schedule, last_time: float | None = None) -> None:
        self.schedule, self.last_time = schedule, last_time

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
        eps = (x_t - expand(k.alpha(t), x_t) * x0) / expand(k.sigma(t), x_t)
        return expand(k.alpha(s), x_t) * x0 + expand(k.sigma(s), x_t) * eps, state
