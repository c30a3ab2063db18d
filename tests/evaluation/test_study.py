"""The paper's questions on pairs whose answers are known in closed form."""

import numpy as np
import pytest

from allaprima.core.errors import SettingError
from allaprima.evaluation.frontier import FrontierPoint, Measure
from allaprima.evaluation.intervals import Interval
from allaprima.evaluation.study import (
    PairedScores,
    by_oracle,
    decisions,
    draw_decisions,
    draw_preference,
    draw_simulated,
    over_threshold_table,
    reached,
    reached_table,
    simulated,
)


def pair(n=4000, sees=0.0, seed=0):
    """The draft wins by a fair coin; the oracle's score of a draft is that coin, `sees` of the time."""
    rng = np.random.default_rng(seed)
    wins = rng.random(n) < 0.5
    student, teacher = np.where(wins, 1.0, 0.0), np.where(wins, 0.0, 1.0)
    known = rng.random(n) < sees
    score = np.where(known, wins + 0.01 * rng.random(n), rng.random(n) < 0.5)
    return PairedScores(np.arange(n) // 2, student, teacher, score.astype(float), teacher + 0.5)


def test_accuracy_is_what_the_oracle_was_made_to_know():
    for sees in (0.0, 0.4, 1.0):
        found = decisions(pair(sees=sees))
        assert found.no_reference.mean == pytest.approx(0.5 + sees / 2, abs=0.03), "right where it knows, half elsewhere"
        assert found.auc == pytest.approx(0.5 + sees / 2, abs=0.03)
    assert found.student_preferred.mean == pytest.approx(0.5, abs=0.03)


def test_the_threshold_is_not_chosen_where_it_is_measured():
    # One picture a prompt and few of them: the best threshold in hindsight is always better than half.
    hindsight, held_out = [], []
    for seed in range(60):
        found = decisions(pair(n=40, seed=seed))
        hindsight.append(found.accuracy.max())
        held_out.append(found.no_reference.mean)
    assert np.mean(hindsight) > 0.54
    assert np.mean(held_out) == pytest.approx(0.5, abs=0.03)


def test_both_pictures_tell_when_the_scores_are_the_votes():
    p = pair(sees=1.0)
    exact = PairedScores(p.prompt, p.student, p.teacher, p.student, p.teacher)
    assert decisions(exact).full_reference.mean == 1
    assert decisions(PairedScores(p.prompt, p.student, p.teacher, p.teacher, p.student)).full_reference.mean == 0


def test_the_real_oracle_lies_on_the_curve_of_its_accuracy():
    p = pair(sees=0.6)
    curve = {round(q.accuracy, 2): q.quality.mean for q in simulated(p, [0.5])[0.5]}
    assert by_oracle(p, 0.5) == pytest.approx(curve[0.8], abs=0.03)
    assert by_oracle(p, 0.0) == pytest.approx(p.student.mean())
    assert by_oracle(p, 1.0) == pytest.approx(p.teacher.mean())


def point(method, steps, judge, **more):
    return FrontierPoint(method, steps, steps, {"judge": Interval(judge, judge - 0.1, judge + 0.1), **more})


def test_speedup_is_read_off_the_curve():
    points = [point("teacher", 10, 0.0), point("teacher", 50, 4.0), point("cascade", 5, 2.0), point("cascade", 15, 6.0)]
    rows = reached(points, [Measure("judge", "judge", True)], {"DDIM 50": ("teacher", 50)})
    found = {r.method: (r.steps, r.speedup) for r in rows}
    assert found == {"teacher": (50, 1), "cascade": (pytest.approx(10), pytest.approx(5))}
    assert "| DDIM 50 | judge | cascade | 10.0 | 5.0 |" in reached_table(rows)


def test_only_an_interval_on_the_good_side_is_bold():
    up = point("a", 8, 1.0, judge_over=Interval(0.2, 0.1, 0.3))
    across = point("b", 8, 1.0, judge_over=Interval(0.2, -0.1, 0.3))
    text = over_threshold_table([up, across, point("c", 8, 1.0)], [Measure("judge", "judge", True)], "_over")
    assert "**+0.200 (+0.100..+0.300)**" in text
    assert "| b | 8 | +0.200 (-0.100..+0.300) |" in text
    assert "| c |" not in text
    lower = over_threshold_table([up], [Measure("judge", "distance", False)], "_over")
    assert "**" not in lower


def test_pictures_are_pngs():
    p = pair(n=60, sees=0.5)
    wins = point("a", 8, 1.0, judge_wins=Interval(0.6, 0.5, 0.7))
    for png in (draw_decisions(decisions(p)), draw_simulated(p, simulated(p)), draw_preference([wins], "judge_wins", "x")):
        assert png.startswith(b"\x89PNG")


def test_refused():
    with pytest.raises(SettingError, match="one length"):
        PairedScores(np.arange(3), *[np.ones(2)] * 4)
    same = PairedScores(np.arange(3), *[np.ones(3)] * 4)
    with pytest.raises(SettingError, match="neither"):
        decisions(same)
