"""Ancestral Euler: part of the way down by the flow, part of the noise fresh (DDPM's, arXiv 2006.11239, in VE coordinates).

What adversarial diffusion distillation paints with (SD-Turbo, SDXL-Turbo; arXiv 2311.17042), spaced "trailing".
"""

from __future__ import annotations

from allaprima.core.errors import SettingError
from allaprima.core.types import Samples, Times
from allaprima.diffusion.predictions import eps_of
from allaprima.diffusion.schedules import Schedule, expand
from allaprima.diffusion.solvers.solver import Phases, State, Step, scales_noise, steps_on_schedule


class EulerAncestral:
    """`y_s = x0 + rho_down eps_hat + rho_up noise`, `rho_up^2 = rho_s^2 (1 - rho_s^2 / rho_t^2)`, `y = x / alpha`.

    `rho_down^2 + rho_up^2 = rho_s^2`: the noise is as strong as the time says. With one step it is Euler's.
    """

    needs_noise = True

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.scales_noise = scales_noise(schedule)

    def timesteps(self, n: int, start: float | None = None) -> list[Step]:
        """One evaluation a step."""
        return steps_on_schedule(self.schedule, n, start)

    def init(self, x: Samples) -> State:
        """No memory."""
        return {}

    def step(
        self, x_t: Samples, x0: Samples, t: Times, s: Times, state: State,
        noise: Samples | None = None, phase: Phases | None = None, noise_to: Times | None = None,
    ) -> tuple[Samples, State]:  # fmt: skip
        """Move from `t` to `s`."""
        if noise is None:
            raise SettingError("the ancestral step needs fresh noise; none was given.")
        k = self.schedule
        alpha_t, sigma_t, alpha_s, sigma_s = k.alpha(t), k.sigma(t), k.alpha(s), k.sigma(s)
        # rho_s / rho_t, without a division by the alpha_t that may be 0.
        ratio = sigma_s * alpha_t / (alpha_s * sigma_t)
        eps = eps_of(x0, x_t, alpha_t, sigma_t)
        up = sigma_s * (1 - ratio.square()).clamp(min=0).sqrt()
        return expand(alpha_s, x0) * x0 + expand(sigma_s * ratio, x0) * eps + expand(up, x0) * noise, state
