"""Trajectories of the bundled teacher, for the student's second stage: where a point of a trajectory ends.

One guided DPM-Solver++(2M) solve a training caption, with its own seed and its own real-valued guidance scale, which is used
in the card's guidance interval; every point that was evaluated is kept with the trajectory's end. Test captions are left
out. Trajectories start from fresh noise, or, with `--drafts`, where a draft of the bundled student meets noise again: after
its first, second, third or fourth step. Those are the points that multistep sampling visits and that no trajectory of the
teacher's from pure noise passes through.

    python -m allaprima.bundled.emoji.trajectories --data emoji64.tar --out runs/trajectories.safetensors
    python -m allaprima.bundled.emoji.trajectories --data emoji64.tar --drafts --out runs/from_drafts.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from allaprima.bundled.emoji.dataset import known_concepts, load_tar
from allaprima.core.seeds import noise_batch
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import GuidanceInterval
from allaprima.diffusion.solvers import make_solver
from allaprima.models.cards.card import load_card
from allaprima.models.diffusion_model import DiffusionModel
from allaprima.models.families.family import Family
from allaprima.models.loading.pair import load_pair

STEPS = 16
DRAFT_STEPS = 10
"""Evaluations from a draft's time on, the first of which is 781, 581, 381 or 181."""
LAST_TIME = 20.0
"""The card's: even times to here leave 12 steps as exact as 25 of the solver's usual grid."""
GUIDANCE = (3.0, 4.5)
INTERVAL = GuidanceInterval(100, 1000, outside=2.0)
"""The card's: the nearly clean end of a trajectory is guided less, which the pictures gain from (docs/decisions/0025)."""


@torch.inference_mode()
def solve(teacher: Family, x: Tensor, cond: Condition, steps: int, start: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Points `(B, steps, C, H, W)`, their times `(B, steps)` and ends `(B, C, H, W)` from `x` at time `start`."""
    solver = make_solver("dpm_solver", teacher.schedule, last_time=LAST_TIME)
    state, points, times = solver.init(x), [], []
    for p in solver.timesteps(steps, start):
        t, s = (torch.full((len(x),), v, dtype=torch.float64) for v in (p.t, p.s))
        points.append(x)
        times.append(t)
        w = cond.tensors["guidance_scale"] if INTERVAL.low <= p.t else torch.full((len(x),), INTERVAL.outside)
        here = Condition({**cond.tensors, "guidance_scale": w})
        x, state = solver.step(x, teacher.denoiser(x, t, here), t, s, state)
    return torch.stack(points, 1), torch.stack(times, 1), x


@torch.inference_mode()
def renoised_draft(
    student: DiffusionModel, noise: Tensor, cond: Condition, seeds: list[int], after: int
) -> tuple[Tensor, float]:
    """`x_t` after `after` of five student steps, fresh noise included, and its time t."""
    solver = make_solver("consistency", student.schedule)
    x, state, t_next = noise, solver.init(noise), student.schedule.t_max
    for i, p in enumerate(solver.timesteps(5)[:after]):
        t, s = (torch.full((len(x),), v, dtype=torch.float64) for v in (p.t, p.s))
        fresh = noise_batch(seeds, "student", [i] * len(seeds), tuple(x.shape[1:]))
        x, state = solver.step(x, student.denoiser(x, t, cond), t, s, state, fresh)
        t_next = p.s
    return x, t_next


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seed", type=int, default=30_000, help="first seed; every trajectory has its own")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--drafts", action="store_true", help="start where the bundled student's drafts meet noise again")
    args = p.parse_args()
    captions = [r.caption for r in load_tar(args.data).pick(known_concepts(), "train").rows]
    pair = load_pair(load_card("emoji"))
    g = torch.Generator().manual_seed(args.seed)
    order = torch.randperm(len(captions), generator=g).tolist() if args.drafts else list(range(len(captions)))
    w = GUIDANCE[0] + (GUIDANCE[1] - GUIDANCE[0]) * torch.rand(len(captions), generator=g)
    parts: dict[str, list[Tensor]] = {"points": [], "times": [], "ends": []}
    for n, i in enumerate(range(0, len(captions), args.batch)):
        chunk = order[i : i + args.batch]
        seeds = [args.seed + j for j in chunk]
        texts = [captions[j] for j in chunk]
        embeds, nothing = pair.teacher.encode(texts), pair.teacher.encode([""] * len(texts))
        cond = Condition({"prompt_embeds": embeds, "negative_prompt_embeds": nothing, "guidance_scale": w[chunk]})
        x = noise_batch(seeds, "trajectory", [0] * len(seeds), pair.teacher.latent_shape(64, 64))
        start: float | None = None
        if args.drafts:
            x, start = renoised_draft(pair.student, x, cond, seeds, after=1 + n % 4)
        made = solve(pair.teacher, x, cond, DRAFT_STEPS if args.drafts else STEPS, start)
        for part, value in zip(parts.values(), made, strict=True):
            part.append(value)
        print(f"{i + len(chunk)} of {len(captions)} trajectories", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    whole = {k: torch.cat(v) for k, v in parts.items()}
    save_file({**whole, "points": whole["points"].half(), "caption": torch.tensor(order), "w": w[order]}, args.out)


if __name__ == "__main__":
    main()
