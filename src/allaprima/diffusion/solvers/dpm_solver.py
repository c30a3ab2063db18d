"""DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): second order, one evaluation a step."""

from __future__ import annotations

import torch

from allaprima.core.types import Samples, Times
from allaprima.diffusion.schedules import NEARLY_ZERO, Schedule, expand
from allaprima.diffusion.solvers.solver import Phases, State, Step, steps_linspace, steps_until


class DPMSolverPP2M:
    """`x_s = (sigma_s/sigma_t) x_t - alpha_s (e^{-h} - 1) D`, `D = x0 + (x0 - x0_prev) / (2 r)`, midpoint form.

    The first step and the last (to the clean end, where h is infinite) are of first order, as diffusers has them with
    `final_sigmas_type="zero"`.
    """

    needs_noise = False

    def __init__(self, schedule: Schedule, last_time: float | None = None) -> None:
        self.schedule, self.last_time = schedule, last_time

    def timesteps(self, n: int, start: float | None = None) -> list[Step]:
        """One evaluation a step."""
        if self.last_time is not None:
            return steps_until(self.schedule, n, start, self.last_time)
        return steps_linspace(self.schedule, n, start)

    def init(self, x: Samples) -> State:
        """The previous x0, its log-SNR, and how many steps have been taken."""
        zeros = torch.zeros(len(x), dtype=torch.float64)
        return {"x0_prev": torch.zeros_like(x), "lam_prev": zeros, "count": zeros.clone()}

    def _lam(self, t: Times) -> Times:
        # Where there is no signal at all its logarithm stays finite, as in diffusers.
        return self.schedule.alpha(t).clamp(min=NEARLY_ZERO**0.5).log() - self.schedule.sigma(t).log()

    def step(
        self, x_t: Samples, x0: Samples, t: Times, s: Times, state: State,
        noise: Samples | None = None, phase: Phases | None = None, noise_to: Times | None = None,
    ) -> tuple[Samples, State]:  # fmt: skip
        """Move from `t` to `s`."""
        k = self.schedule
        lam_t, lam_s = self._lam(t), self._lam(s)
        h = lam_s - lam_t
        last = torch.isinf(h)
        second = (state["count"] > 0) & ~last
        r = torch.where(second, (lam_t - state["lam_prev"]) / h, torch.ones_like(h))
        half = torch.where(second, 0.5 / r, torch.zeros_like(r))
        d = x0 + expand(half, x0) * (x0 - state["x0_prev"])
        x_s = expand(k.sigma(s) / k.sigma(t), x_t) * x_t - expand(k.alpha(s) * torch.expm1(-h), x0) * d
        return x_s, {"x0_prev": x0, "lam_prev": lam_t, "count": state["count"] + 1}
