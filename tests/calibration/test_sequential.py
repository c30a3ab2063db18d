"""Sequential policies on a table of attempts: against a plain loop, closed forms and a search with a known answer."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allaprima.calibration.sequential import (
    Attempts,
    AttemptTable,
    PolicyFamily,
    SequentialCandidate,
    best_mixture,
    random_escalation,
    search_policy,
    simulate,
    split_by_prompt,
)
from allaprima.cascade.policy import Decision
from allaprima.cascade.sequential import EarlyStop, SequentialPolicy
from allaprima.core.errors import SettingError


def attempts(rng, number, rows, steps, right=0.6, cost=1.0):
    """Verdicts by chance and an oracle that knows more after every step."""
    value = (rng.random((number, rows)) < right).astype(float)
    noise = rng.normal(0, 1, (number, rows, steps)) * np.linspace(1.5, 0.5, steps)
    return Attempts(value[:, :, None] * 2 - 1 + noise, value, cost)


def table(rows=40, seed=0, look=0.5):
    rng = np.random.default_rng(seed)
    drafts = {2: attempts(rng, 4, rows, 2), 3: attempts(rng, 4, rows, 3, 0.65)}
    return AttemptTable(drafts, {5: attempts(rng, 4, rows, 5, 0.8, 2.0)}, look)


def by_hand(policy, drafts, teacher, look, row):
    """One row in plain steps: value, cost, drafts, tries."""
    cost, images, count, tries = 0.0, [], 0, 0
    best = None
    while count < policy.max_drafts:
        last = count == policy.max_drafts - 1
        may_end = not last or policy.max_teacher_tries > 0
        alive = True
        for step in range(drafts.steps - 1):
            cost += drafts.step_cost
            due = [e.threshold for e in policy.draft_stops if e.step == step + 1]
            if due and may_end:
                cost += look
                if drafts.scores[count, row, step] < due[0]:
                    alive = False
                    break
        if alive:
            cost += drafts.step_cost + look
            one = drafts.scores[count, row, -1], drafts.value[count, row]
            best = one if best is None or one[0] > best[0] else best
        count += 1
        if best is not None and best[0] >= policy.threshold:
            return best[1], cost, count, 0
    place = 0 if policy.noise == "same" else 1
    while tries < policy.max_teacher_tries:
        last = tries == policy.max_teacher_tries - 1
        alive = True
        for step in range(teacher.steps - 1):
            cost += teacher.step_cost
            due = [e.threshold for e in policy.teacher_stops if e.step == step + 1]
            if due and not last:
                cost += look
                if teacher.scores[place, row, step] < due[0]:
                    alive = False
                    break
        tries += 1
        if alive:
            cost += teacher.step_cost
            again = policy.max_teacher_tries > 1 and policy.teacher_threshold > -math.inf
            if again or (policy.margin < math.inf and (best is not None or policy.max_teacher_tries > 1)):
                cost += look
            images.append((teacher.scores[place, row, -1], teacher.value[place, row]))
            if images[-1][0] >= policy.teacher_threshold:
                break
        place += 1
    if not images:
        return best[1], cost, count, tries
    top = max(images, key=lambda x: x[0])
    if best is not None and best[0] > top[0] + policy.margin:
        top = best
    return top[1], cost, count, tries


thresholds = st.sampled_from([-math.inf, -1.0, -0.3, 0.0, 0.4, 1.0, math.inf])
stops = st.lists(st.builds(EarlyStop, st.integers(1, 5), thresholds), max_size=2, unique_by=lambda e: e.step).map(tuple)
policies = st.builds(
    SequentialPolicy, thresholds, st.integers(0, 4), st.integers(1, 3), st.just(Decision.REGENERATE),
    teacher_threshold=thresholds, noise=st.sampled_from(["same", "fresh"]), margin=st.sampled_from([0.0, 0.5, math.inf]),
    draft_stops=stops, teacher_stops=stops,
)  # fmt: skip
without_teacher = st.builds(SequentialPolicy, thresholds, st.integers(1, 4), st.just(0), draft_stops=stops)


@settings(deadline=None)
@given(st.one_of(policies, without_teacher), st.sampled_from([2, 3]))
def test_a_policy_is_looked_up_as_it_would_go(policy, steps):
    held = table()
    out = simulate(SequentialCandidate(policy, steps, 5), held)
    for row in range(len(held)):
        value, cost, drafts, tries = by_hand(policy, held.drafts[steps], held.teacher[5], held.score_cost, row)
        assert out.value[row] == value
        assert out.cost[row] == pytest.approx(cost)
        assert (out.drafts[row], out.tries[row]) == (drafts, tries)


def test_retries_under_a_perfect_oracle_follow_the_closed_form():
    rng = np.random.default_rng(1)
    p, n = 0.55, 4
    drafts = attempts(rng, n, 40_000, 2, p)
    held = AttemptTable({2: drafts}, {}, 0.5).judged_by_value()
    out = simulate(SequentialCandidate(SequentialPolicy(0.5, n, 0), 2, None), held)
    assert out.mean_value == pytest.approx(1 - (1 - p) ** n, abs=0.006)
    assert out.mean_cost == pytest.approx(2.5 * (1 - (1 - p) ** n) / p, rel=0.01)


def test_the_search_finds_what_pays():
    """Drafts at 2.5, a teacher at 10.5: with a good oracle three drafts beat one try, and the search says so."""
    held = table(800, 2)
    budget = 6.0
    retried, out = search_policy(PolicyFamily("student retried", 4, 0), held, budget, drawn=300, moves=100)
    assert retried.teacher is None
    assert out.mean_cost <= budget
    once = simulate(SequentialCandidate(SequentialPolicy(-math.inf, 1, 0), 3, None), held)
    assert out.mean_value > once.mean_value + 0.15
    paper = search_policy(PolicyFamily("paper", 1, 1), held, budget, drawn=300, moves=100)
    assert paper is not None
    assert paper[1].mean_value < out.mean_value
    assert search_policy(PolicyFamily("teacher", 0, 1), held, 5.0, drawn=50) is None
    assert search_policy(PolicyFamily("paper", 1, 1), held, 1.0, drawn=50) is None


def test_early_stops_pay_where_steps_are_dear():
    rng = np.random.default_rng(3)
    value = (rng.random((4, 1000)) < 0.5).astype(float)
    # Known for certain after the first of four steps.
    certain = Attempts(np.repeat((value * 2 - 1)[:, :, None], 4, 2), value, 1.0)
    held = AttemptTable({4: certain}, {}, 0.1)
    early = search_policy(PolicyFamily("early", 4, 0, early=True), held, 6.0, drawn=300, moves=100)
    blind = search_policy(PolicyFamily("without", 4, 0), held, 6.0, drawn=300, moves=100)
    assert early[1].mean_value > blind[1].mean_value + 0.03


def test_escalation_by_chance_lies_between_none_and_all():
    held = table(2000, 4)
    policy = SequentialCandidate(SequentialPolicy(0.0, 1, 1, Decision.REGENERATE), 3, 5)
    none = simulate(SequentialCandidate(SequentialPolicy(-math.inf, 1, 1, Decision.REGENERATE), 3, 5), held).mean_value
    every = simulate(SequentialCandidate(SequentialPolicy(math.inf, 1, 1, Decision.REGENERATE), 3, 5), held).mean_value
    chance = random_escalation(policy, held).mean()
    assert none < chance < every
    assert simulate(policy, held).mean_value > chance + 0.03


def test_settings_are_mixed_between_their_costs():
    assert best_mixture([10, 20], [0.5, 0.7], 15) == pytest.approx([0.5, 0.5])
    assert best_mixture([10, 20], [0.5, 0.7], 40) == [0, 1]
    assert best_mixture([10, 20], [0.7, 0.5], 40) == [1, 0], "what is dearer and worse is not taken"
    assert best_mixture([10, 20], [0.5, 0.7], 5) is None
    assert best_mixture([10, 20, 30], [0.7, 0.5, 0.9], 20) == pytest.approx([0.5, 0, 0.5]), "a poor one between is skipped"


def test_halves_share_no_prompt():
    prompts = [f"p{i % 7}" for i in range(40)]
    a, b = split_by_prompt(prompts, 0)
    assert sorted([*a, *b]) == list(range(40))
    assert not {prompts[i] for i in a} & {prompts[i] for i in b}
    assert list(split_by_prompt(prompts, 1)[0]) != list(a)


def test_what_the_table_does_not_hold_is_refused():
    held = table()
    with pytest.raises(SettingError, match="wants 5 drafts, the table holds 4"):
        simulate(SequentialCandidate(SequentialPolicy(math.inf, 5, 0), 2, None), held)
    with pytest.raises(SettingError, match="drafts of 2, 3 steps, not of 4"):
        simulate(SequentialCandidate(SequentialPolicy(0.0, 1, 0), 4, 5), held)
    with pytest.raises(SettingError, match="no refined ones"):
        simulate(SequentialCandidate(SequentialPolicy(0.0), 2, 5), held)
    with pytest.raises(SettingError, match="of shape"):
        Attempts(np.zeros((2, 3)), np.zeros((2, 3)), 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_drafts": 65}, "max_drafts=65 is out of range: 0..64"),
        ({"max_drafts": 0, "max_teacher_tries": 0}, "generate nothing"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"margin": -1.0}, "margin=-1.0 is below 0"),
        ({"noise": "other"}, "noise='other' is not known"),
        ({"action": Decision.ACCEPT}, "action='accept' is not known"),
        ({"regenerate_below": 1.0}, "is above threshold=0.0"),
    ],
)
def test_policies_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(SettingError, match=message):
        SequentialPolicy(**{"threshold": 0.0, **changes})


def test_early_stops_that_mean_nothing_are_refused():
    with pytest.raises(SettingError, match="step=0"):
        EarlyStop(0, 0.0)
    with pytest.raises(SettingError, match="nan"):
        EarlyStop(1, math.nan)
