"""Generators: how a student paints while it is trained, which is how it paints in use.

One step: `x = f(noise, t_max)`. Few steps: a chain of jumps with fresh noise between them (arXiv 2405.14867, section 4.5).
Every jump starts from the student's own samples, never from diffused data, so training sees what use will see.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from allaprima.core.errors import SettingError
from allaprima.core.types import Condition, Denoiser, Samples
from allaprima.diffusion.noising import add_noise
from allaprima.diffusion.schedules import Schedule


class RenoisedChain:
    """`x0 = f(x_t, t)`, then `x_s = alpha_s x0 + sigma_s eps`, over decreasing `times`; the last x0 is the result."""

    def __init__(self, schedule: Schedule, times: Sequence[float]) -> None:
        falling = all(a > b for a, b in zip(times, times[1:], strict=False))
        if not times or not falling or times[0] > schedule.t_max or times[-1] <= schedule.t_clean:
            raise SettingError(
                f"times={list(times)!r} make no chain: decreasing times from at most {schedule.t_max} to above"
                f" {schedule.t_clean} are due, such as [{schedule.t_max}] for one step."
            )
        self.schedule, self.times = schedule, list(times)

    @classmethod
    def one_step(cls, schedule: Schedule) -> RenoisedChain:
        """`x = f(noise, t_max)`."""
        return cls(schedule, [schedule.t_max])

    def draw(self, generator: torch.Generator) -> int:
        """How many jumps a training batch makes: uniform over 1..N, so that each of the N learns."""
        return int(torch.randint(len(self.times), (), generator=generator)) + 1

    def __call__(
        self, f: Denoiser, noise: Samples, cond: Condition, generator: torch.Generator, evaluations: int | None = None
    ) -> Samples:
        """`noise: (B, ...)`, standard normal -> x0 after `evaluations` jumps (default: all), gradient through the last only.

        Without that cut the chain's graph would hold N networks, and early jumps would be taught for the sake of later ones.
        `generator` draws the fresh noise. Raises `SettingError` for `evaluations` out of 1..N.
        """
        n = len(self.times) if evaluations is None else evaluations
        if not 1 <= n <= len(self.times):
            raise SettingError(f"evaluations={n} is out of range: this chain makes 1..{len(self.times)}.")
        x_t = noise
        with torch.no_grad():
            for t, s in zip(self.times[: n - 1], self.times[1:n], strict=True):
                x0 = f(x_t, self._at(t, noise), cond)
                eps = torch.randn(noise.shape, generator=generator, dtype=noise.dtype).to(noise.device)
                x_t = add_noise(x0, eps, self._at(s, noise), self.schedule)
        return f(x_t, self._at(self.times[n - 1], noise), cond)

    @staticmethod
    def _at(t: float, like: Samples) -> torch.Tensor:
        return torch.full((len(like),), t, dtype=torch.float64, device=like.device)
