"""A bank of what every action made of the same requests, so that any policy can be tried without painting again.

Held-out prompts are painted once: the student's drafts (several attempts), each draft refined, each request repainted,
all scored by the oracle. A policy is then *replayed*: its own `route` and `decide` are called on what the bank holds and
the pictures and costs it would have had are looked up. Pictures are kept as bytes, so draft features that a policy
computes may differ from those of a live run by rounding to 1/255.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from allaprima.cascade.policy import AlwaysPolicy, Context, Decision, Policy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.result import Result
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import CalibrationError, SettingError

Paint = Callable[[Sequence[GenerationRequest], CascadeSettings, Policy], Sequence[Result]]
"""Paints requests and gives their results in the order of the requests."""
Score = Callable[[Tensor, Sequence[str]], Tensor]
"""An oracle: `(images (B,3,H,W) in [0,1], prompts) -> (B,)`."""


@dataclass(frozen=True)
class OutcomeTable:
    """N requests, A attempts. Pictures are uint8; scores float64; costs in mean steps of one action."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    embeds: Tensor
    """`(N, L, D)` hidden states of the prompts."""
    drafts: Tensor
    """`(A, N, 3, H, W)`."""
    draft_scores: Tensor
    """`(A, N)`."""
    made: dict[Decision, Tensor]
    """REFINE: `(A, N, 3, H, W)`, of each attempt's draft; REGENERATE: `(1, N, 3, H, W)`."""
    made_scores: dict[Decision, Tensor]
    """`(A, N)` and `(1, N)`."""
    costs: dict[Decision, float]
    """Steps of REDRAFT (one draft), REFINE and REGENERATE."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def pictures(self) -> dict[Decision, Tensor]:
        """Drafts under ACCEPT, and what was made of them."""
        return {Decision.ACCEPT: self.drafts, **self.made}

    @property
    def scores(self) -> dict[Decision, Tensor]:
        """The oracle's, of all pictures."""
        return {Decision.ACCEPT: self.draft_scores, **self.made_scores}

    def rows(self, index: Tensor) -> OutcomeTable:
        """The bank of some of its requests, `index: (M,)`."""
        chosen = index.tolist()
        return dataclasses.replace(
            self,
            prompts=tuple(self.prompts[i] for i in chosen),
            seeds=tuple(self.seeds[i] for i in chosen),
            embeds=self.embeds[index],
            drafts=self.drafts[:, index],
            draft_scores=self.draft_scores[:, index],
            made={k: v[:, index] for k, v in self.made.items()},
            made_scores={k: v[:, index] for k, v in self.made_scores.items()},
        )


class _Drafts(Sequence[Tensor]):
    """Pictures in [0, 1] of chosen drafts, made when a policy looks: most don't."""

    def __init__(self, drafts: Tensor, places: Sequence[tuple[int, int]]) -> None:
        self.drafts, self.places = drafts, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: Any) -> Any:
        return self.drafts[self.places[i]].double() / 255


@dataclass(frozen=True)
class PolicyOutcome:
    """What a policy would have done: one entry a request."""

    decisions: tuple[Decision, ...]
    attempts: Tensor
    """`(N,)` drafts painted."""
    chosen: tuple[tuple[Decision, int], ...]
    """Which of the bank's pictures it would have given: ACCEPT is a draft, with its attempt, else what the teacher made."""
    steps: Tensor
    """`(N,)` what each cost."""

    @property
    def mean_steps(self) -> float:
        """Mean cost."""
        return float(self.steps.mean())

    def gather(self, values: Mapping[Decision, Tensor]) -> Tensor:
        """`(N, ...)` from what is known of every picture of the bank, `(A, N, ...)` by decision."""
        return torch.stack([values[d][k, i] for i, (d, k) in enumerate(self.chosen)])


def simulate_policy(policy: Policy, table: OutcomeTable) -> PolicyOutcome:
    """Run a policy on a bank. Raises `SettingError` when it wants an action or an attempt that the bank doesn't hold."""
    n, most, scores = len(table), len(table.drafts), table.draft_scores.tolist()
    best, attempts = [0] * n, [0] * n
    embeds = list(table.embeds)
    decisions: list[Decision | None] = list(policy.route(Context(table.prompts, embeds)))
    waiting = [i for i, d in enumerate(decisions) if d is None]
    while waiting:
        for i in waiting:
            k = attempts[i]
            if k == most:
                raise SettingError(f"the policy wants draft {k + 1}, the bank holds {most}: paint it with more attempts.")
            if k == 0 or scores[k][i] > scores[best[i]][i]:
                best[i] = k
            attempts[i] += 1
        context = Context(
            [table.prompts[i] for i in waiting],
            [embeds[i] for i in waiting],
            _Drafts(table.drafts, [(best[i], i) for i in waiting]),
            [attempts[i] for i in waiting],
        )
        for i, d in zip(waiting, policy.decide([scores[best[i]][i] for i in waiting], context), strict=True):
            decisions[i] = None if d is Decision.REDRAFT else d
        waiting = [i for i in waiting if decisions[i] is None]
    return _account(policy, table, [d for d in decisions if d is not None], best, attempts)


def _account(
    policy: Policy, table: OutcomeTable, decisions: list[Decision], best: list[int], attempts: list[int]
) -> PolicyOutcome:
    chosen: list[tuple[Decision, int]] = []
    steps = [n * table.costs[Decision.REDRAFT] for n in attempts]
    draft_scores, made_scores = table.draft_scores.tolist(), {k: v.tolist() for k, v in table.made_scores.items()}
    for i, decision in enumerate(decisions):
        given = Decision.ACCEPT, best[i]
        if decision is not Decision.ACCEPT:
            if decision not in table.made:
                raise SettingError(
                    f"the policy wants to {decision}, the bank holds {', '.join(table.made)}: paint that too."
                )
            place = best[i] if decision is Decision.REFINE else 0
            steps[i] += table.costs[decision]
            draft_is_better = attempts[i] > 0 and draft_scores[best[i]][i] > made_scores[decision][place][i] + policy.margin
            if not (policy.rechecks and draft_is_better):
                given = decision, place
        chosen.append(given)
    return PolicyOutcome(tuple(decisions), torch.tensor(attempts), tuple(chosen), torch.tensor(steps, dtype=torch.float64))


def generate_outcomes(
    paint: Paint, score: Score, encode: Callable[[Sequence[str]], Tensor], prompts: Sequence[str], seeds: Sequence[int],
    settings: CascadeSettings, attempts: int = 1, actions: Sequence[Decision] = (Decision.REFINE, Decision.REGENERATE),
) -> OutcomeTable:  # fmt: skip
    """Paint everything a bank holds. Costs in steps are those of `settings`."""

    def requests(k: int) -> list[GenerationRequest]:
        return [GenerationRequest(p, s, "", i, k) for i, (p, s) in enumerate(zip(prompts, seeds, strict=True))]

    def bytes_of(images: Sequence[Tensor | None]) -> Tensor:
        if any(x is None for x in images):
            raise CalibrationError("a prompt of the bank could not be painted: take it out of the list.")
        return torch.stack([(x * 255).round().byte() for x in images if x is not None])

    def scored(images: Tensor) -> Tensor:
        size = settings.batch_size
        parts = [score(images[i : i + size].float() / 255, prompts[i : i + size]) for i in range(0, len(images), size)]
        return torch.cat(parts).double()

    results = [paint(requests(k), settings, AlwaysPolicy(Decision.ACCEPT)) for k in range(attempts)]
    drafts = torch.stack([bytes_of([r.draft for r in row]) for row in results])
    draft_scores = torch.tensor([[float("nan") if r.score is None else r.score for r in row] for row in results]).double()
    made: dict[Decision, Tensor] = {}
    for action in actions:
        rounds = range(attempts if action is Decision.REFINE else 1)
        made[action] = torch.stack(
            [bytes_of([r.image for r in paint(requests(k), settings, AlwaysPolicy(action))]) for k in rounds]
        )
    costs = {Decision.REDRAFT: float(settings.student_steps)} | {a: float(settings.teacher_steps) for a in actions}
    embeds = torch.cat([encode(prompts[i : i + 64]) for i in range(0, len(prompts), 64)])
    made_scores = {a: torch.stack([scored(x) for x in v]) for a, v in made.items()}
    return OutcomeTable(tuple(prompts), tuple(seeds), embeds, drafts, draft_scores, made, made_scores, costs)


def save_outcomes(table: OutcomeTable, path: Path) -> None:
    """One safetensors file, written beside and renamed."""
    tensors = {"embeds": table.embeds, "drafts": table.drafts, "draft_scores": table.draft_scores}
    tensors |= {f"made.{a}": v for a, v in table.made.items()}
    tensors |= {f"made_scores.{a}": v for a, v in table.made_scores.items()}
    about = {"prompts": table.prompts, "seeds": table.seeds, "costs": {str(k): v for k, v in table.costs.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in tensors.items()}, beside, {"bank": json.dumps(about)})
    beside.replace(path)


def load_outcomes(path: Path) -> OutcomeTable:
    """Inverse of `save_outcomes`. Raises `CalibrationError` for a file that is not a bank."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as f:
            about = json.loads(f.metadata()["bank"])
        t = load_file(path)
        made = {Decision(k[5:]): v for k, v in t.items() if k.startswith("made.")}
        scores = {Decision(k[12:]): v for k, v in t.items() if k.startswith("made_scores.")}
        costs = {Decision(k): v for k, v in about["costs"].items()}
        prompts, seeds = tuple(about["prompts"]), tuple(about["seeds"])
        return OutcomeTable(prompts, seeds, t["embeds"], t["drafts"], t["draft_scores"], made, scores, costs)
    except Exception as e:
        raise CalibrationError(f"{path} is not a bank of pictures: {e}. Paint it again.") from e


def prompts_digest(prompts: Sequence[str]) -> str:
    """Hash of prompts in their order."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()
