"""The OpenAPI document against the server: schemathesis asks what it allows and what it doesn't."""

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from served import LOCAL, calibrated, create_app, service

from allaprima.serving.api.limits import Limits
from allaprima.serving.engine import Engine

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    response_headers_conformance,
]  # fmt: skip
# A busy machine may be slow; that nothing hangs is other tests' affair.
CONFIG = schemathesis.Config.from_dict({"base-url": LOCAL, "request-timeout": 120})


def api():
    """Tiny pictures, so that a case costs milliseconds; the same checks of every field.

    The engine's clock stands still: no deadline passes, however busy this machine is, so no 504 is due.
    """
    limits = Limits(n=3, pixels=256, steps=8, cost=10 * 256 * 10, prompt_chars=300)
    pipe = calibrated()
    engine = Engine(pipe, clock=lambda: 1000.0)
    engine.start()
    return create_app(service(pipe, limits, engine))


def test_the_document_tells_the_least_latency():
    found = api().openapi()["components"]["schemas"]["Adaptive"]["properties"]["max_latency"]
    assert {v.get("minimum") for v in found["anyOf"]} == {0.1, None}


def run(cases):
    """Up to so many cases for each operation of the document (fewer where there are no more); statuses by operation."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", api(), config=CONFIG)
    patient = settings(
        max_examples=cases, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )  # fmt: skip
    asked = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        name = f"{operation.method.upper()} {operation.path}"
        # Half of the cases obey the document, half break it somewhere.
        ways = [operation.as_strategy(generation_mode=way) for way in GenerationMode]
        patient(given(case=formed(ways[0] | ways[1]))(checking(asked.setdefault(name, Counter()))))()
    return asked


@st.composite
def formed(draw, cases):
    """Cases that schemathesis can put into words: some of its broken uploads it can't ("Unsupported type: 'Binary'")."""
    try:
        return draw(cases)
    except ValueError as e:
        if "Unsupported type" not in str(e):
            raise
        reject()


def checking(statuses):
    def one(case):
        answer = case.call()
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)

    return one


def test_a_hundred_cases():
    asked = run(35)
    assert sum(s.total() for s in asked.values()) >= 80
    assert set(asked) == {
        "POST /v1/images/generations", "POST /v1/images/edits", "GET /v1/models", "GET /v1/models/{name}", "GET /health",
        "GET /ready", "GET /metrics",
    }  # fmt: skip


@pytest.mark.slow
def test_two_thousand_cases():
    asked = run(1000)
    print(asked)
    assert sum(s.total() for s in asked.values()) >= 2000
