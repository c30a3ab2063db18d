"""Policies: what to do with a scored draft. Decisions are data; the cascade carries them out.

A policy may look at prompts before anything is generated (`route`), at clean predictions on the way (`early_threshold`)
and at scored drafts (`decide`); it may ask that what the teacher made is scored too, the best image kept (`rechecks`) and
the teacher asked once more (`tries_again`). The paper's threshold is one policy; `cascade/sequential.py` has the one with
several attempts, `cascade/value.py` the one that weighs expected gains against a price of compute. Wrappers change another
policy's mind: `PreRoute` skips drafts that are sure to fail.
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
        """Whether the teacher's images are scored too."""
        ...

    @property
    def margin(self) -> float:
        """By how much a draft's score must be above the teacher's image's to be kept after all."""
        ...

    @property
    def max_teacher_tries(self) -> int:
        """Tries of the teacher at most."""
        ...

    @property
    def uses_scores(self) -> bool:
        """Whether decisions depend on the oracle's scores."""
        ...

    @property
    def uses_embeddings(self) -> bool:
        """Whether decisions depend on the prompts' hidden states, which image generators don't show."""
        ...

    @property
    def scores_previews(self) -> bool:
        """Whether clean predictions are scored on the way (`early_threshold`)."""
        ...

    def early_threshold(self, teacher: bool, step: int, attempts: int) -> float | None:
        """Return the score that the clean prediction after a step must reach, None where it is not scored.

        Args:
            teacher: Whether it is the teacher's run, not a draft.
            step: Steps that the run has taken.
            attempts: Drafts, or tries of the teacher, before this one.
        """
        ...

    def decide_without_draft(self, attempts: int) -> Decision:
        """Return what follows when so many drafts have been given up and none is finished: REDRAFT or REGENERATE."""
        ...

    def tries_again(self, score: float, tries: int) -> bool:
        """Whether the teacher is asked once more after its latest image scored so, the `tries`-th."""
        ...

    def teacher_noise(self, tries: int) -> int:
        """Return which noise the teacher regenerates from after so many tries: 0 is the first draft's, others are fresh."""
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
    max_teacher_tries = 1
    uses_scores = True
    uses_embeddings = False
    scores_previews = False

    def early_threshold(self, teacher: bool, step: int, attempts: int) -> float | None:
        """Return None: nothing is scored on the way."""
        return None

    def decide_without_draft(self, attempts: int) -> Decision:
        """Return REGENERATE; no draft is given up."""
        return Decision.REGENERATE

    def tries_again(self, score: float, tries: int) -> bool:
        """Return False: one try."""
        return False

    def teacher_noise(self, tries: int) -> int:
        """Return 0: the same noise as the first draft's, as in the paper."""
        return 0

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
    def max_teacher_tries(self) -> int:
        return self.inner.max_teacher_tries

    @property
    def uses_scores(self) -> bool:
        return self.inner.uses_scores

    @property
    def uses_embeddings(self) -> bool:
        return self.inner.uses_embeddings

    @property
    def scores_previews(self) -> bool:
        return self.inner.scores_previews

    def early_threshold(self, teacher: bool, step: int, attempts: int) -> float | None:
        return self.inner.early_threshold(teacher, step, attempts)

    def decide_without_draft(self, attempts: int) -> Decision:
        return self.inner.decide_without_draft(attempts)

    def tries_again(self, score: float, tries: int) -> bool:
        return self.inner.tries_again(score, tries)

    def teacher_noise(self, tries: int) -> int:
        return self.inner.teacher_noise(tries)

    def actions(self, strategy: Decision) -> frozenset[Decision]:
        return self.inner.actions(strategy)

    def route(self, context: Context) -> list[Decision | None]:
        return self.inner.route(context)

    def decide(self, scores: Sequence[float], context: Context | None = None) -> list[Decision]:
        return self.inner.decide(scores, context)


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
    "sequential": "sequential:SequentialPolicy",
    "capped": "policy:Capped",
    "pre_route": "policy:PreRoute",
    "value": "value:ValuePolicy",
}
"""Name -> `module:class` of the cascade room."""
_STOPS = ("draft_stops", "teacher_stops")
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
        elif field.name in _STOPS:
            value = [_plain(dataclasses.asdict(e)) for e in value]
        out[field.name] = value
    return _plain(out)


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields as JSON has them, which knows no infinity."""
    return {k: str(v) if isinstance(v, Decision) or v in (math.inf, -math.inf) else v for k, v in fields.items()}


def policy_from_dict(raw: dict[str, Any]) -> Policy:
    """Inverse of `policy_to_dict`. Raises `SettingError` for an unknown kind."""
    fields = dict(raw)
    kind = fields.pop("kind", None)
    if kind not in POLICIES:
        raise SettingError(f"policy kind {kind!r} is not known: {', '.join(POLICIES)} are.")
    for name, value in fields.items():
        if value in ("inf", "-inf"):
            fields[name] = float(value)
        elif name == "inner":
            fields[name] = policy_from_dict(value)
        elif name in _PARTS:
            fields[name] = _class(_PARTS[name]).from_dict(value)
        elif name in _STOPS:
            fields[name] = tuple(_class("sequential:EarlyStop")(e["step"], float(e["threshold"])) for e in value)
        elif name in ("action", "decision", "otherwise"):
            fields[name] = Decision(value)
    return _class(POLICIES[kind])(**fields)
