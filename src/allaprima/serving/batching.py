"""Which batch goes next. Pure functions of plain data: an engine, a simulator and a test share this rule.

What could share a batch is a `BatchGroup`. Of those with jobs ready, in this order:

1. one that others went ahead of `patience` times or more: the most often passed first;
2. full batches: the most often passed first, so that full students' and full teachers' batches take turns;
3. stages that aren't painting (reading prompts, scoring, decoding): one short call that fills a painter's batch or
   finishes pictures;
4. the fullest painter's batch. Nobody waits idly for a batch to fill.

Among equals the one with the oldest job goes. **Nobody starves**: of G groups with jobs ready, one waits for at most
`patience + G - 1` batches, because whoever went goes on from 0 and can't be ahead of it again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
PAINTING = frozenset({"student", "teacher"})
"""Stages whose batches are a network's step (names of `cascade.job.Stage`)."""
PATIENCE = 2
"""How often others may go ahead of a group before it is its turn."""


@dataclass(frozen=True)
class BatchGroup(Generic[Key]):
    """Jobs that could share the next batch: of one cascade, one stage and one student."""

    key: Key
    stage: str
    ready: int
    """Jobs waiting for it."""
    size: int
    """Rows of a batch."""
    oldest: float
    """When the oldest of its jobs was accepted."""
    passed: int = 0
    """Batches of other groups that went since its last one, while it had jobs ready."""

    @property
    def full(self) -> bool:
        """Whether a batch of it has no padding."""
        return self.ready >= self.size


def choose(groups: Iterable[BatchGroup[Key]], patience: int = PATIENCE) -> Key | None:
    """Return the key of the group whose batch goes next; None where nothing is ready."""
    ready = [g for g in groups if g.ready]
    if not ready:
        return None
    return min(ready, key=lambda g: _rank(g, patience)).key


def _rank(group: BatchGroup[Key], patience: int) -> tuple[int, float, float, float]:
    """Return the least goes next."""
    if group.passed >= patience:
        return 0, -group.passed, group.oldest, 0
    if group.full:
        return 1, -group.passed, group.oldest, 0
    if group.stage not in PAINTING:
        return 2, -group.passed, group.oldest, 0
    return 3, -group.ready / group.size, -group.passed, group.oldest


def passed_after(groups: Iterable[BatchGroup[Key]], chosen: Key | None) -> Mapping[Key, int]:
    """Return what `passed` is once the chosen batch has gone; groups without jobs are forgotten."""
    return {g.key: 0 if g.key == chosen else g.passed + 1 for g in groups if g.ready}


def oldest_first(accepted: Sequence[float], size: int) -> list[int]:
    """Which of a group's jobs go: the places of the `size` oldest, oldest first; ties go by place."""
    return sorted(range(len(accepted)), key=lambda i: accepted[i])[:size]
