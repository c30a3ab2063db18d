"""The demo page in a real browser, against a server that does what the test says."""

import base64
import contextlib
import re
import time
from pathlib import Path

import pytest
from chromium import opened, until
from fake_demo_server import SETTINGS, FakeDemo, held, refusal
from fastapi.responses import Response


@pytest.fixture
def page(chromium, fake):
    with opened(chromium, fake.url) as made:
        made.wait_for_selector("#examples button")
        # The model's name comes last.
        until(
            made, "performance.getEntriesByType('resource').some((e) => e.name.endsWith('v1/models') && e.responseEnd > 0)"
        )
        made.wait_for_timeout(50)
        yield made


def paint(page, prompt="red apple, noto"):
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")


def until_done(page):
    page.wait_for_selector("#final[data-state=done]")


def bytes_shown(page, selector):
    """What an image shows, as the browser has it: the average colour."""
    return page.eval_on_selector(
        selector,
        """async (img) => {
            await img.decode();
            const canvas = new OffscreenCanvas(1, 1).getContext("2d");
            canvas.drawImage(img, 0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }""",
    )


def test_the_draft_is_shown_before_the_final(page, fake):
    with held(fake):
        paint(page)
        page.wait_for_selector("#draft[data-state=done]")
        assert page.get_attribute("#final", "data-state") == "working"
        assert page.inner_text("#draft .mark") == "draft"
        assert bytes_shown(page, "#draft img") == [200, 60, 40]
        # What was decided is told while the teacher is still at work.
        assert page.inner_text("#decision").startswith("Sent to the teacher: painted anew.")
        assert page.inner_text("#final .wait") == "The teacher paints it anew…"
    until_done(page)
    assert bytes_shown(page, "#final img") == [40, 90, 200]
    assert bytes_shown(page, "#draft img") == [200, 60, 40]
    assert "Score 0.50 is below the threshold 0.75" in page.inner_text("#decision")
    assert re.fullmatch(r"3 steps · [\d.]+ s", page.inner_text("#draft .facts"))
    assert re.fullmatch(r"17 steps in all · [\d.]+ s", page.inner_text("#final .facts"))


def test_a_good_draft_is_kept(page, fake):
    fake.score = 0.8
    paint(page)
    until_done(page)
    assert page.inner_text("#decision").startswith("Good enough: kept.")
    assert page.inner_text("#final .mark") == "kept"
    assert bytes_shown(page, "#final img") == [200, 60, 40]
    assert "good enough" in page.get_attribute("#scale", "aria-label")


def test_refined_is_said_of_a_refining_card(chromium):
    with FakeDemo({**SETTINGS, "strategy": "refine"}) as fake, opened(chromium, fake.url) as page:
        page.wait_for_selector("#examples button")
        paint(page)
        until_done(page)
        assert page.inner_text("#decision").startswith("Sent to the teacher: refined.")


def test_what_is_sent_is_what_the_api_takes(page, fake):
    page.fill("#seed", "7")
    paint(page)
    until_done(page)
    assert fake.asked == [
        {
            "prompt": "red apple, noto", "n": 1, "size": "64x64", "seed": 7, "stream": True, "partial_images": 1,
            "response_format": "b64_json", "model": "emoji", "adaptive": {"budget": 15},
        }
    ]  # fmt: skip


def test_the_slider_changes_what_is_sent(page, fake):
    assert page.inner_text("#budget-value") == "15 steps a picture"
    assert page.inner_text("#budget-means") == (
        "About 86 % of drafts go to the teacher, those below 0.75. About 1.5 s a picture."
    )
    page.press("#budget", "ArrowLeft")
    assert page.inner_text("#budget-value") == "10 steps a picture"
    assert "50 %" in page.inner_text("#budget-means")
    assert page.get_attribute("#budget", "aria-valuetext") == "10 steps a picture"
    paint(page)
    until_done(page)
    # Half of .3 to .9 is reached: the fake's threshold is budget / 20, its score .5.
    assert fake.asked[0]["adaptive"] == {"budget": 10}
    assert page.inner_text("#decision").startswith("Good enough: kept.")


def test_threshold_and_score_lie_where_they_belong_on_the_scale(page, fake):
    page.emulate_media(reduced_motion="reduce")  # The marks glide otherwise.
    paint(page)
    until_done(page)
    box = page.locator("#scale .axis").bounding_box()
    at = {name: page.locator(f"#scale .axis .{name}").bounding_box()["x"] for name in ("threshold", "score")}
    share = {name: (x - box["x"]) / box["width"] for name, x in at.items()}
    assert share["score"] == pytest.approx((0.5 - 0.3) / 0.6, abs=0.01)
    assert share["threshold"] == pytest.approx((0.75 - 0.3) / 0.6, abs=0.01)
    # Bins of .1: those whose middle is below .75 go to the teacher.
    assert page.locator("#scale .bars .below").count() == 4


def test_a_seed_is_new_each_time_unless_it_is_kept(page, fake):
    for _ in range(2):
        paint(page)
        until(page, f"document.querySelectorAll('#gallery li').length === {len(fake.asked) or 1}")
        until_done(page)
    first, second = (body["seed"] for body in fake.asked)
    assert first != second
    page.click("#again")
    assert page.input_value("#seed") == str(second)
    paint(page)
    until(page, "document.querySelectorAll('#gallery li').length === 3")
    page.click("#new")
    assert page.input_value("#seed") == ""
    assert fake.asked[2] == fake.asked[1]


def test_a_seed_that_is_none_is_not_sent(page, fake):
    page.fill("#seed", "12x")
    paint(page)
    assert page.eval_on_selector("#seed", "e => e.validationMessage").startswith("A whole number from 0")
    assert fake.asked == []


def test_an_example_paints(page, fake):
    page.click("text=owl, fluent 3d")
    until_done(page)
    assert [body["prompt"] for body in fake.asked] == ["owl, fluent 3d"]


def test_cancel_ends_the_request(page, fake):
    fake.go.clear()
    paint(page)
    page.wait_for_selector("#draft[data-state=done]")
    page.click("#cancel")
    page.wait_for_selector("#cancel", state="hidden")
    assert page.inner_text("#status") == "Cancelled."
    assert page.inner_text("#final .wait") == "Cancelled"
    assert page.evaluate("document.activeElement.id") == "prompt"
    deadline = time.monotonic() + 10
    while not fake.left and time.monotonic() < deadline:
        page.wait_for_timeout(20)
    assert fake.left == 1, "the server was not told"
    fake.go.set()
    paint(page, "owl")
    until_done(page)


def test_escape_cancels(page, fake):
    with held(fake):
        paint(page)
        page.wait_for_selector("#draft[data-state=done]")
        page.keyboard.press("Escape")
        until(page, "document.querySelector('#status').textContent === 'Cancelled.'")


def test_a_full_queue_is_counted_down_and_offered_again(page, fake):
    full = refusal(429, "queue_full", "12 requests wait, 12 may.", **{"Retry-After": "3"})
    fake.script = lambda body, k: full if k == 0 else None
    page.evaluate(
        """() => {
            const button = document.querySelector("#retry");
            window.said = [];
            const look = () => window.said.push(`${button.textContent} ${button.disabled}`);
            new MutationObserver(look).observe(button, { childList: true });
        }"""
    )
    begun = time.monotonic()
    page.fill("#seed", "5")
    paint(page)
    page.wait_for_selector("#retry:enabled")
    assert time.monotonic() - begun >= 3
    assert page.inner_text("#alert-text") == "The queue is full. (12 requests wait, 12 may.)"
    said = page.evaluate("[...new Set(window.said)]")
    assert said == [*(f"Try again in {n} s true" for n in (3, 2, 1)), "Try again false"]
    assert page.inner_text("#status") == "You can try again now."
    assert len(fake.asked) == 1, "nothing is asked again by itself"
    page.click("#retry")
    until_done(page)
    assert fake.asked[1] == fake.asked[0]
    assert page.is_hidden("#retry")


@pytest.mark.parametrize(
    ("status", "code", "begins", "again"),
    [
        (503, "draining", "The server is going down or starting.", True),
        (504, "deadline", "The picture was not painted in time.", True),
        (500, "painting_failed", "The server answered 500. (it broke)", True),
        (400, "invalid_prompt", "The server answered 400. (it broke)", False),
    ],
)
def test_a_refusal_is_told_in_words(page, fake, status, code, begins, again):
    fake.script = lambda body, k: refusal(status, code, "it broke")
    paint(page)
    page.wait_for_selector("#alert-text:not(:empty)")
    assert page.inner_text("#alert-text").startswith(begins)
    assert page.is_visible("#retry") == again
    page.click("#dismiss")
    assert page.inner_text("#alert-text") == ""
    assert page.evaluate("document.activeElement.id") == "prompt"


@pytest.mark.parametrize(
    ("ending", "says"),
    [
        (
            'event: error\ndata: {"error": {"message": "the teacher fell", "code": "painting_failed"}}\n\n',
            "the teacher fell",
        ),
        ("data: {broken\n\n", "The connection broke before the picture was finished. Try again."),
        ("", "The connection broke before the picture was finished. Try again."),
    ],
)
def test_a_stream_that_ends_badly_is_told(page, fake, ending, says):
    fake.script = lambda body, k: Response(ending, media_type="text/event-stream")
    paint(page)
    page.wait_for_selector("#alert-text:not(:empty)")
    assert page.inner_text("#alert-text") == says
    assert page.is_visible("#retry")


def test_a_server_that_has_gone_is_told(chromium):
    with FakeDemo() as fake, opened(chromium, fake.url) as page:
        page.wait_for_selector("#examples button")
        fake.__exit__()
        paint(page)
        page.wait_for_selector("#alert-text:not(:empty)")
        assert page.inner_text("#alert-text") == "The server can't be reached. Is it still running?"


def test_markup_in_prompts_and_answers_is_text(chromium):
    evil = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
    with FakeDemo({**SETTINGS, "card": evil, "examples": [evil]}) as fake, opened(chromium, fake.url) as page:
        page.wait_for_selector("#examples button")
        fake.revised = evil
        paint(page, evil)
        until_done(page)
        assert evil in page.inner_text("#card")
        assert evil in page.inner_text("#knows")
        assert page.inner_text("#examples button") == evil
        assert page.inner_text("#gallery .thumb span") == evil
        page.click("#gallery .thumb")
        assert page.inner_text("#large-title") == evil
        fake.script = lambda body, k: refusal(500, "painting_failed", evil)
        page.click("#close")
        paint(page, evil)
        page.wait_for_selector("#alert-text:not(:empty)")
        assert evil in page.inner_text("#alert-text")
        assert page.locator("img[src=x]").count() == 0
        assert page.title() == f"allaprima: {evil}"


def test_the_policy_refuses_inline_scripts_and_markup(chromium, fake):
    with contextlib.closing(chromium.new_context()) as own:
        page = own.new_page()
        page.goto(fake.url)
        said = page.evaluate(
            """() => {
                try { document.body.innerHTML = "<b>x</b>"; return "written"; } catch (e) { return e.name; }
            }"""
        )
        assert said == "TypeError"
        said = page.evaluate("fetch('/').then((r) => Promise.all([r.text(), r.headers.get('Content-Security-Policy')]))")
        assert not re.search(r"<script(?![^>]* src=)|\sstyle=|\son\w+=|https?://(?!arxiv\.org/abs)", said[0])
        assert "unsafe" not in said[1]


def test_the_gallery_enlarges_downloads_and_repeats(page, fake):
    page.press("#budget", "ArrowLeft")
    paint(page, "Red Äpfel, noto!")
    until_done(page)
    page.press("#budget", "ArrowRight")
    fake.score = 0.9
    paint(page, "owl")
    until(page, "document.querySelectorAll('#gallery li').length === 2")
    page.click("#gallery li:last-child .thumb")
    assert page.is_visible("#large")
    assert page.inner_text("#large-title") == "Red Äpfel, noto!"
    seed = fake.asked[0]["seed"]
    assert page.inner_text("#large-seed") == f"Seed {seed}, budget 10"
    with page.expect_download() as download:
        page.click("#large-download")
    assert download.value.suggested_filename == f"red-äpfel-noto-{seed}.png"
    assert Path(download.value.path()).read_bytes() == base64.b64decode(fake.draft)  # .5 reaches 10 / 20
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#large-title") == "owl"
    page.keyboard.press("ArrowRight")
    page.click("#large-repeat")
    until(page, "document.querySelectorAll('#gallery li').length === 3")
    assert fake.asked[2] == fake.asked[0]


def test_a_key_is_asked_for_and_kept_in_the_tab(chromium):
    key = "0123456789abcdef"
    with FakeDemo({**SETTINGS, "key_needed": True}, key=key) as fake, opened(chromium, fake.url) as page:
        page.wait_for_selector("#key")
        paint(page)
        page.wait_for_selector("#alert-text:not(:empty)")
        assert page.inner_text("#alert-text").startswith("The server wants a key, or doesn't know this one.")
        assert page.evaluate("document.activeElement.id") == "key"
        page.fill("#key", key)
        page.press("#key", "Tab")
        until(page, "document.querySelector('#key-means').textContent.startsWith('The server knows this key')")
        assert page.inner_text("#alert-text") == ""
        paint(page)
        until_done(page)
        page.reload()
        page.wait_for_selector("#examples button")
        assert page.input_value("#key") == key
        assert page.evaluate("localStorage.length") == 0
        assert page.evaluate("Object.values(sessionStorage)") == [key]


def test_without_a_calibration_there_is_no_slider(chromium):
    settings = {**SETTINGS, "budget": None, "scores": None, "threshold": None}
    with FakeDemo(settings) as fake, opened(chromium, fake.url) as page:
        page.wait_for_selector("#examples button")
        assert page.is_hidden("#budget")
        paint(page)
        until_done(page)
        assert "adaptive" not in fake.asked[0]
        assert page.is_visible("#scale")


def test_the_expected_seconds_follow_what_the_server_measures(page, fake):
    page.press("#budget", "ArrowLeft")
    fake.settings["budget"] = {**SETTINGS["budget"], "table": [{**r, "seconds": 42.0} for r in SETTINGS["budget"]["table"]]}
    paint(page)
    until_done(page)
    until(page, "document.querySelector('#budget-means').textContent.includes('42 s')")
    assert page.inner_text("#budget-value") == "10 steps a picture"
