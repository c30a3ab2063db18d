"""Observation 4 of arXiv 2312.10835 (figure 7, appendix B): students resemble their teacher where its trajectory is less
curved. What curvature is: `geometry`.
"""

from __future__ import annotations

import numpy as np

from allaprima.analysis.pairs import AnalyzedPairs, Observation, finding
from allaprima.evaluation.intervals import Interval, mean_interval


def profile(values: np.ndarray, groups: np.ndarray) -> list[Interval]:
    """Means over prompts of `(N, T)`, one interval a column."""
    return [mean_interval(column.tolist(), groups.tolist(), rounds=500) for column in values.T]


def observe(pairs: AnalyzedPairs) -> Observation:
    """Whether distance grows with the teacher's curvature."""
    found = finding(
        pairs, "curvature-distance", 4, "students resemble the teacher where its trajectory is less curved",
        "curvature_teacher", "distance", +1,
    )  # fmt: skip
    student, teacher = pairs.mean("curvature_student"), pairs.mean("curvature_teacher")
    facts = [
        f"The teacher's trajectories leave their chord by {teacher} of the latents' units,"
        f" {pairs.mean('bend_teacher')} of the chord's length; the student's by {student}."
    ]
    if pairs.trajectories is not None:
        when = pairs.trajectories.by_time().argmax(1)
        times = pairs.trajectories.teacher_times[when]
        facts.append(
            f"They are farthest from it at t = {np.median(times):.0f} (median; middle half"
            f" {np.quantile(times, 0.25):.0f} to {np.quantile(times, 0.75):.0f})."
        )
    return Observation(
        "curvature", "Trajectory curvature", "Section 3, figure 7, appendix B: similar samples come of less curved teacher"
        " trajectories.", (found,), tuple(facts), {"curvature_teacher": teacher, "curvature_student": student},
    )  # fmt: skip
