"""The sequential policy in the cascade: what it costs and gives is what the table of attempts says, image by image."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch

from allaprima.calibration.sequential import Attempts, AttemptTable, SequentialCandidate, simulate
from allaprima.cascade.latent_cascade import LatentCascade
from allaprima.cascade.policy import AlwaysPolicy, Decision, policy_from_dict, policy_to_dict
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.runner import run
from allaprima.cascade.sequential import EarlyStop, SequentialPolicy
from allaprima.core.errors import SettingError
from tests.toys import SETTINGS, Grey, Toy

ROWS = 12
SIZED = dataclasses.replace(SETTINGS, student_steps=3, teacher_steps=3, student_guidance=1, teacher_guidance=1)
"""Without guidance a step is one evaluation."""
REGENERATE = Decision.REGENERATE


def generate(policy, attempt=0, settings=SIZED, oracle=None):
    cascade = LatentCascade(Toy(0.1, 0.3), Toy(0.2, 0.3), oracle or Grey(), policy, settings)
    requests = [GenerationRequest("0.2", 100 + i, index=i, attempt=attempt) for i in range(ROWS)]
    results = sorted(run(cascade, requests), key=lambda r: r.request.index)
    assert not [r.error for r in results if r.error]
    return results


def everything(number=4):
    """All attempts of drafts and teacher with every score, from policies that never give up."""
    stops = tuple(EarlyStop(k, -math.inf) for k in (1, 2))
    drafts = [generate(SequentialPolicy(-math.inf, 1, 1, REGENERATE, draft_stops=stops), k) for k in range(number)]
    scores = np.array([[[p.score for p in r.previews] for r in row] for row in drafts])
    whole = SequentialPolicy(0.0, 0, number + 1, teacher_threshold=math.inf, teacher_stops=stops)
    tries = [[p for p in r.previews if p.attempt < number] for r in generate(whole)]
    made = np.array([[[p.score for p in row if p.attempt == k] for row in tries] for k in range(number)])
    # What an image is worth is its score here: the test compares images by it.
    return AttemptTable(
        {3: Attempts(scores, scores[:, :, -1], 1.0)}, {3: Attempts(made, made[:, :, -1], 1.0)}, score_cost=1.0
    )


@pytest.fixture(scope="module")
def table():
    return everything()


def policies(count=24):
    rng = random.Random(0)
    for _ in range(count):
        drafts = rng.randint(0, 4)
        yield SequentialPolicy(
            rng.choice([0.2, 0.25, 0.3, 0.35, 9.0]), drafts, rng.randint(0 if drafts else 1, 3), REGENERATE,
            teacher_threshold=rng.choice([-math.inf, 0.3, 0.4, 9.0]), noise=rng.choice(["same", "fresh"]),
            margin=rng.choice([0.0, 0.05, math.inf]),
            draft_stops=rng.choice([(), (EarlyStop(1, 0.25),), (EarlyStop(1, 0.2), EarlyStop(2, 0.25))]),
            teacher_stops=rng.choice([(), (EarlyStop(2, 0.35),)]),
        )  # fmt: skip


@pytest.mark.parametrize("policy", policies())
def test_the_cascade_goes_as_the_table_says(table, policy):
    expected = simulate(SequentialCandidate(policy, 3, 3), table)
    results = generate(policy)
    for i, r in enumerate(results):
        assert sum(r.cost.evaluations.values()) == expected.cost[i]
        assert (r.attempts, r.tries) == (expected.drafts[i], expected.tries[i])
        assert float(r.image.mean()) == pytest.approx(expected.value[i], abs=1e-6)
        assert r.steps == r.cost.evaluations.get("student", 0) + r.cost.evaluations.get("teacher", 0)
    assert len({r.steps for r in results}) > 0


def test_some_runs_are_given_up_and_their_steps_are_saved(table):
    stopped = SequentialPolicy(0.3, 4, 1, REGENERATE, draft_stops=(EarlyStop(1, 0.25),))
    results = generate(stopped)
    given_up = [p for r in results for p in r.previews if p.given_up]
    assert given_up
    assert {(p.model, p.step) for p in given_up} == {("student", 1)}
    whole = generate(dataclasses.replace(stopped, draft_stops=()))
    assert sum(r.steps for r in results) < sum(r.steps for r in whole)
    assert results[0].record()["previews"] == [dataclasses.asdict(p) for p in results[0].previews]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_images_are_the_same_in_any_batch_size(size):
    policy = SequentialPolicy(
        0.3, 3, 2, REGENERATE, teacher_threshold=0.4, noise="fresh", draft_stops=(EarlyStop(1, 0.25),),
        teacher_stops=(EarlyStop(2, 0.35),),
    )  # fmt: skip
    for one, other in zip(generate(policy), generate(policy, settings=SIZED.changed(batch_size=size)), strict=True):
        assert torch.allclose(one.image, other.image, atol=1e-6)
        assert (one.decision, one.attempts, one.tries, one.steps) == (
            other.decision,
            other.attempts,
            other.tries,
            other.steps,
        )
        assert [dataclasses.replace(p, score=None) for p in one.previews] == [
            dataclasses.replace(p, score=None) for p in other.previews
        ]


def test_batches_stay_full_while_requests_come():
    """Runs that end early make room: no batch but the last few is padded."""
    sizes = []

    class Counted(LatentCascade):
        def step(self, jobs):
            sizes.append(len(jobs))
            super().step(jobs)

    policy = SequentialPolicy(0.3, 4, 1, REGENERATE, draft_stops=(EarlyStop(1, 0.25),))
    cascade = Counted(Toy(0.1, 0.3), Toy(0.2, 0.3), Grey(), policy, SIZED)
    requests = (GenerationRequest("0.2", 100 + i, index=i) for i in range(200))
    assert len(list(run(cascade, requests))) == 200
    padded = [n for n in sizes if n < SIZED.batch_size]
    assert len(padded) < 0.05 * len(sizes)


def test_the_papers_policy_is_its_simplest_case():
    from allaprima.cascade.policy import ThresholdPolicy

    for action in (Decision.REFINE, Decision.REGENERATE):
        mine = generate(SequentialPolicy(0.3, action=action, margin=math.inf))
        theirs = generate(ThresholdPolicy(0.3, action))
        assert [r.record() for r in mine] == [r.record() for r in theirs]
        assert all(torch.equal(a.image, b.image) for a, b in zip(mine, theirs, strict=True))


def test_same_noise_is_the_teachers_own_image_and_fresh_noise_another():
    alone = generate(AlwaysPolicy(Decision.REGENERATE))
    same = generate(SequentialPolicy(9.0, action=REGENERATE, margin=math.inf))
    fresh = generate(SequentialPolicy(9.0, action=REGENERATE, noise="fresh", margin=math.inf))
    for a, b, c in zip(alone, same, fresh, strict=True):
        assert torch.equal(a.image, b.image)
        assert not torch.allclose(a.image, c.image, atol=1e-3)


def test_refining_again_takes_another_noise():
    once = generate(SequentialPolicy(9.0, teacher_threshold=-math.inf, margin=math.inf))
    twice = generate(SequentialPolicy(9.0, 1, 2, teacher_threshold=9.0, margin=math.inf))
    for a, b in zip(once, twice, strict=True):
        assert b.tries == 2
        assert b.final_score >= float(a.image.mean()) - 1e-6
    assert any(b.final_score > float(a.image.mean()) + 1e-3 for a, b in zip(once, twice, strict=True))


def test_an_oracle_that_fails_gives_nothing_up():
    policy = SequentialPolicy(0.3, 2, 1, REGENERATE, draft_stops=(EarlyStop(1, 0.9),))
    for r in generate(policy, oracle=Grey(broken=["0.2"])):
        assert not any(p.given_up for p in r.previews)
        assert r.previews[0].score is None
        assert (r.attempts, r.decision) == (2, Decision.REGENERATE)


def test_policies_survive_a_file():
    import json

    policy = SequentialPolicy(
        0.3, 3, 2, REGENERATE, teacher_threshold=-math.inf, margin=math.inf, draft_stops=(EarlyStop(1, -math.inf),),
        teacher_stops=(EarlyStop(2, 0.5),),
    )  # fmt: skip
    text = json.dumps(policy_to_dict(policy), allow_nan=False)
    assert policy_from_dict(json.loads(text)) == policy


def test_models_that_are_called_whole_refuse_early_stops():
    from allaprima.cascade.pixel_cascade import PixelCascade

    policy = SequentialPolicy(0.3, 2, draft_stops=(EarlyStop(1, 0.25),))
    with pytest.raises(SettingError, match="early stops need models that are sampled step by step"):
        PixelCascade(None, None, Grey(), policy, SIZED)
