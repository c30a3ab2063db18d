"""Observation 3 of arXiv 2312.10835 (figure 6): short prompts, and prompts that the student leans on, make pairs alike."""

from __future__ import annotations

import numpy as np

from allaprima.analysis.pairs import AnalyzedPairs, Observation, finding


def observe_length(pairs: AnalyzedPairs) -> Observation:
    """Whether distance grows with the number of tokens."""
    length = pairs.columns["length"]
    found = finding(pairs, "length-distance", 3, "shorter prompts make more similar pairs", "length", "distance", +1)
    facts = [f"Prompts have {int(length.min())} to {int(length.max())} tokens, {np.median(length):g} in the middle."]
    if length.max() - length.min() < 10:
        facts.append("That is a narrow range: the paper's prompts go from a few words to whole paragraphs.")
    by = {int(n): pairs.columns["distance"][length == n] for n in np.unique(length)}
    return Observation(
        "length", "Prompt length", "Section 3, figure 6a: shorter prompts usually lead to more similar samples.",
        (found,), tuple(facts), {"mean_distance_by_tokens": {str(n): float(v.mean()) for n, v in by.items()}},
        f"Length: {pairs.labels['length']}.",
    )  # fmt: skip


def observe_influence(pairs: AnalyzedPairs) -> Observation:
    """Whether distance falls with how much the student attends to its prompt."""
    found = [
        finding(
            pairs, "influence-distance", 3, "pairs are more alike where the student leans on its prompt",
            "influence_student", "distance", -1,
        )
    ]  # fmt: skip
    facts: list[str] = []
    if pairs.has("influence_teacher"):
        other = finding(pairs, "influence-teacher", 3, "", "influence_teacher", "distance", -1)
        both = finding(pairs, "both", 0, "", "influence_student", "influence_teacher", +1)
        facts.append(
            f"Influence: student {pairs.mean('influence_student')}, teacher {pairs.mean('influence_teacher')}; with the"
            f" teacher's the rank correlation is {other.interval}. The two go together by {both.interval}."
        )
    if pairs.has("length"):
        along = finding(pairs, "length", 0, "", "influence_student", "length", -1)
        facts.append(f"Influence and length: rank correlation {along.interval}.")
    return Observation(
        "influence", "Prompt influence",
        "Section 3, figure 6b, appendix B: samples are more alike when the student relies heavily on the prompt.",
        tuple(found), tuple(facts), {}, f"Influence: {pairs.labels['influence']}.",
    )  # fmt: skip
