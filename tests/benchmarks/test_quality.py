"""The quality benchmark's own arithmetic: the best threshold, and how a cascade's pictures are chosen."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import SettingError
from benchmarks.quality import Painted, decision_accuracy, held_out_thresholds, rows_of


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_the_best_threshold_is_the_best_of_all(pairs):
    scores, wins = [float(s) + 0.01 * i for i, (s, _) in enumerate(pairs)], [w for _, w in pairs]
    found = decision_accuracy(scores, wins)
    every = [np.mean([(s > tau) == w for s, w in zip(scores, wins, strict=True)]) for tau in [-1.0, *scores]]
    assert found["accuracy"] == pytest.approx(max(every))
    tau = found["tau"]
    assert np.mean([(s > tau) == w for s, w in zip(scores, wins, strict=True)]) == pytest.approx(found["accuracy"])
    assert found["accuracy"] >= found["always_the_same"] - 1e-12


def test_area_under_the_curve_counts_pairs():
    scores, wins = [0.1, 0.4, 0.4, 0.8, 0.2], [False, True, False, True, True]
    pairs = [(a, b) for (a, w), (b, v) in itertools.product(zip(scores, wins, strict=True), repeat=2) if w and not v]
    truth = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])
    assert decision_accuracy(scores, wins)["auc"] == pytest.approx(truth)


def test_rows_take_the_draft_or_the_teachers_picture_by_the_other_seeds_thresholds():
    n = 40
    scores = torch.linspace(0, 1, n, dtype=torch.float64)
    drafts = torch.zeros(n, 3, 2, 2, dtype=torch.uint8)

    def both(value):
        images = torch.full((n, 3, 2, 2), value, dtype=torch.uint8)
        # The second seed's drafts all score higher by 10: by its own threshold half of the first seed would be kept.
        return [Painted(images, drafts, scores + 10 * j) for j in range(2)]

    names = {"refine-10": 10, "refine-5": 5, "dpm-10": 1, "dpm-25": 2, "ddim-50": 3, "teacher": 4, "action": 20, "draft": 0}
    names["ddim-50-card"] = 5
    painted = {k: both(v) for k, v in names.items()}
    rows = rows_of(painted, CascadeSettings(student_steps=5, teacher_steps=20), (10.0, 15.0))
    assert rows["adaptive 15"].images[0].eq(20).all(), "the first seed's drafts fall below the second's threshold"
    assert rows["adaptive 15"].images[1].eq(0).all()
    assert rows["refine all 15"].images.eq(10).all()
    assert rows["refine all 10"].steps == 10
    assert rows["student 5"].images.eq(0).all()
    assert "adaptive 15, rechecked" not in rows
    # The first seed's drafts lead by .1 to 4, the second's by 10.1 to 14: only the second's beat the other's median.
    scorers = torch.stack([scores - torch.linspace(0.1, 4, n), scores - torch.linspace(0.1, 4, n)])
    again = rows_of(painted, CascadeSettings(student_steps=5, teacher_steps=20), (15.0,), scorers)["adaptive 15, rechecked"]
    assert again.images[0].eq(20).all()
    assert again.images[1].eq(0).all()
    painted["draft"] = [Painted(drafts, None, scores), Painted(drafts, None, scores)]
    half = rows_of(painted, CascadeSettings(student_steps=5, teacher_steps=20), (15.0,))["adaptive 15"]
    assert half.steps == pytest.approx(15, abs=0.5)
    assert half.images[0, : n // 2 - 1].eq(20).all()
    assert half.images[0, n // 2 + 1 :].eq(0).all()
    with pytest.raises(SettingError, match="at least 2"):
        held_out_thresholds(scores[None], 0.5)
