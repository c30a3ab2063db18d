"""Restart sampling (arXiv 2306.14878, algorithm 1): solve down, put noise back up, solve down again."""

from __future__ import annotations

import torch

from allaprima.core.errors import SettingError
from allaprima.core.types import Samples, Times
from allaprima.diffusion.schedules import Schedule, expand
from allaprima.diffusion.solvers.ddim import DDIM
from allaprima.diffusion.solvers.solver import Phases, State, Step


class Restart:
    """DDIM with `repeats` restarts of the interval `[rho_min, rho_max]` (VE noise, rho = sigma / alpha).

    On reaching rho_min noise of variance `rho_max^2 - rho_min^2` is added in VE coordinates, and the interval is solved
    again over `points` evaluations. All evaluations count towards n.
    """

    needs_noise = True

    def __init__(
        self, schedule: Schedule, rho_min: float = 0.5, rho_max: float = 2.0, repeats: int = 1, points: int | None = None
    ) -> None:
        if not 0 < rho_min < rho_max:
            raise SettingError(f"restart interval {rho_min!r}..{rho_max!r}: 0 < rho_min < rho_max is due.")
        self.schedule, self.repeats, self.points = schedule, repeats, points
        self.t_min, self.t_max = (schedule.time_of_variance(r * r / (1 + r * r)) for r in (rho_min, rho_max))
        self._base = DDIM(schedule)

    def timesteps(self, n: int, start: float | None = None) -> list[Step]:
        """`n` evaluations, restarts included; too few for a restart, or a start below it, is DDIM."""
        points = self.points or max(2, n // 4)
        main = n - self.repeats * points
        top = self.schedule.t_max if start is None else start
        if main < 2 or (start is not None and start <= self.t_min):
            return self._base.timesteps(n, start)
        # The main descent passes through t_min exactly: its evaluations are shared between above and below.
        above = max(1, min(main - 1, round(main * (top - self.t_min) / max(top, 1e-9))))
        down = [top + (self.t_min - top) * i / above for i in range(above)]
        again = [self.t_max + (self.t_min - self.t_max) * i / points for i in range(points)]
        below = main - above
        clean = self.schedule.t_clean
        last = [self.t_min * ((below - i) / below) for i in range(below)]
        steps = [Step(t, s) for t, s in zip(down, [*down[1:], self.t_min], strict=True)]
        for _ in range(self.repeats):
            steps[-1] = Step(steps[-1].t, steps[-1].s, noise_to=self.t_max)
            steps += [Step(t, s) for t, s in zip(again, [*again[1:], self.t_min], strict=True)]
        return [*steps, *(Step(t, s) for t, s in zip(last, [*last[1:], clean], strict=True))]

    def init(self, x: Samples) -> State:
        """No memory."""
        return {}

    def step(
        self, x_t: Samples, x0: Samples, t: Times, s: Times, state: State,
        noise: Samples | None = None, phase: Phases | None = None, noise_to: Times | None = None,
    ) -> tuple[Samples, State]:  # fmt: skip
        """Move from `t` to `s`, then, for samples whose `noise_to` is a time, put noise back up to it."""
        x_s, state = self._base.step(x_t, x0, t, s, state)
        if noise_to is None or bool(torch.isnan(noise_to).all()):
            return x_s, state
        if noise is None:
            raise SettingError("a restart needs fresh noise; none was given.")
        k = self.schedule
        up = torch.where(torch.isnan(noise_to), s, noise_to)
        alpha_s, a_u = k.alpha(s), k.alpha(up)
        rho_s, rho_u = k.sigma(s) / alpha_s, k.sigma(up) / a_u
        spread = (rho_u.square() - rho_s.square()).clamp(min=0).sqrt()
        return expand(a_u / alpha_s, x_s) * x_s + expand(a_u * spread, x_s) * noise, state
