"""Intervals, sequences, agreement and flags against published values, closed forms and simulated voters."""

import math

import numpy as np
import pytest
from simulated_voters import study_votes, vote

from allaprima.core.errors import SettingError
from allaprima.study.agreement import nominal_alpha
from allaprima.study.annotators import qualities
from allaprima.study.outcomes import all_decided, in_order, majority, outcomes
from allaprima.study.questions import DIVERSITY, PREFERENCE
from allaprima.study.results import compare, differences, strengths
from allaprima.study.sequential import confidence_sequence, is_decided, log_evidence
from allaprima.study.win_probability import calibrate, fit_slope, isotonic


def test_alpha_is_krippendorffs_own():
    """Krippendorff 2011, examples B (binary data of two observers: .095) and C (four, with gaps: nominal .743)."""
    two = ["0100000010", "1110010000"]
    assert nominal_alpha(zip(*two, strict=True)) == pytest.approx(0.095, abs=5e-4)
    four = ["123321412...", "1233224125.3", ".3332342251.", "1233244125 1".replace(" ", "1")]
    four[3] = "12332441251."
    units = [[c for c in column if c != "."] for column in zip(*four, strict=True)]
    assert nominal_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_at_its_ends():
    assert nominal_alpha([["a", "a", "a"], ["b", "b", "b"]]) == 1
    assert math.isnan(nominal_alpha([["a", "a"], ["a", "a"]])) and math.isnan(nominal_alpha([["a"], ["b"]]))
    rng = np.random.default_rng(0)
    assert abs(nominal_alpha(rng.choice(list("ab"), (4000, 3)).tolist())) < 0.03


def test_majority_needs_more_than_half():
    assert majority(["a", "a", "b"], "tie") == "a"
    assert majority(["a", "b", "tie"], "tie") == "tie"
    assert majority(["a", "b"], "tie") == "tie" and majority(["b"], "tie") == "b"


def test_win_rates_by_hand():
    answers = ["aab", "bbb", "ab-", "aaa", "tta"]
    votes = [
        vote(i + 1, n, {"a": "a", "b": "b", "t": "tie", "-": "tie"}[c], band=i % 2)
        for i, row in enumerate(answers)
        for n, c in enumerate(row, 1)
    ]
    overall = next(c for c in compare(votes, PREFERENCE, 0.95, 3) if c.question == "overall" and c.band is None)
    assert (overall.wins, overall.ties, overall.losses) == (2, 2, 1)
    assert overall.rate.mean == pytest.approx(0.6)
    assert overall.sign_p == pytest.approx(1.0)  # 2 of 3: every outcome is at least as far
    bands = [c for c in compare(votes, PREFERENCE, 0.95, 3) if c.question == "overall" and c.band is not None]
    assert [(c.band, c.wins, c.ties, c.losses) for c in bands] == [(0, 1, 2, 0), (1, 1, 0, 1)]


def test_the_beginning_without_a_gap():
    votes = [vote(p, n, "a") for p in (1, 2, 4) for n in (1, 2, 3)] + [vote(3, 1, "b")]
    assert [o.pair for o in in_order(outcomes(votes, "overall", 3))] == [1, 2]
    assert not all_decided(votes, "overall", 3, 0.05, 1)
    assert all_decided([vote(p, n, "a") for p in range(1, 9) for n in (1, 2, 3)], "overall", 3, 0.05, 1)


def test_strengths_of_two_are_their_wins():
    # Half a tie is added: (30 + .25) / (40 + .5).
    votes = [vote(i, 1, "a" if i < 30 else "b") for i in range(40)]
    first = strengths(votes, "overall", 0.95, 1)[0]
    assert first.method == "student" and first.share.mean == pytest.approx(30.25 / 40.5, abs=1e-3)
    assert first.share.low < 30 / 40 < first.share.high
    assert first.share.high - first.share.low == pytest.approx(2 * 1.96 * (0.75 * 0.25 / 40) ** 0.5, rel=0.2)


def test_strengths_of_three_are_those_that_drew_the_votes():
    true = {"x": 4.0, "y": 2.0, "z": 1.0}
    rng = np.random.default_rng(1)
    votes = []
    for i in range(1500):
        a, b = [("x", "y"), ("y", "z"), ("x", "z")][i % 3]
        won = rng.random() < true[a] / (true[a] + true[b])
        votes.append(vote(i + 1, 1, "a" if won else "b", methods=(a, b)))
    found = strengths(votes, "overall", 0.95, 1)
    assert [s.method for s in found] == ["x", "y", "z"]
    for s in found:
        assert s.share.low <= true[s.method] / 7 <= s.share.high


def test_one_that_never_loses_is_not_infinitely_strong():
    found = strengths([vote(i, 1, "a") for i in range(10)], "overall", 0.95, 1)
    assert found[0].method == "student" and 0.9 < found[0].share.mean < 1


def test_diversity_counts_what_differs():
    from dataclasses import replace

    votes = [
        replace(vote(p, n, ""), methods=("student", "student"), answers=dict.fromkeys(DIVERSITY.names, said))
        for p, row in enumerate(
            [["different"] * 3, ["different", "different", "similar"], ["similar", "unsure", "different"]]
        )
        for n, said in enumerate(row)
    ]
    found = differences(votes, DIVERSITY, 0.95, 3)
    assert [(d.question, d.pairs) for d in found] == [(q, 3) for q in DIVERSITY.names]
    assert found[0].share.mean == pytest.approx(2 / 3)


def test_evidence_is_the_mixtures_likelihood_ratio():
    # The uniform mixture of coins gives any sequence with W of n the probability W! L! / (n + 1)!.
    for w, n in ((0, 3), (2, 5), (7, 7)):
        mixture = math.factorial(w) * math.factorial(n - w) / math.factorial(n + 1)
        assert math.exp(log_evidence(w, n, 0.3)) == pytest.approx(mixture / (0.3**w * 0.7 ** (n - w)))
    # A test martingale: its expectation stays 1, step by step, whatever came before.
    for w, n in ((0, 0), (3, 4)):
        up, down = (math.exp(log_evidence(w + x, n + 1, 0.3)) for x in (1, 0))
        assert 0.3 * up + 0.7 * down == pytest.approx(math.exp(log_evidence(w, n, 0.3)))
    # With ties as one half it can only shrink: a mean of .3 by ties alone and by ties and losses.
    tie, lost = (math.exp(log_evidence(3 + x, 5, 0.3)) for x in (0.5, 0))
    assert 0.6 * tie + 0.4 * lost <= math.exp(log_evidence(3, 4, 0.3)) + 1e-12


def test_the_ends_of_a_confidence_sequence():
    found = confidence_sequence([1.0] * 30 + [0.0] * 10, 0.05)
    for end in (found.low, found.high):
        assert log_evidence(30, 40, end) == pytest.approx(math.log(20), abs=1e-6)
    assert confidence_sequence([], 0.05) == type(found)(0.5, 0.0, 1.0)
    assert confidence_sequence([1.0] * 50, 0.05).high == 1 and confidence_sequence([0.0] * 50, 0.05).low == 0
    with pytest.raises(SettingError):
        confidence_sequence([2.0], 0.05)


def test_a_thousand_simulations_cover_at_the_stated_rate():
    """Pairs' majorities with a known mean; Wilson's interval may be off by its own approximation, 3 sigma are 2 %."""
    rng = np.random.default_rng(3)
    p = 0.6
    # Chance that a majority of three says a: by exact enumeration over the same voters.
    seen = np.mean([o.value for k in range(30) for o in outcomes(study_votes(rng, p, 400), "overall", 3)])
    exact = _majority_mean(p, ties=0.1, noise=0.2)
    assert seen == pytest.approx(exact, abs=0.02)
    inside = anytime = 0
    for _ in range(1000):
        values = rng.choice([1.0, 0.5, 0.0], 60, p=_majority_shares(p, 0.1, 0.2))
        from allaprima.evaluation.win_rate import wilson_interval

        i = wilson_interval(float(values.sum()), 60)
        inside += i.low <= exact <= i.high
        s = confidence_sequence(values.tolist(), 0.05)
        anytime += s.low <= exact <= s.high
    assert 0.93 <= inside / 1000 <= 0.995
    assert anytime / 1000 >= 0.95


def _majority_shares(p, ties, noise):
    a, b = (1 - ties) * (1 - noise), (1 - ties) * noise

    def most(x):
        return x**3 + 3 * x * x * (1 - x)

    up, down = most(a), most(b)
    return [p * up + (1 - p) * down, 1 - up - down, p * down + (1 - p) * up]


def _majority_mean(p, ties, noise):
    shares = _majority_shares(p, ties, noise)
    return shares[0] + shares[1] / 2


def test_the_sequential_test_keeps_its_error_rate_however_often_one_looks():
    rng = np.random.default_rng(4)
    alarms = fixed = found = 0
    for _ in range(1000):
        # No preference, many ties: looked at after every one of 300 pairs.
        values = rng.choice([1.0, 0.5, 0.0], 300, p=[0.4, 0.2, 0.4])
        totals = np.cumsum(values)
        alarms += any(log_evidence(float(t), n + 1, 0.5) >= math.log(20) for n, t in enumerate(totals))
        # What a fixed test does when it is looked at so often.
        z = (totals - np.arange(1, 301) / 2) / np.sqrt(0.2 * np.arange(1, 301))
        fixed += bool((np.abs(z[9:]) > 1.96).any())
        preferred = rng.choice([1.0, 0.5, 0.0], 300, p=[0.6, 0.15, 0.25])
        found += is_decided(preferred.tolist(), 0.05)
    assert alarms / 1000 <= 0.05
    assert fixed / 1000 > 0.2
    assert found / 1000 > 0.95


def test_careless_voters_are_flagged_and_careful_ones_are_not():
    rng = np.random.default_rng(5)
    caught = wronged = 0
    for _ in range(100):
        votes = study_votes(rng, voters=3, careless=(3,))
        gold = [
            vote(100 + k, n, "a" if n != 3 else ["a", "tie", "b"][rng.integers(3)], kind="gold", expected={"overall": "a"})
            for n in (1, 2, 3)
            for k in range(6)
        ]
        found = {q.annotator: q for q in qualities(votes, gold, "overall")}
        caught += bool(found[3].flags)
        wronged += bool(found[1].flags) + bool(found[2].flags)
    # Six checks alone catch a guesser of three answers in .68 of the cases.
    assert caught >= 72
    assert wronged <= 10


def test_each_reason_to_doubt():
    quick = [vote(i, n, "a", left="ab"[i % 2], seconds=0.5 if n == 1 else 9) for i in range(30) for n in (1, 2, 3)]
    assert [bool(q.flags) for q in qualities(quick, [], "overall")] == [True, False, False]
    always_left = [vote(i, 1, "ab"[i % 2], left="ab"[i % 2]) for i in range(30)]
    assert "left picture 30 of 30" in qualities(always_left, [], "overall")[0].flags[0]
    failed = [vote(i, 1, "b", kind="gold", expected={"overall": "a"}) for i in range(3)]
    assert qualities([], failed, "overall")[0].flags == ("passed 0 of 3 attention checks",)


def test_slope_of_scores_is_the_one_that_drew_the_votes():
    rng = np.random.default_rng(6)
    gaps = rng.normal(size=6000)
    shares = rng.binomial(3, 1 / (1 + np.exp(-1.7 * gaps))) / 3
    assert fit_slope(gaps, shares) == pytest.approx(1.7, abs=0.08)
    assert fit_slope(np.zeros(5), np.ones(5)) == 0
    x, fitted = isotonic(gaps, shares)
    assert (np.diff(fitted) >= 0).all()
    inside = np.abs(x) < 2
    assert np.abs(fitted - 1 / (1 + np.exp(-1.7 * x)))[inside].mean() < 0.03

    # An independent check of the maximum: no slope near it is likelier.
    def loss(s):
        p = 1 / (1 + np.exp(-s * gaps))
        return -(shares * np.log(p) + (1 - shares) * np.log1p(-p)).sum()

    best = fit_slope(gaps, shares)
    assert loss(best) < min(loss(best - 0.01), loss(best + 0.01))


def test_accuracies_of_scores_against_votes():
    a, b = [3.0, 1.0, 2.0, 0.0, 5.0], [1.0, 2.0, 1.0, 1.0, 5.0]
    shares = [1.0, 0.0, 0.0, 1 / 3, 0.5]
    found = calibrate(a, b, shares, ["p", "q", "r", "s", "t"])
    assert found.pairs == 4
    assert found.full_reference.mean == 3 / 4  # the third pair's order is the votes' other one
    assert found.always_the_same == 3 / 4
    assert found.no_reference == 1.0  # only the best draft's vote was won
    with pytest.raises(SettingError, match="tie"):
        calibrate([1.0], [2.0], [0.5], ["p"])
