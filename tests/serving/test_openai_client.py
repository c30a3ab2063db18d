"""The `openai` client, unchanged, against a real server."""

import base64
import io

import numpy as np
import openai
import pytest
from PIL import Image
from served import create_app, listening, service, toy_pipe

from allaprima.data.images import to_pil

ACCEPT, REFUSE = {"threshold": 0.0}, {"threshold": 2.0}


@pytest.fixture(scope="module")
def client():
    with listening(create_app(service())) as address, openai.OpenAI(
        base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=30
    ) as made:
        yield made


def pixels(b64):
    return np.array(Image.open(io.BytesIO(base64.b64decode(b64))))


def expected(seed, **more):
    out = toy_pipe()("0.4", seed=seed, **more)
    return np.array(out.images[0]), out.results[0]


def test_generates_what_the_pipeline_paints(client):
    answer = client.images.generate(prompt="0.4", n=2, extra_body={"seed": 7, "adaptive": REFUSE})
    assert [p.adaptive["seed"] for p in answer.data] == [7, 8]
    for picture in answer.data:
        image, result = expected(picture.adaptive["seed"], threshold=2.0)
        assert (pixels(picture.b64_json) == image).all()
        assert picture.adaptive["score"] == pytest.approx(result.score)
        assert picture.adaptive["threshold"] == 2.0
        assert picture.adaptive["decision"] == "refine"
        assert picture.adaptive["steps"] == 2 + 3
        assert picture.adaptive["seconds"] > 0
    assert answer.size == "8x8"
    assert answer.output_format == "png"
    assert answer.created > 1_700_000_000


def test_streams_the_draft_first_then_the_picture(client):
    stream = client.images.generate(
        prompt="0.4", stream=True, partial_images=1, extra_body={"seed": 7, "adaptive": REFUSE}
    )  # fmt: skip
    seen = list(stream)
    assert [e.type for e in seen] == ["image_generation.partial_image", "image_generation.completed"]
    image, result = expected(7, threshold=2.0)
    assert (pixels(seen[0].b64_json) == np.array(to_pil(result.draft))).all()
    assert (pixels(seen[1].b64_json) == image).all()
    assert not (pixels(seen[0].b64_json) == image).all()
    assert seen[0].partial_image_index == 0
    assert seen[0].adaptive["decision"] == "refine"
    assert seen[1].adaptive["steps"] == 5


def test_streams_no_draft_unless_asked(client):
    stream = client.images.generate(prompt="0.4", stream=True, extra_body={"adaptive": REFUSE})
    assert [e.type for e in stream] == ["image_generation.completed"]


def png(value, mode="RGB", size=(8, 8)):
    file = io.BytesIO()
    Image.new(mode, size, value).save(file, "PNG")
    file.seek(0)
    file.name = "picture.png"
    return file


def test_edits_within_the_mask_alone(client):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 4, 8))
    mask = io.BytesIO()
    clear.save(mask, "PNG")
    answer = client.images.edit(
        image=png((10, 20, 30)), mask=("mask.png", mask.getvalue(), "image/png"), prompt="0.9", n=1,
        extra_body={"seed": 3, "adaptive": {"threshold": 0.0}},
    )  # fmt: skip
    painted = pixels(answer.data[0].b64_json)
    assert (painted[:, 4:] == (10, 20, 30)).all()
    assert (painted[:, :4] != (10, 20, 30)).any()
    image = Image.new("RGB", (8, 8), (10, 20, 30))
    where = Image.new("L", (8, 8), 0)
    where.paste(255, (0, 0, 4, 8))
    alone = toy_pipe()("0.9", seed=3, threshold=0.0, image=image, mask_image=where)
    assert (painted == np.array(alone.images[0])).all()


def test_edits_stream_under_their_own_names(client):
    stream = client.images.edit(
        image=png((200, 200, 200)), prompt="0.4", stream=True, partial_images=1,
        extra_body={"strength": 0.5, "adaptive": REFUSE},
    )  # fmt: skip
    assert [e.type for e in stream] == ["image_edit.partial_image", "image_edit.completed"]


def test_lists_its_one_model(client):
    (model,) = client.models.list().data
    assert model.id == "allaprima"
    assert model.object == "model"
    assert client.models.retrieve("allaprima").id == "allaprima"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("dall-e-3")


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_formats(client, kind, magic):
    answer = client.images.generate(prompt="0.4", output_format=kind, size="16x8", extra_body={"adaptive": ACCEPT})
    data = base64.b64decode(answer.data[0].b64_json)
    assert data.startswith(magic)
    assert Image.open(io.BytesIO(data)).size == (16, 8)
    assert answer.output_format == kind


@pytest.mark.parametrize(
    ("asked", "error", "code"),
    [
        ({"prompt": ""}, openai.BadRequestError, "invalid_value"),
        ({"prompt": "x", "n": 10**9}, openai.BadRequestError, "limit_exceeded"),
        ({"prompt": "x", "size": "4096x4096"}, openai.BadRequestError, "limit_exceeded"),
        ({"prompt": "x", "response_format": "url"}, openai.BadRequestError, "unsupported_value"),
        ({"prompt": "x", "model": "dall-e-3"}, openai.NotFoundError, "model_not_found"),
        ({"prompt": "x" * 500}, openai.BadRequestError, "invalid_prompt"),
        ({"prompt": "x", "background": "transparent"}, openai.BadRequestError, "invalid_value"),
    ],
)
def test_errors_are_the_clients_own(client, asked, error, code):
    with pytest.raises(error) as e:
        client.images.generate(**asked, extra_body={"adaptive": ACCEPT})
    assert e.value.code == code
    assert e.value.type == "invalid_request_error"


def test_a_field_that_would_be_ignored_is_refused(client):
    with pytest.raises(openai.BadRequestError) as e:
        client.images.generate(prompt="x", extra_body={"sampler": "euler", "adaptive": ACCEPT})
    assert e.value.code == "unknown_parameter"
    assert e.value.param == "sampler"
