"""The paper's questions about one pair, answered from pictures that are painted already (arXiv 2312.10835, section 4).

Who is preferred at which cost (figure 7, by a judge network in place of people), how well scores tell whose picture is
preferred (section 3), what an oracle of any accuracy would buy (figure 16), and at how many steps each method is as good
as the teacher at 50 and 25.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from allaprima.core.errors import SettingError
from allaprima.evaluation.decision import decision_accuracy, full_reference_right, no_reference_curve
from allaprima.evaluation.frontier import FrontierPoint, Measure, by_method, steps_to_reach
from allaprima.evaluation.intervals import Interval, mean_interval
from allaprima.evaluation.simulated_oracle import SimulatedPoint, simulated_oracle

SHARES = (0.25, 0.5, 0.75)
"""Shares of drafts escalated that figure 16 is drawn for; the paper's is about one half."""


@dataclass(frozen=True)
class PairedScores:
    """Every draft beside the teacher's picture: `(N,)` each, `prompt` says which pictures share one."""

    prompt: np.ndarray
    student: np.ndarray
    """The judge's score of the draft."""
    teacher: np.ndarray
    """The judge's score of the teacher's picture."""
    draft_score: np.ndarray
    """The oracle's."""
    teacher_score: np.ndarray

    def __post_init__(self) -> None:
        parts = (self.prompt, self.student, self.teacher, self.draft_score, self.teacher_score)
        if len({x.shape for x in parts}) != 1 or self.prompt.ndim != 1 or not len(self.prompt):
            raise SettingError(f"shapes {[x.shape for x in parts]}: five rows of one length, at least one picture, are due.")

    @property
    def told(self) -> np.ndarray:
        """Where the judge prefers one of the two."""
        return self.student != self.teacher


@dataclass(frozen=True)
class Decisions:
    """How well the oracle tells whose picture the judge prefers."""

    student_preferred: Interval
    always_the_same: float
    no_reference: Interval
    """Accuracy of `[E(S) > tau]`, tau chosen on the other half of the prompts."""
    full_reference: Interval
    """Accuracy of `[E(S) > E(T)]`."""
    auc: float
    percent: np.ndarray
    accuracy: np.ndarray
    """No reference, for each k in `percent`."""


def decisions(pair: PairedScores) -> Decisions:
    """Accuracies with 95 % intervals over prompts. Raises `SettingError` when the judge never prefers either."""
    told = pair.told
    if not told.any():
        raise SettingError("the judge prefers neither picture of any pair: student and teacher painted the same.")
    wins, groups = (pair.student > pair.teacher)[told], pair.prompt[told]
    draft, teacher = pair.draft_score[told], pair.teacher_score[told]
    right = np.zeros(len(wins))
    half = groups % 2 == 0
    for fit, use in ((half, ~half), (~half, half)):
        if fit.any() and use.any():
            tau = decision_accuracy(draft[fit].tolist(), wins[fit].tolist())["tau"]
            right[use] = (draft[use] > tau) == wins[use]
    curve = no_reference_curve(draft.tolist(), wins.tolist())
    overall = decision_accuracy(draft.tolist(), wins.tolist())
    full = full_reference_right(draft.tolist(), teacher.tolist(), wins.tolist())

    def over(values: np.ndarray) -> Interval:
        return mean_interval(values.astype(float).tolist(), groups.tolist())

    return Decisions(
        over(wins), overall["always_the_same"], over(right), over(full), overall["auc"], curve.percent, curve.accuracy
    )


def simulated(pair: PairedScores, shares: Sequence[float] = SHARES) -> dict[float, list[SimulatedPoint]]:
    """Mean judge's score against the oracle's accuracy, by share escalated (figure 16)."""
    return {k: simulated_oracle(pair.student.tolist(), pair.teacher.tolist(), k) for k in shares}


def by_oracle(pair: PairedScores, share: float) -> float:
    """What the real oracle makes of the same share: those of lowest score escalated."""
    sent = np.argsort(pair.draft_score, kind="stable")[: round(share * len(pair.prompt))]
    quality = pair.student.copy()
    quality[sent] = pair.teacher[sent]
    return float(quality.mean())


@dataclass(frozen=True)
class Reached:
    """Where a method's curve is as good as a goal."""

    goal: str
    measure: str
    method: str
    steps: float
    speedup: float


def reached(
    points: Sequence[FrontierPoint], measures: Sequence[Measure], goals: Mapping[str, tuple[str, float]]
) -> list[Reached]:
    """For every goal (its name -> method and budget of a point), measure and method: the fewest steps, by interpolation."""
    rows: list[Reached] = []
    groups = by_method([p for p in points if not p.bound and p.method != "chance"])
    for goal, (method, budget) in goals.items():
        target = next(p for p in points if p.method == method and p.budget == budget)
        for m in measures:
            for name, group in groups.items():
                steps = steps_to_reach(group, m, target.values[m.name].mean)
                if np.isfinite(steps):
                    rows.append(Reached(goal, m.title, name, steps, target.steps / steps))
    return rows


def reached_table(rows: Sequence[Reached]) -> str:
    """Markdown: the goal, the measure, who reaches it at how many steps."""
    lines = ["| as good as | by | method | from mean steps | times fewer |", "|---|---|---|---|---|"]
    order = sorted(rows, key=lambda r: (r.goal, r.measure, r.steps))
    lines += [f"| {r.goal} | {r.measure} | {r.method} | {r.steps:.1f} | {r.speedup:.1f} |" for r in order]
    return "\n".join(lines)


def over_threshold_table(points: Sequence[FrontierPoint], measures: Sequence[Measure], ending: str) -> str:
    """Markdown: every policy minus the paper's threshold at the same budget; bold where the interval is on the good side."""
    rows = [p for p in points if any(f"{m.name}{ending}" in p.values for m in measures)]
    lines = ["| policy | budget | " + " | ".join(m.title for m in measures) + " |", "|---" * (2 + len(measures)) + "|"]
    for p in sorted(rows, key=lambda p: (p.budget, p.method)):
        cells: list[str] = []
        for m in measures:
            i = p.values.get(f"{m.name}{ending}")
            if i is None:
                cells.append("")
                continue
            better = i.low > 0 if m.higher_is_better else i.high < 0
            text = f"{i.mean:+.3f} ({i.low:+.3f}..{i.high:+.3f})"
            cells.append(f"**{text}**" if better else text)
        lines.append(f"| {p.method} | {p.budget:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_decisions(found: Decisions) -> bytes:
    """Accuracy of the decision over k, with what knowing nothing and seeing both pictures give. PNG."""
    figure, axis = _panel(1)
    a = axis[0]
    a.plot(found.percent, found.accuracy, label="from the draft alone, [E(S) > tau_k]")
    for interval, label, colour in (
        (found.full_reference, "from both pictures, [E(S) > E(T)]", "tab:green"),
        (found.no_reference, "draft alone, threshold from the other half of the prompts", "tab:orange"),
    ):
        a.axhline(interval.mean, color=colour, ls="-", lw=1.2, label=f"{label}: {interval.mean:.3f}")
        a.axhspan(interval.low, interval.high, color=colour, alpha=0.12, lw=0)
    a.axhline(found.always_the_same, color="0.4", ls="--", label=f"always the same: {found.always_the_same:.3f}")
    a.set_xlabel("k, percent of drafts taken for worse than the teacher's picture")
    a.set_ylabel("share of pairs told as the judge does")
    a.legend(fontsize=8)
    return _png(figure)


def draw_simulated(pair: PairedScores, curves: Mapping[float, Sequence[SimulatedPoint]]) -> bytes:
    """Figure 16: mean judge's score against the oracle's accuracy, a panel a share; the real oracle is dashed. PNG."""
    figure, axis = _panel(len(curves))
    for a, (share, points) in zip(axis, curves.items(), strict=True):
        x = [100 * p.accuracy for p in points]
        a.plot(x, [p.quality.mean for p in points], marker="o", ms=4, label="simulated oracle")
        a.fill_between(x, [p.quality.low for p in points], [p.quality.high for p in points], alpha=0.15, lw=0)
        a.axhline(by_oracle(pair, share), ls="--", color="tab:red", label="the card's oracle")
        a.axhline(float(pair.teacher.mean()), ls=":", color="0.3", label="teacher for everything")
        a.axhline(float(pair.student.mean()), ls="-.", color="0.6", label="student for everything")
        a.set_title(f"{share:.0%} of drafts escalated")
        a.set_xlabel("the oracle is right about which is better, percent")
    axis[0].set_ylabel("mean judge's score")
    axis[0].legend(fontsize=8)
    return _png(figure)


def draw_preference(points: Sequence[FrontierPoint], name: str, baseline: str) -> bytes:
    """Figure 7 with a judge for people: share of pictures preferred to the baseline's, against steps. PNG."""
    import matplotlib as mpl

    figure, axis = _panel(1)
    colours = mpl.colormaps["tab20"]
    for k, (method, group) in enumerate(by_method([p for p in points if not p.bound and p.method != "chance"]).items()):
        known = sorted((p for p in group if name in p.values), key=lambda p: p.steps)
        if not known:
            continue
        x, y = [p.steps for p in known], [100 * p.values[name].mean for p in known]
        low = [100 * (p.values[name].mean - p.values[name].low) for p in known]
        high = [100 * (p.values[name].high - p.values[name].mean) for p in known]
        axis[0].errorbar(
            x, y, [low, high], marker="o", ms=4, lw=1.2, capsize=2, label=method, color=colours(k % 20)
        )  # fmt: skip
    axis[0].axhline(50, color="0.4", ls="--", lw=1)
    axis[0].set_xscale("log")
    ticks = [3, 5, 8, 10, 15, 20, 25, 50]
    axis[0].set_xticks(ticks, [str(t) for t in ticks])
    axis[0].minorticks_off()
    axis[0].set_xlabel("mean steps a picture")
    axis[0].set_ylabel(f"percent preferred to {baseline}, ties one half")
    axis[0].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    return _png(figure)


def _panel(count: int) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, count, figsize=(6.5 * count if count > 1 else 8, 5.5), squeeze=False, sharey=True)
    for a in axes[0]:
        a.grid(alpha=0.3)
    return figure, axes[0]


def _png(figure: Any) -> bytes:
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()
