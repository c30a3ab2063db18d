"""Which batch goes next: the rule, and that nobody starves."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allaprima.serving.batching import PAINTING, BatchGroup, choose, oldest_first, passed_after


def group(key, ready, stage="student", size=8, oldest=0.0, passed=0):
    return BatchGroup(key, stage, ready, size, oldest, passed)


def test_nothing_ready_nothing_goes():
    assert choose([]) is None
    assert choose([group("a", 0)]) is None


def test_full_batches_first_in_turns():
    groups = [group("s", 9), group("t", 8, "teacher", passed=1), group("d", 3, "decode")]
    assert choose(groups) == "t"
    assert choose([group("s", 9), group("t", 7, "teacher", passed=1)]) == "s"


def test_then_what_fills_a_batch_or_finishes_pictures():
    assert choose([group("s", 7), group("new", 1, "new")]) == "new"
    assert choose([group("s", 7), group("t", 3, "teacher")]) == "s"


def test_the_oldest_of_equals():
    assert choose([group("a", 3, oldest=2.0), group("b", 3, oldest=1.0)]) == "b"


def test_one_that_was_passed_often_enough_goes_before_full_ones():
    assert choose([group("s", 9), group("t", 1, "teacher", passed=2)], patience=2) == "t"
    assert choose([group("s", 9), group("t", 1, "teacher", passed=2)], patience=3) == "s"


def test_passing_is_counted_while_there_are_jobs():
    groups = [group("a", 1, passed=4), group("b", 1, passed=1), group("c", 0, passed=3)]
    assert passed_after(groups, "a") == {"a": 0, "b": 2}


def test_oldest_jobs_of_a_group_go():
    assert oldest_first([3.0, 1.0, 2.0, 1.0], 3) == [1, 3, 2]
    assert oldest_first([3.0], 8) == [0]


STAGES = st.sampled_from([*sorted(PAINTING), "new", "score", "decode", "recheck"])


@given(stages=st.lists(STAGES, min_size=2, max_size=6), patience=st.integers(0, 4), seed=st.integers(0, 2**32))
def test_nobody_starves_whatever_arrives(stages, patience, seed):
    """Group 0 always has one job of a batch of 8; an adversary fills the others as it likes, for 40 batches."""
    passed, waited, dice = {}, 0, random.Random(seed)
    for _ in range(40):
        ready = [1] + [dice.choice((0, 1, 7, 8, 20)) for _ in stages[1:]]
        oldest = [100.0] + [dice.uniform(0, 99) for _ in stages[1:]]
        groups = [
            group(i, n, stage, oldest=old, passed=passed.get(i, 0))
            for i, (n, stage, old) in enumerate(zip(ready, stages, oldest, strict=True))
        ]
        chosen = choose(groups, patience)
        passed = passed_after(groups, chosen)
        waited = 0 if chosen == 0 else waited + 1
        assert waited <= patience + len(stages) - 1


@pytest.mark.parametrize("patience", [0, 1, 2, 5])
def test_a_trickle_of_escalations_is_served_beside_a_flood_of_drafts(patience):
    passed, teacher = {}, 0
    for _ in range(60):
        groups = [group("s", 99, passed=passed.get("s", 0)), group("t", 1, "teacher", passed=passed.get("t", 0))]
        chosen = choose(groups, patience)
        passed = passed_after(groups, chosen)
        teacher += chosen == "t"
    assert teacher >= 60 // (max(patience, 1) + 1) - 1
    assert teacher <= 60 - 60 // (patience + 2), "and the drafts go on"
