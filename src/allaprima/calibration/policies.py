"""Every policy calibrated to the same budget, on the same bank.

A family is a policy with one free number in which its mean cost never falls (a threshold, or a price from above). That
number is found by bisection on the bank; what other numbers a policy has are chosen on a grid by the mean quality of what
it would have given there. All costs are mean steps a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from allaprima.calibration.outcome_table import OutcomeTable, simulate_policy
from allaprima.cascade.policy import (
    Context,
    Decision,
    Policy,
    PolicyWrapper,
    PreRoute,
    ThresholdPolicy,
)
from allaprima.cascade.router import PromptRouter
from allaprima.cascade.sequential import SequentialPolicy
from allaprima.cascade.value import GainModel, ValuePolicy, draft_features
from allaprima.core.errors import SettingError

Quality = Mapping[Decision, Tensor]
"""Quality of every picture of a bank, `(A, N)` by decision as `OutcomeTable.pictures` has them; `OutcomeTable.scores` is
one."""
ROUNDS = 30
"""Halvings of a threshold's range: a billionth of it is left."""


@dataclass(frozen=True)
class Fitted:
    """A policy with what it costs and gives on the bank it was fitted on."""

    name: str
    policy: Policy
    mean_steps: float
    quality: float


def spend(family: Callable[[float], Policy], low: float, high: float, table: OutcomeTable, budget: float) -> Policy:
    """Return the member of a family, between `low` (cheapest) and `high` (dearest), that costs most within the budget.

    Raises `SettingError` when even the cheapest costs more.
    """
    cheapest = family(low)
    floor = simulate_policy(cheapest, table).mean_steps
    if floor > budget + 1e-9:
        raise SettingError(f"budget={budget!r} mean steps cannot be met: the cheapest setting costs {floor:.2f}.")
    if simulate_policy(family(high), table).mean_steps <= budget:
        return family(high)
    best = cheapest
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        policy = family(middle)
        if simulate_policy(policy, table).mean_steps <= budget:
            best, low = policy, middle
        else:
            high = middle
    return best


def _range(table: OutcomeTable) -> tuple[float, float]:
    """Below every score, and above every score."""
    scores = table.draft_scores[~table.draft_scores.isnan()]
    return float(scores.min()) - 1e-6, float(scores.max()) + 1e-6


def fit_threshold(table: OutcomeTable, budget: float, otherwise: Decision) -> Policy:
    """Return the paper's."""
    return spend(lambda tau: ThresholdPolicy(tau, otherwise), *_range(table), table, budget)


def fit_best_of(table: OutcomeTable, budget: float, otherwise: Decision, drafts: int) -> Policy:
    """Up to `drafts` attempts."""

    def family(tau: float) -> Policy:
        return SequentialPolicy(tau, drafts, action=otherwise, margin=math.inf)

    return spend(family, *_range(table), table, budget)


def fit_recheck(table: OutcomeTable, budget: float, otherwise: Decision) -> Policy:
    """Return the threshold, with a second look (which costs no steps)."""
    return _rechecked(table, budget, otherwise, 0.0)


def fit_clear_recheck(table: OutcomeTable, budget: float, otherwise: Decision) -> Policy:
    """Return the same, but a draft is kept only when it leads by more than half of the leading drafts do.

    A margin can't be chosen by the oracle's own score, which likes none best. Half is a compromise between the oracle's
    word and the teacher's: drafts kept on a narrow lead are as often worse, and are further from real pictures.
    """
    leads = table.draft_scores[0] - table.made_scores[otherwise][0]
    leads = leads[leads > 0]
    return _rechecked(table, budget, otherwise, float(leads.median()) if len(leads) else 0.0)


def _rechecked(table: OutcomeTable, budget: float, otherwise: Decision, margin: float) -> Policy:
    threshold = fit_threshold(table, budget, otherwise).threshold
    assert threshold is not None
    return SequentialPolicy(threshold, action=otherwise, margin=margin)


def fit_bands(table: OutcomeTable, budget: float, shares: Sequence[float] = (0, 0.1, 0.2, 0.3, 0.5, 0.7, 1)) -> list[Policy]:
    """One candidate a share of the escalated drafts that is regenerated."""
    low, high = _range(table)
    scores = np.sort(table.draft_scores[0].numpy())
    found: list[Policy] = []
    for share in shares:

        def family(tau: float, share: float = share) -> Policy:
            below = int(np.searchsorted(scores, tau) * share)
            least = low if below == 0 else min(tau, float(scores[min(below, len(scores) - 1)]))
            return SequentialPolicy(tau, regenerate_below=least, margin=math.inf)

        found.append(spend(family, low, high, table, budget))
    return found


@dataclass(frozen=True)
class _Routed(PolicyWrapper):
    """A bank's routes, known before: a search for a threshold asks for them at every halving, and they never change."""

    routes: tuple[Decision | None, ...]

    def route(self, context: Context) -> list[Decision | None]:
        return list(self.routes)


def fit_pre_routes(
    table: OutcomeTable, budget: float, otherwise: Decision, shares: Sequence[float] = (0, 0.1, 0.2, 0.3, 0.5)
) -> list[Policy]:
    """One candidate a share of prompts that skips its draft; those whose share alone breaks the budget are left out."""
    router = PromptRouter.fit(list(table.embeds), table.draft_scores[0].tolist())
    expected = np.array([router.expect(e) for e in table.embeds])
    found: list[Policy] = []
    for share in shares:
        below = -math.inf if share == 0 else float(np.quantile(expected, share))
        routes = tuple(Decision.REGENERATE if e < below else None for e in expected)

        def family(tau: float, routes: tuple[Decision | None, ...] = routes) -> Policy:
            return _Routed(ThresholdPolicy(tau, otherwise), routes)

        try:
            policy = spend(family, *_range(table), table, budget)
        except SettingError:
            continue
        assert isinstance(policy, _Routed)
        found.append(PreRoute(policy.inner, router, below))
    return found


def fit_value(table: OutcomeTable, budget: float, quality: Quality) -> Policy:
    """Gains over the first draft fitted on the bank, then the price that spends the budget.

    Gains below zero are bought too when the budget is left over: the price goes down to less than nothing.
    """
    rows = zip(table.draft_scores[0].tolist(), table.embeds, table.drafts[0].double() / 255, strict=True)
    features = np.stack([draft_features(*row) for row in rows])
    seen = np.isfinite(features[:, 0])
    base = quality[Decision.ACCEPT][0]
    gains = {str(a): (quality[a][0] - base).double().numpy() for a in table.made}
    model = GainModel.fit(features[seen], {a: g[seen] for a, g in gains.items()})
    costs = {str(a): table.costs[a] for a in table.made}
    # Expectations don't change with the price: they are made once, not at every halving.
    expected = np.array([list(model.expect(f).values()) for f in features[seen]])
    cost = np.array([costs[a] for a in model.gains])
    blind = (~seen).sum() * costs.get("regenerate", costs.get("refine", 0.0))

    def mean_steps(price: float) -> float:
        net = expected - price * cost
        spent = np.where(net.max(1) > 0, cost[net.argmax(1)], 0.0).sum() + blind
        return table.costs[Decision.REDRAFT] + float(spent) / len(table)

    dear = float(np.abs(expected).max() / cost.min()) * 2 + 1e-9
    cheap = -dear
    if mean_steps(dear) > budget + 1e-9:
        raise SettingError(f"budget={budget!r} mean steps cannot be met: the cheapest setting costs {mean_steps(dear):.2f}.")
    for _ in range(2 * ROUNDS):
        middle = (cheap + dear) / 2
        cheap, dear = (cheap, middle) if mean_steps(middle) <= budget else (middle, dear)
    return ValuePolicy(model, costs, dear)


def best_by(quality: Quality, table: OutcomeTable, name: str, candidates: Sequence[Policy]) -> Fitted:
    """Return the candidate whose pictures are best on the bank."""
    if not candidates:
        raise SettingError(f"no setting of {name} meets the budget: raise it.")
    tried: list[Fitted] = []
    for policy in candidates:
        seen = simulate_policy(policy, table)
        tried.append(Fitted(name, policy, seen.mean_steps, float(seen.gather(quality).mean())))
    return max(tried, key=lambda f: f.quality)


def fit_all(table: OutcomeTable, budget: float, otherwise: Decision, quality: Quality) -> dict[str, Fitted]:
    """Every policy the bank allows, each at this budget of mean steps."""
    families: dict[str, Callable[[], Sequence[Policy]]] = {
        "threshold": lambda: [fit_threshold(table, budget, otherwise)],
        "recheck": lambda: [fit_recheck(table, budget, otherwise)],
        "clear_recheck": lambda: [fit_clear_recheck(table, budget, otherwise)],
        "pre_route": lambda: fit_pre_routes(table, budget, otherwise),
        "value": lambda: [fit_value(table, budget, quality)],
    }
    if {Decision.REFINE, Decision.REGENERATE} <= table.made.keys():
        families["band"] = lambda: fit_bands(table, budget)
    for drafts in range(2, len(table.drafts) + 1):
        families[f"best_of_{drafts}"] = lambda drafts=drafts: [fit_best_of(table, budget, otherwise, drafts)]
    return {name: best_by(quality, table, name, make()) for name, make in families.items()}
