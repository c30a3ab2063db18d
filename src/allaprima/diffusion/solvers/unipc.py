"""UniPC (arXiv 2302.04867), order 2, B(h) = e^h - 1, on x0 predictions: a predictor, and a corrector at no extra cost."""

from __future__ import annotations

import torch

from allaprima.core.types import Samples, Times
from allaprima.diffusion.schedules import NEARLY_ZERO, Schedule, expand
from allaprima.diffusion.solvers.solver import Phases, State, Step, steps_linspace, steps_until


class UniPC:
    """Each evaluation first corrects the sample it was made at, then predicts the next one (algorithms 1 and 2).

    The first step and the last are of first order, as in diffusers with `lower_order_final`.
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
        """The last corrected sample, the two last x0 with their log-SNR, the last order and time."""
        zeros = torch.zeros(len(x), dtype=torch.float64)
        names = ("lam_1", "lam_2", "t_1", "order")
        return {k: torch.zeros_like(x) for k in ("x_1", "m_1", "m_2")} | {k: zeros.clone() for k in names}

    def _lam(self, t: Times) -> Times:
        # Where there is no signal at all its logarithm stays finite, as in diffusers.
        return self.schedule.alpha(t).clamp(min=NEARLY_ZERO**0.5).log() - self.schedule.sigma(t).log()

    def _correct(self, x_t: Samples, x0: Samples, t: Times, state: State) -> Samples:
        """The sample at t again, now that x0 at t is known (equation 9)."""
        k = self.schedule
        first = state["order"] == 0
        lam = self._lam(t)
        # Where there is no history, harmless numbers keep the formulas finite; the result is not used there.
        h = torch.where(first, torch.ones_like(lam), lam - state["lam_1"])
        hh, b_h = -h, torch.expm1(-h)
        phi = b_h / hh - 1
        b_1, b_2 = phi / b_h, 2 * (phi / hh - 0.5) / b_h
        second = state["order"] == 2
        r = torch.where(second, (state["lam_2"] - state["lam_1"]) / h, torch.full_like(h, -1.0))
        c_0 = torch.where(second, (b_2 - b_1) / (r - 1), torch.zeros_like(h))
        c_1 = torch.where(second, b_1 - c_0, torch.full_like(h, 0.5))
        sigma_1 = torch.where(first, torch.ones_like(h), k.sigma(state["t_1"]))
        m_1 = state["m_1"]
        change = expand(c_0 / r, x0) * (state["m_2"] - m_1) + expand(c_1, x0) * (x0 - m_1)
        corrected = expand(k.sigma(t) / sigma_1, x_t) * state["x_1"] - expand(k.alpha(t) * b_h, x0) * (m_1 + change)
        return torch.where(expand(first.double(), x_t) > 0, x_t, corrected)

    def step(
        self, x_t: Samples, x0: Samples, t: Times, s: Times, state: State,
        noise: Samples | None = None, phase: Phases | None = None, noise_to: Times | None = None,
    ) -> tuple[Samples, State]:  # fmt: skip
        """Correct at `t`, then move from `t` to `s`."""
        k = self.schedule
        x = self._correct(x_t, x0, t, state)
        lam_t = self._lam(t)
        h = self._lam(s) - lam_t
        second = (state["order"] > 0) & ~torch.isinf(h)
        r = torch.where(second, (state["lam_1"] - lam_t) / h, torch.full_like(h, -1.0))
        half = torch.where(second, 0.5 / r, torch.zeros_like(r))
        d = x0 + expand(half, x0) * (state["m_1"] - x0)
        x_s = expand(k.sigma(s) / k.sigma(t), x) * x - expand(k.alpha(s) * torch.expm1(-h), x0) * d
        order = torch.where(second, torch.full_like(h, 2.0), torch.ones_like(h))
        memory = {
            "x_1": x,
            "m_1": x0,
            "m_2": state["m_1"],
            "lam_1": lam_t,
            "lam_2": state["lam_1"],
            "t_1": t,
            "order": order,
        }
        return x_s, memory
