"""DDIM, eta 0 (arXiv 2010.02502, equation 12)."""

from __future__ import annotations

from allaprima.core.types import Samples, Times
from allaprima.diffusion.noising import ddim_step
from allaprima.diffusion.solvers.solver import BaseSolver, Phases, State


class DDIM(BaseSolver):
    """`x_s = alpha_s x0 + sigma_s (x_t - alpha_t x0) / sigma_t`; first order."""

    def step(
        self, x_t: Samples, x0: Samples, t: Times, s: Times, state: State,
        noise: Samples | None = None, phase: Phases | None = None, noise_to: Times | None = None,
    ) -> tuple[Samples, State]:  # fmt: skip
        """Move from `t` to `s`."""
        return ddim_step(x_t, x0, t, s, self.schedule), state
