"""Noise and what the teacher makes of it: data of the teacher's own, for regression and for trainings without pictures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from allaprima.core.errors import TrainingError
from allaprima.core.types import Condition, Samples
from allaprima.diffusion.guidance import ClassifierFreeGuidance, GuidanceInterval, scales_at
from allaprima.diffusion.solvers import make_solver
from allaprima.distill.methods.common import TrainingSetup

BATCH = 16
SOLVER = "dpm_solver"


@torch.inference_mode()
def solve(
    setup: TrainingSetup, noise: Samples, cond: Condition, steps: int, scale: float, interval: GuidanceInterval | None = None
) -> Samples:
    """The teacher's ends `(B, C, H, W)` of noise for prompts `cond`: DPM-Solver++(2M), guided."""
    denoise = ClassifierFreeGuidance(setup.denoiser(setup.teacher.network))
    solver = make_solver(SOLVER, setup.schedule)
    noise = noise.to(setup.devices.device)
    x, state = noise, solver.init(noise)
    for p in solver.timesteps(steps):
        t, s = (torch.full((len(x),), v, dtype=torch.float64) for v in (p.t, p.s))
        guided = setup.with_guidance(cond, scales_at(t, scale, interval))
        x, state = solver.step(x, denoise(x, t, guided), t, s, state)
    return x.cpu()


def painted_pairs(
    setup: TrainingSetup, count: int, steps: int, scale: float, path: Path, interval: GuidanceInterval | None = None
) -> tuple[Samples, Samples, Tensor]:
    """`count` noises, their ends and the captions' places `(count,)`; kept in `path`, gone on with after a kill.

    Captions are those of the data in turn. Prompts are not filtered to anybody's part: filtered pairs lose modes
    (arXiv 2410.23274, section 4). Raises `TrainingError` when `path` holds pairs of another teacher, of other data, or
    painted otherwise.
    """
    data = setup.data if setup.whole is None else setup.whole.data
    conditions = data.conditions
    captions = torch.arange(count) % len(conditions)
    g = torch.Generator().manual_seed(setup.recipe.loop.seed)
    noise = torch.randn((count, *setup.data.latents.shape[1:]), generator=g)
    of = json.dumps({
        "teacher": setup.teacher.fingerprint, "data": data.identity, "steps": steps, "scale": scale,
        "interval": None if interval is None else dataclasses.asdict(interval), "seed": setup.recipe.loop.seed,
    }, sort_keys=True)  # fmt: skip
    ends: list[Tensor] = []
    if path.exists():
        with safe_open(path, "pt") as kept:
            if (kept.metadata() or {}).get("of") != of:
                raise TrainingError(
                    f"{path} holds pictures painted by another teacher, for other data or otherwise: remove it, or name"
                    " another file (options.pairs_file), or another --out."
                )
        ends = [load_file(path)["ends"][:count]]
    done = sum(map(len, ends))
    path.parent.mkdir(parents=True, exist_ok=True)
    for i in range(done, count, BATCH):
        here = slice(i, min(i + BATCH, count))
        ends.append(solve(setup, noise[here], conditions.rows(captions[here]).float(), steps, scale, interval).clone())
        if (i // BATCH) % 20 == 19 or here.stop == count:
            beside = path.with_name(path.name + ".part")
            save_file({"ends": torch.cat(ends).contiguous()}, beside, {"of": of})
            beside.replace(path)
    return noise, torch.cat(ends), captions
