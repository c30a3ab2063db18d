"""Painting for `allaprima calibrate --search` and `--target`: pictures are kept beside the artifact and shared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from allaprima.calibration.search import Candidate, EvaluatedPair, Trial, candidates, search, share_for_target
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import SettingError
from allaprima.experiments.image_store import ImageStore, Painting
from allaprima.experiments.scorers import scorers_for
from allaprima.pipeline import AdaptivePipeline

MOST = 288
"""Held-out prompts of a search's last round."""
SHOWN = 8
REGENERATE, REFINE, SIGMAS = (8, 10, 14, 20), (5, 8, 12), (0.5, 0.7, 0.85)
OTHER_SOLVER = "unipc"


class CandidateImages:
    """Looks at candidates' pictures of some of the prompts; everything painted is kept under `folder`."""

    def __init__(
        self, pipe: AdaptivePipeline, base: CascadeSettings, prompts: Sequence[str], seed: int, metric: str,
        folder: Path, console: Console,
    ) -> None:  # fmt: skip
        self.pipe, self.base, self.prompts, self.seed, self.metric, self.folder = pipe, base, prompts, seed, metric, folder
        self.console, self.scorers = console, scorers_for(pipe, prompts, None)
        known = [m.name for m in self.scorers.measures]
        if metric not in known:
            raise SettingError(f"metric={metric!r} is not known here: {', '.join(known)} are.")
        self._stores: dict[tuple[int, int], ImageStore] = {}

    def evaluate(self, c: Candidate, low: int, high: int) -> EvaluatedPair:
        """A candidate on prompts `low` to `high`, in the terms of the search."""
        store = self._stores.setdefault(
            (low, high),
            ImageStore(
                self.folder, self.pipe, self.prompts[low:high], self.scorers.score_images, self.scorers.signature, self._note
            ),
        )
        settings = c.applied(self.base)
        draft = store.get(Painting(f"drafts of {c.student_steps} steps", "student-only", settings), self.seed + low)
        mode = "teacher-only" if c.strategy == "regenerate" else "refine-all"
        made = store.get(Painting(str(c), mode, settings), self.seed + low)
        columns = draft["oracle"], draft[self.metric], made[self.metric]
        return EvaluatedPair(*(x.double().numpy() for x in columns))

    def _note(self, text: str) -> None:
        self.console.print(f"[dim]{text}[/]")


def searched(pictures: CandidateImages, budget: float) -> CascadeSettings:
    """The settings that are best at the budget, by the metric; the last round is shown."""
    base, n = pictures.base, min(len(pictures.prompts), MOST)
    sizes = tuple(dict.fromkeys(max(2, n // d) for d in (9, 3, 1)))
    s = base.student_steps
    found = candidates(
        base, budget, sorted({max(1, s - 1), s, s + 1, s + 2}), REGENERATE, REFINE, SIGMAS,
        list(dict.fromkeys([base.teacher_solver, OTHER_SOLVER])),
    )  # fmt: skip
    rounds = search(found, pictures.evaluate, budget, sizes, note=pictures.console.print)
    pictures.console.print(_table(rounds[-1], pictures.metric, budget))
    return rounds[-1][0].candidate.applied(base)


def _table(trials: Sequence[Trial], metric: str, budget: float) -> Table:
    table = Table(
        "setting", "escalated", "mean steps", f"mean {metric}", "behind the best",
        title=f"the best settings at {budget:g} mean steps, {trials[0].prompts} prompts",
    )  # fmt: skip
    for t in trials[:SHOWN]:
        behind = f"{trials[0].quality - t.quality:.4f} ± {1.96 * t.error:.4f}" if t.error else ""
        table.add_row(str(t.candidate), f"{t.share:.0%}", f"{t.mean_steps:.1f}", f"{t.quality:.4f}", behind)
    return table


def budget_for(pictures: CandidateImages, target: float) -> float:
    """Mean steps that are needed for a mean metric of `target` with the settings at hand."""
    base = pictures.base
    own = base.sigma if base.strategy == "refine" else None
    c = Candidate(base.student_steps, base.strategy, base.teacher_steps, base.teacher_solver, own)
    looked = pictures.evaluate(c, 0, len(pictures.prompts))
    share = share_for_target(looked, target)
    budget = c.student_steps + share * c.teacher_steps
    around = _around(looked, share)
    pictures.console.print(
        f"a mean {pictures.metric} of {target:g} takes {budget:.4g} mean steps ({share:.0%} escalated); 95 % of"
        f" such sets of {len(pictures.prompts)} prompts have {around[0]:.4g} to {around[1]:.4g}"
    )
    return budget


def _around(looked: EvaluatedPair, share: float, rounds: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean at this share, the threshold chosen anew in every resample."""
    rng = np.random.default_rng(0)
    scores, draft, made = looked.columns
    n, m = len(scores), round(share * len(scores))
    index = rng.integers(n, size=(rounds, n))
    order = np.take_along_axis(index, scores[index].argsort(1, kind="stable"), 1)
    means = (made[order[:, :m]].sum(1) + draft[order[:, m:]].sum(1)) / n
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
