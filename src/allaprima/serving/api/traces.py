"""OpenTelemetry spans of a picture: queue, student, oracle, teacher. Off unless an address to send them to is given.

Spans are written when a picture has ended, from the times at which its events came; the oracle's is the last part of the
draft's, as long as its share of the batch was.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from allaprima.cascade.policy import Decision
from allaprima.core.errors import SettingError
from allaprima.serving.api.answers import number, steps_of, usual_threshold
from allaprima.serving.api.request_parser import ParsedRequest
from allaprima.serving.api.request_stream import RequestProgress

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Traces:
    """Writes spans to a tracer; None writes nothing."""

    def __init__(self, tracer: Any = None, provider: Any = None) -> None:
        self._tracer, self._provider = tracer, provider

    @classmethod
    def configured(cls, endpoint: str | None = None) -> Traces:
        """To an OTLP address (http), given here or by OpenTelemetry's environment variables; none: off.

        Raises `SettingError` when OpenTelemetry isn't installed.
        """
        if endpoint is None and not any(os.environ.get(name) for name in ENDPOINTS):
            return cls()
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as e:
            raise SettingError(
                f"traces are asked for, and OpenTelemetry isn't here ({e}): pip install allaprima[telemetry]"
            ) from e
        provider = TracerProvider(resource=Resource.create({"service.name": "allaprima"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        return cls(provider.get_tracer("allaprima.serving"), provider)

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()

    def write(self, parsed: ParsedRequest, k: int, seen: RequestProgress, headers: Mapping[str, str]) -> None:
        """The spans of one picture that has ended, under the caller's own trace if it names one (`traceparent`)."""
        if self._tracer is None or seen.ended is None:
            return
        from opentelemetry import propagate, trace

        parent = propagate.extract(dict(headers))
        ask = parsed.requests[k]
        names = {"allaprima.seed": ask.request.seed, "allaprima.size": parsed.size, "allaprima.client": ask.client}
        root = self._tracer.start_span("picture", context=parent, start_time=_ns(seen.admitted), attributes=names)
        inside = trace.set_span_in_context(root)
        for name, begun, ended in parts(seen):
            self._tracer.start_span(name, context=inside, start_time=_ns(begun)).end(_ns(ended))
        for name, value in _facts(parsed, k, seen).items():
            root.set_attribute(name, value)
        if seen.result is None or seen.result.image is None:
            root.set_status(trace.Status(trace.StatusCode.ERROR, "cancelled" if seen.cancelled else "failed"))
        root.end(_ns(seen.ended))


def parts(seen: RequestProgress) -> list[tuple[str, float, float]]:
    """Name, begin and end (`time.time()`) of what a picture went through."""
    if seen.ended is None:
        return []
    if seen.started is None:
        return [("queue", seen.admitted, seen.ended)]
    found = [("queue", seen.admitted, seen.started)]
    begun = seen.started
    if seen.drafted is not None:
        looked = 0.0 if seen.result is None else seen.result.cost.seconds.get("oracle", 0.0)
        between = max(begun, seen.drafted - looked)
        found += [("student", begun, between), ("oracle", between, seen.drafted)]
        begun = seen.drafted
    if seen.result is None or seen.result.decision is not Decision.ACCEPT:
        found.append(("teacher" if seen.result is not None else "unfinished", begun, seen.ended))
    return found


def _facts(parsed: ParsedRequest, k: int, seen: RequestProgress) -> dict[str, Any]:
    result = seen.result
    if result is None:
        return {}
    facts = {"score": number(result.score), "threshold": number(result.threshold), "steps": steps_of(result)}
    facts["usual_threshold"] = number(usual_threshold(parsed, k, result))
    facts |= {"decision": None if result.decision is None else str(result.decision)}
    return {f"allaprima.{k}": v for k, v in facts.items() if v is not None}


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
