"""Who is answered: keys, names of this machine, pages of others."""

import hmac
import socket
import urllib.error
import urllib.request

import pytest
from scripted import ScriptedEngine
from served import LOCAL, create_app, listening, service
from starlette.testclient import TestClient

from allaprima.core.errors import SettingError
from allaprima.serving.api import edge
from allaprima.serving.api import keys as module
from allaprima.serving.api.keys import Keys
from allaprima.serving.api.server import check_bind

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"
ASK = {"prompt": "an owl", "adaptive": {"threshold": 0.5}}


def served(**more):
    engine = ScriptedEngine()
    return engine, TestClient(create_app(service(engine=engine, **more)), base_url=LOCAL)


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def api():
    return served(keys=Keys.parse(f"alice {ALICE}\nbob: {BOB}  # his\n", "here"))[1]


@pytest.mark.parametrize(
    "headers",
    [
        {}, bearer("wrong-0123456789abcdef"), bearer(ALICE[:-1]), bearer(ALICE + "x"), bearer(""), {"Authorization": ALICE},
        {"Authorization": f"Basic {ALICE}"}, {"Authorization": b"Bearer \xff\xfe"},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/images/generations"), ("POST", "/v1/images/edits"), ("GET", "/v1/models"), ("GET", "/metrics")],
)
def test_no_key_no_answer(api, headers, method, path):
    answer = api.request(method, path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert ALICE not in answer.text


def test_the_key_is_looked_at_before_the_body(api, monkeypatch):
    monkeypatch.setattr(edge, "LINGER_SECONDS", 0.2)
    head = "POST /v1/images/edits HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n"
    with listening(api.app) as address:
        host, port = address.removeprefix("http://").split(":")
        # Of the body nothing ever comes.
        with socket.create_connection((host, int(port)), timeout=30) as sock:
            sock.sendall(f"{head}Authorization: Bearer wrong-0123456789abcdef\r\n\r\n".encode())
            assert sock.recv(12) == b"HTTP/1.1 401"


def test_a_refusal_reaches_who_is_still_sending(api):
    with listening(api.app) as address:
        request = urllib.request.Request(f"{address}/v1/images/edits", b"x" * 8 * 2**20, method="POST")
        with pytest.raises(urllib.error.HTTPError) as e:
            urllib.request.urlopen(request, timeout=60)
        with e.value:
            assert e.value.code == 401


def test_a_key_has_its_clients_name():
    engine, api = served(keys=Keys.parse(f"alice {ALICE},bob {BOB}", "here"))
    given = engine.submit

    def painted(requests):
        handles = given(requests)
        for handle in handles:
            engine.paint(handle)
        return handles

    engine.submit = painted
    for key in (BOB, ALICE):
        assert api.post("/v1/images/generations", json=ASK, headers=bearer(key)).status_code == 200
    assert [t.request.client for t in engine.handles] == ["bob", "alice"]
    assert api.get("/v1/models", headers={"Authorization": f"bearer  {BOB}"}).status_code == 200


def test_every_key_is_compared_in_constant_time(monkeypatch):
    compared = []

    class Recorded:
        @staticmethod
        def compare_digest(a, b):
            compared.append((a, b))
            return hmac.compare_digest(a, b)

    monkeypatch.setattr(module, "hmac", Recorded)
    keys = Keys.parse(f"alice {ALICE},bob {BOB}", "here")
    assert keys.client(f"Bearer {ALICE}") == "alice"
    assert [b for _, b in compared] == [ALICE.encode(), BOB.encode()]


def test_health_needs_no_key(api):
    assert api.get("/health").json() == {"status": "ok"}
    assert api.get("/ready").json() == {"status": "ready"}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "192.0.2.1", "", "127.0.0.1.evil.example"])
def test_without_keys_only_this_machines_names_are_answered(host):
    _, api = served()
    answer = api.get("/v1/models", headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["type"] == "permission_error"
    _, open_ = served(anyone=True)
    assert open_.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:9", "[::1]:8000"])
def test_names_of_this_machine(host):
    _, api = served()
    assert api.get("/v1/models", headers={"Host": host}).status_code == 200
    assert api.get("/v1/models", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        assert api.get("/v1/models", headers={"Host": host, "Origin": origin}).status_code == 403


def test_files_of_keys(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text(f"# ours\nalice {ALICE}\n\nbob {BOB}\n")
    path.chmod(0o600)
    assert [name for name, _ in Keys.load(path).named] == ["alice", "bob"]
    assert ALICE not in repr(Keys.load(path))
    path.chmod(0o644)
    with pytest.raises(SettingError, match="chmod 600"):
        Keys.load(path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no keys"), ("alice", "NAME KEY"), ("alice short", "16 or more"), (f"alice {ALICE}\nbob {ALICE}", "twice"),
        (f"alice {ALICE}\nalice {BOB}", "twice"), (f"alice {ALICE} more", "NAME KEY"),
    ],
)  # fmt: skip
def test_files_that_are_none(text, match):
    with pytest.raises(SettingError, match=match) as e:
        Keys.parse(text, "keys.txt")
    assert ALICE not in str(e.value)


def test_from_the_environment(monkeypatch):
    monkeypatch.setenv("ALLAPRIMA_KEYS", f"alice:{ALICE}")
    assert Keys.load(None).client(f"Bearer {ALICE}") == "alice"
    monkeypatch.delenv("ALLAPRIMA_KEYS")
    assert Keys.load(None).client(None) == "anyone"


def test_others_are_reached_with_keys_only():
    for host in ("127.0.0.1", "::1", "localhost"):
        check_bind(host, False, False)
    check_bind("0.0.0.0", True, False)
    check_bind("0.0.0.0", False, True)
    for host in ("0.0.0.0", "::", "192.0.2.1", ""):
        with pytest.raises(SettingError, match="--keys"):
            check_bind(host, False, False)
