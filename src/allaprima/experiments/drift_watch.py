"""Drift, watched while a run paints: do drafts still fall short of the calibrated threshold as often as calibrated?"""

from __future__ import annotations

import math

from rich.console import Console

from allaprima.calibration.drift import DriftMonitor


class DriftWatch:
    """Feeds a `DriftMonitor` in the order of requests, whatever order results come in, and speaks up once.

    Accepted pictures are finished before escalated ones: taken as they come, the first scores would look too good, and the
    stated rate of false alarms would not hold.
    """

    def __init__(self, monitor: DriftMonitor, threshold: float, console: Console) -> None:
        self.monitor, self.threshold, self.console = monitor, threshold, console
        self._next = 0
        self._early = dict[int, float | None]()

    def see(self, index: int, score: float | None) -> None:
        """Score of picture `index`, counted from 0 without gaps; None has none (a refused prompt), nan falls short."""
        self._early[index] = score
        alarmed = self.monitor.alarm
        while self._next in self._early:
            score = self._early.pop(self._next)
            self._next += 1
            if score is not None:
                self.monitor.update(math.isnan(score) or score < self.threshold)
        if self.monitor.alarm and not alarmed:
            self.say()

    def say(self) -> None:
        """The monitor's line, once it has alarmed."""
        if self.monitor.alarm:
            self.console.print(f"[yellow]note:[/] {self.monitor.message()}")
