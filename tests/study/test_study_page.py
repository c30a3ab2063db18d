"""The study's page in a real browser."""

import contextlib
import sqlite3
from collections import Counter

import pytest
from chromium import browser, until
from served_study import served
from study_chromium import annotator, begin, slot, until_other

from allaprima.study.design import Rules
from allaprima.study.known_pairs import Counts


@pytest.fixture(scope="module")
def chromium():
    with browser() as made:
        yield made


@pytest.fixture
def study(make_study):
    with contextlib.ExitStack() as stack:
        yield lambda *a, **k: stack.enter_context(served(make_study(*a, **k)))


def answer(page, keys="1111"):
    for k in keys:
        page.keyboard.press(k)


def test_a_pair_is_judged_by_keyboard_and_the_answers_are_of_the_sides_seen(chromium, study):
    service = study(3)
    with annotator(chromium) as own:
        page = own.new_page()
        begin(page, service.url, service.tokens[0])
        assert "token" not in page.url
        for k in range(3):
            now = slot(page)
            answer(page, "1231")
            assert page.get_attribute("#send", "aria-disabled") == "false"
            page.keyboard.press("Enter")
            until_other(page, now)
            assert len(service.store.votes()) == k + 1
        assert page.inner_text("#message-title") == "Thank you!"
    for v in service.store.votes():
        other = "b" if v.left == "a" else "a"
        assert v.answers == {"alignment": v.left, "quality": "tie", "aesthetics": other, "overall": v.left}
        assert 0 < v.seconds < 60


def test_the_picture_on_the_left_is_the_left_one(chromium, study):
    service = study(2)
    with annotator(chromium) as own:
        page = own.new_page()
        begin(page, service.url, service.tokens[0])
        handed = service.store.handed(1, slot(page))
        for side, name in zip(("left", "right"), handed.files, strict=True):
            from PIL import Image

            with Image.open(service.folder / "pictures" / name) as image:
                want = list(image.getpixel((60, 60)))
            got = page.eval_on_selector(
                f"#{side}",
                """(img) => {
                    const canvas = new OffscreenCanvas(64, 64).getContext("2d");
                    canvas.drawImage(img, 0, 0);
                    return [...canvas.getImageData(60, 60, 1, 1).data].slice(0, 3);
                }""",
            )
            assert got == want
            # Its address tells nothing.
            assert page.get_attribute(f"#{side}", "src").startswith("blob:")


def test_markup_in_a_prompt_is_text(chromium, study):
    service = study(2)
    evil = '<img src=x onerror="document.title=1"><b>bold</b><script>alert(1)</script>'
    with sqlite3.connect(service.folder / "study.db") as c:
        c.execute("UPDATE pair SET prompt = ?", (evil,))
    with annotator(chromium) as own:
        page = own.new_page()
        begin(page, service.url, service.tokens[0])
        assert page.inner_text("#prompt") == evil
        assert page.locator("#prompt *").count() == 0


def test_practice_tells_and_zoom_and_touch_work_on_a_phone(chromium, study):
    service = study(4, counts=Counts(1, 1, 0))
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 1}
    with annotator(chromium, **phone) as own:
        page = own.new_page()
        begin(page, service.url, service.tokens[0])
        assert page.inner_text("#stage") == "Practice: 2 to go"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.tap(".picture[data-side=left]")
        assert page.inner_text("#large-title") == "Left picture"
        page.tap("#other")
        assert page.inner_text("#large-title") == "Right picture"
        page.tap("#close")
        for name in ("alignment", "quality", "aesthetics", "overall"):
            page.tap(f"[data-question={name}] .choices label:nth-child(1)")
        page.tap("#send")
        page.wait_for_selector("#feedback:not([hidden])")
        assert page.locator(".choices label.due").count() >= 1
        now = slot(page)
        page.tap("#send")
        until_other(page, now)
        assert page.inner_text("#stage") == "Test: 1 to go"
        assert page.locator("#feedback").is_hidden()


def test_a_deleted_picture_is_said_and_another_pair_comes(chromium, study):
    service = study(2)
    handed = service.store.next(service.store.annotator(service.tokens[0]))
    service.missing()  # looked through a moment ago: the server doesn't know yet
    service._looked = float("inf")
    (service.folder / "pictures" / handed.files[1]).unlink()
    with annotator(chromium) as own:
        page = own.new_page()
        begin(page, service.url, service.tokens[0])
        assert page.inner_text("#message-title") == "This pair can't be shown"
        page.click("#message-button")
        until(page, "document.body.dataset.view === 'vote'")
        assert slot(page) != handed.slot


def test_who_fails_the_test_is_told_so_and_asked_no_more(chromium, study):
    service = study(4, counts=Counts(0, 2, 0))
    with annotator(chromium) as own:
        page = own.new_page()
        begin(page, service.url, service.tokens[0])
        for k in range(2):
            now = slot(page)
            assert page.inner_text("#stage") == f"Test: {2 - k} to go"
            answer(page, "2222")  # equal, of a picture of another text and of a blurred copy
            page.keyboard.press("Enter")
            until_other(page, now)
            assert page.locator("#feedback").is_hidden()
        assert page.inner_text("#message-title") == "Thank you."
        assert "differently" in page.inner_text("#message-text")
        assert page.locator("#message-button").is_hidden()
        begin(page, service.url, service.tokens[0])  # coming back changes nothing
        assert slot(page) is None
    assert service.store.votes() == []


def test_two_seeds_are_judged_for_what_is_alike(chromium, study):
    service = study(1, questions="diversity")
    with annotator(chromium) as own:
        page = own.new_page()
        begin(page, service.url, service.tokens[0])
        now = slot(page)
        assert page.locator("fieldset:first-of-type .choices").inner_text().split() == ["Same", "Unsure", "Different"]
        answer(page, "1231")
        page.keyboard.press("Enter")
        until_other(page, now)
    (vote,) = service.store.votes()
    assert vote.answers == {"angle": "similar", "background": "unsure", "object": "different", "style": "similar"}


CLICKS = """async () => {
    const vote = document.getElementById("vote");
    const before = vote.dataset.slot;
    document.getElementById("send").click();
    while (vote.dataset.slot === before) await new Promise(requestAnimationFrame);
    const choice = document.querySelector("[data-question=alignment] label");
    const checked = [];
    for (const detail of [2, 1]) {
        choice.dispatchEvent(new MouseEvent("click", { detail, bubbles: true, cancelable: true }));
        checked.push(document.querySelectorAll("fieldset input:checked").length);
    }
    return checked;
}"""


def test_the_second_half_of_a_double_click_answers_nothing_on_the_next_pair(chromium, study):
    service = study(2)
    with annotator(chromium) as own:
        page = own.new_page()
        begin(page, service.url, service.tokens[0])
        answer(page)
        assert page.evaluate(CLICKS) == [0, 1]


FOCUS = """() => new Promise((done) => {
    new MutationObserver(() => done(document.activeElement.id)).observe(document.body, { attributes: true });
    document.getElementById("begin").focus();
    document.getElementById("begin").click();
})"""


def test_enter_is_the_pairs_as_soon_as_it_is_there(chromium, study):
    """A hidden button that keeps the focus would take it, and begin again."""
    service = study(2)
    with annotator(chromium) as own:
        page = own.new_page()
        page.goto(f"{service.url}/#token={service.tokens[0]}")
        until(page, "document.body.dataset.view === 'welcome'")
        assert page.evaluate(FOCUS) == "vote"


def test_no_invitation_and_a_forged_one(chromium, study):
    service = study(2)
    with annotator(chromium) as own:
        page = own.new_page()
        page.goto(service.url)
        until(page, "document.getElementById('message-title').textContent === 'No invitation'")
        begin(page, service.url, "x" * 24)
        assert "not known here" in page.inner_text("#message-text")


def test_a_dropped_connection_loses_and_doubles_nothing(chromium, study):
    service = study(2)
    with annotator(chromium) as own:
        page = own.new_page()
        begin(page, service.line.url, service.tokens[0])
        for k in (1, 2):  # more than once
            now = slot(page)
            answer(page)
            drops_the_connection(page, service.line)
            until_other(page, now)
            assert len(service.store.votes()) == k


def test_a_vote_whose_answer_never_came_is_sent_when_the_page_is_opened_again(chromium, study):
    service = study(2)
    with annotator(chromium) as own:
        page = own.new_page()
        begin(page, service.url, service.tokens[0])
        page.route("**/vote", lambda route: route.abort())
        answer(page)
        page.keyboard.press("Enter")
        until(page, "!document.getElementById('alert').hidden")
        assert len(service.store.votes()) == 0
        page.unroute("**/vote")
        page.close()
        page = own.new_page()
        page.goto(service.url)
        page.click("#begin")
        until(page, "document.body.dataset.view === 'vote'")
        assert len(service.store.votes()) == 1


def keeps_its_draft(page):
    """Half-answered, reloaded: the same pair, with what was answered."""
    now = slot(page)
    answer(page, "12")
    page.reload()
    page.click("#begin")
    until(page, "document.body.dataset.view === 'vote'")
    assert slot(page) == now
    assert page.locator("fieldset input:checked").count() == 2
    answer(page, "11")


def drops_the_connection(page, line):
    """The vote arrives, its acknowledgement doesn't; then nothing arrives at all; then it works again."""
    line.cut()
    page.keyboard.press("Enter")
    until(page, "!document.getElementById('alert').hidden")
    assert page.inner_text("#alert").startswith("No connection")
    assert line.lost >= 2
    line.mend()
    until(page, "document.getElementById('alert').hidden")


def in_two_tabs(own, page, url):
    """The same pair in both; both vote."""
    second = own.new_page()
    second.goto(url)
    second.click("#begin")
    until(second, "document.body.dataset.view === 'vote'")
    now = slot(page)
    assert slot(second) == now
    answer(second, "3333")
    answer(page, "1111")
    page.keyboard.press("Enter")
    second.keyboard.press("Enter")
    until_other(page, now)
    until_other(second, now)
    second.close()


def goes_back(page, url):
    page.goto("about:blank")
    page.go_back()
    until(page, "document.getElementById('begin') !== null && document.body.dataset.view === 'welcome'")
    page.click("#begin")
    until(page, "document.body.dataset.view === 'vote'")


def one_annotator(own, service, token, turn):
    page, url = own.new_page(), service.line.url
    begin(page, url, token)
    given = 0
    while (now := slot(page)) is not None:
        given += 1
        step = (given + 7 * turn) % 60
        if step == 5:
            keeps_its_draft(page)
        elif step == 25:
            goes_back(page, url)
            assert slot(page) == now
        if step == 35:
            in_two_tabs(own, page, url)
            continue
        answer(page, "1111" if step % 3 else "3232")
        if step == 45:
            drops_the_connection(page, service.line)
        elif step % 10 == 0:
            page.dblclick("#send")
        else:
            page.keyboard.press("Enter")
            page.keyboard.press("Enter")
        until_other(page, now)
    assert page.inner_text("#message-title") == "Thank you!"
    return given


@pytest.mark.slow
def test_three_annotators_finish_sixty_pairs_and_every_vote_is_there_once(chromium, study):
    service = study(60, counts=Counts(0, 0, 3), rules=Rules(gold_every=20))
    for turn, token in enumerate(service.tokens):
        with annotator(chromium) as own:
            given = one_annotator(own, service, token, turn)
        # In two tabs one of the pair's votes is shown again after the other tab's: at most one more turn.
        assert given >= 62
    votes = service.store.votes()
    assert len(votes) == 180
    assert Counter(Counter(v.pair for v in votes).values()) == {3: 60}
    assert len({(v.pair, v.annotator) for v in votes}) == 180
    assert Counter(v.left for v in votes) == {"a": 90, "b": 90}
    assert len(service.store.votes(("gold",))) == 3 * 3 or len(service.store.votes(("gold",))) == 3 * 2
