"""What a solver is: a plan of network evaluations and a pure step between two of them. Loops live elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.core.types import Samples, Times
from allaprima.diffusion.schedules import DiscreteVP, Schedule

State = dict[str, Shaped[Tensor, " b ..."]]
"""A solver's memory; every tensor's first dimension is the batch, so rows can be regrouped between steps."""

Phases = Int[Tensor, " b"]
"""`(B,)`: each sample's `Step.phase`."""


@dataclass(frozen=True)
class Step:
    """One network evaluation at `t`, followed by a move to `s`."""

    t: float
    s: float
    phase: int = 0
    """Which part of a many-part step this is (Heun: 0 predict, 1 correct)."""
    noise_to: float | None = None
    """After the move, put noise back up to this time (Restart)."""


@runtime_checkable
class Solver(Protocol):
    """A pure, per-sample solver: samples at different times and steps may share a call."""

    schedule: Schedule
    needs_noise: bool
    """Whether `step` takes fresh noise."""
    scales_noise: bool
    """Whether sampling from pure noise begins at `sigma_t eps` (`scale_initial_noise`)."""
    order: int
    """Order of accuracy on the probability-flow ODE."""

    def timesteps(self, n: int, start: float | None = None) -> list[Step]:
        """Return `n` network evaluations from the noisiest time, or from `start`, to the clean end."""
        ...

    def init(self, x: Samples) -> State:
        """Return the memory of samples `(B, ...)` that have not taken a step."""
        ...

    def step(
        self,
        x_t: Samples,
        x0: Samples,
        t: Times,
        s: Times,
        state: State,
        noise: Samples | None = None,
        phase: Phases | None = None,
        noise_to: Times | None = None,
    ) -> tuple[Samples, State]:
        """Move samples from times `t` to times `s`.

        Args:
            x_t: Noisy samples, `(B, ...)`.
            x0: Clean predictions of them, `(B, ...)`.
            t: Times of the predictions, `(B,)`.
            s: Times moved to, `(B,)`; at the clean end the result is `x0`.
            state: The memory that `init` or the last step returned.
            noise: Fresh noise `(B, ...)`, where the solver needs it.
            phase: `Step.phase` of each sample, `(B,)`; None: 0.
            noise_to: `Step.noise_to` of each sample, `(B,)`, nan where it has none; None: no sample has one.

        Returns:
            `x_s: (B, ...)` and the new memory.
        """
        ...


class BaseSolver:
    """What most solvers share: no memory, and one evaluation at each time of the schedule, or until `last_time`."""

    needs_noise = False
    scales_noise = False
    order = 1

    def __init__(self, schedule: Schedule, last_time: float | None = None) -> None:
        self.schedule, self.last_time = schedule, last_time

    def timesteps(self, n: int, start: float | None = None) -> list[Step]:
        """Return `n` evaluations, one a step."""
        if self.last_time is not None:
            return steps_until(self.schedule, n, start, self.last_time)
        return self._usual_timesteps(n, start)

    def _usual_timesteps(self, n: int, start: float | None) -> list[Step]:
        return steps_on_schedule(self.schedule, n, start)

    def init(self, x: Samples) -> State:
        """Return no memory."""
        return {}


def steps_until(schedule: Schedule, n: int, start: float | None, last: float) -> list[Step]:
    """`n` evaluations at even times from `start` (default: the noisiest) to `last`, both included.

    Where the last evaluation falls decides how much detail the final, first-order step can lose: a tuned `last` makes 12
    steps of DPM-Solver++ as exact as 25 of "linspace" on the bundled teacher (docs/decisions/0019). Raises `SettingError`
    unless `last` lies between the clean end and the start.
    """
    top = schedule.t_max if start is None else start
    if not schedule.t_clean < last < top:
        raise SettingError(
            f"last_time={last!r} is out of range: it must lie between the clean end, {schedule.t_clean:g}, and the first"
            f" time, {top:g}. Try a fiftieth of the schedule, {schedule.t_max / 50:g}."
        )
    if n < 1:
        raise SettingError(f"steps={n} is out of range: at least 1 step is due.")
    inner = [top + (last - top) * i / (n - 1) for i in range(1, n - 1)]
    # The two ends as they were given: rounding on the way would move them by a last bit.
    times = [top, *inner, *([last] if n > 1 else []), schedule.t_clean]
    return [Step(t, s) for t, s in zip(times, times[1:], strict=False)]


def steps_on_schedule(schedule: Schedule, n: int, start: float | None) -> list[Step]:
    """One evaluation at each time of the schedule's grid."""
    times: Sequence[float] = [*schedule.timesteps(n, start), schedule.t_clean]
    return [Step(t, s) for t, s in zip(times, times[1:], strict=False)]


def scales_noise(schedule: Schedule) -> bool:
    """Whether diffusers' Euler schedulers begin at `sigma_t eps` instead of `eps`: for all spacings but "leading"."""
    return isinstance(schedule, DiscreteVP) and schedule.spacing not in (None, "leading")


def scale_initial_noise(solver: Solver, noise: Samples, t: float) -> Samples:
    """Return what painting from pure noise begins with at time `t`: the noise `(B, ...)`, or what a solver makes of it."""
    if not solver.scales_noise:
        return noise
    return noise * float(solver.schedule.sigma(torch.tensor([t], dtype=torch.float64)))


def steps_linspace(schedule: Schedule, n: int, start: float | None) -> list[Step]:
    """Like `steps_on_schedule`, but from pure noise times are spread over the whole schedule (diffusers' "linspace").

    Of these, and of "leading" times, n + 1 are made and the cleanest is left out, as diffusers' multistep schedulers do.
    """
    if start is not None or not isinstance(schedule, DiscreteVP) or schedule.spacing not in (None, "linspace", "leading"):
        return steps_on_schedule(schedule, n, start)
    steps_on_schedule(schedule, n, None)  # Refuses an impossible n.
    if schedule.spacing == "leading":
        times = schedule.timesteps(n + 1)
    else:
        times = torch.linspace(0, schedule.t_max, n + 1, dtype=torch.float64).round().flip(0).tolist()
    return [Step(t, s) for t, s in zip(times, [*times[1:-1], schedule.t_clean], strict=False)]
