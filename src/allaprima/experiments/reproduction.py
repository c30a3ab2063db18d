"""`reproduction.md`: the paper's questions answered from a frontier's pictures, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from allaprima.evaluation.frontier import FrontierPoint, Measure
from allaprima.evaluation.study import (
    PairedScores,
    by_oracle,
    decisions,
    draw_decisions,
    draw_preference,
    draw_simulated,
    over_threshold_table,
    reached,
    reached_table,
    simulated,
)  # fmt: skip

OVER_THRESHOLD = "_over_threshold"
"""Ends the names of differences of a policy from the paper's threshold at the same budget, the best of its kinds."""
WINS = "_wins"
"""Ends the names of shares of pictures that are preferred to the baseline's, ties one half."""
CARD_STEPS = 14
"""The action that bounds and decisions are shown for, painted in every run."""


def write_study(
    pair: PairedScores, points: Sequence[FrontierPoint], measures: Sequence[Measure], out: Path, title: str
) -> None:
    """Write `reproduction.md` and its plots: the paper's questions, answered for this pair."""
    measure = measures[0]
    found, curves = decisions(pair), simulated(pair)
    baselines = {"DDIM 50": ("teacher, DDIM", 50), "DPM-Solver++ 25": ("teacher, DPM-Solver++", 25)}
    rows = reached(points, measures, baselines)
    pictures = {
        "preference.png": draw_preference(points, f"{measure.name}{WINS}", "DDIM 50's"),
        "decisions.png": draw_decisions(found),
        "simulated.png": draw_simulated(pair, curves),
    }
    for name, png in pictures.items():
        (out / name).write_bytes(png)
    shares = "\n".join(
        f"| {share:.0%} | {points[0].quality.mean:.3f} | {by_oracle(pair, share):.3f} |"
        f" {points[len(points) // 2].quality.mean:.3f} | {points[-1].quality.mean:.3f} |"
        for share, points in curves.items()
    )
    page = f"""# {title}: the paper's questions

Measures are automatic: where the paper asks people, this asks "{measure.title}". Brackets are 95 % intervals over prompts.

## Whose picture is preferred, and can it be told (paper, section 3)

Drafts against the teacher's {CARD_STEPS} steps, {len(pair.prompt)} pairs.

| | paper, SD1.5 | here |
|---|---|---|
| share of drafts preferred to the teacher's picture | "a noticeable part" | {found.student_preferred} |
| accuracy from the draft alone (threshold from the other half of the prompts) | .56 to .61, best k | {found.no_reference} |
| accuracy from both pictures | | {found.full_reference} |
| accuracy of always saying the same | | {found.always_the_same:.3f} |
| area under the curve, draft alone (.5 is chance) | | {found.auc:.3f} |

![decisions](decisions.png)

## Who is preferred at which cost (figure 7, with a judge for people)

![preference](preference.png)

## How many steps fewer (figures 9 and 10)

The paper: as good as DDIM 50 at 5 times fewer steps, as DPM-Solver++ 25 at 2.5 times fewer.

{reached_table(rows)}

## Policies against the paper's threshold at the same budget

{over_threshold_table(points, measures, OVER_THRESHOLD)}

## What an oracle of any accuracy would buy (figure 16)

| share escalated | a coin | this card's oracle | right 75 % | always right |
|---|---|---|---|---|
{shares}

![simulated oracles](simulated.png)
"""
    (out / "reproduction.md").write_text(page, encoding="utf-8")
