"""A steered threshold in the machine: order decides, batches don't, and each picture keeps what it was decided with."""

import math

import numpy as np
import pytest

from allaprima.calibration.budget import Prices
from allaprima.calibration.steering import SteeredThreshold
from allaprima.cascade.latent_cascade import LatentCascade
from allaprima.cascade.policy import AlwaysPolicy, Decision, ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.runner import run
from tests.toys import SETTINGS, Grey, Toy

PRICES = Prices.from_steps(2, 3)
HELD_OUT = np.linspace(0.2, 0.8, 40)


def steered(budget=3.5, horizon=3.0):
    return SteeredThreshold(HELD_OUT, PRICES, budget, horizon)


def paint(policy, prompts, batch_size=4, oracle=None):
    cascade = LatentCascade(Toy(), Toy(0.3), oracle or Grey(), policy, SETTINGS.changed(batch_size=batch_size))
    requests = [GenerationRequest(p, i, index=i) for i, p in enumerate(prompts)]
    return sorted(run(cascade, requests), key=lambda r: r.request.index)


PROMPTS = [f"{v:.3f}" for v in np.random.default_rng(5).uniform(0.1, 0.9, 30)]


def test_batches_do_not_change_decisions_and_order_does():
    two, four, eight = (paint(steered(), PROMPTS, n) for n in (2, 4, 8))
    told = [(r.decision, r.threshold) for r in four]
    assert [(r.decision, r.threshold) for r in two] == told
    assert [(r.decision, r.threshold) for r in eight] == told
    assert len({t for _, t in told}) > 3, "the threshold never moved: this shows nothing"
    backwards = paint(steered(), PROMPTS[::-1])[::-1]
    assert [r.decision for r in backwards] != [r.decision for r in four]


def test_a_picture_keeps_the_threshold_it_was_decided_with():
    policy = steered()
    begins = policy.threshold
    results = paint(policy, PROMPTS, oracle=Grey(broken=(PROMPTS[7],)))
    assert results[0].threshold == begins
    assert math.isnan(results[7].score)
    # Its own threshold alone gives a picture's decision again, one picture at a time, ties and failed scores included.
    for r in results:
        assert ThresholdPolicy(r.threshold).decide([r.score]) == [r.decision]
    sent = [r.decision is Decision.REFINE for r in results]
    assert 2 + 3 * np.mean(sent) == policy.mean_cost == pytest.approx(3.5, abs=policy.worst_case(len(PROMPTS)))


def test_ties_keep_a_threshold_that_tells_them_apart():
    policy = SteeredThreshold([0.5] * 20, PRICES, 3.5)
    seen = []
    for _ in range(40):
        threshold = policy.threshold
        (decision,) = policy.decide([0.5])
        assert ThresholdPolicy(threshold).decide([0.5]) == [decision]
        seen.append(decision)
    assert seen.count(Decision.REFINE) == 20


def test_what_is_never_compared_has_no_threshold():
    assert [r.threshold for r in paint(AlwaysPolicy(Decision.REGENERATE), ["0.1"])] == [None]
    assert [r.threshold for r in paint(ThresholdPolicy(0.4), ["0.1", "0.9"])] == [0.4, 0.4]


@pytest.mark.parametrize("seed", range(5))
def test_a_stopped_run_decides_what_is_left_as_if_never_stopped(seed):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.1, 0.9, 60).round(2).tolist()
    whole = steered()
    decided, thresholds = [], []
    for s in scores:
        thresholds.append(whole.threshold)
        decided += whole.decide([s])
    # Any of the pictures may be finished, in the middle as well as in front.
    finished = rng.uniform(size=60) < np.where(np.arange(60) < 40, 0.7, 0)
    again = steered()
    again.resume(d if f else None for d, f in zip(decided, finished, strict=True))
    for i in np.flatnonzero(~finished):
        assert again.threshold == thresholds[i]
        assert again.decide([scores[i]]) == [decided[i]]
    assert (again.pictures, again.spent) == (whole.pictures, whole.spent)
