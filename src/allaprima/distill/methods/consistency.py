"""Consistency distillation (arXiv 2312.10835, appendix A), in two stages that can follow each other.

`target: next` is the paper's loss: what the student says at t is drawn to what its slow copy says one grid point later.
`target: end` draws it to where the teacher's own trajectory from that point ends, solved on the spot: the same fixed point
without the errors that bootstrapping over the whole grid gathers, at `end_steps` teacher evaluations a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from allaprima.core.errors import SettingError
from allaprima.core.types import Samples, Times
from allaprima.diffusion.schedule import expand
from allaprima.distill.loop import train
from allaprima.distill.losses.consistency import GuidedPrediction, consistency_loss, ddim_step, endpoint_loss
from allaprima.distill.methods.common import Bench, Use, loop_config
from allaprima.distill.recipe import Strict
from allaprima.models.card import Card


class Options(Strict):
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


def run(bench: Bench, options: Options) -> nn.Module:
    """Train; returns the student's exported copy."""
    if options.w[0] > options.w[1] or options.w[0] < 0:
        raise SettingError(f"w={options.w!r} is no range of guidance scales: 0 <= low <= high are due, such as [1, 8].")
    grid = bench.schedule.grid(options.grid_points)
    batch = bench.recipe.loop.train_batch_size

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        x0, cond = bench.data.draw(batch, g)
        index = torch.randint(len(grid), (batch,), generator=g)
        w = options.w[0] + (options.w[1] - options.w[0]) * torch.rand(batch, generator=g)
        eps = torch.randn(x0.shape, generator=g)
        student, teacher = bench.guided(model, cond), bench.guided(bench.teacher.network, cond)
        if options.target == "next":
            target = bench.guided(emas["target"], cond)
            return consistency_loss(student, target, teacher, bench.schedule, grid, x0, eps, index, w, options.huber)
        t = torch.tensor(grid, dtype=torch.float64)[index]
        x_t = expand(bench.schedule.alpha(t), x0) * x0 + expand(bench.schedule.sigma(t), x0) * eps
        return endpoint_loss(student, x_t, t, w, trajectory_end(bench, teacher, x_t, t, w, options.end_steps))

    emas = {"target": options.target_ema} if options.target == "next" else {}
    config = loop_config(bench.recipe.loop, **emas)
    return train(bench.student(), loss, config, bench.folder, bench.identity(), bench.watch)["use"]


def use(options: Options, card: Card) -> Use:
    """Five steps, as the paper's, at the teacher's guidance if that was trained for."""
    guidance = min(max(card.teacher.guidance_scale, options.w[0]), options.w[1])
    return Use(5, guidance, "consistency", f"It was trained for guidance scales {options.w[0]:g} to {options.w[1]:g}.")


@torch.no_grad()
def trajectory_end(bench: Bench, teacher: GuidedPrediction, x_t: Samples, t: Times, w: Times, steps: int) -> Samples:
    """Where the teacher's guided trajectory from `x_t: (B, C, H, W)` at times `t: (B,)` ends: DDIM, even times a sample."""
    clean = bench.schedule.t_clean
    for i in range(steps):
        now, then = (clean + (t - clean) * (steps - k) / steps for k in (i, i + 1))
        x_t = ddim_step(x_t, teacher(x_t, now, w), now, then, bench.schedule).to(x_t.dtype)
    return x_t
