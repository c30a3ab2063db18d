"""Policies: what to do with a scored draft. Decisions are data; the cascade carries them out.

A policy may look at prompts before anything is painted (`route`), at scored drafts (`decide`), and may ask that what the
teacher made is scored too and the better picture kept (`rechecks`). The paper's threshold is one policy; wrappers change
another policy's mind: `BestOf` paints another draft first, `Recheck` looks again, `PreRoute` skips drafts that are sure to
fail. `cascade/value.py` has the one that weighs expected gains against a price of compute.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor

from allaprima.cascade.router import PromptRouter
from allaprima.core.errors import SettingError


class Decision(StrEnum):
    """What happens to a draft."""

    ACCEPT = "accept"
    REFINE = "refine"
    REGENERATE = "regenerate"
    REDRAFT = "redraft"
    """The student paints again from other noise; the best draft so far is kept."""


@dataclass(frozen=True)
class Context:
    """What a policy may look at beside scores; every field has one entry a picture."""

    prompts: Sequence[str]
    embeds: Sequence[Tensor]
    """Hidden states of the prompt, `(L, D)`, zero where padded."""
    images: Sequence[Tensor] = ()
    """The best draft so far, `(3, H, W)` in [0, 1]; empty before there are drafts."""
    attempts: Sequence[int] = ()
    """How many drafts have been painted."""


@runtime_checkable
class Policy(Protocol):
    """Decides for a group of pictures. The answer for one never depends on the others, or (a steered threshold's) on those
    before it only."""

    @property
    def threshold(self) -> float | None:
        """The score that the next draft must reach, if the policy has one."""
        ...

    @property
    def rechecks(self) -> bool:
        """Whether the teacher's picture is scored too, and the better of draft and picture kept."""
        ...

    @property
    def margin(self) -> float:
        """By how much a draft's score must be above the teacher's picture's to be kept after all."""
        ...

    @property
    def uses_scores(self) -> bool:
        """Whether decisions depend on the oracle's scores."""
        ...

    @property
    def uses_embeddings(self) -> bool:
        """Whether decisions depend on the prompts' hidden states, which image generators don't show."""
        ...

    def actions(self, strategy: Decision) -> frozenset[Decision]:
        """Return every decision that the policy may come to; `strategy`: the run's, for policies that name none."""
        ...

    def route(self, context: Context) -> list[Decision | None]:
        """Before drafts: REGENERATE goes straight to the teacher, None paints a draft."""
        ...

    def decide(self, scores: Sequence[float], context: Context | None = None) -> list[Decision]:
        """One decision a draft, from its score; scores may be nan when an oracle failed."""
        ...


class DraftFirstPolicy:
    """What most policies share: every prompt gets a draft, and the teacher's word is the last."""

    rechecks = False
    margin = 0.0
    uses_scores = True
    uses_embeddings = False

    def actions(self, strategy: Decision) -> frozenset[Decision]:
        """Accept, or do as `otherwise` says, or the run's strategy."""
        return frozenset((Decision.ACCEPT, Decision(getattr(self, "otherwise", strategy))))

    def route(self, context: Context) -> list[Decision | None]:
        """Return a draft for everyone."""
        return [None] * len(context.prompts)


@dataclass(frozen=True)
class ThresholdPolicy(DraftFirstPolicy):
    """The paper's: accept when `score >= threshold`, else refine or regenerate (arXiv 2312.10835, algorithm 1).

    A score that is not a number falls short: a draft nobody could judge goes to the teacher.
    """

    threshold: float
    otherwise: Decision = Decision.REFINE

    def decide(self, scores: Sequence[float], context: Context | None = None) -> list[Decision]:
        """Accept or `otherwise`."""
        return [Decision.ACCEPT if not math.isnan(s) and s >= self.threshold else self.otherwise for s in scores]


@dataclass(frozen=True)
class AlwaysPolicy(DraftFirstPolicy):
    """The same decision for every draft: student only (accept), refine all, teacher only (regenerate, without drafts)."""

    decision: Decision
    threshold: None = None
    uses_scores = False

    def actions(self, strategy: Decision) -> frozenset[Decision]:
        """Return the one decision."""
        return frozenset((self.decision,))

    def route(self, context: Context) -> list[Decision | None]:
        """Who repaints everything needs no drafts."""
        return [self.decision if self.decision is Decision.REGENERATE else None] * len(context.prompts)

    def decide(self, scores: Sequence[float], context: Context | None = None) -> list[Decision]:
        """Return the one decision."""
        return [self.decision] * len(scores)


@dataclass(frozen=True)
class BandPolicy(DraftFirstPolicy):
    """Poor drafts are painted anew, middling ones retouched, good ones accepted: two thresholds.

    `score < regenerate_below` (or no number) regenerates, `score >= threshold` accepts, between them the teacher refines.
    Raises `SettingError` for thresholds in the wrong order.
    """

    threshold: float
    regenerate_below: float

    def __post_init__(self) -> None:
        if not self.regenerate_below <= self.threshold:
            raise SettingError(
                f"regenerate_below={self.regenerate_below!r} is above threshold={self.threshold!r}: drafts between them"
                " would be accepted and repainted. Swap the two."
            )

    def actions(self, strategy: Decision) -> frozenset[Decision]:
        """Return all three: accept, refine, regenerate."""
        return frozenset((Decision.ACCEPT, Decision.REFINE, Decision.REGENERATE))

    def decide(self, scores: Sequence[float], context: Context | None = None) -> list[Decision]:
        """By the band the score falls into."""
        return [self._one(s) for s in scores]

    def _one(self, score: float) -> Decision:
        if score >= self.threshold:
            return Decision.ACCEPT
        return Decision.REFINE if score >= self.regenerate_below else Decision.REGENERATE


@dataclass(frozen=True)
class PolicyWrapper:
    """What wrappers share: whatever they don't change is the inner policy's."""

    inner: Policy

    @property
    def threshold(self) -> float | None:
        """The inner policy's."""
        return self.inner.threshold

    @property
    def rechecks(self) -> bool:
        return self.inner.rechecks

    @property
    def margin(self) -> float:
        return self.inner.margin

    @property
    def uses_scores(self) -> bool:
        return self.inner.uses_scores

    @property
    def uses_embeddings(self) -> bool:
        return self.inner.uses_embeddings

    def actions(self, strategy: Decision) -> frozenset[Decision]:
        return self.inner.actions(strategy)

    def route(self, context: Context) -> list[Decision | None]:
        return self.inner.route(context)

    def decide(self, scores: Sequence[float], context: Context | None = None) -> list[Decision]:
        return self.inner.decide(scores, context)


@dataclass(frozen=True)
class BestOf(PolicyWrapper):
    """The student gets up to `drafts` attempts before the inner policy may send its best one to the teacher.

    It stops at the first draft that the inner policy accepts, so easy prompts pay for one draft only.
    """

    drafts: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.drafts <= 64:
            raise SettingError(f"drafts={self.drafts!r} is out of range: 1..64 attempts; 2 to 4 are useful.")

    def actions(self, strategy: Decision) -> frozenset[Decision]:
        """Return the inner policy's, and REDRAFT."""
        return self.inner.actions(strategy) | {Decision.REDRAFT}

    def decide(self, scores: Sequence[float], context: Context | None = None) -> list[Decision]:
        """REDRAFT while attempts are left and the inner policy would not accept."""
        attempts = [self.drafts] * len(scores) if context is None else context.attempts
        inner = self.inner.decide(scores, context)
        again = [d is not Decision.ACCEPT and n < self.drafts for d, n in zip(inner, attempts, strict=True)]
        return [Decision.REDRAFT if more else d for more, d in zip(again, inner, strict=True)]


@dataclass(frozen=True)
class Recheck(PolicyWrapper):
    """The inner policy, and what the teacher made is scored too: the draft is kept when it leads by more than `lead`.

    Comparing two pictures of one prompt is easier for an oracle than judging one: how high a prompt's scores are at all
    drops out. The second look costs no steps. With a lead asked for, doubtful drafts lose.
    """

    lead: float = 0.0

    def __post_init__(self) -> None:
        if not self.lead >= 0:
            raise SettingError(f"lead={self.lead!r} is below 0: drafts that are worse would be kept. Use 0 or more.")

    @property
    def rechecks(self) -> bool:
        return True

    @property
    def margin(self) -> float:
        return self.lead


@dataclass(frozen=True)
class Capped(PolicyWrapper):
    """The inner policy, but whatever reaches `ceiling` is accepted: how a server under load decides, and says it did.

    Without a threshold of the inner policy's nothing changes.
    """

    ceiling: float

    @property
    def threshold(self) -> float | None:
        """The lower of the two."""
        own = self.inner.threshold
        return None if own is None else min(own, self.ceiling)

    def decide(self, scores: Sequence[float], context: Context | None = None) -> list[Decision]:
        """Accept from the threshold on; below it, what the inner policy says."""
        least = self.threshold
        inner = self.inner.decide(scores, context)
        return [Decision.ACCEPT if least is not None and s >= least else d for s, d in zip(scores, inner, strict=True)]


@dataclass(frozen=True)
class PreRoute(PolicyWrapper):
    """Prompts whose drafts are expected to score below `below` go straight to the teacher; the rest to the inner policy."""

    router: PromptRouter
    below: float

    @property
    def uses_embeddings(self) -> bool:
        return True

    def actions(self, strategy: Decision) -> frozenset[Decision]:
        """Return the inner policy's, and REGENERATE."""
        return self.inner.actions(strategy) | {Decision.REGENERATE}

    def route(self, context: Context) -> list[Decision | None]:
        """By the router's expectation, from the prompt alone."""
        expected = [self.router.expect(embed) for embed in context.embeds]
        inner = self.inner.route(context)
        return [Decision.REGENERATE if e < self.below else d for e, d in zip(expected, inner, strict=True)]


POLICIES = {
    "threshold": "policy:ThresholdPolicy",
    "always": "policy:AlwaysPolicy",
    "band": "policy:BandPolicy",
    "best_of": "policy:BestOf",
    "recheck": "policy:Recheck",
    "capped": "policy:Capped",
    "pre_route": "policy:PreRoute",
    "value": "value:ValuePolicy",
}
"""Name -> `module:class` of the cascade room."""
_PARTS = {"router": "router:PromptRouter", "model": "value:GainModel"}


def _class(where: str) -> Any:
    module, name = where.split(":")
    return getattr(importlib.import_module(f"allaprima.cascade.{module}"), name)


def policy_to_dict(policy: Policy) -> dict[str, Any]:
    """JSON-ready: `{"kind": name, field: value, ...}`; inner policies and models are dicts in it."""
    name = next((k for k, where in POLICIES.items() if where.endswith(f":{type(policy).__name__}")), None)
    if name is None:
        raise SettingError(f"{type(policy).__name__} has no name: {', '.join(POLICIES)} can be written to a file.")
    out: dict[str, Any] = {"kind": name}
    for field in dataclasses.fields(cast(Any, policy)):
        value = getattr(policy, field.name)
        if field.name == "inner":
            value = policy_to_dict(value)
        elif field.name in _PARTS:
            value = value.to_dict()
        out[field.name] = str(value) if isinstance(value, Decision) else value
    return out


def policy_from_dict(raw: dict[str, Any]) -> Policy:
    """Inverse of `policy_to_dict`. Raises `SettingError` for an unknown kind."""
    fields = dict(raw)
    kind = fields.pop("kind", None)
    if kind not in POLICIES:
        raise SettingError(f"policy kind {kind!r} is not known: {', '.join(POLICIES)} are.")
    for name, value in fields.items():
        if name == "inner":
            fields[name] = policy_from_dict(value)
        elif name in _PARTS:
            fields[name] = _class(_PARTS[name]).from_dict(value)
        elif name in ("decision", "otherwise"):
            fields[name] = Decision(value)
    return _class(POLICIES[kind])(**fields)
