"""Successive halving against exhaustive search, exact accounting, and the least share for a target."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allaprima.calibration.search import Candidate, EvaluatedPair, candidates, escalated, search, share_for_target, share_of
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import SettingError
from allaprima.diffusion.noising import Variance

BASE = CascadeSettings(student_steps=3, teacher_steps=14, strategy="regenerate")
FOUND = candidates(BASE, 10, [2, 3, 5], [8, 14], [5], [0.5, 0.7], ["dpm_solver", "unipc"])


class Painted:
    """Quality by steps with noise that candidates share; counts the prompts each was asked for."""

    def __init__(self, n=400, noise=0.2):
        rng = np.random.default_rng(1)
        self.luck, self.noise, self.asked = rng.normal(size=n), noise, {}

    def evaluate(self, c, low, high):
        self.asked[c] = self.asked.get(c, 0) + high - low
        luck = self.luck[low:high]
        own = np.random.default_rng(zlib.crc32(str(c).encode())).normal(size=len(self.luck))[low:high] * self.noise
        draft = luck + 0.1 * c.student_steps + own
        best = 0.3 if c.strategy == "refine" else 0.0
        return EvaluatedPair(draft, draft, luck + 1 + 0.05 * c.teacher_steps + best + own)

    def full(self, c, n):
        scores, draft, made = self.evaluate(c, 0, n).columns
        return float(np.where(escalated(scores, share_of(c, 10)), made, draft).mean())


def test_it_finds_what_trying_everything_finds():
    painted = Painted()
    rounds = search(FOUND, painted.evaluate, 10, (40, 133, 400))
    best = rounds[-1][0]
    spent = sum(painted.asked.values())
    everything = {c: painted.full(c, 400) for c in FOUND}
    assert best.quality == pytest.approx(everything[best.candidate])
    assert best.quality >= sorted(everything.values())[-2]
    assert spent < 0.45 * 400 * len(FOUND), "most candidates are let go early"
    assert [len(r) for r in rounds] == [len(FOUND), -(-len(FOUND) // 3), -(-len(FOUND) // 9)]


def test_every_round_goes_on_from_the_last_and_keeps_the_budget():
    painted = Painted()
    rounds = search(FOUND, painted.evaluate, 10, (40, 120))
    for trials in rounds:
        assert trials == sorted(trials, key=lambda t: -t.quality)
        for t in trials:
            assert t.mean_steps <= 10 + t.candidate.teacher_steps / t.prompts
            assert t.share == pytest.approx(min(1, (10 - t.candidate.student_steps) / t.candidate.teacher_steps))
    assert {t.candidate for t in rounds[1]} <= {t.candidate for t in rounds[0]}
    assert max(painted.asked.values()) == 120, "prompts of the first round are not painted again"


def test_the_cards_own_setting_is_tried_and_applied_settings_are_valid():
    assert Candidate(3, "regenerate", 14, "dpm_solver") in FOUND
    for c in FOUND:
        s = c.applied(BASE)
        assert (s.student_steps, s.strategy, s.teacher_steps, s.teacher_solver) == (
            c.student_steps, c.strategy, c.teacher_steps, c.teacher_solver,
        )  # fmt: skip
        assert c.sigma is None or s.sigma == c.sigma
    refine = CascadeSettings(student_steps=3, strategy="refine", sigma=Variance(0.4))
    assert candidates(refine, 10, [3], [8], [5], [0.5], ["ddim"])[-1].sigma == Variance(0.4)


@given(
    st.lists(st.tuples(*[st.floats(-5, 5)] * 3), min_size=1, max_size=30),
    st.floats(-5, 5),
)
def test_the_least_share_that_reaches_a_target(rows, target):
    looked = EvaluatedPair(*(np.array(c) for c in zip(*rows, strict=True)))
    scores, draft, made = looked.columns
    n = len(scores)
    order = np.argsort(scores, kind="stable")

    def mean(m):
        final = draft.copy()
        final[order[:m]] = made[order[:m]]
        return final.mean()

    reaching = [m for m in range(n + 1) if mean(m) >= target - 1e-12]
    clear = [m for m in range(n + 1) if abs(mean(m) - target) > 1e-9]
    if len(clear) <= n:
        return  # decided by rounding
    if reaching:
        assert share_for_target(looked, target) * n == pytest.approx(reaching[0])
    else:
        with pytest.raises(SettingError, match="out of reach"):
            share_for_target(looked, target)


def test_refused():
    with pytest.raises(SettingError, match="shortest drafts take 2"):
        candidates(BASE, 2, [2, 3], [8], [5], [0.5], ["ddim"])
    for sizes, keep in (((5, 5), 0.3), ((), 0.3), ((1, 5), 0.3), ((4, 8), 1.0)):
        with pytest.raises(SettingError, match="growing"):
            search(FOUND, Painted().evaluate, 10, sizes, keep)


def test_the_lowest_scores_are_escalated():
    assert escalated(np.array([0.3, 0.1, 0.2]), 2 / 3).tolist() == [False, True, True]
    assert escalated(np.array([1.0, 1.0]), 0.5).tolist() == [True, False], "equal scores in their order"
