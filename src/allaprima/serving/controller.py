"""Under load a threshold gives way, within bounds, so that pictures come in time; afterwards it comes back.

Fewer escalations are the one thing a cascade can give up in proportion: each spares the teacher's steps. The controller
looks at how long requests take, accepted to finished, over a window. While the `quantile` of these is above the objective it
lowers a ceiling on adjustable thresholds by one step, from `high` towards `low`; while it is below `release` times the
objective it raises it by one step, up to where nothing is lowered. Between the two it does nothing (hysteresis), nor within
`hold` seconds of its last change; and what was seen before a change doesn't count after it.

It knows nothing of engines, threads or clocks: it is told times, and a simulator can tell it others.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from allaprima.cascade.policy import Capped, Policy
from allaprima.core.errors import SettingError

TRACE = 1000
"""Changes remembered."""
MOST = 10_000
"""Observations remembered."""


@dataclass(frozen=True)
class Objective:
    """What is held, and how. Raises `SettingError` for bounds in the wrong order or numbers out of range."""

    seconds: float
    """The latency to hold, accepted to finished."""
    low: float
    """The lowest that the ceiling goes to, as a score."""
    high: float
    """Where it begins: as a rule the calibrated threshold."""
    quantile: float = 0.95
    """Of latencies, that the objective is for."""
    steps: int = 8
    """From `high` to `low`."""
    release: float = 0.7
    """Below this share of the objective the ceiling comes back."""
    hold: float = 10.0
    """Seconds between changes, at least."""
    window: float = 60.0
    """Seconds that an observation counts for."""
    least: int = 5
    """Observations due before the ceiling is lowered."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise SettingError(f"low={self.low!r}, high={self.high!r}: two scores are due, the lower one first.")
        for name in ("seconds", "hold", "window"):
            if not getattr(self, name) > 0:
                raise SettingError(f"{name}={getattr(self, name)!r} must be above 0 seconds.")
        if not (0 < self.quantile < 1 and 0 < self.release < 1):
            raise SettingError(f"quantile={self.quantile!r}, release={self.release!r}: both lie between 0 and 1.")
        if self.steps < 1 or self.least < 1:
            raise SettingError(f"steps={self.steps!r}, least={self.least!r}: 1 or more are due.")


@dataclass(frozen=True)
class Change:
    """The ceiling moved."""

    at: float
    """When, by the clock that the controller is told."""
    before: float | None
    """The ceiling before; None: nothing was lowered."""
    after: float | None
    reason: str
    """In words, with the numbers."""
    latency: float | None
    """The quantile that was seen; None when nothing was."""


class Controller:
    """Moves a ceiling on thresholds. Not safe for threads, except that `ceiling` may be read from any."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.trace: deque[Change] = deque(maxlen=TRACE)
        self._place = 0
        """Steps below `high`."""
        self._seen: deque[tuple[float, float]] = deque(maxlen=MOST)
        self._since: float | None = None
        """Of the last change, or the first update."""

    @property
    def ceiling(self) -> float | None:
        """Adjustable thresholds above it are lowered to it; None: nothing is lowered."""
        o = self.objective
        return None if self._place == 0 else o.high - (o.high - o.low) * self._place / o.steps

    def observe(self, now: float, latency: float) -> None:
        """Note that a request was finished, so many seconds after it was accepted."""
        self._seen.append((now, latency))

    def update(self, now: float, waiting: Iterable[float] = ()) -> Change | None:
        """Move the ceiling if it is due. `waiting`: ages of unfinished requests; those beyond the objective count as late.

        Call it as often as you like: between changes it costs little, and nothing follows from how often it is called.
        """
        if self._since is None:
            self._since = now
        while self._seen and self._seen[0][0] <= now - self.objective.window:
            self._seen.popleft()
        if now - self._since < self.objective.hold:
            return None
        ages = list(waiting)
        late = [age for age in ages if age > self.objective.seconds]
        seen = sorted([latency for _, latency in self._seen] + late)
        o = self.objective
        value = seen[math.ceil(o.quantile * len(seen)) - 1] if seen else None
        asked = f"the {o.quantile:.0%} quantile of {len(seen)} latencies is {value:.3g} s" if value is not None else ""
        if value is not None and value > o.seconds and len(seen) >= o.least and self._place < o.steps:
            return self._move(now, 1, f"{asked}, above {o.seconds:g} s", value)
        if self._place == 0:
            return None
        if value is None and now - self._since >= o.window and not ages:
            return self._move(now, -1, f"nothing was asked for in {o.window:g} s", None)
        if value is not None and value < o.release * o.seconds:
            return self._move(now, -1, f"{asked}, below {o.release:g} of {o.seconds:g} s", value)
        return None

    def _move(self, now: float, by: int, reason: str, latency: float | None) -> Change:
        before, self._place = self.ceiling, self._place + by
        change = Change(now, before, self.ceiling, reason, latency)
        self.trace.append(change)
        self._since = now
        self._seen.clear()
        return change

    def lowered(self, policy: Policy) -> Policy:
        """Return the policy with its threshold under the ceiling of this moment (`cascade.policy.Capped`).

        Not for steered thresholds (`calibration.steering`), which count their own decisions.
        """
        ceiling = self.ceiling
        return policy if ceiling is None else Capped(policy, ceiling)
