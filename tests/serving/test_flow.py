"""Leaving, draining, shares, events, metrics: with an engine that the test holds in its hand."""

import json
import socket
import threading

import pytest
from scripted import EMPTY, ScriptedEngine
from served import LOCAL, calibrated, create_app, listening, service, until
from starlette.testclient import TestClient

from allaprima.calibration.threshold import threshold_for
from allaprima.cascade.policy import Decision
from allaprima.serving.api.limits import Limits
from allaprima.serving.api.traces import Traces, parts

ASK = {"prompt": "an owl", "adaptive": {"threshold": 0.5}}


@pytest.fixture
def engine():
    return ScriptedEngine()


def call(address, body):
    """A request on a socket of one's own, sent and not read."""
    host, port = address.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=60)
    data = json.dumps(body).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return sock


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_takes_the_request_back(engine, stream):
    made = service(engine=engine)
    with listening(create_app(made)) as address:
        sock = call(address, {**ASK, "n": 2, "stream": stream})
        until(lambda: len(engine.handles) == 2)
        engine.paint(engine.handles[0])
        assert not engine.handles[1].done
        sock.close()
        until(lambda: engine.handles[1].done)
        until(lambda: not made._pictures)
        text = made.metrics.text().decode()
        assert 'allaprima_pictures_total{outcome="cancelled"} 1.0' in text
        assert 'allaprima_pictures_total{outcome="painted"} 1.0' in text


def test_a_draft_is_sent_when_it_is_there(engine):
    with listening(create_app(service(engine=engine))) as address:
        sock = call(address, {**ASK, "stream": True, "partial_images": 1})
        until(lambda: engine.handles)
        from allaprima.serving.handle import Draft, Started

        engine.handles[0].tell(Started())
        import torch

        engine.handles[0].tell(Draft(torch.zeros(3, 8, 8), 0.1, 0.5, Decision.REFINE))
        seen = b""
        while b"\n\n" not in seen.partition(b"\r\n\r\n")[2]:
            seen += sock.recv(65536)
        assert b"event: image_generation.partial_image" in seen
        assert b"completed" not in seen
        assert not engine.handles[0].done
        engine.paint(engine.handles[0], 0.1, Decision.REFINE)
        while b"image_generation.completed" not in seen:
            seen += sock.recv(65536)
        sock.close()


def test_a_client_has_its_share_of_the_queue(engine):
    made = service(engine=engine, limits=Limits(client_pictures=3, n=3, pixels=1024))
    with listening(create_app(made)) as address:
        sock = call(address, {**ASK, "n": 2})
        until(lambda: len(engine.handles) == 2)
        api = TestClient(create_app(made), base_url=LOCAL)
        answer = api.post("/v1/images/generations", json={**ASK, "n": 2})
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "client_queue_full"
        assert int(answer.headers["Retry-After"]) >= 1
        for handle in engine.handles:
            engine.paint(handle)
        assert sock.recv(12).startswith(b"HTTP/1.1 200")
        sock.close()
        until(lambda: not made._pictures)


def test_nothing_is_taken_while_it_goes_down(engine):
    made = service(engine=engine)
    api = TestClient(create_app(made), base_url=LOCAL)
    made.draining = True
    for answer in (api.post("/v1/images/generations", json=ASK), api.get("/ready"), api.post("/v1/images/edits")):
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "draining"
        assert int(answer.headers["Retry-After"]) >= 1
    assert api.get("/health").json() == {"status": "draining"}
    assert not engine.handles


def painting(engine, **more):
    """Everything is painted as soon as it is asked for."""
    given = engine.submit

    def submit(requests):
        handles = given(requests)
        threading.Thread(target=lambda: [engine.paint(t, **more) for t in handles]).start()
        return handles

    engine.submit = submit


def test_who_says_how_it_is_decided_gets_just_that(engine):
    painting(engine)
    api = TestClient(create_app(service(pipe=calibrated(), engine=engine)), base_url=LOCAL)
    for adaptive, adjustable in (
        ({}, True),
        ({"budget": 4}, False),
        ({"threshold": 0.2}, False),
        ({"max_latency": 9}, True),
    ):
        body = {"prompt": "an owl", "adaptive": adaptive}
        assert api.post("/v1/images/generations", json=body).status_code == 200
        assert engine.handles[-1].request.adjustable is adjustable
    left = engine.handles[-1].request.deadline - engine.clock()
    assert 0 < left <= 9
    assert engine.handles[0].request.deadline is None


def test_budgets_are_the_calibrations(engine):
    painting(engine)
    pipe = calibrated()
    api = TestClient(create_app(service(pipe=pipe, engine=engine)), base_url=LOCAL)

    def asked(**body):
        answer = api.post("/v1/images/generations", json={"prompt": "an owl", **body})
        return answer, engine.handles[-1].request.policy if engine.handles else None

    answer, policy = asked(adaptive={"budget": 3.5})
    assert policy.threshold == threshold_for(pipe.calibration.scores, 0.5)
    assert answer.json()["data"][0]["adaptive"]["calibrated"] is True
    # Another guidance scale: the calibrated threshold is a mark to reach, and said to be no more than that.
    answer, policy = asked(guidance_scale=1.5)
    assert policy.threshold == pipe.calibration.threshold
    assert answer.json()["data"][0]["adaptive"]["calibrated"] is False
    answer, _ = asked(guidance_scale=1.5, adaptive={"budget": 3.5})
    assert answer.status_code == 400
    assert asked(adaptive={"budget": 99})[0].status_code == 400


def test_metrics(engine):
    painting(engine)
    made = service(pipe=calibrated(), engine=engine)
    api = TestClient(create_app(made), base_url=LOCAL)
    assert api.post("/v1/images/generations", json={"prompt": "an owl", "n": 3}).status_code == 200
    engine.submit = ScriptedEngine.submit.__get__(engine)
    painting(engine, score=0.1, decision=Decision.REFINE)
    assert api.post("/v1/images/generations", json={"prompt": "an owl"}).status_code == 200
    object.__setattr__(engine, "account", type(EMPTY)(**{**vars(EMPTY), "queued": 5, "fill": {"student": 0.75}}))
    text = api.get("/metrics").text
    for line in (
        "allaprima_acceptance 0.75", "allaprima_steps_total 11.0", "allaprima_realised_budget_steps 2.75",
        'allaprima_decisions_total{decision="accept"} 3.0', 'allaprima_decisions_total{decision="refine"} 1.0',
        "allaprima_engine_queued 5.0", 'allaprima_engine_fill{stage="student"} 0.75', "allaprima_queue_seconds_count 4.0",
        'allaprima_stage_seconds_count{stage="oracle"} 4.0', 'allaprima_budget{unit="steps"} 4.0',
        'allaprima_http_answers_total{route="/v1/images/generations",status="200"} 2.0',
    ):  # fmt: skip
        assert line in text.split("\n"), line
    expected = float(next(x for x in text.split("\n") if x.startswith("allaprima_expected_acceptance ")).split()[1])
    assert expected == pytest.approx(1 / 3, abs=0.02)
    assert made.metrics._drift.pictures == 4
    assert made.metrics._drift.fallen == sum(s < made.pipe.calibration.threshold for s in (0.7, 0.7, 0.7, 0.1))


def test_guessed_places_are_one_metric(engine):
    made = service(engine=engine)
    api = TestClient(create_app(made), base_url=LOCAL)
    for k in range(5):
        api.get(f"/guess/{k}")
        api.get(f"/v1/models/{k}")
    text = made.metrics.text().decode()
    assert 'allaprima_http_answers_total{route="other",status="404"} 5.0' in text
    assert 'allaprima_http_answers_total{route="/v1/models/{name}",status="404"} 5.0' in text


def test_spans_of_a_picture(engine):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    painting(engine, score=0.1, decision=Decision.REFINE)
    made = service(engine=engine, traces=Traces(provider.get_tracer("test")))
    api = TestClient(create_app(made), base_url=LOCAL)
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    assert api.post("/v1/images/generations", json=ASK, headers=headers).status_code == 200
    found = {s.name: s for s in spans.get_finished_spans()}
    assert set(found) == {"picture", "queue", "student", "oracle", "teacher"}
    root = found.pop("picture")
    assert f"{root.context.trace_id:032x}" == trace
    assert root.attributes["allaprima.decision"] == "refine"
    assert all(s.parent.span_id == root.context.span_id for s in found.values())
    order = [found[name] for name in ("queue", "student", "oracle", "teacher")]
    assert [s.end_time for s in order[:-1]] == [s.start_time for s in order[1:]]
    assert (order[0].start_time, order[-1].end_time) == (root.start_time, root.end_time)


def test_traces_are_off_unless_configured(monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert Traces.configured()._tracer is None
    from allaprima.serving.api.request_stream import RequestProgress

    assert parts(RequestProgress()) == []
    assert [p[0] for p in parts(RequestProgress(admitted=1.0, ended=2.0))] == ["queue"]
