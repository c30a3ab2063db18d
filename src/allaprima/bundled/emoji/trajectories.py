"""Trajectories of the bundled teacher, for the student's second stage: where a point of a trajectory ends.

One guided DPM-Solver++(2M) solve a training caption, from fresh noise, with its own real-valued guidance scale; every
point that was evaluated is kept with the trajectory's end. Test captions are left out.

    python -m allaprima.bundled.emoji.trajectories --data emoji64.tar --out runs/trajectories.safetensors
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
from allaprima.diffusion.solvers import make_solver
from allaprima.models.card import load_card
from allaprima.models.families.sd import SDModel
from allaprima.models.pair import load_pair

STEPS = 16
GUIDANCE = (2.0, 4.0)


@torch.inference_mode()
def solve(teacher: SDModel, captions: list[str], seeds: list[int], w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points `(B, STEPS, C, H, W)`, their times `(STEPS,)` and ends `(B, C, H, W)` of one batch."""
    solver = make_solver("dpm_solver", teacher.schedule)
    x = noise_batch(seeds, "trajectory", [0] * len(seeds), teacher.latent_shape(64, 64))
    embeds, nothing = teacher.encode(captions), teacher.encode([""] * len(captions))
    cond = Condition({"prompt_embeds": embeds, "negative_prompt_embeds": nothing, "guidance_scale": w})
    state, points, times = solver.init(x), [], []
    for p in solver.plan(STEPS):
        t, s = (torch.full((len(x),), v, dtype=torch.float64) for v in (p.t, p.s))
        points.append(x)
        times.append(p.t)
        x, state = solver.step(x, teacher.denoiser(x, t, cond), t, s, state)
    return torch.stack(points, 1), torch.tensor(times, dtype=torch.float64), x


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seed", type=int, default=30_000, help="first seed; every trajectory has its own")
    p.add_argument("--batch", type=int, default=32)
    args = p.parse_args()
    captions = [r.caption for r in load_tar(args.data).pick(known_concepts(), "train").rows]
    teacher = load_pair(load_card("emoji")).teacher
    g = torch.Generator().manual_seed(args.seed)
    w = GUIDANCE[0] + (GUIDANCE[1] - GUIDANCE[0]) * torch.rand(len(captions), generator=g)
    points: list[Tensor] = []
    ends: list[Tensor] = []
    times = torch.empty(0)
    for i in range(0, len(captions), args.batch):
        chunk = captions[i : i + args.batch]
        seeds = list(range(args.seed + i, args.seed + i + len(chunk)))
        x, times, end = solve(teacher, chunk, seeds, w[i : i + len(chunk)])
        points.append(x.half())
        ends.append(end)
        print(f"{i + len(chunk)} of {len(captions)} trajectories", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({"points": torch.cat(points), "times": times, "ends": torch.cat(ends), "w": w}, args.out)


if __name__ == "__main__":
    main()
