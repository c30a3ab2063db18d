"""How well the oracle tells when the teacher is needed, and what a better one would buy (arXiv 2312.10835, section 4, D).

Full reference `[E(S) > E(T)]`, no reference `[E(S) > tau_k]` over all k, the distance alone, and oracles of simulated
accuracy. The truth is whose picture is preferred. The measures are `evaluation`'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from allaprima.analysis.pairs import AnalyzedPairs, Finding, Observation, verdict
from allaprima.core.errors import SettingError
from allaprima.evaluation import study
from allaprima.evaluation.decision import area_under_curve
from allaprima.evaluation.intervals import Interval
from allaprima.evaluation.simulated_oracle import full_reference, perfect_oracle, random_choice

SHARE = 0.5


def as_study(pairs: AnalyzedPairs) -> study.PairedScores:
    """As the reproduction of the paper's numbers reads it."""
    c, t = pairs.columns, pairs.truth
    return study.PairedScores(pairs.prompt, c[f"{t}_student"], c[f"{t}_teacher"], c["oracle_student"], c["oracle_teacher"])


def area(scores: np.ndarray, wins: np.ndarray, groups: np.ndarray, rounds: int = 1000, seed: int = 0) -> Interval:
    """Area under the curve above one half, prompts resampled: `(N,)` scores, wins of 0 or 1, prompts; 95 %.

    0 for scores that know nothing, also where one side never wins.
    """
    names, index = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(index == i) for i in range(len(names))]
    rng, draws = np.random.default_rng(seed), list[float]()
    for _ in range(rounds):
        chosen = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        draws.append(area_under_curve(scores[chosen], wins[chosen] > 0) - 0.5)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(area_under_curve(scores, wins > 0) - 0.5, float(low), float(high))


def observe(pairs: AnalyzedPairs) -> Observation:
    """Accuracies of deciding. With no judge beside the oracle, full reference is right by definition and says so."""
    paper = (
        "Section 4, appendix D: deciding from the draft alone [E(S) > tau_k] comes near deciding from both [E(S) > E(T)]."
    )
    if pairs.truth == "oracle":
        return Observation(
            "decisions", "Decision accuracy", paper,
            missing="the oracle is the only judge of this card, and it agrees with itself: give a card with a judge.",
        )  # fmt: skip
    try:
        found = study.decisions(as_study(pairs))
    except SettingError as e:
        return Observation("decisions", "Decision accuracy", paper, missing=str(e))
    best = int(found.accuracy.argmax())
    wins, told = (pairs.gap(pairs.truth) > 0).astype(float), pairs.gap(pairs.truth) != 0
    claims = tuple(
        Finding(key, 0, claim, "area under the curve above one half", auc, verdict(auc, +1))
        for key, claim, auc in (
            ("no-reference", "the draft's score alone tells whose picture is preferred",
             area(pairs.columns["oracle_student"][told], wins[told], pairs.prompt[told])),
            ("full-reference", "the oracle's scores of both pictures tell whose is preferred",
             area(pairs.gap("oracle")[told], wins[told], pairs.prompt[told])),
        )
    )  # fmt: skip
    facts = [
        f"Both pictures seen: right in {found.full_reference}. The draft alone: right in {found.no_reference} with a"
        f" threshold from the other half of the prompts; at best {found.accuracy[best]:.3f} (k = {found.percent[best]:g} %),"
        f" chosen on the same pairs. Always the same answer: {found.always_the_same:.3f}.",
    ]
    near = area(-pairs.columns["distance"][told], wins[told], pairs.prompt[told])
    facts.append(
        f"The distance, which needs both pictures, tells it by {near} above one half, nearer counted for the student."
    )
    numbers: dict[str, Any] = {
        "student_preferred": found.student_preferred, "full_reference": found.full_reference,
        "no_reference": found.no_reference, "always_the_same": found.always_the_same, "auc": found.auc,
        "percent": found.percent.tolist(), "accuracy": found.accuracy.tolist(),
    }  # fmt: skip
    return Observation(
        "decisions", "Decision accuracy", paper, claims, tuple(facts), numbers,
        f"Truth: {pairs.labels[pairs.truth]}; ties by equal scores only.",
    )  # fmt: skip


def observe_simulated(pairs: AnalyzedPairs) -> Observation:
    """Return what an oracle of any accuracy would buy at one half of the drafts escalated."""
    pair = as_study(pairs)
    s, t = pair.student.tolist(), pair.teacher.tolist()
    points, chance = study.simulated(pair)[SHARE], random_choice(s, t, SHARE)
    best, far = perfect_oracle(s, t, SHARE), full_reference(s, t, pairs.columns["distance"].tolist(), SHARE)
    real, mean = study.by_oracle(pair, SHARE), [float(pair.student.mean()), float(pair.teacher.mean())]
    gain = (real - chance.mean) / (best - chance.mean) if best > chance.mean else 0.0
    facts = (
        f"With one half of the drafts sent to the teacher, mean {pairs.truth}'s score: a coin {chance}, this card's oracle"
        f" {real:.4g}, the most distant drafts {far:.4g}, an oracle that is always right {best:.4g}. Student alone"
        f" {mean[0]:.4g}, teacher alone {mean[1]:.4g}.",
        f"The card's oracle has {gain:.0%} of what there is to gain over a coin.",
    )
    numbers = {
        "share": SHARE, "chance": chance, "oracle": real, "farthest": far, "perfect": best, "student": mean[0],
        "teacher": mean[1], "accuracy": [p.accuracy for p in points], "quality": [p.quality.mean for p in points],
        "low": [p.quality.low for p in points], "high": [p.quality.high for p in points],
    }  # fmt: skip
    return Observation(
        "simulated", "A better oracle", "Appendix D, figure 16: quality rises with the oracle's accuracy.", (), facts,
        numbers,
        f"Quality: {pairs.labels[pairs.truth]}.",
    )  # fmt: skip
