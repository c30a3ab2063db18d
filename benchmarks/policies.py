"""What looking at drafts buys: the best sequential policy at each budget beside every control at the same cost.

    python -m benchmarks.policies [--card scenes] [--prompts 700] [--seeds 3] [--budgets 6 8 10 12 15 20 25 30 50]

Every attempt is generated once: the student's drafts in 2, 3 and 4 steps and the teacher's tries in 10 and 25, scored by the
card's oracle on the way and at the end, and judged by the exact judge as they are saved, in 8 bits. Policies are chosen on
half of the captions and measured on the other half, over several splits, and so are the controls that have something to
choose. Costs are network evaluations; scoring an image, its decoding included, costs what it took here beside one of the
student's evaluations. Intervals: 95 %, captions resampled; differences are paired by caption and seed.

What is generated is kept in --out, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from allaprima.bundled.scenes.grammar import KINDS, benchmark_scenes
from allaprima.bundled.scenes.score import ExactJudgeScore
from allaprima.calibration.sequential import AttemptTable
from allaprima.evaluation.decision import area_under_curve
from allaprima.experiments.attempts import AttemptPlan, generate_attempts
from allaprima.experiments.policy_search import MethodResult, compare_methods
from allaprima.pipeline import AdaptivePipeline

FIRST_SEED = 9_000_000
"""Far from the seeds of the oracle's drafts, which are below 2^31 and drawn, and of calibrations."""
BUDGETS = (6, 8, 10, 12, 15, 20, 25, 30, 50)


def judged(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return 1 for each right image and 0 for each wrong one, as they are saved."""
    return ExactJudgeScore().score((images * 255).round() / 255, prompts)


def agreement(table: AttemptTable, student: int, teacher: int) -> dict[str, float]:
    """Return how often first draft and first try are right, alone and together, and what mends a wrong draft."""
    d, t = table.drafts[student].value > 0.5, table.teacher[teacher].value > 0.5
    wrong = ~d[0]
    return {
        "draft right": float(d[0].mean()),
        "teacher right": float(t[0].mean()),
        "only the student right": float((d[0] & ~t[0]).mean()),
        "only the teacher right": float((~d[0] & t[0]).mean()),
        "a wrong draft, another draft right": float(d[1][wrong].mean()),
        "a wrong draft, teacher right with the same noise": float(t[0][wrong].mean()),
        "a wrong draft, teacher right with fresh noise": float(t[1][wrong].mean()),
        "any of all drafts right": float(d.any(0).mean()),
        "any of all tries right": float(t.any(0).mean()),
    }


def previews(table: AttemptTable) -> dict[str, dict[str, float]]:
    """Return, by run, the area under the curve of the score after a step for the verdict of the finished image."""
    found: dict[str, dict[str, float]] = {}
    for name, attempts in (("student", table.drafts), ("teacher", table.teacher)):
        for steps, of in attempts.items():
            curves = {
                str(k + 1): area_under_curve(of.scores[:, :, k].flatten(), of.value.flatten() > 0.5)
                for k in range(steps)
                if not np.isnan(of.scores[:, :, k]).all()
            }
            found[f"{name} {steps}"] = curves
    return found


def by_kind(table: AttemptTable, kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the share right by kind of the first attempt of each number of steps."""
    names = np.array(kinds)
    rows = {f"student {n}": a for n, a in table.drafts.items()} | {f"teacher {n}": a for n, a in table.teacher.items()}
    return {row: {k: float(a.value[0, names == k].mean()) for k in KINDS} for row, a in rows.items()}


def print_methods(made: Sequence[MethodResult]) -> None:
    """Print a table of the results."""
    print("| budget | method | evaluations | right | behind the cascade | policy |\n|---|---|---|---|---|---|")
    for m in made:
        value = f"{m.value.mean:.3f} ({m.value.low:.3f}..{m.value.high:.3f})"
        behind = "" if m.name == "cascade" else f"{m.behind.mean:+.3f} ({m.behind.low:+.3f}..{m.behind.high:+.3f})"
        print(f"| {m.budget:g} | {m.name} | {m.cost:.1f} | {value} | {behind} | {m.policy} |")


def main() -> None:
    """Run from the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--card", default="scenes", help="a card of scenes")
    p.add_argument("--prompts", type=int, default=700)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    p.add_argument("--student-steps", type=int, nargs="+", default=(2, 3, 4))
    p.add_argument("--teacher-steps", type=int, nargs="+", default=(10, 25))
    p.add_argument("--drafts", type=int, default=8)
    p.add_argument("--tries", type=int, default=4, help="of the teacher; the first has the first draft's noise")
    p.add_argument("--unit", choices=("evaluations", "seconds"), default="evaluations")
    p.add_argument("--out", type=Path, default=Path("runs/policies"), help="where scores and verdicts are kept")
    p.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = p.parse_args()
    pipe = AdaptivePipeline.from_card(args.card)
    scenes = [s for _ in range(args.seeds) for s in benchmark_scenes(args.prompts)]
    prompts = [s.caption() for s in scenes]
    seeds = [FIRST_SEED + 100_000 * (i // args.prompts) + i % args.prompts for i in range(len(scenes))]
    plan = AttemptPlan(tuple(args.student_steps), tuple(args.teacher_steps), args.drafts, args.tries)
    console = Console(stderr=True)
    table = generate_attempts(
        pipe, pipe.settings.changed(batch_size=50), prompts, seeds, plan, judged, args.out, args.unit, "exact judge", console
    )
    made = compare_methods(table, prompts, args.budgets, note=lambda text: console.print(f"[dim]{text}[/]"))
    student, teacher = max(table.drafts), max(table.teacher)
    report: dict[str, Any] = {
        "card": args.card, "fingerprints": pipe.fingerprints(), "prompts": args.prompts, "seeds": args.seeds,
        "unit": args.unit, "score_cost": table.score_cost, "threads": torch.get_num_threads(),
        "agreement": agreement(table, student, teacher), "previews": previews(table),
        "kinds": by_kind(table, [s.kind for s in scenes]), "methods": [asdict(m) for m in made],
    }  # fmt: skip
    if args.json:
        json.dump(report, sys.stdout, indent=1)
        print()
        return
    print(
        f"{args.prompts} held-out captions, {args.seeds} seeds; scoring an image costs {table.score_cost:.2f} {args.unit}\n"
    )
    print_methods(made)
    print(f"\nStudent of {student} steps and teacher of {teacher}:\n")
    for name, share in report["agreement"].items():
        print(f"- {name}: {share:.3f}")
    print("\nArea under the curve of the oracle's score after each step for the final verdict:\n")
    for name, curves in report["previews"].items():
        print(f"- {name}: {', '.join(f'{k}: {v:.3f}' for k, v in curves.items())}")
    print(f"\n| first attempt | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}")
    for name, shares in report["kinds"].items():
        print(f"| {name} | {' | '.join(f'{shares[k]:.2f}' for k in KINDS)} |")


if __name__ == "__main__":
    main()
