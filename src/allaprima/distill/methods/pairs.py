"""Noise and what the teacher makes of it: data of the teacher's own, for regression and for trainings without pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from allaprima.core.types import Condition, Samples
from allaprima.diffusion.guidance import ClassifierFreeGuidance
from allaprima.diffusion.solvers import make_solver
from allaprima.distill.methods.common import Bench

BATCH = 16
SOLVER = "dpm_solver"


@torch.inference_mode()
def solve(bench: Bench, noise: Samples, cond: Condition, steps: int, scale: float) -> Samples:
    """The teacher's ends `(B, C, H, W)` of noise for prompts `cond`: DPM-Solver++(2M), guided."""
    denoise = ClassifierFreeGuidance(bench.denoiser(bench.teacher.network))
    solver = make_solver(SOLVER, bench.schedule)
    cond = bench.with_guidance(cond, torch.full((len(cond),), scale))
    noise = noise.to(bench.devices.device)
    x, state = noise, solver.init(noise)
    for p in solver.plan(steps):
        t, s = (torch.full((len(x),), v, dtype=torch.float64) for v in (p.t, p.s))
        x, state = solver.step(x, denoise(x, t, cond), t, s, state)
    return x.cpu()


def painted_pairs(bench: Bench, count: int, steps: int, scale: float, path: Path) -> tuple[Samples, Samples, Tensor]:
    """`count` noises, their ends and the captions' places `(count,)`; kept in `path`, gone on with after a kill.

    Captions are those of the data in turn. Prompts are not filtered to anybody's part: filtered pairs lose modes
    (arXiv 2410.23274, section 4).
    """
    conditions = (bench.data if bench.whole is None else bench.whole.data).conditions
    captions = torch.arange(count) % len(conditions)
    g = torch.Generator().manual_seed(bench.recipe.loop.seed)
    noise = torch.randn((count, *bench.data.latents.shape[1:]), generator=g)
    ends: list[Tensor] = []
    if path.exists():
        ends = [load_file(path)["ends"][:count]]
    done = sum(map(len, ends))
    path.parent.mkdir(parents=True, exist_ok=True)
    for i in range(done, count, BATCH):
        here = slice(i, min(i + BATCH, count))
        ends.append(solve(bench, noise[here], conditions.rows(captions[here]).float(), steps, scale).clone())
        if (i // BATCH) % 20 == 19 or here.stop == count:
            beside = path.with_name(path.name + ".part")
            save_file({"ends": torch.cat(ends).contiguous()}, beside)
            beside.replace(path)
    return noise, torch.cat(ends), captions
