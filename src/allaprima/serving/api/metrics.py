"""What Prometheus reads: the queue, where seconds go, how many drafts pass, what a picture costs, whether that drifts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from allaprima.calibration.artifact import Calibration
from allaprima.calibration.drift import DriftMonitor
from allaprima.cascade.policy import Decision
from allaprima.serving.api.answers import number, steps_of
from allaprima.serving.api.request_parser import ParsedRequest
from allaprima.serving.api.request_stream import RequestProgress
from allaprima.serving.engine import Engine

WINDOW = 256
"""Pictures over which shares and means are told."""
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class _Engine:
    """What the engine says of itself, read when it is asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: the snapshot's fields are the names."""
        return []

    def collect(self) -> Iterable[Metric]:
        """One gauge a number of the snapshot; what it tells by stage or decision has that as its label."""
        snapshot = self._engine.snapshot()
        for field in fields(snapshot):
            value: Any = getattr(snapshot, field.name)
            labels = ["decision" if field.name == "decisions" else "stage"] if isinstance(value, Mapping) else []
            rows = numbers(value)
            if rows:
                metric = GaugeMetricFamily(f"allaprima_engine_{field.name}", "The engine's own account.", labels=labels)
                for label, number_ in rows:
                    metric.add_metric(label, number_)
                yield metric


def numbers(value: Any) -> list[tuple[list[str], float]]:
    """Labels and numbers of a snapshot's field; what is no number (or none yet) is left out."""
    if isinstance(value, Mapping):
        said = cast("Mapping[Any, Any]", value)
        return [([str(k)], float(v)) for k, v in sorted(said.items()) if isinstance(v, int | float)]
    return [([], float(value))] if isinstance(value, bool | int | float) else []


class Metrics:
    """Counters of one server, in a registry of their own. Call from the event loop only."""

    def __init__(self, engine: Engine, calibration: Calibration | None) -> None:
        self.registry = CollectorRegistry()
        self._calibration = calibration
        self._drift: DriftMonitor | None = None if calibration is None else calibration.monitor(calibration.threshold)
        self._recent: deque[tuple[bool, float]] = deque(maxlen=WINDOW)
        r = self.registry
        self.answers = Counter("allaprima_http_answers", "HTTP answers.", ["route", "status"], registry=r)
        self._pictures = Counter("allaprima_pictures", "Pictures that ended.", ["outcome"], registry=r)
        self._decisions = Counter("allaprima_decisions", "Decisions on drafts.", ["decision"], registry=r)
        self._steps = Counter("allaprima_steps", "Network steps.", registry=r)
        self._queued = Histogram("allaprima_queue_seconds", "Admission to first step.", registry=r, buckets=SECONDS)
        self._drafted = Histogram("allaprima_draft_seconds", "First step to draft.", registry=r, buckets=SECONDS)
        self._took = Histogram("allaprima_picture_seconds", "Admission to picture.", registry=r, buckets=SECONDS)
        self._stages = Histogram(
            "allaprima_stage_seconds", "A picture's share of batches.", ["stage"], registry=r, buckets=SECONDS
        )
        self._acceptance = Gauge("allaprima_acceptance", f"Share of the last {WINDOW} drafts accepted.", registry=r)
        self._mean = Gauge("allaprima_realised_budget_steps", f"Mean steps of the last {WINDOW} pictures.", registry=r)
        self._evidence = Gauge("allaprima_drift_evidence", "Against the calibration; 100 raises the alarm.", registry=r)
        self._alarm = Gauge("allaprima_drift_alarm", "1 when drafts fall short more or less often.", registry=r)
        if calibration is not None and self._drift is not None:
            expected = Gauge("allaprima_expected_acceptance", "The calibration's.", registry=r)
            expected.set(1 - self._drift.share)
            Gauge("allaprima_budget", "The calibration's.", ["unit"], registry=r).labels(calibration.prices.unit).set(
                calibration.budget
            )
        r.register(_Engine(engine))

    def count(self, parsed: ParsedRequest, seen: RequestProgress) -> None:
        """A picture has ended."""
        result = seen.result
        painted = result is not None and result.image is not None
        self._pictures.labels("painted" if painted else "cancelled" if seen.cancelled else "failed").inc()
        if seen.started is not None:
            self._queued.observe(max(0.0, seen.started - seen.admitted))
            if seen.drafted is not None:
                self._drafted.observe(max(0.0, seen.drafted - seen.started))
        if result is None or not painted:
            return
        self._took.observe(seen.seconds or 0.0)
        for stage, seconds in result.cost.seconds.items():
            self._stages.labels(stage).observe(seconds)
        steps = steps_of(result)
        self._steps.inc(steps)
        self._decisions.labels(str(result.decision)).inc()
        self._recent.append((result.decision is Decision.ACCEPT, steps))
        self._acceptance.set(sum(a for a, _ in self._recent) / len(self._recent))
        self._mean.set(sum(s for _, s in self._recent) / len(self._recent))
        if self._drift is not None and self._calibration is not None and parsed.calibrated:
            score = number(result.score)
            if score is not None:
                self._drift.update(score < self._calibration.threshold)
                self._evidence.set(self._drift.evidence)
                self._alarm.set(self._drift.alarm)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
