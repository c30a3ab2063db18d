"""Diversity (arXiv 2312.10835, appendix D): how much a prompt's pictures differ from seed to seed, student against teacher.

People were asked about angle of view, background, main object and style there; here stands the mean distance of features.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from allaprima.analysis.pairs import AnalyzedPairs, Finding, Observation, verdict
from allaprima.core.errors import SettingError
from allaprima.evaluation.diversity import Diversity
from allaprima.evaluation.intervals import mean_interval
from allaprima.evaluation.paired import paired
from allaprima.features.module import Features


def diversities(pairs: AnalyzedPairs, features: Features, batch: int = 64) -> dict[str, dict[str, float]]:
    """By `student`, `teacher`: mean cosine distance over pairs of a prompt's pictures, by prompt.

    Raises `SettingError` for a prompt with one seed.
    """
    made: dict[str, dict[str, float]] = {}
    for side, images in (("student", pairs.student), ("teacher", pairs.teacher)):
        metric = Diversity(features)
        for i in range(0, len(images), batch):
            texts = [pairs.prompts[int(k)] for k in pairs.prompt[i : i + batch]]
            metric.update(images[i : i + batch].float() / 255, texts)
        made[side] = dict(metric.compute().per_prompt or {})
    return made


def observe(values: Mapping[str, Mapping[str, float]], label: str) -> Observation:
    """Student minus teacher, prompts resampled."""
    student, teacher = values["student"], values["teacher"]
    if not student:
        raise SettingError("no prompts: at least one with two seeds is due.")
    difference = paired({**student}, {**teacher}, {p: p for p in student}).difference
    groups = list(range(len(student)))
    a, b = (mean_interval(list(v.values()), groups) for v in (student, teacher))
    found = Finding(
        "diversity", 0, "the student's pictures of a prompt are less diverse than the teacher's",
        "mean distance between seeds, student minus teacher", difference, verdict(difference, -1),
    )  # fmt: skip
    share = np.mean([student[p] < teacher[p] for p in student])
    facts = (f"Student {a}, teacher {b}; the student's are less diverse for {share:.0%} of {len(student)} prompts.",)
    return Observation(
        "diversity",
        "Diversity over seeds",
        "Appendix D: people compared pairs of seeds; distilled students are known to lose diversity.",
        (found,),
        facts,
        {"student": a, "teacher": b, "student_minus_teacher": difference},
        f"Distance: {label}, in place of people's answers.",
    )
