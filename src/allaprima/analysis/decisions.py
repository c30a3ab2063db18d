"""How well the oracle tells when the teacher is needed, and what a better one would buy (arXiv 2312.10835, section 4, D).

Full reference `[E(S) > E(T)]`, no reference `[E(S) > tau_k]` over all k, the distance alone, and oracles of simulated
accuracy. The truth is whose picture is preferred. The measures are `evaluation`'s.
"""

from __future__ import annotations

from typing import Any

from allaprima.analysis.pairs import Finding, Observation, Pairs, finding, verdict
from allaprima.core.errors import SettingError
from allaprima.evaluation import study
from allaprima.evaluation.decision import decision_accuracy
from allaprima.evaluation.intervals import Interval
from allaprima.evaluation.simulated_oracle import full_reference, perfect_oracle, random_choice

SHARE = 0.5


def as_study(pairs: Pairs) -> study.Pair:
    """As the reproduction of the paper's numbers reads it."""
    c, t = pairs.columns, pairs.truth
    return study.Pair(pairs.prompt, c[f"{t}_student"], c[f"{t}_teacher"], c["oracle_student"], c["oracle_teacher"])


def observe(pairs: Pairs) -> Observation:
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
    above = Interval(
        *(v - found.always_the_same for v in (found.no_reference.mean, found.no_reference.low, found.no_reference.high))
    )
    best = int(found.accuracy.argmax())
    claims = (
        Finding(
            "no-reference", 0, "the draft's score alone tells who is preferred better than always saying the same",
            "accuracy above that", above, verdict(above, +1),
        ),
        finding(pairs, "score-gap", 0, "higher oracle scores mark drafts that hold their own against the teacher",
                "oracle_student", pairs.gap(pairs.truth), +1),
    )  # fmt: skip
    told = pairs.outcome != 0
    facts = [
        f"Both pictures seen: right in {found.full_reference}. The draft alone: right in {found.no_reference} with a threshold"
        f" from the other half of the prompts; at best {found.accuracy[best]:.3f} (k = {found.percent[best]:g} %). Always the"
        f" same answer: {found.always_the_same:.3f}. Area under the curve: {found.auc:.3f}.",
    ]
    if told.any():
        wins = (pairs.outcome == 1)[told].tolist()
        near = decision_accuracy((-pairs.columns["distance"][told]).tolist(), wins)
        facts.append(
            f"Among clear votes, being near the teacher's picture tells a win with an area under the curve of"
            f" {near['auc']:.3f}, the draft's score with {decision_accuracy(pairs.columns['oracle_student'][told].tolist(), wins)['auc']:.3f}."
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


def observe_simulated(pairs: Pairs) -> Observation:
    """What an oracle of any accuracy would buy at one half of the drafts escalated."""
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
        "simulated", "A better oracle", "Appendix D, figure 16: quality rises with the oracle's accuracy.", (), facts, numbers,
        f"Quality: {pairs.labels[pairs.truth]}.",
    )  # fmt: skip
