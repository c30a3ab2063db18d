"""The study over HTTP: what is answered, what is refused, and that nothing tells the method."""

import json

import pytest
from fastapi.testclient import TestClient

from allaprima.study.app.app import BODY_BYTES, create_app
from allaprima.study.app.service import StudyService
from allaprima.study.create import open_study
from allaprima.study.design import Rules
from allaprima.study.known_pairs import Counts

LEFT = dict.fromkeys(("alignment", "quality", "aesthetics", "overall"), "left")


@pytest.fixture
def api(make_study):
    made = []

    def opened(prompts=4, **kwargs):
        folder = make_study(prompts, **kwargs)
        store = open_study(folder)
        service = StudyService(folder, store)
        client = TestClient(create_app(service), raise_server_exceptions=False)
        client.service, client.folder = service, folder
        client.tokens = store.invite(3)
        made.append(store)
        return client

    yield opened
    for s in made:
        s.close()


def bearer(client, k=0):
    return {"Authorization": f"Bearer {client.tokens[k]}"}


def slot_of(client, k=0):
    return client.get("/api/next", headers=bearer(client, k)).json()["slot"]["id"]


def vote(client, slot, answers=LEFT, k=0, **more):
    return client.post(
        f"/api/slots/{slot}/vote", json={"answers": answers, "seconds": 1.5, **more}, headers=bearer(client, k)
    )


def test_a_vote_is_kept_by_method_however_the_pictures_stood(api):
    client = api(6)
    for _ in range(6):
        assert vote(client, slot_of(client)).json() == {"first": True, "feedback": None}
    votes = client.service.store.votes()
    assert {v.left for v in votes} == {"a", "b"}
    assert all(set(v.answers.values()) == {v.left} for v in votes)
    done = client.get("/api/next", headers=bearer(client)).json()
    assert done["slot"] is None and done["progress"]["state"] == "done"


def test_pictures_are_the_pairs_own_and_nothing_names_a_method(api):
    client = api(3)
    answer = client.get("/api/next", headers=bearer(client))
    slot = answer.json()["slot"]["id"]
    pictures = {s: client.get(f"/api/slots/{slot}/{s}", headers=bearer(client)) for s in ("left", "right")}
    assert pictures["left"].content != pictures["right"].content
    for got in (answer, *pictures.values(), client.get("/api/study"), client.get("/"), client.get("/study/app.js")):
        assert got.status_code == 200
        everything = got.content + json.dumps(dict(got.headers)).encode()
        assert b"student" not in everything and b"teacher" not in everything
    assert "default-src 'none'" in client.get("/").headers["content-security-policy"]
    assert client.get(f"/api/slots/{slot}/middle", headers=bearer(client)).status_code == 404


def test_forged_tokens_foreign_pairs_and_repeats(api):
    client = api(4)
    slot = slot_of(client)
    for wrong in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": f"Basic {client.tokens[0]}"},
                  {"Authorization": f"Bearer {'x' * 5000}"}):  # fmt: skip
        assert client.get("/api/next", headers=wrong).status_code == 401
        assert client.post(f"/api/slots/{slot}/vote", json={}, headers=wrong).status_code == 401
        assert client.get(f"/api/slots/{slot}/left", headers=wrong).status_code == 401
    assert slot_of(client, 1) != slot
    refused = vote(client, slot, k=1)
    assert refused.status_code == 404 and refused.json()["error"]["code"] == "not_yours"
    assert client.get(f"/api/slots/{slot}/left", headers=bearer(client, 1)).status_code == 404
    assert vote(client, slot).json()["first"] is True
    # A used pair: the same answer, no second vote.
    assert vote(client, slot, dict.fromkeys(LEFT, "right")).json()["first"] is False
    assert len(client.service.store.votes()) == 1
    client.service.store.revoke(1)
    assert client.get("/api/next", headers=bearer(client)).status_code == 403


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"x" * (BODY_BYTES + 1), 413), (b"{" * 4000, 400), (b"[]", 400), (b"\xff", 400), (b'{"answers": {}}', 400),
        (b'{"answers": {"overall": "left"}, "seconds": 1}', 400), (b'{"answers": [], "seconds": 1}', 400),
        (json.dumps({"answers": {**LEFT, "overall": "a"}, "seconds": 1}).encode(), 400),
        (json.dumps({"answers": {**LEFT, "overall": None}, "seconds": 1}).encode(), 400),
        (json.dumps({"answers": {**LEFT, "overall": {"x": 1}}, "seconds": 1}).encode(), 400),
        (json.dumps({"answers": LEFT, "seconds": "1"}).encode(), 400),
        (json.dumps({"answers": LEFT, "seconds": 1, "annotator": 2}).encode(), 400),
        (json.dumps({"answers": {**LEFT, "\ud800": "left"}, "seconds": 1}).encode(), 400),
    ],
)  # fmt: skip
def test_bodies_that_are_no_vote_are_refused(api, body, status):
    client = api(2)
    slot = slot_of(client)
    headers = {**bearer(client), "Content-Type": "application/json"}
    answer = client.post(f"/api/slots/{slot}/vote", content=body, headers=headers)
    assert answer.status_code == status and answer.json()["error"]["message"]
    assert client.post(f"/api/slots/{slot}/vote", content=b"{}", headers=bearer(client)).status_code == 415
    assert client.service.store.votes() == []


def test_a_deleted_picture_is_named_and_another_pair_comes(api):
    client = api(3)
    slot = slot_of(client)
    handed = client.service.store.handed(1, slot)
    (client.folder / "pictures" / handed.files[0]).unlink()
    gone = client.get(f"/api/slots/{slot}/left", headers=bearer(client))
    assert gone.status_code == 410 and gone.json()["error"]["code"] == "picture_gone"
    assert client.post(f"/api/slots/{slot}/skip", headers=bearer(client)).status_code == 200
    following = client.get("/api/next", headers=bearer(client)).json()
    assert following["slot"]["id"] != slot and following["missing_pictures"] == 1


def test_a_full_disk_is_a_507_and_the_vote_can_be_sent_again(api, monkeypatch):
    import sqlite3

    from sqlalchemy.exc import OperationalError

    client = api(2)
    slot = slot_of(client)

    def full(*_):
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    with monkeypatch.context() as m:
        m.setattr("sqlalchemy.orm.Session.flush", full)
        refused = vote(client, slot)
    assert refused.status_code == 507 and "full" in refused.json()["error"]["message"]
    assert client.service.store.votes() == []
    assert vote(client, slot).json()["first"] is True


def test_training_is_told_what_was_right_by_sides(api):
    client = api(4, counts=Counts(2, 0, 0))
    seen = set()
    for _ in range(2):
        slot = slot_of(client)
        told = vote(client, slot).json()["feedback"]
        handed = client.service.store.handed(1, slot)
        (vote_kept,) = [
            v for v in client.service.store.votes(("training",)) if v.files in (handed.files, handed.files[::-1])
        ][-1:]
        good = vote_kept.expected["overall"]
        assert told["expected"]["overall"] == ("left" if good == handed.left else "right")
        assert told["right"] == (told["expected"]["overall"] == "left") and told["why"]
        seen.add(told["right"])
    assert seen


def test_the_study_stops_when_the_preference_is_known(api):
    client = api(30, rules=Rules(votes=1, stop_alpha=0.05))
    given = 0
    while (slot := client.get("/api/next", headers=bearer(client)).json()["slot"]) is not None:
        side = "left" if client.service.store.handed(1, slot["id"]).left == "a" else "right"
        vote(client, slot["id"], dict.fromkeys(LEFT, side))
        given += 1
    # B(1 + n, 1) / .5^n = 2^n / (n + 1) >= 20: at 8 wins of 8.
    assert given == 8 and client.service._stopped
    assert client.get("/api/next", headers=bearer(client)).json()["progress"]["state"] == "stopped"
    client.service.__init__(client.folder, client.service.store)
    assert client.service._stopped


def test_diversity_answers_are_kept_as_they_are(api):
    client = api(3, questions="diversity")
    told = client.get("/api/study").json()
    assert told["answers"] == ["similar", "unsure", "different"]
    assert [q["name"] for q in told["questions"]] == ["angle", "background", "object", "style"]
    answers = {"angle": "similar", "background": "different", "object": "unsure", "style": "similar"}
    assert vote(client, slot_of(client), answers).json()["first"]
    assert client.service.store.votes()[0].answers == answers
    assert vote(client, slot_of(client), {**answers, "angle": "left"}).status_code == 400
