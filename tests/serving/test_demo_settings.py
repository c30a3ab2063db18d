"""What the demo page is told: the same thresholds and shares that the pipeline decides by, and seconds from batches."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from allaprima.calibration.budget import Prices
from allaprima.serving.api.demo import FILES, demo_router
from allaprima.serving.pages.settings import USUAL, demo_settings, places, seconds_of


def test_the_table_says_what_the_pipeline_does(pipe):
    told = demo_settings(pipe, "emoji", True, 4000)
    budget = told["budget"]
    assert (budget["unit"], budget["default"]) == ("steps", 15.0)
    assert [budget["table"][0]["budget"], budget["table"][-1]["budget"]] == [3, 17]
    assert (told["key_needed"], told["prompt_chars"], told["card"]) == (True, 4000, "emoji")
    scores = np.array(pipe.calibration.scores)
    for row in budget["table"]:
        assert row["threshold"] == pipe.policy(pipe.settings, budget=row["budget"]).threshold
        # The share is of steps: 3 and 14 of them; and so many held-out drafts do fall below.
        assert row["share"] == pytest.approx((row["budget"] - 3) / 14)
        assert np.mean(scores < row["threshold"]) == pytest.approx(row["share"], abs=2 / len(scores))
        assert row["seconds"] is None
    # JSON as browsers read it: no infinity, no nan.
    json.dumps(told, allow_nan=False)


def test_every_held_out_score_is_in_the_histogram(pipe):
    told = demo_settings(pipe, "emoji")["scores"]
    scores = pipe.calibration.scores
    assert sum(told["counts"]) == len(scores)
    assert (told["low"], told["high"]) == (min(scores), max(scores))


def test_there_is_no_slider_where_no_budget_can_be_chosen(pipe):
    def changed(**changes):
        made = SimpleNamespace(**{k: getattr(pipe, k) for k in ("settings", "calibration", "card")})
        made.action_settings, made.student_settings = pipe.action_settings, pipe.student_settings
        made.fingerprints = pipe.fingerprints
        made.__dict__.update(changes)
        return demo_settings(made, "other")

    assert changed()["budget"] is not None
    assert changed(calibration=None)["budget"] is None
    fitted = dataclasses.replace(pipe.calibration, policy={"kind": "band"})
    assert changed(calibration=fitted)["budget"] is None
    # A request's budget would be refused: the calibration is of three student steps.
    assert changed(settings=pipe.settings.changed(student_steps=4))["budget"] is None
    assert changed(card=None)["examples"] == list(USUAL)


@pytest.mark.parametrize(
    ("draft", "escalation", "default"),
    [(3, 14, 15), (5, 20, 15), (10.174, 28, 20), (0.31, 0.0072, 0.3141), (2e-4, 3e-3, 1e-3), (0, 1000, 10 / 3)],
)
def test_places_go_from_the_student_alone_to_everything_escalated(draft, escalation, default):
    prices = Prices("evaluations", draft, escalation)
    found = places(prices, default)
    assert (found[0], found[-1]) == (draft, draft + escalation)
    assert default in found
    assert 10 <= len(found) <= 36
    gaps = np.diff(found)
    assert (gaps > 0).all()
    assert gaps.max() <= escalation / 10
    for budget in found:
        prices.share_for(budget)


def test_seconds_are_those_of_a_lone_picture():
    measured = SimpleNamespace(
        batches={"new": 2, "student": 6, "score": 2, "teacher": 28, "decode": 2},
        seconds={"new": 0.2, "student": 0.6, "score": 0.1, "teacher": 5.6, "decode": 0.3},
    )
    seconds = seconds_of(measured, 3, 14)
    assert seconds.draft == pytest.approx(0.1 + 3 * 0.1 + 0.05)
    assert seconds.escalation == pytest.approx(14 * 0.2 + 0.15)
    assert seconds.mean(0.5) == pytest.approx(0.45 + 0.5 * 2.95)
    assert seconds_of(SimpleNamespace(batches={}, seconds={}), 3, 14).mean(0) is None
    no_teacher_yet = seconds_of(
        SimpleNamespace(batches={k: 1 for k in ("new", "student", "score")}, seconds={"student": 0.1}), 3, 14
    )
    assert no_teacher_yet.mean(0) == pytest.approx(0.3)
    assert no_teacher_yet.mean(0.01) is None


def test_files_come_with_a_policy_that_forbids_what_is_not_the_servers():
    app = FastAPI()
    app.include_router(demo_router(lambda: {"card": "emoji"}))
    client = TestClient(app)
    for path in ("/", "/demo/settings", *(f"/demo/{file}" for file in FILES)):
        answer = client.get(path)
        assert answer.status_code == 200
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["form-action"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/demo/settings").json() == {"card": "emoji"}
    assert client.get("/demo/../settings.py").status_code == 404
    assert client.get("/demo/settings.py").status_code == 404
    assert client.post("/").status_code == 405
    assert client.get("/openapi.json").json()["paths"] == {}
