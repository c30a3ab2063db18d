"""The figures, one panel each. Drawn so that one file serves light and dark pages: text takes the page's own colour."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from allaprima.analysis.bands import EDGES, band_of
from allaprima.analysis.curvature import profile
from allaprima.analysis.geometry import plane
from allaprima.analysis.pairs import AnalyzedPairs, Observation

INK = "#15181c"
"""Of text and lines; in a page it becomes `currentColor`."""
STUDENT, TEACHER, NEITHER, THIRD = "#d9822b", "#3b82c4", "#8a8f98", "#3a9d6e"
SIZE = (5.0, 3.6)
Panel = tuple[str, str, Any]
"""Name, what it shows (for those who can't see it), matplotlib's figure."""


def _axes(xlabel: str, ylabel: str) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    style: dict[Any, Any] = {
        "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": NEITHER,
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
        "legend.fontsize": 9, "svg.fonttype": "none", "font.family": "DejaVu Sans",
    }  # fmt: skip
    with mpl.rc_context(style):
        figure, axis = plt.subplots(figsize=SIZE, layout="constrained")
    axis.grid(alpha=0.25, color=NEITHER, lw=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel(xlabel, fontsize=10, color=INK)
    axis.set_ylabel(ylabel, fontsize=10, color=INK)
    return figure, axis


def _legend(axis: Any, **more: Any) -> None:
    axis.legend(fontsize=8.5, frameon=False, labelcolor=INK, **more)


def scatter(pairs: AnalyzedPairs, x: np.ndarray, y: np.ndarray, xlabel: str, ylabel: str, colour: str = THIRD) -> Any:
    """Every pair a dot; means of y, with intervals, over fifths of x as a line."""
    figure, axis = _axes(xlabel, ylabel)
    axis.scatter(x, y, s=11, color=colour, alpha=_alpha(len(x)), lw=0, rasterized=True)
    band = band_of(x.tolist())
    middle, mean, low, high = [], [], [], []
    for i in range(len(EDGES) - 1):
        here = band == i
        if here.sum() > 1:
            interval = _mean(pairs, y, here)
            middle.append(float(x[here].mean()))
            mean.append(interval.mean)
            low.append(interval.mean - interval.low)
            high.append(interval.high - interval.mean)
    axis.errorbar(middle, mean, [low, high], color=INK, marker="o", ms=4, lw=1.5, capsize=3, label="means of fifths, 95 %")
    axis.set_ylim(*_wide(y))
    _legend(axis, loc="best")
    return figure


def _alpha(count: int) -> float:
    """Few dots are to be seen, many not to hide each other."""
    return float(np.clip(6 / count**0.5, 0.25, 0.8))


def _shows(what: str, seen: Observation, key: str) -> str:
    """A caption with what is seen."""
    found = next((f for f in seen.findings if f.key == key), None)
    return what if found is None else f"{what}: {found.number}, {found.verdict}"


def _mean(pairs: AnalyzedPairs, values: np.ndarray, here: np.ndarray) -> Any:
    from allaprima.evaluation.intervals import mean_interval

    return mean_interval(values[here].astype(float).tolist(), pairs.prompt[here].tolist(), rounds=500)


def _wide(y: np.ndarray) -> tuple[float, float]:
    """Limits that show all but the outermost half percents, so that one odd pair doesn't flatten the rest."""
    low, high = np.quantile(y, [0.005, 0.995])
    room = 0.06 * (high - low) or 1.0
    return float(low - room), float(high + room)


def distance_panels(pairs: AnalyzedPairs, seen: Observation) -> list[Panel]:
    """Figures 3 and 4: histogram, gap against distance, votes by band, the student's share of clear votes."""
    distance = pairs.columns["distance"]
    figure, axis = _axes("distance between student and teacher", "pairs")
    axis.hist(distance, bins=int(np.clip(len(distance) ** 0.5, 8, 30)), color=THIRD, alpha=0.8)
    axis.axvline(distance.mean(), color=INK, lw=1.2, ls="--", label=f"mean {distance.mean():.3f}")
    _legend(axis)
    made = [("distance", "Histogram of the distances between student's and teacher's pictures", figure)]
    stem = pairs.truth
    gap = scatter(pairs, distance, np.abs(pairs.gap(stem)), "distance", f"gap in quality, {stem}'s score, absolute")
    made.append(("gap", _shows("Gap in quality against distance", seen, f"gap-{stem}"), gap))
    bands = seen.numbers["bands"]
    figure, axis = _axes("band of distance", "share of pairs, percent")
    bottom = np.zeros(len(bands))
    for side, label, colour in (
        ("student", "student preferred", STUDENT), ("tie", "neither", NEITHER), ("teacher", "teacher preferred", TEACHER),
    ):  # fmt: skip
        shares = np.array([100 * b[side][0] for b in bands])
        axis.bar(range(len(bands)), shares, bottom=bottom, color=colour, alpha=0.85, width=0.7, label=label)
        for k, (at, share) in enumerate(zip(bottom, shares, strict=True)):
            if share > 6:
                axis.text(k, at + share / 2, f"{share:.0f}", ha="center", va="center", fontsize=9, color="white")
        bottom += shares
    axis.set_xticks(range(len(bands)), [b["band"] for b in bands], fontsize=9)
    axis.set_ylim(0, 100)
    _legend(axis, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncol=3)
    made.append(("votes", _shows("Votes by band of distance, the farthest", seen, "wins-far"), figure))
    figure, axis = _axes("band of distance", "student's share of clear votes, percent")
    value = np.array([[100 * v for v in b["student_among_clear"]] for b in bands])
    axis.errorbar(
        range(len(bands)), value[:, 0], [value[:, 0] - value[:, 1], value[:, 2] - value[:, 0]], color=STUDENT, marker="o",
        ms=5, lw=1.5, capsize=3,
    )  # fmt: skip
    axis.axhline(50, color=INK, lw=1, ls="--")
    axis.set_xticks(range(len(bands)), [b["band"] for b in bands], fontsize=9)
    made.append(
        ("clear", _shows("The student's share of clear votes by band of distance, the farthest", seen, "clear-far"), figure)
    )
    return made


def complexity_panels(pairs: AnalyzedPairs, seen: Observation) -> list[Panel]:
    """Figure 5: distance against the teacher's complexity, and the complexity of both."""
    c = pairs.columns
    one = scatter(pairs, c["complexity_teacher"], c["distance"], "complexity of the teacher's picture", "distance")
    figure, axis = _axes("complexity of the teacher's picture", "complexity of the student's")
    alpha = _alpha(len(c["complexity_teacher"]))
    axis.scatter(c["complexity_teacher"], c["complexity_student"], s=11, c=THIRD, alpha=alpha, lw=0, rasterized=True)
    both = np.concatenate([c["complexity_teacher"], c["complexity_student"]])
    axis.plot([both.min(), both.max()], [both.min(), both.max()], color=INK, lw=1, ls="--", label="the same")
    _legend(axis)
    return [
        ("complexity", _shows("Distance against image complexity", seen, "complexity-distance"), one),
        ("complexity-both", "The student's complexity against the teacher's", figure),
    ]


def length_panels(pairs: AnalyzedPairs, seen: Observation) -> list[Panel]:
    """Figure 6a: distance by number of tokens."""
    length, distance = pairs.columns["length"], pairs.columns["distance"]
    figure, axis = _axes("tokens of the prompt", "distance")
    jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(length)) if np.ptp(length) < 40 else 0
    axis.scatter(length + jitter, distance, s=11, color=THIRD, alpha=_alpha(len(length)), lw=0, rasterized=True)
    known = [n for n in np.unique(length) if len(set(pairs.prompt[length == n].tolist())) > 2]
    if np.ptp(length) < 40 and known:
        found = [_mean(pairs, distance, length == n) for n in known]
        mean = np.array([i.mean for i in found])
        ends = [mean - [i.low for i in found], np.array([i.high for i in found]) - mean]
        axis.errorbar(known, mean, ends, color=INK, marker="o", ms=4, lw=1.5, capsize=3, label="means, 95 %")
        _legend(axis)
    axis.set_ylim(*_wide(distance))
    return [("length", _shows("Distance against prompt length", seen, "length-distance"), figure)]


def influence_panels(pairs: AnalyzedPairs, seen: Observation) -> list[Panel]:
    """Figure 6b: distance against how much the student attends to its prompt."""
    c = pairs.columns
    figure = scatter(
        pairs, c["influence_student"], c["distance"], "influence of the prompt on the student", "distance", STUDENT
    )
    made = [("influence", _shows("Distance against the student's prompt influence", seen, "influence-distance"), figure)]
    if pairs.has("influence_teacher"):
        figure = scatter(
            pairs, c["influence_teacher"], c["distance"], "influence of the prompt on the teacher", "distance", TEACHER
        )
        made.append(("influence-teacher", "Distance against the teacher's prompt influence", figure))
    return made


def curvature_panels(pairs: AnalyzedPairs, seen: Observation) -> list[Panel]:
    """Figure 7 and appendix B: distance against curvature, deviation by time, distance to the end, four planes."""
    c, paths = pairs.columns, pairs.trajectories
    figure = scatter(
        pairs, c["curvature_teacher"], c["distance"], "curvature of the teacher's trajectory", "distance", TEACHER
    )
    made = [
        (
            "curvature",
            _shows("Distance against the curvature of the teacher's trajectory", seen, "curvature-distance"),
            figure,
        )
    ]
    if paths is None:
        return made
    figure, axis = _axes("time t of the teacher's evaluation", "distance to the chord")
    bend = band_of(c["curvature_teacher"].tolist(), (0.0, 100 / 3, 200 / 3, 100.0))
    for i, label, colour in (
        (2, "most curved third", TEACHER),
        (1, "middle third", NEITHER),
        (0, "least curved third", THIRD),
    ):
        if (bend == i).any():
            _profile(axis, paths.teacher_times, paths.by_time()[bend == i], pairs.prompt[bend == i], colour, label)
    axis.invert_xaxis()
    _legend(axis)
    made.append(("deviation", "How far the teacher's predictions are from the chord, by time", figure))
    figure, axis = _axes("time t of the evaluation", "distance to the teacher's last prediction")
    for label, times, values, colour in (
        ("student's predictions", paths.student_times, paths.student_to_end(), STUDENT),
        ("teacher's predictions", paths.teacher_times, paths.teacher_to_end(), TEACHER),
    ):
        _profile(axis, times, values, pairs.prompt, colour, label)
    axis.invert_xaxis()
    _legend(axis)
    made.append(("to-end", "Distance of both trajectories to the teacher's last prediction, by time", figure))
    order = np.argsort(c["curvature_teacher"], kind="stable")
    for name, title, where in (("plane-low", "least", order[0]), ("plane-high", "most", order[-1])):
        made.append(
            (name, f"The {title} curved trajectory in the plane of its principal components", _plane(pairs, int(where)))
        )
    return made


def _profile(axis: Any, times: np.ndarray, values: np.ndarray, groups: np.ndarray, colour: str, label: str) -> None:
    found = profile(values, groups)
    axis.plot(times, [i.mean for i in found], color=colour, marker="o", ms=3.5, lw=1.5, label=label)
    axis.fill_between(times, [i.low for i in found], [i.high for i in found], color=colour, alpha=0.2, lw=0)


def _plane(pairs: AnalyzedPairs, which: int) -> Any:
    assert pairs.trajectories is not None
    where, share = plane(pairs.trajectories.gram[which])
    s = pairs.trajectories.students
    figure, axis = _axes("first principal component", "second")
    for points, colour, label in ((where[s:], TEACHER, "teacher"), (where[:s], STUDENT, "student")):
        axis.plot(points[:, 0], points[:, 1], color=colour, marker="o", ms=4, lw=1.3, label=label)
        axis.plot(points[-1:, 0], points[-1:, 1], color=colour, marker="s", ms=8)
    chord = where[s:][[0, -1]]
    axis.plot(chord[:, 0], chord[:, 1], color=TEACHER, lw=1, ls=":")
    axis.set_aspect("equal", adjustable="datalim")
    curve = pairs.columns["curvature_teacher"][which]
    prompt = pairs.prompts[int(pairs.prompt[which])]
    words = prompt if len(prompt) < 44 else prompt[:41] + "..."
    axis.set_title(f"{words}\ncurvature {curve:.1f}, {share:.0%} of the variance; squares: last", fontsize=9, color=INK)
    _legend(axis, loc="best")
    return figure


def decision_panels(pairs: AnalyzedPairs, seen: Observation) -> list[Panel]:
    """Accuracy of the decision over k, with what knowing nothing and seeing both pictures give."""
    n = seen.numbers
    figure, axis = _axes("k, percent of drafts taken for worse than the teacher's", "share of pairs told right")
    axis.plot(n["percent"], n["accuracy"], color=STUDENT, lw=1.6, label="draft alone, [E(S) > tau_k]")
    for interval, label, colour in (
        (n["full_reference"], "both pictures, [E(S) > E(T)]", TEACHER),
        (n["no_reference"], "draft alone, tau of the other half", THIRD),
    ):
        axis.axhline(interval.mean, color=colour, lw=1.3, label=f"{label}: {interval.mean:.3f}")
        axis.axhspan(interval.low, interval.high, color=colour, alpha=0.13, lw=0)
    axis.axhline(n["always_the_same"], color=INK, ls="--", lw=1, label=f"always the same: {n['always_the_same']:.3f}")
    _legend(axis, loc="best")
    return [("decisions", "Accuracy of deciding, over k", figure)]


def simulated_panels(pairs: AnalyzedPairs, seen: Observation) -> list[Panel]:
    """Figure 16: mean quality against the oracle's accuracy."""
    n = seen.numbers
    figure, axis = _axes("the oracle is right about which is better, percent", f"mean {pairs.truth}'s score")
    x = 100 * np.array(n["accuracy"])
    axis.plot(x, n["quality"], color=THIRD, marker="o", ms=4, lw=1.5, label="simulated oracle")
    axis.fill_between(x, n["low"], n["high"], color=THIRD, alpha=0.2, lw=0)
    for value, label, colour, style in (
        (n["oracle"], "this card's oracle", STUDENT, "-"), (n["farthest"], "most distant drafts", NEITHER, "-"),
        (n["teacher"], "teacher for everything", TEACHER, "--"), (n["student"], "student for everything", STUDENT, "--"),
    ):  # fmt: skip
        axis.axhline(value, color=colour, ls=style, lw=1.2, label=label)
    _legend(axis, loc="best")
    return [("simulated", "Quality against the accuracy of a simulated oracle, one half escalated", figure)]


def diversity_panels(values: Mapping[str, Mapping[str, float]]) -> list[Panel]:
    """Student's diversity against the teacher's, a dot a prompt."""
    figure, axis = _axes("teacher: mean distance between seeds", "student")
    prompts = list(values["student"])
    x, y = (np.array([values[side][p] for p in prompts]) for side in ("teacher", "student"))
    axis.scatter(x, y, s=12, color=THIRD, alpha=0.5, lw=0, rasterized=True)
    top = float(max(x.max(), y.max()))
    axis.plot([0, top], [0, top], color=INK, lw=1, ls="--", label="the same")
    _legend(axis)
    return [("diversity", "Diversity over seeds, student against teacher", figure)]


PANELS: Mapping[str, Callable[[AnalyzedPairs, Observation], list[Panel]]] = {
    "distance": distance_panels, "complexity": complexity_panels, "length": length_panels, "influence": influence_panels,
    "curvature": curvature_panels, "decisions": decision_panels, "simulated": simulated_panels,
}  # fmt: skip


def svg_of(figure: Any, name: str) -> str:
    """Inline SVG: text in the page's colour, ids of its own."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, dpi=140, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S).replace(INK, "currentColor")
    return re.sub(
        r'(<svg[^>]*?) height="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1), count=1
    )


def png_of(figure: Any) -> bytes:
    """For pages that show files; white behind."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()


def close(panels: Sequence[Panel]) -> None:
    """Free the figures."""
    from matplotlib import pyplot as plt

    for _, _, figure in panels:
        plt.close(figure)
