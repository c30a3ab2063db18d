"""`allaprima calibrate --policy sequential`: the best policy of several attempts, beside what else its budget would buy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from allaprima.calibration.sequential import SequentialCandidate, search_policy
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import SettingError
from allaprima.experiments.attempts import AttemptPlan, CostUnit, generate_attempts
from allaprima.experiments.policy_search import MethodResult, compare_methods, describe, families
from allaprima.experiments.scorers import scorers_for
from allaprima.pipeline import AdaptivePipeline

TRIES = 3
"""Tries of the teacher that are generated, the first with the draft's noise: policies may have one fewer."""
SPLITS = 3


def calibrate_sequential(
    pipe: AdaptivePipeline, settings: CascadeSettings, prompts: Sequence[str], seed: int, budget: float, unit: CostUnit,
    drafts: int, folder: Path, console: Console,
) -> SequentialCandidate:  # fmt: skip
    """Generate all attempts, print what the budget buys by each method, and return the policy that is best on all prompts.

    Args:
        pipe: Student, teacher and oracle.
        settings: Of both.
        prompts: Held-out ones.
        seed: Of the first prompt; the next ones count up.
        budget: Mean cost an image.
        unit: Of the budget.
        drafts: Drafts of each prompt that are generated.
        folder: Where attempts are kept.
        console: For the table and progress.

    Raises:
        SettingError: If no policy keeps the budget.
    """
    scorers = scorers_for(pipe, prompts, None)
    name = scorers.measures[0].name

    def judge(images: Tensor, texts: Sequence[str]) -> Tensor:
        return scorers.score_images((images * 255).round().to(torch.uint8), texts)[name]

    plan = AttemptPlan((settings.student_steps,), (settings.teacher_steps,), drafts, TRIES)
    seeds = [seed + i for i in range(len(prompts))]
    table = generate_attempts(pipe, settings, prompts, seeds, plan, judge, folder, unit, scorers.signature, console)
    best = search_policy(families(drafts, TRIES - 1)["cascade"], table, budget)
    if best is None:
        of = table.drafts[settings.student_steps]
        raise SettingError(
            f"budget={budget!r} mean {unit} can't be kept: one draft and its score cost"
            f" {of.steps * of.step_cost + table.score_cost:.3g}. Raise it."
        )
    step = table.drafts[settings.student_steps].step_cost
    console.print(f"scoring an image, its decoding included, costs {table.score_cost / step:.2f} of a student's step")
    made = compare_methods(table, prompts, [budget], SPLITS, drawn=400, moves=150)
    console.print(_table(made, scorers.measures[0].title, unit, budget))
    console.print(verdict(made, name != "oracle"))
    console.print(f"chosen on all {len(prompts)} prompts: {describe(best[0])}")
    return best[0]


def verdict(made: Sequence[MethodResult], judged_apart: bool) -> str:
    """Return whether the teacher is worth its price, in words; no verdict where the oracle that chose also judged."""
    if not judged_apart:
        return (
            "[yellow]note:[/] the values are the same oracle's that chose, and so inflated by selection: they say nothing of"
            " which method is better. A judge apart from it (a bundled card's, or people's votes) could say."
        )
    by_name = {m.name: m for m in made}
    retried = by_name.get("student retried")
    if retried is None:
        return "The budget is too small for the student to try again."
    behind = f"{retried.behind.mean:+.3f} ({retried.behind.low:+.3f}..{retried.behind.high:+.3f})"
    if retried.behind.low > 0:
        return f"The teacher is worth its price here: with it {behind} above retrying the student alone."
    return f"The teacher is not worth its price here: with it {behind} above retrying the student alone."


def _table(made: Sequence[MethodResult], value: str, unit: str, budget: float) -> Table:
    table = Table(
        "method", f"mean {unit}", f"{value} (95 %)", "behind the cascade",
        title=f"what {budget:g} mean {unit} buy, on prompts that did not choose",
    )  # fmt: skip
    for m in sorted(made, key=lambda m: -m.value.mean):
        behind = "" if m.name == "cascade" else f"{m.behind.mean:+.3f} ({m.behind.low:+.3f}..{m.behind.high:+.3f})"
        interval = f"{m.value.mean:.3f} ({m.value.low:.3f}..{m.value.high:.3f})"
        table.add_row(m.name, f"{m.cost:.1f}", interval, behind)
    return table
