"""Painters behind an images endpoint, against a server that fails, is slow, answers rubbish and counts."""

import email.utils
import io
import json
import time

import pytest
import torch
import yaml
from fake_images_server import Fake, data, png
from PIL import Image
from tiny_oracles import Brightness

from allaprima.cascade.pixel_cascade import derived
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import ModelError, PaintingError, PromptError, SettingError
from allaprima.diffusion.noising import Strength
from allaprima.models.cards.card import RemoteSource, load_card
from allaprima.models.external.image_generator import GeneratedImage, GeneratorRequest
from allaprima.models.external.openai_generator import FIRST_WAIT, OpenAIGenerator
from allaprima.pipeline import AdaptivePipeline

SIZE = 16
SETTINGS = CascadeSettings(
    student_steps=2, teacher_steps=3, student_solver="own", teacher_solver="own", sigma=Strength(0.5), batch_size=8,
    height=SIZE, width=SIZE,
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def request(prompt="red", seed=7, **more):
    return GeneratorRequest(prompt, seed, 3, 2.5, SIZE, SIZE, **more)


def painter(fake, waits=None, **more):
    return OpenAIGenerator(
        RemoteSource(url=fake.url, model="m", **more), (lambda s: None) if waits is None else waits.append
    )


def test_a_picture_is_asked_for_by_the_names_servers_know(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sesame")
    with Fake() as fake:
        (found,) = painter(fake, key_env="SOME_KEY").paint([request(negative_prompt="grey")], 1)
    assert isinstance(found, GeneratedImage)
    torch.testing.assert_close(found.image[:, 0, 0], torch.tensor([7, 100, 250]) / 255)
    ((path, fields, headers),) = fake.seen
    assert path == "/v1/images/generations"
    assert fields == {
        "model": "m", "prompt": "red", "n": 1, "size": "16x16", "response_format": "b64_json", "seed": 7,
        "num_inference_steps": 3, "guidance_scale": 2.5, "negative_prompt": "grey",
    }  # fmt: skip
    assert headers["Authorization"] == "Bearer sesame"
    assert (found.steps, found.evaluations) == (3, 3)


@pytest.mark.parametrize("strength", [True, False])
def test_a_draft_goes_along_to_be_painted_over(strength):
    with Fake() as fake:
        draft = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        (found,) = painter(fake, strength=strength).paint([request(image=draft, strength=0.5)], 1)
    assert isinstance(found, GeneratedImage)
    ((path, fields, _),) = fake.seen
    assert path == "/v1/images/edits"
    sent = Image.open(io.BytesIO(fields.pop("image")))
    assert torch.equal(torch.tensor(list(sent.getdata())).T.reshape(3, SIZE, SIZE), (draft * 255).round().long())
    assert fields["num_inference_steps"] == ("6" if strength else "3"), "three steps are three steps"
    assert fields.get("strength") == ("0.5" if strength else None)
    assert found.steps == 3


def test_what_may_pass_is_tried_again_and_the_servers_wait_is_kept():
    date = email.utils.formatdate(time.time() + 40, usegmt=True)
    after = [(429, {"Retry-After": 3}), (503, {"Retry-After": date}), (500, {})]

    def script(path, fields, k):
        return (*after[k], b"busy") if k < 3 else None

    waits = []
    with Fake(script) as fake:
        (found,) = painter(fake, waits).paint([request()], 1)
    assert isinstance(found, GeneratedImage)
    assert len(fake.seen) == 4
    assert 3 <= waits[0] <= 3 + FIRST_WAIT
    assert 38 <= waits[1] <= 40 + 2 * FIRST_WAIT
    assert 0 <= waits[2] <= 4 * FIRST_WAIT


@pytest.mark.parametrize("status", [400, 401, 404, 422, 302])
def test_a_refusal_is_final(status):
    with Fake(lambda *_: (status, {"Location": "http://127.0.0.1:1/x"}, b'{"error": "no such model"}')) as fake:
        (found,) = painter(fake).paint([request()], 1)
    assert isinstance(found, ModelError)
    assert f"status {status}" in str(found)
    assert "no such model" in str(found)
    assert len(fake.seen) == 1


def test_tries_end_and_long_waits_are_not_waited_for():
    with Fake(lambda *_: (503, {}, b"")) as fake:
        (found,) = painter(fake, retries=2).paint([request()], 1)
        assert len(fake.seen) == 3
        assert "after 3 tries" in str(found)
    waits = []
    with Fake(lambda *_: (503, {"Retry-After": 500}, b"")) as fake:
        (found,) = painter(fake, waits).paint([request()], 1)
    assert "asks for 500 s of patience" in str(found)
    assert (len(fake.seen), waits) == (1, [])


def bomb(width, height):
    """A PNG that says it is large, and is not."""
    picture = bytearray(png((SIZE, SIZE), "red"))
    import struct
    import zlib

    head = b"IHDR" + struct.pack(">II", width, height) + bytes(picture[24:29])
    picture[12:33] = head + struct.pack(">I", zlib.crc32(head))
    return bytes(picture)


RUBBISH = {
    "isn't OpenAI's": b"<html>",
    "isn't OpenAI's: KeyError": b"{}",
    "isn't OpenAI's: ValueError": b'{"data": []}',
    "without b64_json": json.dumps({"data": [{"url": "http://127.0.0.1:1/a.png"}]}).encode(),
    "isn't OpenAI's: Error": json.dumps({"data": [{"b64_json": "%%%"}]}).encode(),
    "can't be decoded": data(b"no picture"),
    "can't be decoded: ": data(png((SIZE, SIZE), "red")[:45]),
    "8x16, not 16x16": data(png((8, SIZE), "red")),
    "5000x5000, not 16x16": data(bomb(5000, 5000)),
    "could be decompression bomb": data(bomb(100_000, 100_000)),
    "more than": b" " * (2**20 + SIZE * SIZE * 8 + 1),
}


@pytest.mark.parametrize("words", RUBBISH)
def test_rubbish_is_named_and_not_tried_again(words):
    with Fake(lambda *_: (200, {}, RUBBISH[words])) as fake:
        (found,) = painter(fake).paint([request()], 1)
    assert isinstance(found, ModelError)
    assert words in str(found)
    assert len(fake.seen) == 1


def drip(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(50):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def test_slow_answers_end_whether_silent_or_dripping():
    begun = time.monotonic()
    with Fake(seconds=2) as fake:
        (found,) = painter(fake, timeout=0.2, retries=0).paint([request()], 1)
    assert "timed out" in str(found)
    with Fake(lambda *_: (200, {}, drip)) as fake:
        (found,) = painter(fake, timeout=0.3, retries=1).paint([request()], 1)
        assert len(fake.seen) == 2
    assert "no whole answer in time" in str(found)
    assert time.monotonic() - begun < 10
    nobody = OpenAIGenerator(RemoteSource(url="http://127.0.0.1:9/v1", model="m", retries=1), lambda s: None)
    assert "no answer" in str(nobody.paint([request()], 1)[0])


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_go_out_at_once_than_the_card_says(limit):
    with Fake(seconds=0.1) as fake:
        found = painter(fake, concurrency=limit).paint([request(seed=k) for k in range(7)], 8)
    assert fake.most == limit
    assert [round(float(f.image[0, 0, 0]) * 255) for f in found] == list(range(7)), "in the order they were asked for"


def test_a_run_with_a_server_that_fails_now_and_then():
    def script(path, fields, k):
        if path.endswith("edits") and fields["prompt"] == "b":
            return 400, {}, b"not this one"
        return (200, {}, b"{}") if fields["prompt"] == "c" else None

    with Fake(script) as fake:
        remote = painter(fake)
        pipe = AdaptivePipeline(remote, remote, Brightness(), SETTINGS)
        with pytest.raises(PaintingError, match="1 of 4 pictures failed") as e:
            pipe(["a", "b", "c", "d"], seed=5, threshold=9.0)
    a, b, c, d = e.value.results
    assert (a.decision, a.warning, a.error) == ("refine", None, None)
    assert "400" in b.warning
    assert torch.equal(b.image, b.draft)
    assert "the student failed" in c.error
    assert c.image is None
    assert d.cost.evaluations == {"student": 2, "teacher": 3, "oracle": 1}
    asked = {(f["prompt"], path.rsplit("/", 1)[1]): int(f["seed"]) for path, f, _ in fake.seen}
    assert asked["d", "generations"] == 8
    assert asked["d", "edits"] == derived(8, "rollback", 0) < 2**31


def test_what_cannot_be_is_refused(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ModelError, match="NO_SUCH_KEY"):
        OpenAIGenerator(RemoteSource(url="http://127.0.0.1:9/v1", model="m", key_env="NO_SUCH_KEY"))
    for url in ("ftp://x/v1", "127.0.0.1:8000", "file:///etc/passwd"):
        with pytest.raises(ModelError, match="an address is due"):
            OpenAIGenerator(RemoteSource(url=url, model="m"))
    there = OpenAIGenerator(RemoteSource(url="http://127.0.0.1:9/v1", model="m", edits=False, max_pixels=300))
    with pytest.raises(SettingError, match="can't paint over"):
        AdaptivePipeline(there, there, Brightness(), SETTINGS)("a", mode="refine-all")
    with pytest.raises(SettingError, match="max_pixels"):
        there.check(GeneratorRequest("a", 1, 1, 1.0, 32, 32))
    with pytest.raises(PromptError):
        there.check(request(" "))
    with pytest.raises(ModelError, match=r"oracle\.encoder"):
        there.encode(["a"])


def bundled_with(fake, folder, **more):
    raw = {
        "extends": "emoji", "name": "far", "height": 64, "width": 64,
        "teacher": {"remote": {"url": fake.url, "model": "big"}, "steps": 9, "guidance_scale": 2.0, "license": "theirs"},
        "cascade": {"strategy": "refine", "sigma": 0.5, "sigma_is": "strength"}, **more,
    }  # fmt: skip
    (folder / "card.yaml").write_text(yaml.safe_dump(raw))
    return folder


@pytest.mark.slow
def test_a_card_with_a_teacher_far_away_from_the_command_line(tmp_path, monkeypatch):
    from command_line import allaprima

    def script(path, fields, k):
        return (404, {}, b"gone") if "dog" in fields["prompt"] else None

    with Fake(script) as fake:
        card = bundled_with(fake, tmp_path)
        loaded = load_card(card).teacher
        assert (loaded.solver, loaded.last_time, loaded.guidance_interval) == ("own", None, None)
        out = tmp_path / "out"
        allaprima(
            "generate", "red apple, noto", "dog, noto", "--card", card, "--out", out, "--threshold", 2, "--batch-size", 2
        )
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(r["decision"], r["steps"], r["error"]) for r in rows] == [("refine", 3 + 9, None), ("refine", 3, None)]
    assert rows[0]["evaluations"] == {"oracle": 1, "student": 6, "teacher": 9}
    assert rows[1]["evaluations"] == {"oracle": 1, "student": 6}
    account = json.loads(Image.open(out / "images" / "00001.png").text["allaprima"])
    assert "404" in account["warning"]
    assert Image.open(out / "images" / "00000.png").getpixel((0, 0))[1:] == (100, 250)
    same = Image.open(out / "images" / "00001.png"), Image.open(out / "drafts" / "00001.png")
    assert list(same[0].getdata()) == list(same[1].getdata())


@pytest.mark.slow
def test_a_card_with_both_far_away_and_an_oracle_that_reads_with_the_bundled_encoder(tmp_path):
    with Fake() as fake:
        far = {"remote": {"url": fake.url, "model": "small"}, "steps": 2, "guidance_scale": 1.0, "license": "theirs"}
        weights = load_card("emoji").path("weights/oracle")
        raw = {
            "name": "both", "family": "any", "description": "far", "height": 64, "width": 64, "student": far,
            "teacher": {**far, "steps": 5}, "cascade": {"strategy": "regenerate"},
            "oracle": {"kind": "dual_encoder", "source": str(weights), "license": "Apache-2.0", "encoder": "emoji"},
        }  # fmt: skip
        (tmp_path / "card.yaml").write_text(yaml.safe_dump(raw))
        pipe = AdaptivePipeline.from_card(tmp_path)
        out = pipe("red apple, noto", seed=3, threshold=2.0, batch_size=1)
        assert out.decisions == ["regenerate"]
        assert -1 <= out.scores[0] <= 1
        assert out.results[0].steps == 7
        del raw["oracle"]["encoder"]
        (tmp_path / "card.yaml").write_text(yaml.safe_dump(raw))
        poor = AdaptivePipeline.from_card(tmp_path)("red apple, noto", seed=3, threshold=-2.0, batch_size=1)
        assert "shows no hidden states" in poor.results[0].warning
