"""The plainest sampling loop, for tests; the cascade has its own, over jobs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from allaprima.core.seeds import noise_batch
from allaprima.core.types import Condition, Denoiser, Samples
from allaprima.diffusion.solvers.solver import Solver, scale_initial_noise


def sample(
    denoiser: Denoiser,
    solver: Solver,
    x: Samples,
    cond: Condition,
    n: int,
    start: float | None = None,
    seeds: Sequence[int] | None = None,
    purpose: str = "teacher",
) -> Samples:
    """`n` network evaluations from `x: (B, ...)`; fresh noise, where a solver needs it, belongs to each sample's seed."""
    plan = solver.timesteps(n, start)
    x = x if start is not None else scale_initial_noise(solver, x, plan[0].t)
    state = solver.init(x)
    seeds = range(len(x)) if seeds is None else seeds
    for i, p in enumerate(plan):
        t, s = (torch.full((len(x),), v, dtype=torch.float64) for v in (p.t, p.s))
        fresh = noise_batch(seeds, purpose, [i] * len(x), x.shape[1:]).to(x.dtype) if solver.needs_noise else None
        phase = torch.full((len(x),), p.phase)
        back = torch.full((len(x),), float("nan") if p.noise_to is None else p.noise_to, dtype=torch.float64)
        x, state = solver.step(x, denoiser(x, t, cond), t, s, state, fresh, phase, back)
    return x
