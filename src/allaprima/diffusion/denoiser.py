"""A network with its schedule and prediction type, as a denoiser."""

from __future__ import annotations

from collections.abc import Callable

from allaprima.core.errors import SettingError
from allaprima.core.types import Condition, Samples, Times
from allaprima.diffusion.predictions import PREDICTIONS, to_x0
from allaprima.diffusion.schedules import Schedule


class NetworkDenoiser:
    """`x0_hat` from `network(x_t, t, cond)`; one network evaluation a call."""

    evaluations_per_call = 1

    def __init__(self, network: Callable[[Samples, Times, Condition], Samples], schedule: Schedule, prediction: str) -> None:
        if prediction not in PREDICTIONS:
            raise SettingError(f"prediction_type={prediction!r} is not known: {', '.join(PREDICTIONS)} are.")
        self.network, self.schedule, self.prediction = network, schedule, prediction

    def __call__(self, x_t: Samples, t: Times, cond: Condition) -> Samples:
        """`(B,C,H,W), (B,), B rows -> (B,C,H,W)`."""
        output = self.network(x_t, t, cond)
        return to_x0(self.prediction, output, x_t, self.schedule.alpha(t), self.schedule.sigma(t))
