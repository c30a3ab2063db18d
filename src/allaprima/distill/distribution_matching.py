"""Distribution matching, with its optional regression and adversarial parts, as the two losses of `two_time_scale`.

Stages 2 and 3 of arXiv 2410.23274 for one student: `conditions`, and in stage 3 `real` as well, draw from the student's
own part of the prompts; `pairs` never do. The fake score has the teacher's architecture and starts from its weights,
however small the generator is; the generator starts from a network trained by teacher score matching.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from allaprima.core.errors import SettingError
from allaprima.core.types import Condition, Denoiser, Samples, Times
from allaprima.diffusion.noising import add_noise
from allaprima.diffusion.schedules import Schedule
from allaprima.distill.generators import RenoisedChain
from allaprima.distill.losses import adversarial
from allaprima.distill.losses.distribution_matching import (
    HIGH,
    LOW,
    draw_matching_times,
    matching_gradient,
    matching_loss,
    regression_loss,
)
from allaprima.distill.losses.score_matching import Prediction, Weight, denoising_loss, draw_times, uniform_weight
from allaprima.distill.two_time_scale import Networks


@dataclass(frozen=True)
class NoiseImagePairs:
    """Noise, the teacher's picture of it, and of what: `(B, ...)`, `(B, ...)`, B rows."""

    noise: Samples
    image: Samples
    cond: Condition


@dataclass(frozen=True)
class Regression:
    """Paired regression; unfiltered pairs keep the modes."""

    draw: Callable[[int, torch.Generator], NoiseImagePairs]
    weight: float = 0.25
    distance: Callable[[Samples, Samples], Tensor] = nn.functional.mse_loss


@dataclass(frozen=True)
class Adversary:
    """The adversarial part (networks need a `head`)."""

    real: Callable[[int, torch.Generator], tuple[Samples, Condition]]
    """`n` real latents with their conditions, of the student's own part."""
    features: Callable[[nn.Module, Samples, Times, Condition], Tensor]
    """The fake score's bottleneck at `(x_t, t, cond)`: `(B, C, H, W)`; `taps.Taps` reads it."""
    weight: float = 1.0
    """Of the generator's adversarial loss, in units of `matched_weight`: 1 gives both gradients on the image one norm."""
    critic_weight: float = 0.01
    """Of the discriminator's loss, beside the fake score's denoising: both train the fake score (arXiv 2405.14867)."""


@dataclass(frozen=True)
class DistributionMatching:
    """What one student is taught with. `generator_loss` and `critic_loss` go to `train_two_time_scale`."""

    schedule: Schedule
    denoiser: Callable[[nn.Module], Denoiser]
    """Generator and fake score as denoisers, unguided; `NetworkDenoiser` with the schedule and prediction bound."""
    teacher: Denoiser
    """Guided: it is given the same condition as the others and adds the negative and the scale itself."""
    conditions: Callable[[int, torch.Generator], Condition]
    """`n` conditions to train on."""
    shape: Sequence[int]
    """Of one sample, `(C, H, W)`."""
    batch: int
    chain: RenoisedChain
    """`RenoisedChain.one_step(schedule)`, or more times for a few-step student."""
    weight: Weight = uniform_weight
    """Of the fake score's denoising loss, by time."""
    regression: Regression | None = None
    adversary: Adversary | None = None
    matching_times: tuple[float, float] = (LOW, HIGH)
    """Shares of the schedule between which the gradient is taken."""
    whole_times: bool = False
    """Integer times only, for networks trained on those."""
    device: torch.device | str = "cpu"
    """Where networks and conditions are; noise is drawn on the CPU all the same."""

    def __post_init__(self) -> None:
        if self.batch < 1 or any(n < 1 for n in self.shape):
            raise SettingError(f"batch={self.batch}, shape={tuple(self.shape)}: numbers of at least 1 are due.")
        if not 0 <= self.matching_times[0] < self.matching_times[1] <= 1:
            raise SettingError(
                f"matching_times={self.matching_times!r}: two rising shares of the schedule in [0, 1] are due; the paper's"
                f" are {LOW}, {HIGH}."
            )
        if self.regression is not None and len(self.chain.times) > 1:
            raise SettingError(
                f"regression with a chain of {len(self.chain.times)} steps: a pair's noise fixes its picture only for"
                " a one-step generator. Use RenoisedChain.one_step, or leave the regression out."
            )

    def generate(self, generator: nn.Module, g: torch.Generator) -> tuple[Samples, Condition]:
        """A batch of the generator's samples and their conditions, after a random number of the chain's jumps."""
        cond = self.conditions(self.batch, g)
        x = self.chain(self.denoiser(generator), self._noise(self.batch, g), cond, g, self.chain.draw(g))
        return x, cond

    def generator_loss(self, networks: Networks, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        """Distribution matching, plus regression and adversarial loss where asked for."""
        x, cond = self.generate(networks["generator"], g)
        fake, real = self._bound(self.denoiser(networks["fake_score"]), cond), self._bound(self.teacher, cond)
        t = draw_matching_times(self.schedule, len(x), g, self.whole_times, *self.matching_times)
        total = matching_loss(x, matching_gradient(x, fake, real, self.schedule, self._noise(len(x), g), t))
        if self.adversary is not None:
            loss = adversarial.generator_loss(self._logits(self.adversary, networks, x, cond, g))
            total = total + self.adversary.weight * adversarial.matched_weight(total, loss, x) * loss
        if self.regression is not None:
            pairs = self.regression.draw(self.batch, g)
            painted = self.chain(self.denoiser(networks["generator"]), pairs.noise, pairs.cond, g)
            total = total + self.regression.weight * regression_loss(painted, pairs.image, self.regression.distance)
        return total

    def critic_loss(self, networks: Networks, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        """The fake score's denoising loss on the generator's samples, plus the discriminator's loss."""
        with torch.no_grad():
            x, cond = self.generate(networks["generator"], g)
        t = draw_times(self.schedule, len(x), g, whole=self.whole_times)
        fake = self._bound(self.denoiser(networks["fake_score"]), cond)
        total = denoising_loss(fake, self.schedule, x, self._noise(len(x), g), t, self.weight)
        if self.adversary is not None:
            data, data_cond = self.adversary.real(self.batch, g)
            real = self._logits(self.adversary, networks, data, data_cond, g)
            generated = self._logits(self.adversary, networks, x, cond, g)
            total = total + self.adversary.critic_weight * adversarial.discriminator_loss(real, generated)
        return total

    def _logits(self, adversary: Adversary, networks: Networks, x: Samples, cond: Condition, g: torch.Generator) -> Tensor:
        t = draw_times(self.schedule, len(x), g, whole=self.whole_times)
        x_t = add_noise(x, self._noise(len(x), g), t, self.schedule)
        return networks["head"](adversary.features(networks["fake_score"], x_t, t, cond))

    def _noise(self, n: int, g: torch.Generator) -> Samples:
        return torch.randn((n, *self.shape), generator=g).to(self.device)

    @staticmethod
    def _bound(denoiser: Denoiser, cond: Condition) -> Prediction:
        return partial(_denoise, denoiser, cond)


def _denoise(denoiser: Denoiser, cond: Condition, x_t: Samples, t: Times) -> Samples:
    return denoiser(x_t, t, cond)
