"""A bank replays policies: the same decisions, pictures, scores and costs as a live run; every policy meets its budget."""

import math

import numpy as np
import pytest
import torch

from allaprima.calibration.outcome_table import (
    OutcomeTable,
    generate_outcomes,
    simulate_policy,
)
from allaprima.calibration.policies import fit_all, fit_threshold, spend
from allaprima.cascade.latent_cascade import LatentCascade
from allaprima.cascade.policy import AlwaysPolicy, Decision, PreRoute, ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.router import PromptRouter
from allaprima.cascade.runner import run
from allaprima.cascade.sequential import SequentialPolicy
from allaprima.core.errors import SettingError
from tests.toys import SETTINGS, Grey, Toy

PROMPTS = [f"{i / 24:.4f}" for i in range(24)]
SEEDS = list(range(100, 124))


def live(requests, settings, policy, bias=0.3):
    cascade = LatentCascade(Toy(), Toy(bias), Grey(), policy, settings)
    return sorted(run(cascade, requests), key=lambda r: r.request.index)


@pytest.fixture(scope="module")
def painted():
    return generate_outcomes(live, Grey().score, Toy().encode, PROMPTS, SEEDS, SETTINGS, attempts=3)


ROUTER = PromptRouter.fit([torch.tensor([[v]]) for v in (0.1, 0.5, 0.9)], [0.1, 0.5, 0.9], strength=1e-9)
POLICIES = {
    "threshold": ThresholdPolicy(0.5),
    "regenerate": ThresholdPolicy(0.5, Decision.REGENERATE),
    "band": SequentialPolicy(0.7, regenerate_below=0.3, margin=math.inf),
    "best of 3": SequentialPolicy(0.5, 3, margin=math.inf),
    "recheck": SequentialPolicy(0.5),
    "clear recheck": SequentialPolicy(0.5, margin=0.05),
    "pre-route": PreRoute(SequentialPolicy(0.5, 2, margin=math.inf), ROUTER, 0.2),
    "teacher": AlwaysPolicy(Decision.REGENERATE),
}


@pytest.mark.parametrize("name", list(POLICIES))
@pytest.mark.parametrize("bias", [0.3, -0.3])
def test_a_replay_is_what_a_live_run_does(name, bias):
    def paint(requests, settings, policy):
        return live(requests, settings, policy, bias)

    table = generate_outcomes(paint, Grey().score, Toy().encode, PROMPTS, SEEDS, SETTINGS, attempts=3)
    seen = simulate_policy(POLICIES[name], table)
    results = paint(
        [GenerationRequest(p, s, "", i) for i, (p, s) in enumerate(zip(PROMPTS, SEEDS, strict=True))],
        SETTINGS,
        POLICIES[name],
    )
    assert list(seen.decisions) == [r.decision for r in results]
    assert seen.attempts.tolist() == [r.attempts for r in results]
    # Guided steps count two evaluations.
    steps = [(r.cost.evaluations.get("student", 0) + r.cost.evaluations.get("teacher", 0)) / 2 for r in results]
    assert seen.steps.tolist() == steps
    assert torch.equal(seen.gather(table.pictures), torch.stack([(r.image * 255).round().byte() for r in results]))


def test_a_policy_that_wants_more_than_the_bank_holds_is_told(painted):
    with pytest.raises(SettingError, match="wants draft 4, the bank holds 3"):
        simulate_policy(SequentialPolicy(9.0, 4, margin=math.inf), painted)
    only = OutcomeTable(**{**painted.__dict__, "made": {Decision.REFINE: painted.made[Decision.REFINE]}})
    with pytest.raises(SettingError, match="wants to regenerate, the bank holds refine"):
        simulate_policy(ThresholdPolicy(9.0, Decision.REGENERATE), only)


def synthetic(n, seed, steps=5.0, teacher=20.0):
    """Scores that know something; pictures are one pixel whose red is the quality, in 255ths."""
    rng = np.random.default_rng(seed)
    hardness = rng.random(n)
    drafts = np.clip(1 - hardness + 0.1 * rng.normal(size=(2, n)), 0, 1)
    scores = drafts + 0.1 * rng.normal(size=(2, n))
    made = {
        Decision.REFINE: np.clip(drafts + 0.3 * hardness, 0, 1),
        Decision.REGENERATE: np.clip(0.8 + 0.1 * rng.normal(size=(1, n)), 0, 1),
    }

    def pictures(q):
        return torch.tensor(q * 255).round().byte()[..., None, None, None].expand(*q.shape, 3, 4, 4).contiguous()

    embeds = torch.tensor(np.stack([hardness, np.ones(n)], -1))[:, None].float()
    return OutcomeTable(
        tuple(map(str, range(n))), tuple(range(n)), embeds, pictures(drafts), torch.tensor(scores),
        {k: pictures(v) for k, v in made.items()}, {k: torch.tensor(v) for k, v in made.items()},
        {Decision.REDRAFT: steps, Decision.REFINE: teacher, Decision.REGENERATE: teacher},
    )  # fmt: skip


def quality(table):
    return {k: v[..., 0, 0, 0].double() / 255 for k, v in table.pictures.items()}


def test_the_papers_account_is_exact():
    """S + (k / 100) R: 5 + .5 * 20 = 15."""
    seen = simulate_policy(fit_threshold(synthetic(1000, 0), 15.0, Decision.REFINE), synthetic(1000, 0))
    assert seen.mean_steps == 15.0
    assert sum(d is Decision.ACCEPT for d in seen.decisions) == 500


@pytest.mark.parametrize("budget", [8.0, 15.0, 22.0])
def test_every_policy_spends_its_budget_and_no_more(budget):
    table, unseen = synthetic(300, 1), synthetic(300, 2)
    fitted = fit_all(table, budget, Decision.REGENERATE, quality(table))
    assert set(fitted) == {"threshold", "recheck", "clear_recheck", "pre_route", "value", "band", "best_of_2"}
    for f in fitted.values():
        # One more escalation would break it: what is left over is less than a request's share.
        assert budget - 30 / 300 <= f.mean_steps <= budget + 1e-9, f.name
        assert simulate_policy(f.policy, unseen).mean_steps == pytest.approx(budget, rel=0.1), f.name
        assert f.quality == pytest.approx(float(simulate_policy(f.policy, table).gather(quality(table)).mean()))


def test_value_knows_which_action_pays():
    """Refining gains most where the draft is middling, regenerating where it is poor: a threshold can't tell them apart."""
    table, unseen = synthetic(400, 3), synthetic(400, 4)
    fitted = fit_all(table, 12.0, Decision.REFINE, quality(table))
    gain = {k: float(simulate_policy(f.policy, unseen).gather(quality(unseen)).mean()) for k, f in fitted.items()}
    assert gain["value"] > gain["threshold"] + 0.01
    assert gain["band"] > gain["threshold"] + 0.01
    seen = simulate_policy(fitted["value"].policy, unseen)
    assert {Decision.ACCEPT, Decision.REGENERATE} <= set(seen.decisions)


def test_a_budget_below_the_cheapest_is_refused():
    with pytest.raises(SettingError, match=r"budget=3.0 mean steps cannot be met.*5.00"):
        fit_threshold(synthetic(50, 0), 3.0, Decision.REFINE)
    free = spend(ThresholdPolicy, -9.0, 9.0, synthetic(50, 0), math.inf)
    assert free == ThresholdPolicy(9.0)
