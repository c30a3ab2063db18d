"""Several attempts on every surface: calls, the command line and HTTP compose the same policy."""

import dataclasses
import math

import pytest
from starlette.testclient import TestClient

from allaprima.cascade.policy import Decision, ThresholdPolicy
from allaprima.cascade.sequential import SequentialPolicy
from allaprima.core.errors import SettingError
from allaprima.serving.api.app import create_app
from allaprima.serving.api.limits import Limits
from tests.serving.served import LOCAL, calibrated, service, toy_pipe


def test_a_call_takes_attempts():
    pipe = toy_pipe()
    made = pipe("0.3", seed=1, threshold=0.9, max_drafts=3, max_teacher_tries=2, noise="fresh", strategy="regenerate")
    (result,) = made.results
    assert (result.attempts, result.tries) == (3, 2)
    assert result.selected in ("draft", "final")
    alone = pipe("0.3", seed=1, threshold=0.9, max_drafts=3, max_teacher_tries=0).results[0]
    assert (alone.attempts, alone.tries, alone.decision) == (3, 0, Decision.ACCEPT)
    assert alone.cost.evaluations.get("teacher") is None
    assert alone.score == result.score


def test_the_calibrated_threshold_decides_where_none_is_given():
    pipe = calibrated()
    usual = pipe.policy(pipe.settings)
    policy = pipe.policy(pipe.settings, max_drafts=2)
    assert isinstance(usual, ThresholdPolicy)
    assert policy == SequentialPolicy(
        usual.threshold, 2, 1, Decision(pipe.settings.strategy), teacher_threshold=usual.threshold
    )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"budget": 4.0}, "max_drafts=2 and budget=4.0 contradict each other"),
        ({"mode": "teacher-only"}, "max_drafts=2 and mode='teacher-only' contradict"),
        ({"steer": True}, "max_drafts=2 and steer contradict"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"threshold": 0.5, "max_teacher_tries": 65}, "max_teacher_tries=65 is out of range: 0..64"),
        ({"threshold": 0.5, "noise": "new"}, "noise='new' is not known: same, fresh"),
    ],
)
def test_what_contradicts_attempts_is_refused(how, message):
    pipe = calibrated()
    with pytest.raises(SettingError, match=message):
        pipe.policy(pipe.settings, **{"max_drafts": 2, **how})


def test_http_takes_attempts():
    pipe = toy_pipe()
    limits = dataclasses.replace(Limits.of(pipe.settings), cost=10 * 8 * 8 * (2 + 3))
    app = create_app(service(pipe, limits))
    with TestClient(app, base_url=LOCAL) as client:

        def post(**adaptive):
            body = {"prompt": "0.3", "seed": 1, "adaptive": {"threshold": 0.9, **adaptive}}
            return client.post("/v1/images/generations", json=body)

        account = post(max_drafts=3, max_teacher_tries=2, noise="fresh", strategy="regenerate").json()["data"][0]["adaptive"]
        assert (account["attempts"], account["tries"]) == (3, 2)
        assert post().json()["data"][0]["adaptive"]["attempts"] == 1
        for wrong, param in (({"max_drafts": 65}, "max_drafts"), ({"noise": "new"}, "noise")):
            answer = post(**wrong)
            assert answer.status_code in (400, 422)
            assert param in answer.text
        answer = post(max_drafts=64, max_teacher_tries=64)
        assert answer.status_code == 400
        assert "steps of all attempts" in answer.text
