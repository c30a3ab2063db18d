"""Multistep consistency sampling: jump to the clean sample, put fresh noise on it, jump again (arXiv 2303.01469)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from allaprima.core.errors import SettingError
from allaprima.core.types import Samples, Times
from allaprima.diffusion.noising import add_noise
from allaprima.diffusion.schedules import DiscreteVP, Schedule, TrigFlow
from allaprima.diffusion.solvers.solver import BaseSolver, Phases, State, Step, steps_on_schedule


class Consistency(BaseSolver):
    """`x_s = alpha_s x0 + sigma_s noise`. The last jump's x0 is the result: five steps are five evaluations.

    The release behind arXiv 2312.10835 adds a sixth whose result is multiplied by zero and leaves a little noise;
    that is not repeated here.

    On a `TrigFlow` schedule this is diffusers' SCMScheduler (sCM, arXiv 2410.11081): its students know all angles, so that
    n steps are the schedule's own n, not some of 50.
    """

    needs_noise = True

    def __init__(self, schedule: Schedule, make_times: Callable[[Schedule, int], list[float]] | None = None) -> None:
        super().__init__(schedule)
        self._make_times = make_times
        self._any_time = isinstance(schedule, TrigFlow)

    def timesteps(self, n: int, start: float | None = None) -> list[Step]:
        """Five steps on Stable Diffusion's schedule are 981, 781, 581, 381, 181: every tenth of a 50-point DDIM grid."""
        if start is not None or self._any_time or not 1 <= n <= 50 or _custom_times(self.schedule):
            return steps_on_schedule(self.schedule, n, start)
        return self._spread(self._fine(), n)

    def timesteps_below(self, n: int, start: float) -> list[Step]:
        """`n` evaluations at times of that grid, the first the noisiest that isn't above `start`: times of the training.

        Where the grid has fewer, they are spread evenly from `start` on, as `plan` has them.
        """
        if self._any_time:
            return self.timesteps(n, start)
        fine = [t for t in self._fine() if t <= start]
        return self._spread(fine, n) if 1 <= n <= len(fine) else self.timesteps(n, start)

    def _fine(self) -> list[float]:
        custom = _custom_times(self.schedule)
        if custom:
            return list(custom)
        return self.schedule.timesteps(50) if self._make_times is None else self._make_times(self.schedule, 50)

    def _spread(self, fine: Sequence[float], n: int) -> list[Step]:
        times = [*(fine[i * len(fine) // n] for i in range(n)), self.schedule.t_clean]
        return [Step(t, s) for t, s in zip(times, times[1:], strict=False)]

    def step(
        self, x_t: Samples, x0: Samples, t: Times, s: Times, state: State,
        noise: Samples | None = None, phase: Phases | None = None, noise_to: Times | None = None,
    ) -> tuple[Samples, State]:  # fmt: skip
        """Move to `s` with this sample's fresh noise."""
        if noise is None:
            raise SettingError("consistency sampling needs fresh noise at every step; none was given.")
        return add_noise(x0, noise, s, self.schedule), state


def _custom_times(schedule: Schedule) -> tuple[float, ...]:
    """Return the times of a schedule that was given them one by one."""
    spacing = schedule.spacing if isinstance(schedule, DiscreteVP) else None
    return spacing if isinstance(spacing, tuple) else ()


def lcm_grid(schedule: Schedule, n: int) -> list[float]:
    """`n` decreasing times as latent consistency models are trained on (arXiv 2310.04378): 999, 979, ..., 19 for 50.

    Raises `SettingError` for a schedule without 0..T-1 integer times, or with fewer than `n`.
    """
    if not isinstance(schedule, DiscreteVP) or not 1 <= n <= schedule.num_train_timesteps:
        raise SettingError(
            f"{n!r} of LCM's times don't fit a {type(schedule).__name__} schedule: 1 to as many as it has integer times"
            " are possible, of a schedule like Stable Diffusion's. Use fewer, or the plain grid (boundary: none)."
        )
    stride = schedule.num_train_timesteps // n
    return [float(stride * i - 1) for i in range(n, 0, -1)]


def lcm(schedule: Schedule) -> Consistency:
    """Multistep consistency sampling at the times of diffusers' `LCMScheduler`: 999, 799, 599, 399, 199 for five steps.

    Departure: that scheduler weighs what the network says with c_out and adds c_skip of the sample. At the last time of
    eight steps c_skip is 1e-7, at that of 50 steps 7e-6; here the prediction is the result.
    """
    return Consistency(schedule, lcm_grid if isinstance(schedule, DiscreteVP) else None)
