"""Consistency distillation (arXiv 2312.10835, appendix A), in two stages that can follow each other.

`target: next` is the paper's loss: what the student says at t is drawn to what its slow copy says one grid point later.
`target: end` draws it to where the teacher's own trajectory from that point ends, solved on the spot: the same fixed point
without the errors that bootstrapping over the whole grid gathers, at `end_steps` teacher evaluations a sample.

`embedded_guidance` and `boundary: lcm` are the choices of latent consistency models (arXiv 2310.04378).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from allaprima.core.errors import SettingError
from allaprima.core.types import Condition, Samples, Times
from allaprima.diffusion.schedules import expand
from allaprima.diffusion.solvers.consistency import lcm_grid
from allaprima.distill.embedded_guidance import with_embedded_guidance
from allaprima.distill.loop import Loss, train
from allaprima.distill.losses.consistency import (
    GuidedPrediction,
    consistency_loss,
    ddim_step,
    endpoint_loss,
    with_lcm_boundary,
)
from allaprima.distill.methods.common import SamplingDefaults, TrainingSetup, loop_config
from allaprima.distill.recipe import Strict
from allaprima.models.cards.card import Card
from allaprima.models.families.family import guidance_dim


class ConsistencyOptions(Strict):
    """Of the method; defaults are the paper's."""

    w: tuple[float, float] = (1.0, 8.0)
    """Guidance scales are drawn from this range, real numbers; student, target and teacher share them."""
    grid_points: int = Field(default=50, ge=2, le=1000)
    """Times 981, 961, ..., 1 for 50 (of a flow 1 to a fiftieth, shifted); fewer points are a longer skip (LCM's skipping
    step is 1000 / grid_points)."""
    target: Literal["next", "end"] = "next"
    end_steps: int = Field(default=8, ge=1)
    """`target: end` only: DDIM steps to the clean end."""
    target_ema: float = Field(default=0.95, ge=0, lt=1)
    huber: float | None = Field(default=None, gt=0)
    """c of the pseudo-Huber distance in place of the square."""
    huber_over: Literal["sample", "element"] = "sample"
    """What a distance is taken of: all of a sample, or each number as in diffusers' scripts."""
    embedded_guidance: bool = False
    """The student is told w beside the time (arXiv 2310.04378): it and its target need no doubled forward pass."""
    boundary: Literal["none", "lcm"] = "none"
    """`lcm`: f = c_skip x_t + c_out x0 on the times 999, 979, ..., the identity at time 0 (arXiv 2310.04378)."""


@dataclass(frozen=True)
class Draw:
    """What is drawn for a step: `x0, eps: (B, C, H, W)`, prompts, `index: (B,)` into the grid, scales `w: (B,)`."""

    x0: Samples
    cond: Condition
    index: Tensor
    w: Times
    eps: Samples


def run(setup: TrainingSetup, options: ConsistencyOptions) -> nn.Module:
    """Train; returns the student's exported copy."""
    loss = objective(setup, options)
    emas = {"target": options.target_ema} if options.target == "next" else {}
    config = loop_config(setup.recipe.loop, **emas)
    model = setup.student(partial(_prepared, options))
    return train(model, loss, config, setup.folder, setup.identity(), setup.watcher, devices=setup.devices)["use"]


def objective(setup: TrainingSetup, options: ConsistencyOptions) -> Loss:
    """Return what is descended. Raises `SettingError` for options that contradict themselves or the teacher's schedule."""
    if options.w[0] > options.w[1] or options.w[0] < 0:
        raise SettingError(f"w={options.w!r} is no range of guidance scales: 0 <= low <= high are due, such as [1, 8].")
    if options.huber_over == "element" and (options.huber is None or options.target == "end"):
        raise SettingError("huber_over='element' belongs to huber and target='next': give huber=0.001, or leave it out.")
    grid = grid_of(setup, options)

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        return loss_of(setup, options, grid, draw(setup, options, len(grid), g), model, emas)

    return loss


def grid_of(setup: TrainingSetup, options: ConsistencyOptions) -> list[float]:
    """Return the times that t is drawn from, decreasing."""
    n = options.grid_points
    return lcm_grid(setup.schedule, n) if options.boundary == "lcm" else setup.schedule.timesteps(n)


def draw(setup: TrainingSetup, options: ConsistencyOptions, points: int, g: torch.Generator) -> Draw:
    """Return a step's randomness, on a grid of so many points."""
    batch = setup.recipe.loop.train_batch_size
    x0, cond = setup.draw(batch, g)
    index = torch.randint(points, (batch,), generator=g)
    w = options.w[0] + (options.w[1] - options.w[0]) * torch.rand(batch, generator=g)
    return Draw(x0, cond, index, w, setup.normal(x0, g))


def loss_of(
    setup: TrainingSetup,
    options: ConsistencyOptions,
    grid: Sequence[float],
    d: Draw,
    model: nn.Module,
    emas: Mapping[str, nn.Module],
) -> Tensor:
    """Return the loss of what was drawn."""
    bounded, end = (with_lcm_boundary, 0.0) if options.boundary == "lcm" else (_as_it_is, None)
    student, teacher = bounded(setup.guided(model, d.cond)), setup.guided(setup.teacher.network, d.cond)
    if options.target == "next":
        target, element = bounded(setup.guided(emas["target"], d.cond)), options.huber_over == "element"
        return consistency_loss(
            student, target, teacher, setup.schedule, grid, d.x0, d.eps, d.index, d.w, options.huber, end, element
        )
    t = torch.tensor(grid, dtype=torch.float64)[d.index]
    x_t = expand(setup.schedule.alpha(t), d.x0) * d.x0 + expand(setup.schedule.sigma(t), d.x0) * d.eps
    return endpoint_loss(student, x_t, t, d.w, trajectory_end(setup, teacher, x_t, t, d.w, options.end_steps))


def _as_it_is(predict: GuidedPrediction) -> GuidedPrediction:
    return predict


def _prepared(options: ConsistencyOptions, unet: Any) -> Any:
    if options.embedded_guidance:
        return with_embedded_guidance(unet)
    if guidance_dim(unet) is not None:
        raise SettingError(
            "embedded_guidance=false, but the network to start from has guidance embedded: set embedded_guidance=true, or"
            " start from another."
        )
    return unet


def use(options: ConsistencyOptions, card: Card) -> SamplingDefaults:
    """Five steps, as the paper's, at the teacher's guidance if that was trained for."""
    guidance = min(max(card.teacher.guidance_scale, options.w[0]), options.w[1])
    note = f"It was trained for guidance scales {options.w[0]:g} to {options.w[1]:g}."
    if options.embedded_guidance:
        note += " It is told the scale: a step is one network evaluation, and a negative prompt means nothing to it."
    return SamplingDefaults(5, guidance, "lcm" if options.boundary == "lcm" else "consistency", note)


@torch.no_grad()
def trajectory_end(setup: TrainingSetup, teacher: GuidedPrediction, x_t: Samples, t: Times, w: Times, steps: int) -> Samples:
    """Where the teacher's guided trajectory from `x_t: (B, C, H, W)` at times `t: (B,)` ends: DDIM, even times a sample."""
    clean = setup.schedule.t_clean
    for i in range(steps):
        now, then = (clean + (t - clean) * (steps - k) / steps for k in (i, i + 1))
        x_t = ddim_step(x_t, teacher(x_t, now, w), now, then, setup.schedule).to(x_t.dtype)
    return x_t
