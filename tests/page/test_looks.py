"""How the page looks, measured: contrast and structure by axe-core in every state, targets, what fits where."""

from __future__ import annotations

import pytest

from tests.fake_model import until
from tests.page.conftest import ask, state

pytestmark = pytest.mark.browser

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

DEVICES = {
    "desk": {"viewport": {"width": 1280, "height": 900}},
    "dark desk": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "tablet": {"viewport": {"width": 820, "height": 1180}, "has_touch": True},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
    "dark phone": {
        "viewport": {"width": 390, "height": 844},
        "is_mobile": True,
        "has_touch": True,
        "color_scheme": "dark",
    },
}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SMALL_TARGETS = """() => [...document.querySelectorAll("button, a[href], input, textarea, summary, [role=button]")]
    .filter((one) => one.checkVisibility({ visibilityProperty: true }))
    .map((one) => [one.id || one.className || one.innerText, (one.closest("label") ?? one).getBoundingClientRect()])
    .filter(([, box]) => box.width < 24 || box.height < 24)
    .map(([name, box]) => `${name} ${Math.round(box.width)}x${Math.round(box.height)}`)"""
HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3")].filter((one) => one.checkVisibility())
    .map((one) => one.tagName + " " + one.innerText)"""

# A button half way from one colour to another has the contrast of neither.
SETTLED = "() => document.getAnimations().every((one) => !(one instanceof CSSTransition))"


def clean(page) -> None:
    """Nothing for axe-core to find, no target under 24 pixels, nothing wider than the screen."""
    page.wait_for_selector(".loading", state="detached")  # Gradio's own sign that it is not there yet
    page.wait_for_function(SETTLED)
    found = axe.Axe().run(page, options={"runOnly": RULES}).response["violations"]
    assert not [(fault["id"], [node["target"] for node in fault["nodes"]]) for fault in found]
    assert page.evaluate(SMALL_TARGETS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_is_hard_to_read_or_to_hit_in_any_state(visitor, device):
    page = visitor(**DEVICES[device])
    complaints = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    clean(page)  # at rest
    page.click("#go")
    page.wait_for_selector("#film .chip >> nth=2")
    clean(page)  # watching
    page.fill("#question textarea", "tell me " * 30)
    page.keyboard.press("Enter")
    page.wait_for_selector("#chat .bot-row:has-text('frames')")
    clean(page)  # answering
    page.wait_for_selector("#chat .message-row:last-child .facts")
    page.click("#chat .facts summary")
    page.wait_for_selector("#chat .facts:has-text('tokens a second')")
    clean(page)  # answered, and how fast
    page.click("#compare input")
    page.wait_for_selector("#plots polyline.rival >> nth=1")  # the second one has seen something to answer from
    ask(page, "And you?")
    page.wait_for_selector("#second .message-row:last-child .facts")
    clean(page)  # comparing
    page.click("#compare input")
    page.wait_for_selector("#second", state="detached")
    page.wait_for_timeout(500)
    assert complaints == [], "what is drawn says nothing in the console, also when it is put away"


def test_headings_name_the_parts_and_the_player_has_a_name(visitor):
    page = visitor()
    page.click("#go")
    page.wait_for_selector("#film .chip")
    assert page.evaluate(HEADINGS) == ["H1 Vamba Live", "H2 Video", "H2 Conversation", "H2 Scenes"]
    assert page.locator("video[aria-label='The example video']").count() == 1


def test_on_a_phone_the_question_box_and_the_button_are_in_the_first_screen(visitor):
    page = visitor(**DEVICES["phone"])
    for part in ("#go", "#question textarea", "#suggestions button >> nth=0"):
        box = page.locator(part).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 844, part


@pytest.mark.parametrize("device", ["desk", "tablet", "phone"])
def test_suggestions_are_one_row_that_scrolls(visitor, device):
    page = visitor(**DEVICES[device])
    chips = page.locator("#suggestions button")
    assert len({round(chips.nth(index).bounding_box()["y"]) for index in range(chips.count())}) == 1
    chips.last.focus()  # by keyboard as well as by finger
    until(lambda: chips.last.bounding_box()["x"] + chips.last.bounding_box()["width"] <= page.viewport_size["width"])


def test_whoever_wants_no_motion_sees_none(visitor):
    page = visitor(reduced_motion="reduce")
    page.click("#go")
    page.wait_for_selector(".state.watching .dot")
    moving = "() => document.getAnimations().filter((one) => one.playState === 'running').length"
    assert page.evaluate(moving) == 0


WRONG = {"Opening/Start", "Watching/Start", "Paused/Pause", "Ended/Pause", "Watching/Resume"}


def test_the_main_button_does_not_lag_behind_the_state(visitor):
    page = visitor()
    page.evaluate(
        """() => { window.pairs = []; const text = (part) => document.querySelector(part)?.innerText ?? "";
        setInterval(() => window.pairs.push(text("#line strong").split(" ")[0] + "/" + text("#go")), 50); }"""
    )
    page.click("#go")
    state(page, "Watching")
    page.click("#go")
    state(page, "Paused")
    page.click("#go")
    state(page, "Ended")
    page.wait_for_selector("#go:has-text('Watch again')")
    wrong = [pair in WRONG for pair in page.evaluate("window.pairs")]
    assert len(wrong) > 20 and not any(all(wrong[at : at + 5]) for at in range(len(wrong) - 4)), "a quarter of a second"
