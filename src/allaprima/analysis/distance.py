"""Observation 1 of arXiv 2312.10835 (section 3, figures 3 and 4): how far the student's picture is from the teacher's.

Highly distinct samples are of different quality, and most of the student's wins are among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from allaprima.analysis.association import difference_of
from allaprima.analysis.bands import EDGES, band_names, band_of
from allaprima.analysis.pairs import AnalyzedPairs, Finding, Observation, finding, verdict
from allaprima.evaluation.intervals import Interval, mean_interval


@dataclass(frozen=True)
class Band:
    """Votes of the pairs whose distance is in one band; shares are of the band's pairs."""

    name: str
    pairs: int
    student: Interval
    tie: Interval
    teacher: Interval
    among_clear: Interval
    """The student's share where one is preferred."""


def votes_by_band(
    distance: Sequence[float], outcome: Sequence[int], prompt: Sequence[int], edges: Sequence[float] = EDGES
) -> list[Band]:
    """`outcome`: 1 student, 0 neither, -1 teacher. Bands that ties left empty are left out."""
    band, won, groups = band_of(distance, edges), np.asarray(outcome), np.asarray(prompt)
    made: list[Band] = []
    for i, name in enumerate(band_names(edges)):
        here = band == i
        if not here.any():
            continue

        def share(of: np.ndarray, which: np.ndarray) -> Interval:
            return mean_interval(of[which].astype(float).tolist(), groups[which].tolist())

        clear = here & (won != 0)
        nothing = Interval(float("nan"), float("nan"), float("nan"))
        made.append(
            Band(
                name, int(here.sum()), share(won == 1, here), share(won == 0, here), share(won == -1, here),
                share(won == 1, clear) if clear.any() else nothing,
            )
        )  # fmt: skip
    return made


def observe(pairs: AnalyzedPairs) -> Observation:
    """Distance against the gap in quality, and the votes by band."""
    distance, outcome = pairs.columns["distance"], pairs.outcome
    bands = votes_by_band(distance.tolist(), outcome.tolist(), pairs.prompt.tolist())
    far = band_of(distance.tolist()) >= 4
    wins = difference_of(outcome == 1, far, pairs.prompt)
    found = [
        finding(
            pairs, f"gap-{stem}", 1, f"more distant pairs differ more in quality (by the {stem})",
            np.abs(pairs.gap(stem)), "distance", +1,
        )
        for stem in dict.fromkeys(("oracle", pairs.truth))
    ]  # fmt: skip
    found.append(
        Finding(
            "wins-far", 1, "the student wins more often among the farthest fifth of the pairs",
            "share of wins there minus elsewhere", wins, verdict(wins, +1),
        )
    )  # fmt: skip
    clear = outcome != 0
    share = difference_of(outcome[clear] == 1, far[clear], pairs.prompt[clear]) if clear.any() else wins
    found.append(
        Finding(
            "clear-far",
            1,
            "of the clear votes the student has a larger share among the farthest fifth",
            "share there minus elsewhere",
            share,
            verdict(share, +1),
        )
    )
    facts = [
        f"The student's picture is preferred in {(outcome == 1).mean():.1%} of the pairs, the teacher's in"
        f" {(outcome == -1).mean():.1%}; {(outcome == 0).mean():.1%} are ties (the {pairs.truth}'s scores differ by"
        f" {pairs.tie:.3g} or less).",
    ]
    if clear.any() and len({b.name for b in bands}) > 1:
        a, b = bands[0], bands[-1]
        facts.append(
            f"Nearest band: student {a.student.mean:.0%}, tie {a.tie.mean:.0%}, teacher {a.teacher.mean:.0%}; farthest:"
            f" {b.student.mean:.0%}, {b.tie.mean:.0%}, {b.teacher.mean:.0%}. Of the clear votes the student has"
            f" {a.among_clear.mean:.0%} ({a.among_clear.low:.0%}..{a.among_clear.high:.0%}) and {b.among_clear.mean:.0%}"
            f" ({b.among_clear.low:.0%}..{b.among_clear.high:.0%})."
        )
    if pairs.has("lpips"):
        other = finding(pairs, "lpips", 0, "both distances agree", "lpips", "distance", +1)
        facts.append(f"The second distance ({pairs.labels['lpips']}) agrees: rank correlation {other.interval}.")
    numbers = {"mean_distance": pairs.mean("distance"), "bands": [_row(b) for b in bands]}
    return Observation(
        "distance", "Distance between student and teacher",
        "Section 3, figures 3 and 4: highly distinct samples tend to be of different quality, and most of the student's"
        " wins are among samples that differ more from the teacher's.",
        tuple(found), tuple(facts), numbers, _note(pairs),
    )  # fmt: skip


def _note(pairs: AnalyzedPairs) -> str:
    said = f"Distance: {pairs.labels['distance']}. Preference: {pairs.labels[pairs.truth]}, in place of people's votes."
    if pairs.truth == "oracle":
        said += " It is also what decides here: read the wins as the oracle's own opinion."
    return said


def _row(b: Band) -> dict[str, float | str | list[float]]:
    return {
        "band": b.name, "pairs": b.pairs,
        **{k: [i.mean, i.low, i.high] for k, i in (("student", b.student), ("tie", b.tie), ("teacher", b.teacher))},
        "student_among_clear": [b.among_clear.mean, b.among_clear.low, b.among_clear.high],
    }  # fmt: skip
