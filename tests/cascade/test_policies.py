"""Policies beyond the threshold: what they decide, what that costs, and that they survive a file."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allaprima.cascade.job import Job, Stage
from allaprima.cascade.latent_cascade import LatentCascade
from allaprima.cascade.policy import (
    AlwaysPolicy,
    Context,
    Decision,
    PreRoute,
    ThresholdPolicy,
    policy_from_dict,
    policy_to_dict,
)
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.router import PromptRouter, Ridge, prompt_features
from allaprima.cascade.runner import run
from allaprima.cascade.sequential import SequentialPolicy
from allaprima.cascade.value import GainModel, ValuePolicy, draft_features
from allaprima.core.errors import SettingError
from tests.toys import SETTINGS, Grey, Toy


def paint(prompts, policy, oracle=None, bias=0.3, seed=2):
    cascade = LatentCascade(Toy(), Toy(bias), oracle or Grey(), policy, SETTINGS)
    requests = [GenerationRequest(p, seed + i, index=i) for i, p in enumerate(prompts)]
    return sorted(run(cascade, requests), key=lambda r: r.request.index)


def decisions(results):
    return [str(r.decision) for r in results]


def test_a_band_refines_the_middling_and_regenerates_the_poor():
    policy = SequentialPolicy(0.6, regenerate_below=0.3, margin=math.inf)
    assert policy.decide([0.1, 0.3, 0.59, 0.6, math.nan]) == ["regenerate", "refine", "refine", "accept", "regenerate"]
    assert decisions(paint(["0.05", "0.45", "0.9"], policy)) == ["regenerate", "refine", "accept"]
    with pytest.raises(SettingError, match=r"regenerate_below=0.7.*threshold=0.6"):
        SequentialPolicy(0.6, regenerate_below=0.7, margin=math.inf)


def test_best_of_stops_when_a_draft_will_do_and_keeps_the_best():
    easy, hard = paint(["0.9", "0.1"], SequentialPolicy(0.5, 3, margin=math.inf))
    assert (easy.attempts, hard.attempts) == (1, 3)
    assert easy.cost.evaluations == {"student": 4, "oracle": 1}
    assert hard.cost.evaluations == {"student": 12, "oracle": 3, "teacher": 6}
    assert decisions([easy, hard]) == ["accept", "refine"]
    # Guided steps count two. The first draft is one of the three; the others come from other noise.
    (_, first) = paint(["0.9", "0.1"], ThresholdPolicy(0.5))
    (_, second) = paint(["0.9", "0.1"], SequentialPolicy(0.5, 2, margin=math.inf))
    scores = [first.score, second.score, hard.score]
    assert scores == sorted(scores)
    assert len(set(scores)) > 1, "the seeds of this test never gave a better draft: it shows nothing"
    for result in (first, second, hard):
        assert float(result.draft.mean()) == pytest.approx(result.score)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_later_draft_can_be_painted_by_itself(steps):
    """One step shows the initial noise, two show the noise between steps."""

    def scores(policy, attempt):
        settings = dataclasses.replace(SETTINGS, student_steps=steps)
        cascade = LatentCascade(Toy(), Toy(), Grey(), policy, settings)
        return [r.score for r in run(cascade, [GenerationRequest("0.1", s, attempt=attempt) for s in range(4)])]

    first, second = (scores(AlwaysPolicy(Decision.ACCEPT), k) for k in (0, 1))
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 0.01
    assert scores(SequentialPolicy(0.9, 2, margin=math.inf), 0) == [max(ab) for ab in zip(first, second, strict=True)]


def test_the_refined_draft_is_the_best_one():
    _, result = paint(["0.9", "0.1"], SequentialPolicy(0.5, 3, margin=math.inf))
    shades = {n: float(paint(["0.9", "0.1"], SequentialPolicy(0.5, n, margin=math.inf))[1].image.mean()) for n in (1, 2, 3)}
    assert float(result.image.mean()) == shades[3]
    assert shades[3] > shades[1], "a lighter draft leaves a lighter picture"


def test_a_second_look_keeps_the_better_of_draft_and_picture():
    (kept,) = paint(["0.1"], SequentialPolicy(0.5))
    assert (kept.selected, decisions([kept])) == ("final", ["refine"])
    assert kept.final_score > kept.score
    assert kept.cost.evaluations == {"student": 4, "teacher": 6, "oracle": 2}
    (worse,) = paint(["0.1"], SequentialPolicy(0.5), bias=-0.3)
    assert worse.selected == "draft"
    assert torch.equal(worse.image, worse.draft)
    lead = worse.score - worse.final_score
    for margin, gets in ((0.9 * lead, "draft"), (1.1 * lead, "final")):
        (again,) = paint(["0.1"], SequentialPolicy(0.5, margin=margin), bias=-0.3)
        assert again.selected == gets
    (accepted,) = paint(["0.9"], SequentialPolicy(0.5))
    assert (accepted.selected, accepted.final_score) == (None, None)


def test_hard_prompts_skip_the_draft():
    router = PromptRouter.fit([torch.tensor([[v]]) for v in (0.1, 0.5, 0.9)], [0.1, 0.5, 0.9], strength=0.0)
    assert router.expect(torch.tensor([[0.3]])) == pytest.approx(0.3)
    hard, easy = paint(["0.1", "0.9"], PreRoute(ThresholdPolicy(0.5), router, below=0.4))
    assert hard.draft is None
    assert hard.cost.evaluations == {"teacher": 6}
    assert decisions([hard, easy]) == ["regenerate", "accept"]
    (alone,) = paint(["0.1"], AlwaysPolicy(Decision.REGENERATE))
    assert torch.equal(alone.image, hard.image)


def test_an_oracle_that_raises_costs_the_score_and_not_the_picture():
    # One batch of four: its other pictures are scored by themselves, and as they would have been without the broken one.
    prompts = ["0.9", "0.8", "0.7", "0.6", "0.9"]
    results = paint(prompts, ThresholdPolicy(0.5), Grey(broken=("0.7",)))
    assert decisions(results) == ["accept", "accept", "refine", "accept", "accept"]
    assert "no such weights" in results[2].warning
    assert math.isnan(results[2].score)
    others = paint(prompts, ThresholdPolicy(0.5))
    assert [(r.score, r.warning) for r in results if r is not results[2]] == [
        (r.score, None) for r in others if r is not others[2]
    ]
    assert all(r.image is not None for r in results)


def value_policy(price, drafts=1):
    rng = np.random.default_rng(0)
    rows = rng.random((200, 9))
    gains = {"refine": 0.5 - rows[:, 0], "regenerate": 0.8 - 1.2 * rows[:, 0], "redraft": 0.1 - 0.1 * rows[:, 0]}
    return ValuePolicy(GainModel.fit(rows, gains, 1e-6), {"refine": 1.0, "regenerate": 3.0, "redraft": 0.5}, price, drafts)


def context(n, attempts=1):
    return Context(["x"] * n, [torch.ones(2, 3)] * n, [torch.full((3, 4, 4), 0.5)] * n, [attempts] * n)


def test_value_takes_what_pays():
    policy = value_policy(0.0)
    one = context(1)
    expected = policy.model.expect(draft_features(0.2, one.embeds[0], one.images[0]))
    assert expected["refine"] == pytest.approx(0.3, abs=0.02)
    assert expected["regenerate"] == pytest.approx(0.56, abs=0.02)
    assert policy.decide([0.2, 0.9], context(2)) == ["regenerate", "accept"]
    assert value_policy(0.2).decide([0.2], one) == ["refine"], "regenerating gains .26 more and costs .4 more"
    assert value_policy(0.2).decide([math.nan], one) == ["regenerate"]
    assert value_policy(9.0).decide([0.2], one) == ["accept"]
    cheap = value_policy(0.1, drafts=2)
    assert cheap.decide([0.6], context(1, attempts=2)) == ["accept"], "no attempt is left"
    with pytest.raises(SettingError, match="give a context"):
        policy.decide([0.2])
    with pytest.raises(SettingError, match="must be positive"):
        ValuePolicy(policy.model, {**policy.costs, "refine": 0.0}, 0.1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_price_never_spends_more(scores, a, b):
    low, high = sorted((a, b))

    def spent(price):
        policy = value_policy(price)
        return sum(policy.costs.get(str(d), 0.0) for d in policy.decide(scores, context(len(scores))))

    assert spent(high) <= spent(low)


def test_ridge_is_least_squares_and_ignores_what_never_changed():
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.random((50, 3)), np.full((50, 1), 7.0)], 1)
    y = x @ [1.0, -2.0, 3.0, 9.0] + 0.5
    model = Ridge.fit(x, y, 0.0 + 1e-12)
    assert model.predict(np.array([0.2, 0.3, 0.4, 7.0])) == pytest.approx(0.2 - 0.6 + 1.2 + 63 + 0.5)
    assert model.predict(np.array([0.2, 0.3, 0.4, 99.0])) == pytest.approx(model.predict(np.array([0.2, 0.3, 0.4, 7.0])))
    assert Ridge.from_dict(model.to_dict()) == model
    with pytest.raises(SettingError, match="finite"):
        Ridge.fit(x, y * np.nan, 0.1)


def test_prompt_features_leave_padding_out():
    embed = torch.tensor([[1.0, 3.0], [3.0, 5.0], [0.0, 0.0]])
    assert prompt_features(embed).tolist() == [2.0, 4.0, 2.0]
    assert prompt_features(torch.zeros(2, 2)).tolist() == [0.0, 0.0, 0.0]


def test_draft_features_see_edges_speckle_and_background():
    embed, flat = torch.ones(2, 3), torch.ones(3, 16, 16)
    plain = draft_features(0.5, embed, flat)
    assert plain[:3].tolist() == [0.5, 0.25, 2.0]
    assert plain[3:].tolist() == [0, 0, 0, 1, 0, 0]
    noisy = draft_features(0.5, embed, torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert (noisy[[3, 4, 5, 7, 8]] > 0.05).all()


@pytest.mark.parametrize(
    "policy",
    [
        ThresholdPolicy(0.4, Decision.REGENERATE),
        AlwaysPolicy(Decision.ACCEPT),
        SequentialPolicy(0.6, regenerate_below=0.2, margin=math.inf),
        SequentialPolicy(0.4, 3),
        PreRoute(ThresholdPolicy(0.1), PromptRouter(Ridge((1.0,), (math.inf,), (2.0,), 0.3)), 0.2),
        value_policy(0.3, 2),
    ],
    ids=lambda p: type(p).__name__,
)
def test_policies_survive_json(policy):
    import json

    assert policy_from_dict(json.loads(json.dumps(policy_to_dict(policy)))) == policy


def test_an_unknown_kind_is_named():
    with pytest.raises(SettingError, match=r"'dice' is not known.*threshold"):
        policy_from_dict({"kind": "dice"})


def test_a_lead_below_nothing_is_refused():
    with pytest.raises(SettingError, match=r"margin=-0.1 is below 0"):
        SequentialPolicy(0.5, margin=-0.1)


def test_jobs_of_one_batch_may_bring_policies_of_their_own():
    policies = [ThresholdPolicy(0.5), AlwaysPolicy(Decision.ACCEPT), AlwaysPolicy(Decision.REGENERATE), None]
    cascade = LatentCascade(Toy(), Toy(0.3), Grey(), AlwaysPolicy(Decision.REFINE), SETTINGS)
    jobs = [Job(GenerationRequest("0.2", 7), policy) for policy in policies]
    while active := [j for j in jobs if j.stage is not Stage.DONE]:
        stage = min((j.stage for j in active), key=list(Stage).index)
        cascade.act(stage, [j for j in active if j.stage is stage])
    assert [str(j.decision) for j in jobs] == ["refine", "accept", "regenerate", "refine"]
    assert [j.threshold for j in jobs] == [0.5, None, None, None]
    for job, policy in zip(jobs, policies, strict=True):
        alone = LatentCascade(Toy(), Toy(0.3), Grey(), policy or AlwaysPolicy(Decision.REFINE), SETTINGS)
        (result,) = run(alone, [GenerationRequest("0.2", 7)])
        assert torch.equal(job.image, result.image)


def test_a_requests_own_policy_is_what_it_is_checked_by():
    cascade = LatentCascade(Toy(), Toy(0.3), None, AlwaysPolicy(Decision.ACCEPT), SETTINGS)
    cascade.check(GenerationRequest("0.2", 7))
    with pytest.raises(SettingError, match="needs an oracle"):
        cascade.check(GenerationRequest("0.2", 7), ThresholdPolicy(0.5))


def test_the_margin_of_a_second_look_is_the_jobs_own():
    cascade = LatentCascade(Toy(), Toy(-0.1), Grey(), AlwaysPolicy(Decision.ACCEPT), SETTINGS)
    jobs = [Job(GenerationRequest("0.6", 7), SequentialPolicy(math.inf, margin=lead)) for lead in (0.0, 5.0)]
    while active := [j for j in jobs if j.stage is not Stage.DONE]:
        cascade.act(active[0].stage, active)
    assert [j.selected for j in jobs] == ["draft", "final"]
