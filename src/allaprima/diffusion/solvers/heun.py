"""Heun's second-order method (arXiv 2206.00364, algorithm 1 without churn): a slope at both ends of a step.

It is straight in the coordinates of diffusers' schedulers: variance exploding (y = x / alpha over rho = sigma / alpha) for
VP models; the flow's own (x over t) for flows, whose alpha is 0 at the noisiest time, so that x / alpha is infinite.
"""

from __future__ import annotations

import torch

from allaprima.core.errors import SettingError
from allaprima.core.types import Samples, Times
from allaprima.diffusion.predictions import eps_of
from allaprima.diffusion.schedules import Flow, Schedule, expand
from allaprima.diffusion.solvers.euler import variance_exploding
from allaprima.diffusion.solvers.solver import Phases, State, Step, scales_noise


class Heun:
    """Predict with Euler (phase 0), evaluate again at the end, correct with the mean slope (phase 1).

    `plan(n)` counts evaluations, as everything here does: an odd n is (n - 1) / 2 Heun steps and one Euler step to the
    clean end; an even n begins with one more Euler step.
    """

    needs_noise = False

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._straight = isinstance(schedule, Flow)
        self.scales_noise = scales_noise(schedule)

    def timesteps(self, n: int, start: float | None = None) -> list[Step]:
        """`n` evaluations."""
        if n < 1:
            raise SettingError(f"steps={n} is out of range: at least 1 evaluation is due.")
        times = self.schedule.timesteps(n // 2 + 1, start)
        steps: list[Step] = []
        for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
            steps.append(Step(t, s, phase=0))
            if i > 0 or n % 2 == 1:
                steps.append(Step(s, s, phase=1))
        return [*steps, Step(times[-1], self.schedule.t_clean, phase=0)]

    def init(self, x: Samples) -> State:
        """Where the last prediction began: sample, slope and rho."""
        return {"y": torch.zeros_like(x), "d": torch.zeros_like(x), "rho": torch.zeros(len(x), dtype=torch.float64)}

    def _coordinates(self, x_t: Samples, x0: Samples, t: Times) -> tuple[Samples, Samples, Times]:
        """`y`, `d y / d rho` and `rho`; for a flow the sample, its velocity `eps_hat - x0_hat` and t."""
        if not self._straight:
            return variance_exploding(x_t, x0, t, self.schedule)
        sigma = self.schedule.sigma(t)
        return x_t, eps_of(x0, x_t, self.schedule.alpha(t), sigma) - x0, sigma

    def step(
        self, x_t: Samples, x0: Samples, t: Times, s: Times, state: State,
        noise: Samples | None = None, phase: Phases | None = None, noise_to: Times | None = None,
    ) -> tuple[Samples, State]:  # fmt: skip
        """Predict from `t` to `s`, or correct at `s`, as each sample's phase says (default: predict)."""
        k = self.schedule
        y, d, rho = self._coordinates(x_t, x0, t)
        correct = torch.zeros_like(t, dtype=torch.bool) if phase is None else phase == 1
        which = expand(correct.double(), x_t) > 0
        scale = torch.ones_like(s) if self._straight else k.alpha(s)
        rho_s = k.sigma(s) / scale
        predicted = y + expand(rho_s - rho, y) * d
        corrected = state["y"] + expand(rho - state["rho"], y) * 0.5 * (state["d"] + d)
        x_s = expand(scale, y) * torch.where(which, corrected, predicted)
        # To the clean end the prediction is x0 itself; say so exactly.
        end = expand((s == k.t_clean).double(), x_t) > 0
        return torch.where(end, x0, x_s), {"y": y, "d": d, "rho": rho}
