"""A served picture is made again from itself, by the command that does it for the command line's own."""

import base64
import copy
import io
import json

import pytest
from command_line import allaprima
from PIL import Image
from served import LOCAL, create_app, service
from starlette.testclient import TestClient

from allaprima.data.images import read_chunks
from allaprima.serving.engine import Engine


@pytest.fixture
def api(pipe):
    """The bundled pair, one picture a batch."""
    made = copy.copy(pipe)
    made.settings = pipe.settings.changed(batch_size=1)
    engine = Engine(made)
    engine.start()
    yield TestClient(create_app(service(made, engine=engine)), base_url=LOCAL)
    engine.stop()


def kept(answer, path):
    assert answer.status_code == 200, answer.text
    (picture,) = answer.json()["data"]
    path.write_bytes(base64.b64decode(picture["b64_json"]))
    return path, picture


def test_a_picture_from_words(api, tmp_path, capsys):
    body = {
        "prompt": "red apple, noto", "negative_prompt": "blue", "seed": 5, "guidance_scale": 2, "num_inference_steps": 3,
        "adaptive": {"threshold": 9, "strategy": "refine"},
    }  # fmt: skip
    path, picture = kept(api.post("/v1/images/generations", json=body), tmp_path / "a.png")
    account = json.loads(read_chunks(path)["allaprima"])
    assert (account["card"], account["mode"], account["decision"]) == ("emoji", "adaptive", "refine")
    assert (account["seed"], account["negative_prompt"], account["threshold"]) == (5, "blue", 9)
    assert account["score"] == picture["adaptive"]["score"]
    assert "Negative prompt: blue" in read_chunks(path)["parameters"]
    allaprima("show", path, "--repeat")
    assert "byte-identical" in capsys.readouterr().out


def test_words_that_were_moved_are_told(api, tmp_path):
    body = {"prompt": "a kitty", "seed": 5, "adaptive": {"mode": "student-only"}}
    path, picture = kept(api.post("/v1/images/generations", json=body), tmp_path / "a.png")
    account = json.loads(read_chunks(path)["allaprima"])
    assert (account["asked"], account["mode"]) == ("a kitty", "student-only")
    assert account["prompt"] == picture["revised_prompt"]


@pytest.mark.parametrize("transparent", [True, False])
def test_an_edit_from_the_files_that_were_sent(api, tmp_path, capsys, transparent):
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    Image.radial_gradient("L").convert("RGB").resize((90, 70)).save(image)
    half = Image.new("RGBA" if transparent else "L", (90, 70), (9, 9, 9, 255) if transparent else 0)
    half.paste((0, 0, 0, 0) if transparent else 255, (0, 0, 90, 30))
    half.save(mask)
    files = {"image": ("a.png", image.read_bytes(), "image/png"), "mask": ("m.png", mask.read_bytes(), "image/png")}
    form = {"prompt": "red apple, noto", "seed": "3", "strength": "0.7", "adaptive[mode]": "student-only"}
    path, _ = kept(api.post("/v1/images/edits", data=form, files=files), tmp_path / "edited.png")
    allaprima("show", path, "--repeat", "--source", mask, "--source", image)
    assert "byte-identical" in capsys.readouterr().out
    allaprima("show", path, "--repeat", expect=2)
    assert "--source" in capsys.readouterr().err
    allaprima("show", path, "--repeat", "--source", mask, expect=2)
    assert "none of 1 files" in " ".join(capsys.readouterr().err.split())


def test_other_formats_carry_nothing(api):
    body = {"prompt": "red apple, noto", "seed": 5, "output_format": "webp", "adaptive": {"mode": "student-only"}}
    data = base64.b64decode(api.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(data)).format == "WEBP"
    assert b"red apple" not in data
