"""VQAScore against a server on 127.0.0.1 that can fail, dawdle and talk rubbish."""

import base64
import io
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from allaprima.core.errors import ModelError, SettingError
from allaprima.oracles.load import load_oracle
from allaprima.oracles.vqa import yes_probability


def completion(**tokens):
    """A chat completion whose first token's likeliest values have these probabilities."""
    rows = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in tokens.items()]
    content = [{"token": rows[0]["token"], "logprob": rows[0]["logprob"], "top_logprobs": rows}]
    return {"choices": [{"message": {"content": rows[0]["token"]}, "logprobs": {"content": content}}]}


class Endpoint:
    """Answers with P(yes) = brightness; `plan` says what to do with the first tries instead."""

    def __init__(self):
        self.plan, self.seen, self.busy, self.most, self.dawdle = [], [], 0, 0, 0.0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.seen.append((self.path, dict(self.headers), body))
                    what = outer.plan.pop(0) if outer.plan else None
                    outer.busy += 1
                    outer.most = max(outer.most, outer.busy)
                time.sleep(outer.dawdle)
                # Before the answer leaves: whoever reads it may ask the next question at once.
                with outer.lock:
                    outer.busy -= 1
                outer.answer(self, body, what)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def answer(self, handler, body, what):
        status, headers, data = 200, {}, None
        if isinstance(what, int):
            status, data = what, b'{"error": "no"}'
        elif isinstance(what, tuple):
            status, headers, data = what
        elif isinstance(what, bytes):
            data = what
        elif isinstance(what, dict):
            data = json.dumps(what).encode()
        elif what == "slow":
            time.sleep(1.0)
            return
        elif what == "hang up":
            handler.connection.close()
            return
        else:
            data = json.dumps(completion(Yes=self.shown(body).mean() / 255 + 1e-9, No=0.01)).encode()
        handler.send_response(status)
        for k, v in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(k, v)
        handler.end_headers()
        handler.wfile.write(data)

    @staticmethod
    def shown(body):
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


@pytest.fixture
def endpoint():
    made = Endpoint()
    yield made
    made.server.shutdown()
    made.server.server_close()


def oracle(endpoint, **settings):
    return load_oracle(
        "vqa", ".", settings={"url": endpoint.url, "model": "eyes-1", "backoff": 0.01, "timeout": 5, **settings}
    )


def grey(*levels):
    return torch.tensor(levels, dtype=torch.float32).div(255).view(-1, 1, 1, 1).expand(-1, 3, 8, 6).contiguous()


def test_it_asks_the_published_question_and_takes_the_probability_of_yes(endpoint):
    found = oracle(endpoint).score(grey(51, 204), ['a "red" {owl}', "a cat"])
    assert found == pytest.approx([0.2, 0.8], abs=1e-6)
    path, headers, body = next(s for s in endpoint.seen if "owl" in str(s[2]))
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert body["messages"][0]["content"][1]["text"] == 'Does this figure show "a "red" {owl}"? Please answer yes or no.'
    asked = {k: body[k] for k in ("model", "max_tokens", "temperature", "logprobs", "top_logprobs")}
    assert asked == {"model": "eyes-1", "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20}
    # The picture arrives to the bit.
    assert np.array_equal(endpoint.shown(body), np.full((8, 6, 3), 51))


def test_copies_that_pad_a_batch_are_asked_about_once(endpoint):
    found = oracle(endpoint).score(grey(51, 51, 102, 51), ["owl", "owl", "owl", "cat"])
    assert found == pytest.approx([0.2, 0.2, 0.4, 0.2], abs=1e-6)
    assert len(endpoint.seen) == 3
    assert oracle(endpoint).score(grey()[:0], []).shape == (0,)


def test_the_key_comes_from_the_environment(endpoint, monkeypatch):
    with pytest.raises(SettingError, match="names 'EYES_KEY', which is not set"):
        oracle(endpoint, key_env="EYES_KEY")
    monkeypatch.setenv("EYES_KEY", "s3cret")
    o = oracle(endpoint, key_env="EYES_KEY")
    o.score(grey(9), ["owl"])
    assert endpoint.seen[0][1]["Authorization"] == "Bearer s3cret"
    endpoint.plan = [401]
    with pytest.raises(ModelError, match="answered 401") as e:
        o.score(grey(9), ["owl"])
    assert "s3cret" not in str(e.value) and len(endpoint.seen) == 2


RUBBISH = [
    503, 429, "hang up", b"<html>", b"\xff\xfe", b"[]", {}, {"choices": []}, completion(Maybe=0.9), b"x" * ((1 << 20) + 1),
    {"choices": [{"logprobs": {"content": []}}]},
    {"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": "high"}]}]}}]},
    {"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": 3.0}]}]}}]},
    {"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": None}]}]}}]},
]  # fmt: skip


@pytest.mark.parametrize("bad", RUBBISH, ids=range(len(RUBBISH)))
def test_what_makes_no_sense_is_asked_again(endpoint, bad):
    endpoint.plan = [bad, bad]
    assert oracle(endpoint).score(grey(51), ["owl"]) == pytest.approx([0.2], abs=1e-6)
    assert len(endpoint.seen) == 3


def test_one_picture_that_fails_does_not_cost_the_others_theirs(endpoint):
    endpoint.plan = [500] * 3
    o = oracle(endpoint, retries=2, concurrency=1)
    with pytest.warns(UserWarning, match="no score for 1 of 3 pictures: status 500"):
        found = o.score(grey(51, 102, 153), ["a", "b", "c"])
    assert found.isnan().tolist() == [True, False, False] and found[1:] == pytest.approx([0.4, 0.6], abs=1e-6)
    endpoint.plan = [500] * 3
    with pytest.raises(ModelError, match="no score for 1 of 1 pictures: status 500"):
        oracle(endpoint, retries=2, failure="raise").score(grey(51), ["a"])


def test_a_slow_endpoint_is_given_up_on(endpoint):
    endpoint.plan = ["slow"]
    begun = time.monotonic()
    assert oracle(endpoint, timeout=0.2).score(grey(51), ["owl"]) == pytest.approx([0.2], abs=1e-6)
    assert 0.2 < time.monotonic() - begun < 0.9
    endpoint.plan = ["slow"]
    with pytest.warns(UserWarning, match="no score.*[Tt]ime"):
        assert oracle(endpoint, timeout=0.2, retries=0).score(grey(51), ["owl"]).isnan().all()


def test_waits_grow_and_heed_what_the_endpoint_asks(endpoint, monkeypatch):
    waits = []
    monkeypatch.setattr("allaprima.oracles.vqa.time.sleep", waits.append)
    endpoint.plan = [500, 500, (429, {"Retry-After": "7"}, b""), (503, {"Retry-After": "9999"}, b"")]
    oracle(endpoint, retries=4, backoff=0.5).score(grey(51), ["owl"])
    # The server's own `sleep(0)` is patched as well.
    assert [w for w in waits if w] == [0.5, 1.0, 7.0, 60.0]


def test_no_more_questions_at_once_than_are_allowed(endpoint):
    endpoint.dawdle = 0.05
    found = oracle(endpoint, concurrency=3).score(grey(*range(20, 32)), ["owl"] * 12)
    assert found == pytest.approx([n / 255 for n in range(20, 32)], abs=1e-6)
    assert 1 < endpoint.most <= 3


@pytest.mark.parametrize(("status", "headers"), [(404, {}), (400, {}), (302, {"Location": "http://127.0.0.1:9/v1"})])
def test_what_no_other_try_mends_is_said_at_once(endpoint, status, headers):
    endpoint.plan = [(status, headers, b'{"error": "model not found"}')]
    with pytest.raises(ModelError, match=f"answered {status}: .*model not found"):
        oracle(endpoint).score(grey(51), ["owl"])
    assert len(endpoint.seen) == 1


def test_an_endpoint_without_logprobs_is_named(endpoint):
    endpoint.plan = [{"choices": [{"message": {"content": "Yes"}, "logprobs": None}]}]
    with pytest.raises(ModelError, match="no log-probabilities"):
        oracle(endpoint).score(grey(51), ["owl"])


def test_a_picture_of_no_numbers_is_not_sent(endpoint):
    images = grey(51, 51)
    images[0, 0, 0, 0] = torch.nan
    assert oracle(endpoint).score(images, ["owl"] * 2).isnan().tolist() == [True, False]
    assert len(endpoint.seen) == 1


def test_ways_of_writing_yes_count_together():
    answer = completion(**{"Yes": 0.4, " yes": 0.2, "▁No": 0.2, "YES.": 0.1, "Yesterday": 0.1})
    assert yes_probability(answer) == pytest.approx(0.7)
    assert yes_probability(answer, "yes_or_no") == pytest.approx(7 / 9)
    assert yes_probability(completion(No=0.9, Maybe=0.1)) == 0


def test_settings_are_checked_and_identify_the_oracle(endpoint):
    with pytest.raises(SettingError, match=r"no \{prompt\}"):
        oracle(endpoint, question="Nice?")
    with pytest.raises(SettingError, match=r"oracle.settings.url = 'ftp://x'"):
        oracle(endpoint, url="ftp://x")
    with pytest.raises(SettingError, match=r"oracle.settings.colour means nothing to the kind 'vqa': url, model"):
        oracle(endpoint, colour=1)
    with pytest.raises(SettingError, match=r"oracle.settings.model is missing"):
        load_oracle("vqa", ".", settings={"url": endpoint.url})
    base = oracle(endpoint).fingerprint
    assert oracle(endpoint, timeout=9, retries=1, concurrency=2).fingerprint == base
    others = (
        {"model": "eyes-2"},
        {"answer": "yes_or_no"},
        {"question": "Is it {prompt}?"},
        {"url": "http://127.0.0.1:1/v1"},
    )
    assert len({base, *(oracle(endpoint, **s).fingerprint for s in others)}) == 5
