"""Who can use the demo page: by keyboard, on a phone, in the dark, with little contrast sense, with a screen reader."""

import pytest
from chromium import opened
from fake_demo_server import held, refusal

CONTRASTS = """() => {
    const rgb = (text) => {
        const c = new OffscreenCanvas(1, 1).getContext("2d");
        c.fillStyle = text;
        c.fillRect(0, 0, 1, 1);
        return [...c.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const behind = (e) => {
        for (; e; e = e.parentElement) {
            const c = rgb(getComputedStyle(e).backgroundColor);
            if (c[3] === 255) return c;
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const e of document.querySelectorAll("body *")) {
        const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
        if (!own || !e.checkVisibility()) continue;
        const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
        found.push([(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 80)]);
    }
    return found;
}"""


def paint(page):
    page.wait_for_selector("#examples button")
    page.fill("#prompt", "red apple, noto")
    page.press("#prompt", "Enter")
    page.wait_for_selector("#final[data-state=done]")


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_dark_and_light_follow_the_system_until_one_is_chosen(chromium, fake):
    with opened(chromium, fake.url, color_scheme="light") as page:
        light = background(page)
        page.emulate_media(color_scheme="dark")
        dark = background(page)
        assert light != dark
        assert page.get_attribute("#theme", "aria-pressed") == "true"
        page.click("#theme")
        assert background(page) == light
        page.reload()
        assert background(page) == light, "the choice is kept"
        page.click("#theme")
        assert background(page) == dark
        page.emulate_media(color_scheme="light")
        assert background(page) == light, "back at the system's, the page follows it again"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_of_aa(chromium, fake, scheme):
    with opened(chromium, fake.url, color_scheme=scheme) as page:
        paint(page)
        fake.score = 0.9
        paint(page)
        fake.script = lambda body, k: refusal(429, "queue_full", "full", **{"Retry-After": "60"})
        page.press("#prompt", "Enter")
        page.wait_for_selector("#retry")
        texts = page.evaluate(CONTRASTS)
        page.click("#gallery .thumb")
        texts += page.evaluate(CONTRASTS)
        assert len(texts) > 30
        assert not [t for t in texts if t[0] < 4.5]


def test_everything_by_keyboard_alone(chromium, fake):
    with opened(chromium, fake.url) as page:
        page.wait_for_selector("#examples button")
        order = []
        for _ in range(12):
            page.keyboard.press("Tab")
            order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert order[:6] == ["Skip to the prompt", "theme", "prompt", "paint", "red apple, noto", "owl, fluent 3d"]
        assert order[6:9] == ["budget", "seed", "new"]
        page.focus(".skip")
        page.keyboard.press("Enter")
        page.keyboard.type("owl")
        page.keyboard.press("Enter")
        page.wait_for_selector("#final[data-state=done]")
        page.focus("#gallery .thumb")
        page.keyboard.press("Enter")
        page.wait_for_selector("#large[open]")
        inside = set()
        for _ in range(8):
            page.keyboard.press("Tab")
            inside.add(page.evaluate("document.querySelector('#large').contains(document.activeElement)"))
        # Chromium's own bar may come between the last and the first: then the body has the focus, never a thing behind.
        assert page.evaluate(
            "document.querySelector('#large').contains(document.activeElement) || document.activeElement === document.body"
        )
        assert True in inside
        page.keyboard.press("Escape")
        page.wait_for_selector("#large", state="hidden")
        assert page.evaluate("document.activeElement.className") == "thumb", "back to where it came from"


def test_the_focus_can_be_seen(chromium, fake):
    with opened(chromium, fake.url) as page:
        page.wait_for_selector("#examples button")
        for _ in range(9):
            page.keyboard.press("Tab")
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_screen_reader_is_told(chromium, fake):
    with opened(chromium, fake.url) as page:
        page.wait_for_selector("#examples button")
        assert page.get_attribute("#status", "aria-live") == "polite"
        with held(fake):
            page.fill("#prompt", "owl")
            page.press("#prompt", "Enter")
            page.wait_for_selector("#draft[data-state=done]")
            said = page.inner_text("#status")
            assert said.startswith("The draft is there. Sent to the teacher: painted anew. Score 0.50 is below")
            assert page.get_attribute("#draft img", "alt") == "Draft of: owl"
        page.wait_for_selector("#final[data-state=done]")
        assert page.get_attribute("#final img", "alt") == "owl, finished by the teacher"
        assert page.inner_text("#status").startswith("Done: 17 steps in all")
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll("button, input, a")].filter(
                (e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).map((e) => e.outerHTML)"""
        )
        assert unnamed == []
        # A countdown must not be read out every second: only its message is an alert.
        assert page.evaluate("document.querySelector('[role=alert]').contains(document.querySelector('#retry'))") is False


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_scrolls_in_one_direction_only(chromium, fake, width):
    with opened(chromium, fake.url, viewport={"width": width, "height": 740}, has_touch=True) as page:
        paint(page)
        paint(page)
        wide = "document.documentElement.scrollWidth <= innerWidth"
        assert page.evaluate(wide)
        page.click("#gallery .thumb")
        assert page.evaluate(wide)
        assert page.evaluate("document.querySelector('#large').scrollWidth <= document.querySelector('#large').clientWidth")


def test_on_a_phone_the_picture_comes_into_sight(chromium, fake):
    with opened(chromium, fake.url, viewport={"width": 390, "height": 500}, reduced_motion="reduce") as page:
        paint(page)
        box = page.locator("#draft .canvas").bounding_box()
        assert 0 <= box["y"] < 300


def test_nothing_moves_where_motion_is_not_wanted(chromium, fake):
    with opened(chromium, fake.url, reduced_motion="reduce") as page:
        page.wait_for_selector("#examples button")
        with held(fake):
            page.fill("#prompt", "owl")
            page.press("#prompt", "Enter")
            page.wait_for_selector("#draft[data-state=done]")
            moving = "getComputedStyle(document.querySelector('#final .canvas'), '::after').animationName"
            assert page.evaluate(moving) == "none"
            page.emulate_media(reduced_motion="no-preference")
            assert page.evaluate(moving) == "stroke"
