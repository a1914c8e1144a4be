"""How the page looks, measured: contrast and structure by axe-core in every state, targets, what fits where."""

from __future__ import annotations

import pytest

from tests.fake_model import until
from tests.page.conftest import ask, hide, state
from tests.page.test_camera import film

pytestmark = pytest.mark.browser

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

PARTS = ("Video", "Scenes", "Conversation", "Alerts", "Summary", "What do you still remember?")
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
    .filter(([, box]) => Math.round(box.width) < 24 || Math.round(box.height) < 24)
    .map(([name, box]) => `${name} ${Math.round(box.width)}x${Math.round(box.height)}`)"""
ROWS = """() => [...[...document.querySelectorAll("#chat .foot")].at(-1).querySelectorAll("summary, button")]
    .map((one) => one.getBoundingClientRect().top).sort((a, b) => a - b)
    .filter((top, index, tops) => !index || top - tops[index - 1] > 10).length"""
HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3")].filter((one) => one.checkVisibility())
    .map((one) => one.tagName + " " + one.innerText)"""

# A button half way from one colour to another has the contrast of neither: nothing moves for who wants that.
STILL = {"reduced_motion": "reduce"}


def clean(page) -> None:
    """Nothing for axe-core to find, no target under 24 pixels, nothing wider than the screen."""
    page.wait_for_selector(".loading", state="detached")  # Gradio's own sign that it is not there yet
    found = axe.Axe().run(page, options={"runOnly": RULES}).response["violations"]
    assert not [(fault["id"], [node["target"] for node in fault["nodes"]]) for fault in found]
    assert page.evaluate(SMALL_TARGETS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_is_hard_to_read_or_to_hit_in_any_state(visitor, device):
    page = visitor(**DEVICES[device], **STILL)
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
    ask(page, "And at 0:01?")
    page.wait_for_selector("#chat button.time")
    assert page.evaluate(ROWS) == (1 if "desk" in device else 2), "under an answer; never one button alone"
    page.click("#film .events summary")
    clean(page)  # answered, with a time to go to, and how fast
    page.click("#compare input")
    page.wait_for_selector("#plots polyline.rival >> nth=1")  # the second one has seen something to answer from
    ask(page, "And you?")
    page.wait_for_selector("#second .message-row:last-child .facts")
    clean(page)  # comparing
    page.click("#compare input")
    page.wait_for_selector("#second", state="detached")
    page.wait_for_timeout(500)
    assert complaints == [], "what is drawn says nothing in the console, also when it is put away"


def test_what_a_camera_shows_is_as_easy_to_read_and_stands_at_now(visitor):
    page = visitor(**DEVICES["desk"], **STILL)
    film(page)
    page.wait_for_selector("#film .chip")
    page.click("#film .events summary")
    page.click("#go")
    state(page, "Paused")
    clean(page)
    assert page.evaluate("document.querySelector('#film .playhead').style.left") == "100%"


DENIED = """() => { navigator.mediaDevices.getUserMedia = async () => {
    throw new DOMException("no", "NotAllowedError"); }; }"""


@pytest.mark.parametrize("device", [name for name in DEVICES if name != "tablet"])
def test_nor_where_something_is_refused_waits_or_is_gone(visitor, sessions, device):
    page = visitor(**DEVICES[device], **STILL)
    page.evaluate(DENIED)
    page.click("#source label:has-text('Webcam')")
    page.wait_for_selector("#camera .live", state="visible")
    page.click("#go")
    page.wait_for_selector("#line .state.error:has-text('not allowed')")
    clean(page)  # a denied camera
    others = [sessions.ensure(None, program=True) for _ in range(sessions.places)]
    for _, session in others:
        session.open_camera()
    page.click("#source label:has-text('Example')")
    page.click("#go")
    page.wait_for_selector("#line strong:has-text('Waiting for a place, 1st')")
    page.fill("#question textarea", "Is anybody there?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#said p:has-text('places are taken')")
    clean(page)  # a full house
    for key, _ in others:
        sessions.close(key)
    page.wait_for_selector("#film .chip")
    sessions.engine.model.speaks.clear()
    for words in ("first", "second", "third"):
        page.fill("#question textarea", words)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#chat .user-row:has-text('{words}')")
    clean(page)  # a queue of questions
    sessions.engine.model.speaks.set()
    page.wait_for_selector("#chat .message-row:last-child .facts")
    page.evaluate("() => { sessionStorage.removeItem('vamba-live'); }")  # as in a new tab of the same browser
    page.reload()
    page.wait_for_selector("#mine summary:has-text('1 elsewhere')")
    page.click("#mine summary")
    page.wait_for_selector("#mine li button")
    clean(page)  # one's own streams
    page.click("#mine button:has-text('Open')")
    page.wait_for_selector("#chat .user-row >> nth=2")
    page.route("**/live/changes", lambda route: route.abort())
    hide(page, True)
    hide(page, False)
    page.wait_for_selector("#notice.gone")
    clean(page)  # the server is gone


def test_headings_name_the_parts_and_the_player_has_a_name(visitor):
    page = visitor()
    page.click("#go")
    page.wait_for_selector("#film .chip")
    assert page.evaluate(HEADINGS) == ["H1 Vamba Live", *(f"H2 {one}" for one in PARTS)]
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
