"""Distribution matching and its adversarial continuation (arXiv 2410.23274, stages 2 and 3; arXiv 2405.14867).

`adversarial` is `distribution_matching` with a discriminator's head: start it from what the other has made (`start`).
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from allaprima.core.types import Condition, Denoiser, Samples, Times
from allaprima.diffusion.guidance import ClassifierFreeGuidance, GuidanceInterval, scales_at
from allaprima.diffusion.solvers import make_solver
from allaprima.distill.distribution_matching import Adversary, DistributionMatching, NoiseImagePairs, Regression
from allaprima.distill.feature_hooks import FeatureHooks
from allaprima.distill.generators import RenoisedChain
from allaprima.distill.losses.adversarial import DiscriminatorHead
from allaprima.distill.losses.distribution_matching import HIGH, LOW
from allaprima.distill.losses.score_matching import limited_weight
from allaprima.distill.methods.common import SamplingDefaults, TrainingSetup, loop_config, trainable
from allaprima.distill.methods.pairs import painted_pairs
from allaprima.distill.recipe import Strict
from allaprima.distill.two_time_scale import TwoTimeScaleConfig, train_two_time_scale
from allaprima.models.cards.card import Card


class MatchingOptions(Strict):
    """Of both methods."""

    steps: int = Field(default=1, ge=1, le=16)
    """In which the student paints; its times are those of the consistency solver, in training as in use."""
    guidance_scale: float = Field(default=3.0, ge=0)
    """Of the teacher whose distribution is matched; the fake score is never guided."""
    guidance_interval: tuple[float, float] | None = None
    """Times at which that scale is used, as a card's teacher has it; null: all."""
    guidance_outside: float = Field(default=1.0, ge=0)
    matching_times: tuple[float, float] = (LOW, HIGH)
    """Shares of the schedule between which scores are compared; the paper's."""
    generator_every: int = Field(default=5, ge=1)
    fake_learning_rate: float | None = Field(default=None, gt=0)
    snr_limit: float | None = Field(default=5.0, gt=0)
    """Weight of the fake score's denoising loss by time; null weighs all alike."""
    pairs: int = Field(default=0, ge=0)
    """Regression on so many (noise, teacher's picture) pairs, painted before training; one-step students only."""
    pairs_steps: int = Field(default=20, ge=1)
    pairs_file: str | None = None
    """Where they are kept, for several trainings to share; null: with the training's checkpoints."""
    regression_weight: float = Field(default=0.25, ge=0)
    adversarial_weight: float = Field(default=1.0, ge=0)
    """Method `adversarial`: 1 gives the discriminator's gradient on the picture the norm of the matching one."""
    critic_weight: float = Field(default=0.01, ge=0)
    head_channels: int = Field(default=256, ge=1)
    head_learning_rate: float | None = Field(default=None, gt=0)
    """Of the discriminator's head, which begins from nothing; null: the fake score's."""

    def interval(self) -> GuidanceInterval | None:
        """Where the teacher is guided."""
        if self.guidance_interval is None:
            return None
        return GuidanceInterval(*self.guidance_interval, self.guidance_outside)


def run(setup: TrainingSetup, options: MatchingOptions) -> nn.Module:
    """Train; returns the student's exported copy."""
    loop = setup.recipe.loop
    network: Any = setup.teacher.network
    networks = {"generator": setup.student(), "fake_score": trainable(copy.deepcopy(network), loop)}
    adversary = None
    if setup.recipe.method == "adversarial":
        generator = torch.Generator().manual_seed(loop.seed)
        networks["head"] = _head(setup.teacher.bottleneck(network).channels, options.head_channels, generator)
        adversary = Adversary(
            partial(_real, setup), partial(_features, setup), options.adversarial_weight, options.critic_weight
        )
    plan = make_solver("consistency", setup.schedule).timesteps(options.steps)
    chain = RenoisedChain(setup.schedule, [p.t for p in plan])
    matching = DistributionMatching(
        schedule=setup.schedule,
        denoiser=setup.denoiser,
        teacher=_guided(setup, options.guidance_scale, options.interval()),
        conditions=partial(_conditions, setup),
        shape=tuple(setup.data.latents.shape[1:]),
        batch=loop.train_batch_size,
        chain=chain,
        weight=limited_weight(setup.schedule, options.snr_limit),
        regression=_regression(setup, options) if options.pairs else None,
        adversary=adversary,
        matching_times=options.matching_times,
        whole_times=setup.whole_times,
        device=setup.devices.device,
    )
    config = TwoTimeScaleConfig(
        loop_config(loop), options.generator_every, options.fake_learning_rate, options.head_learning_rate
    )
    emas = train_two_time_scale(
        networks, matching.generator_loss, matching.critic_loss, config, setup.folder, setup.identity(), setup.watcher,
        devices=setup.devices,
    )  # fmt: skip
    return emas["use"]


def use(options: MatchingOptions, card: Card) -> SamplingDefaults:
    """In the steps it was trained for, without guidance: the teacher's is in what was matched."""
    note = f"Guidance scale {options.guidance_scale:g} is distilled into it: paint at scale 1, one evaluation a step."
    return SamplingDefaults(options.steps, 1.0, "consistency", note)


def _head(channels: int, hidden: int, generator: torch.Generator) -> nn.Module:
    """Return a fresh head that follows from the seed, so that a training is the same each time."""
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if hidden % g == 0)
    head = DiscriminatorHead(channels, hidden, groups)
    with torch.no_grad():
        for m in head.modules():
            if isinstance(m, nn.Conv2d):
                m.weight.normal_(0, m.weight[0].numel() ** -0.5, generator=generator)
                nn.init.zeros_(m.bias) if m.bias is not None else None
    return head.train()


def _conditions(setup: TrainingSetup, n: int, g: torch.Generator) -> Condition:
    """Prompts as often as the data has them."""
    index = torch.randint(len(setup.data), (n,), generator=g)
    return setup.data.conditions.rows(setup.data.caption_of[index]).float().to(setup.devices.device)


def _real(setup: TrainingSetup, n: int, g: torch.Generator) -> tuple[Samples, Condition]:
    return setup.draw(n, g)


def _features(setup: TrainingSetup, network: nn.Module, x_t: Samples, t: Times, cond: Condition) -> Tensor:
    """Return the whole network runs for its middle: the taps need no knowledge of what comes before it."""
    middle = setup.teacher.bottleneck(network)
    with FeatureHooks(network, [middle.name], middle.entry) as taps:
        setup.denoiser(network)(x_t, t, cond)
    return middle.maps(taps[middle.name], x_t)


def _guided(setup: TrainingSetup, scale: float, interval: GuidanceInterval | None) -> Denoiser:
    """Return the teacher with guidance, for conditions that hold prompts alone."""
    denoise = ClassifierFreeGuidance(setup.denoiser(setup.teacher.network))

    class Guided:
        evaluations_per_call = 2

        def __call__(self, x_t: Samples, t: Times, cond: Condition) -> Samples:
            return denoise(x_t, t, setup.with_guidance(cond, scales_at(t, scale, interval)))

    return Guided()


def _regression(setup: TrainingSetup, options: MatchingOptions) -> Regression:
    folder = setup.folder if setup.whole is None else setup.whole.folder
    path = folder / "pairs.safetensors" if options.pairs_file is None else Path(options.pairs_file).expanduser()
    noise, ends, captions = painted_pairs(
        setup, options.pairs, options.pairs_steps, options.guidance_scale, path, options.interval()
    )
    conditions = (setup.data if setup.whole is None else setup.whole.data).conditions

    def draw(n: int, g: torch.Generator) -> NoiseImagePairs:
        index = torch.randint(len(noise), (n,), generator=g)
        cond = conditions.rows(captions[index]).float().to(setup.devices.device)
        return NoiseImagePairs(noise[index].to(setup.devices.device), ends[index].to(setup.devices.device), cond)

    return Regression(draw, options.regression_weight)
