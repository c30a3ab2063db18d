"""The demo page on the real API: its routes beside the API's, and pictures of the bundled pair in a browser."""

import base64
import copy

import pytest
from chromium import browser, opened
from fastapi.testclient import TestClient
from served import LOCAL, create_app, listening, service

from allaprima.serving.api.demo import add_demo
from allaprima.serving.api.keys import Keys


@pytest.fixture
def stopping():
    """Services whose engines end with the test."""
    made = []
    yield made
    for each in made:
        each.engine.stop()


def app_of(made, stopping):
    stopping.append(made)
    app = create_app(made)
    add_demo(app, made)
    return app


def test_the_page_stands_beside_the_api_and_hides_nothing_of_it(stopping):
    made = service(keys=Keys.parse("someone 0123456789abcdef", "the test"))
    client = TestClient(app_of(made, stopping), base_url=LOCAL)
    assert "<title>allaprima</title>" in client.get("/").text
    told = client.get("/demo/settings").json()
    assert (told["width"], told["budget"], told["key_needed"]) == (8, None, True)
    assert told["prompt_chars"] == made.limits.prompt_chars
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/images/generations").status_code == 405
    assert client.get("/demo/nothing").json()["error"]["code"] == "not_found"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_bundled_pair_paints_in_a_browser_what_it_paints_alone(pipe, stopping):
    own = copy.copy(pipe)
    own.settings = pipe.settings.changed(batch_size=1)
    made = service(own)
    app = app_of(made, stopping)
    with listening(app) as url, browser() as chromium, opened(chromium, url) as page:
        page.set_default_timeout(300_000)
        page.wait_for_selector("#examples button")
        assert page.locator("#examples button").first.inner_text() == "red apple, noto"
        assert page.input_value("#budget") == "24" and page.inner_text("#budget-value") == "15 steps a picture"
        page.fill("#seed", "7")
        page.fill("#prompt", "unicorn, noto")
        page.press("#prompt", "Enter")
        page.wait_for_selector("#draft[data-state=done]")
        assert page.get_attribute("#final", "data-state") == "working", "the draft comes while the teacher is at work"
        page.wait_for_selector("#final[data-state=done]")
        alone = own("unicorn, noto", seed=7).results[0]
        assert page.inner_text("#decision") == (
            f"Sent to the teacher: painted anew. Score {alone.score:.2f} is below the threshold {alone.threshold:.2f}."
        )
        with page.expect_download() as download:
            page.click("#download")
        assert _pixels(download.value.path()) == _bytes(alone.image)
        assert "About" in page.inner_text("#budget-means") and " s a picture" in page.inner_text("#budget-means")


def _pixels(path):
    from PIL import Image

    with Image.open(path) as image:
        return base64.b64encode(image.convert("RGB").tobytes())


def _bytes(image):
    from allaprima.data.images import to_pil

    return base64.b64encode(to_pil(image).tobytes())
