"""From pictures to points of the frontier: paints what isn't there, fits policies on one half of the prompts, measures.

Cascades are cross-fitted: prompts are split into two halves, whatever a policy learns (its threshold, its settings, its
regressions) is learnt on one half and its pictures are those of the other, so no policy is measured on prompts that it
was calibrated on. What a policy learns from is the oracle's score; the judge and the Frechet distance only measure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from allaprima.calibration.outcome_table import OutcomeTable, PolicyOutcome, simulate_policy
from allaprima.calibration.policies import Fitted, fit_all
from allaprima.cascade.policy import Decision
from allaprima.cascade.settings import CascadeSettings
from allaprima.evaluation.frechet import frechet_distance
from allaprima.evaluation.frontier import FrontierPoint, Measure
from allaprima.evaluation.intervals import mean_interval, t_interval
from allaprima.experiments.frontier_methods import actions
from allaprima.experiments.image_store import ImageStore, Painting
from allaprima.experiments.reproduction import OVER_THRESHOLD, WINS

FIRST_SEED = 6_000_000
"""Far from the seeds that trained and calibrated anything."""
SEED_STRIDE = 100_000
OVER = "_over_baseline"
"""Ends the names of differences from the baseline."""
COSTS = ("evaluations", "seconds")
FOR_FRECHET = "adaptive, tuned for Frechet"
THRESHOLDS = ("adaptive refine", "adaptive regenerate", FOR_FRECHET)
"""The paper's policy: what is done with drafts that fall short is chosen by the oracle's score, and apart from that by the
Frechet distance, as the paper tunes apart for each metric (arXiv 2312.10835, tables 3 to 5)."""
Seen = Mapping[str, Tensor]
"""One seed's pictures of one painting with their measures and costs, `(N, ...)` each."""


def whole_costs(seen: Seen) -> dict[str, Tensor]:
    """With what each picture cost in all, draft and teacher."""
    return {**seen, **{c: seen[f"draft.{c}"] + seen[f"teacher.{c}"] for c in COSTS}}


class FrontierRun:
    """Everything about one run: paints, calibrates, measures, makes points."""

    def __init__(
        self, store: ImageStore, base: CascadeSettings, seeds: int, reference: Tensor | None,
        measures: Sequence[Measure], embeds: Tensor, note: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.store, self.base, self.reference, self.measures, self.note = store, base, reference, measures, note
        self.seeds = [FIRST_SEED + SEED_STRIDE * j for j in range(seeds)]
        self.embeds = embeds
        n = len(store.prompts)
        self.halves = [torch.arange(0, n, 2), torch.arange(1, n, 2)]
        self.against: list[Mapping[str, Tensor]] = []
        """Measures of the baseline, one mapping a seed; empty until `compare_with`."""
        self.against_distances: list[float] = []

    def compare_with(self, painting: Painting) -> None:
        """From now on, points say by how much they are better than this, picture by picture."""
        self.against = [self.store.get(painting, s) for s in self.seeds]
        self.against_distances = self._distances(self.against) if self.reference is not None else []

    def point(
        self, method: str, budget: float, steps: float, rows: Sequence[Mapping[str, Tensor]], bound: bool = False
    ) -> FrontierPoint:
        """From one mapping of measures a seed, each `(N, ...)` in the order of the prompts."""
        groups = list(range(len(self.store.prompts))) * len(rows)
        values = {
            m.name: mean_interval(torch.cat([r[m.name] for r in rows]).tolist(), groups)
            for m in self.measures
            if m.name != "frechet"
        }
        if self.reference is not None:
            values["frechet"] = t_interval(self._distances(rows))
        # The same prompts and seeds on both sides: what a prompt is worth drops out, and the intervals shrink.
        for m in self.measures if self.against else []:
            if m.name == "frechet":
                pairs = zip(self._distances(rows), self.against_distances, strict=True)
                values[f"{m.name}{OVER}"] = t_interval([a - b for a, b in pairs])
            else:
                differences = [r[m.name].double() - b[m.name].double() for r, b in zip(rows, self.against, strict=True)]
                values[f"{m.name}{OVER}"] = mean_interval(torch.cat(differences).tolist(), groups)
                wins = [(d > 0).double() + (d == 0).double() / 2 for d in differences]
                values[f"{m.name}{WINS}"] = mean_interval(torch.cat(wins).tolist(), groups)
        evaluations, seconds = (float(torch.cat([r[c] for r in rows]).mean()) for c in COSTS)
        return FrontierPoint(method, budget, steps, values, bound, evaluations, seconds)

    def _distances(self, rows: Sequence[Mapping[str, Tensor]]) -> list[float]:
        assert self.reference is not None
        return [frechet_distance(r["features"].float(), self.reference) for r in rows]

    def shown(self) -> list[Measure]:
        """The measures and, where there is a baseline, the differences from it."""
        over = [Measure(f"{m.name}{OVER}", f"{m.title}, minus DDIM 50's", m.higher_is_better) for m in self.measures]
        return [*self.measures, *(over if self.against else [])]

    def single_points(self, rows: Mapping[str, list[tuple[float, Painting]]]) -> list[FrontierPoint]:
        """Points of methods that treat every prompt alike."""
        return [
            self.point(method, steps, steps, [whole_costs(self.store.get(p, s)) for s in self.seeds])
            for method, paintings in rows.items()
            for steps, p in paintings
        ]

    def table(
        self, seed: int, action: tuple[Decision, Painting], attempts: int
    ) -> tuple[OutcomeTable, dict[Decision, list[Seen]]]:
        """The bank of one action, with the measures of its pictures."""
        decision, painting = action
        drafts = [
            self.store.get(Painting(f"draft {k + 1}", "student-only", dataclasses.replace(self.base), k), seed)
            for k in range(attempts)
        ]
        made = self.store.get(painting, seed)
        table = OutcomeTable(
            tuple(self.store.prompts), tuple(seed + i for i in range(len(self.store.prompts))), self.embeds,
            torch.stack([d["images"] for d in drafts]), torch.stack([d["scores"] for d in drafts]),
            {decision: made["images"][None]}, {decision: made["oracle"].double()[None]},
            {Decision.REDRAFT: float(self.base.student_steps), decision: float(painting.settings.teacher_steps)},
        )  # fmt: skip
        return table, {Decision.ACCEPT: list(drafts), decision: [made]}

    def adaptive_points(self, budgets: Sequence[float], quick: bool) -> list[FrontierPoint]:
        """Every policy at every budget, its action chosen on the half of the prompts it is not measured on."""
        points: list[FrontierPoint] = []
        for budget in budgets:
            rows: dict[str, list[dict[str, Tensor]]] = {}
            steps: dict[str, list[float]] = {}
            for seed in self.seeds:
                for method, (row, mean) in self._cross_fitted(budget, seed, quick).items():
                    rows.setdefault(method, []).append(row)
                    steps.setdefault(method, []).append(mean)
            made = {
                method: self.point(method, budget, float(np.mean(steps[method])), r)
                for method, r in rows.items()
                if len(r) == len(self.seeds)
            }
            points += [self._over_threshold(method, made, rows) for method in made]
            self.note(f"policies at {budget:g} mean steps: {len(rows)}")
        return points

    def _over_threshold(
        self, method: str, made: Mapping[str, FrontierPoint], rows: Mapping[str, Sequence[Mapping[str, Tensor]]]
    ) -> FrontierPoint:
        """The point with its differences, by every measure, from the best of the paper's thresholds."""
        point, papers = made[method], [t for t in THRESHOLDS if t in made]
        if method in THRESHOLDS or not papers:
            return point
        values = dict(point.values)
        groups = list(range(len(self.store.prompts))) * len(self.seeds)
        for m in self.measures:
            sign = 1 if m.higher_is_better else -1
            best = rows[max(papers, key=lambda t, m=m, sign=sign: sign * made[t].values[m.name].mean)]
            if m.name == "frechet":
                pairs = zip(self._distances(rows[method]), self._distances(best), strict=True)
                values[f"{m.name}{OVER_THRESHOLD}"] = t_interval([a - b for a, b in pairs])
            else:
                pairs = zip(rows[method], best, strict=True)
                gaps = torch.cat([a[m.name].double() - b[m.name].double() for a, b in pairs])
                values[f"{m.name}{OVER_THRESHOLD}"] = mean_interval(gaps.tolist(), groups)
        return dataclasses.replace(point, values=values)

    def _cross_fitted(self, budget: float, seed: int, quick: bool) -> dict[str, tuple[dict[str, Tensor], float]]:
        halves: list[dict[str, tuple[PolicyOutcome, dict[Decision, list[Seen]], Tensor]]] = []
        for fit, use in (self.halves, self.halves[::-1]):
            best: dict[str, tuple[Fitted, str]] = {}
            thresholds: dict[str, Fitted] = {}
            banks: dict[str, tuple[OutcomeTable, dict[Decision, list[Seen]]]] = {}
            for name, action in actions(self.base, quick).items():
                attempts = 2 if action[0] is Decision.REGENERATE else 1
                banks[name] = self.table(seed, action, attempts)
                for method, f in self._fitted(banks[name][0].rows(fit), budget, action[0]).items():
                    if method in THRESHOLDS:
                        thresholds[name] = f
                    if method not in best or f.quality > best[method][0].quality:
                        best[method] = f, name
            if self.reference is not None and thresholds:
                distances = {name: self._distance(f, *banks[name], fit) for name, f in thresholds.items()}
                least = min(distances, key=lambda name: distances[name])
                best[FOR_FRECHET] = thresholds[least], least
            found = {
                method: (simulate_policy(f.policy, banks[name][0].rows(use)), banks[name][1], use)
                for method, (f, name) in best.items()
            }
            halves.append(found)
        both = halves[0].keys() & halves[1].keys()
        return {m: self._joined([h[m] for h in halves]) for m in sorted(both)}

    def _distance(
        self, fitted: Fitted, table: OutcomeTable, pictures: Mapping[Decision, Sequence[Seen]], rows: Tensor
    ) -> float:
        """Frechet distance of what a policy makes of these rows."""
        assert self.reference is not None
        chosen = simulate_policy(fitted.policy, table.rows(rows)).chosen
        made = [pictures[d][k]["features"][i] for i, (d, k) in zip(rows.tolist(), chosen, strict=True)]
        return frechet_distance(torch.stack(made).float(), self.reference)

    @staticmethod
    def _fitted(table: OutcomeTable, budget: float, decision: Decision) -> dict[str, Fitted]:
        low, high = table.costs[Decision.REDRAFT], table.costs[Decision.REDRAFT] + table.costs[decision]
        if budget < low:
            return {}
        # A budget is a limit: what sends every draft to the teacher for less is a way of keeping it.
        fitted = fit_all(table, min(budget, high), decision, table.scores)
        names = {"threshold": f"adaptive {decision}"}
        return {names.get(k, f"adaptive, {k.replace('_', ' ')}"): f for k, f in fitted.items()}

    def _joined(
        self, halves: Sequence[tuple[PolicyOutcome, dict[Decision, list[Seen]], Tensor]]
    ) -> tuple[dict[str, Tensor], float]:
        """Measures of both halves in the order of the prompts, and the mean steps."""
        names = [m.name for m in self.measures if m.name != "frechet"] + (["features"] if self.reference is not None else [])
        out: dict[str, Tensor] = {}
        for name in names:
            parts: dict[int, Tensor] = {}
            for seen, pictures, use in halves:
                for place, (decision, k) in zip(use.tolist(), seen.chosen, strict=True):
                    parts[place] = pictures[decision][k][name][place]
            out[name] = torch.stack([parts[i] for i in range(len(parts))])
        for c in COSTS:
            out[c] = torch.zeros(len(self.store.prompts), dtype=torch.float64)
            for seen, pictures, use in halves:
                draft = pictures[Decision.ACCEPT][0][f"draft.{c}"][use] * seen.attempts
                sent = [d for d in seen.decisions]
                teacher = {d: pictures[d][0][f"teacher.{c}"][use] for d in set(sent) if d is not Decision.ACCEPT}
                extra = [0.0 if d is Decision.ACCEPT else float(teacher[d][i]) for i, d in enumerate(sent)]
                out[c][use] = draft + torch.tensor(extra, dtype=torch.float64)
        spent = sum(float(seen.steps.sum()) for seen, _, _ in halves)
        return out, spent / len(self.store.prompts)

    def bound_points(self, budgets: Sequence[float], measure: str, steps: int) -> list[FrontierPoint]:
        """Perfect oracle (largest true gain), full reference (largest distance of features) and chance, regenerating."""
        name = f"regenerate {steps}"
        decision, painting = {**actions(self.base, True), **actions(self.base, False)}[name]
        points: list[FrontierPoint] = []
        for budget in budgets:
            share = (budget - self.base.student_steps) / steps
            if not 0 <= share <= 1:
                continue
            kinds: dict[str, list[dict[str, Tensor]]] = {}
            for seed in self.seeds:
                _, pictures = self.table(seed, (decision, painting), 1)
                draft, made = pictures[Decision.ACCEPT][0], pictures[decision][0]
                keys = {"perfect oracle": made[measure] - draft[measure]}
                if "features" in draft:
                    a, b = draft["features"].float(), made["features"].float()
                    keys["full reference"] = 1 - torch.nn.functional.cosine_similarity(a, b)
                g = torch.Generator().manual_seed(seed)
                keys["chance"] = torch.rand(len(self.store.prompts), generator=g)
                for kind, key in keys.items():
                    sent = torch.zeros(len(key), dtype=torch.bool)
                    sent[key.argsort(descending=True)[: round(share * len(key))]] = True
                    row: dict[str, Tensor] = {
                        k: torch.where(sent.reshape(-1, *[1] * (draft[k].ndim - 1)), made[k], draft[k])
                        for k in draft
                        if k in made and k not in ("images", "scores") and "." not in k
                    }
                    row |= {c: draft[f"draft.{c}"] + sent * made[f"teacher.{c}"] for c in COSTS}
                    kinds.setdefault(kind, []).append(row)
            points += [self.point(kind, budget, budget, rows, bound=kind != "chance") for kind, rows in kinds.items()]
        return points
