"""What an engine asks of others that take its jobs' stages, and what travels: for engines whose networks are elsewhere.

A job goes there with all of its state, is taken through the stages of one run there, and comes back. Until it has, the
engine keeps it as it was: whoever was lost with it, it can be asked again, and the same bytes come of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from torch import Tensor

from allaprima.cascade.job import Job, Stage
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.types import Condition
from allaprima.serving.handle import HandedOver

_DRAFTS = frozenset({Stage.NEW, Stage.STUDENT})
_PAINTS = frozenset({Stage.TEACHER, Stage.DECODE})
RUNS: Mapping[Stage, frozenset[Stage]] = {
    Stage.NEW: _DRAFTS, Stage.STUDENT: _DRAFTS, Stage.SCORE: frozenset({Stage.SCORE}), Stage.TEACHER: _PAINTS,
    Stage.DECODE: _PAINTS, Stage.RECHECK: frozenset({Stage.RECHECK}), Stage.PREVIEW: frozenset({Stage.PREVIEW}),
}  # fmt: skip
"""Stages that a job goes through in one place, by the one it is in; the rest of its way is decided where it came from."""


@dataclass(frozen=True)
class StageRun:
    """What is asked."""

    job: Job
    settings: CascadeSettings
    seconds_left: float | None
    """To its deadline."""


Back = HandedOver | Exception | None
"""The job with what it took, or why it failed there; None: it was given up."""


class RemoteWorkers(Protocol):
    """Those others."""

    def run(self, run: StageRun, done: Callable[[Back], None]) -> Callable[[], None]:
        """Take a job through a run's stages; `done` is called once, from any thread. Returns what gives it up, at once."""
        ...

    def close(self) -> None:
        """Give up everything that is under way."""
        ...


def adopt(job: Job, back: Job) -> None:
    """Go on with what came back; request and policy stay its own, for what travelled were copies."""
    vars(job).update({k: v for k, v in vars(back).items() if k not in ("request", "policy")})


def compact(job: Job) -> Job:
    """Return the job with tensors of their own: a row of a batch would take the whole batch along."""
    made = Job(job.request)
    vars(made).update({f.name: _own(getattr(job, f.name)) for f in fields(job)})
    return made


def _own(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    if isinstance(value, Condition):
        return Condition({k: _own(v) for k, v in value.tensors.items()})
    return {k: _own(v) for k, v in value.items()} if isinstance(value, dict) else value
