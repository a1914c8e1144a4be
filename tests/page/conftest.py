"""A browser for the tests of the page: real Chromium, a fake camera, a server over two fake models, visitors."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from app.live.table import Sessions
from tests.fake_model import fake_engine, write_clip

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
AWAKE = ["--disable-renderer-backgrounding", "--disable-background-timer-throttling"]


def write_camera(path: Path, frames: int = 20) -> Path:
    """A Y4M film of a plain green, for Chromium's fake camera: 320x240 at 10 frames a second."""
    planes = b"".join(bytes([value]) * size for value, size in ((145, 320 * 240), (54, 160 * 120), (34, 160 * 120)))
    path.write_bytes(b"YUV4MPEG2 W320 H240 F10:1 Ip A1:1 C420jpeg\n" + (b"FRAME\n" + planes) * frames)
    return path


def tripwire(folder: Path) -> Path:
    """A folder of tools that only write down that they were called: none may ever see an upload."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("ffmpeg", "ffprobe"):
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $@" >> "{folder}/called"\nexit 1\n')
        (tools / name).chmod(0o755)
    return tools


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def sessions():
    table = Sessions(fake_engine(watch_s=0.05, token_s=0.03), fake_engine("Twin", grow=40_000, constant=0), places=4)
    yield table
    table.shut()


@pytest.fixture(scope="module")
def url(sessions, folder):
    from app.page.ui import build, launch_options

    before = dict(os.environ)
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    page = build(sessions)
    os.environ["PATH"] = f"{tripwire(folder)}{os.pathsep}{before['PATH']}"
    _, address, _ = page.queue().launch(
        prevent_thread_lock=True, quiet=True, inbrowser=False, **launch_options(sessions)
    )
    yield address
    page.close(verbose=False)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def browser(folder):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    camera = write_camera(folder / "camera.y4m")
    screen = "--auto-select-desktop-capture-source=Entire screen"
    fake = ["--use-fake-ui-for-media-stream", screen, f"--use-file-for-fake-video-capture={camera}"]
    arguments = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream", *fake, *QUIET, *AWAKE]
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def visitor(browser, url, sessions):
    """visitor() -> a new visitor's page. Whatever a page fetches from elsewhere, or fails at, fails the test."""
    contexts, faults = [], []

    def come(**options):
        contexts.append(browser.new_context(permissions=["camera"], **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append("a script ran"), dialog.dismiss()))
        page.goto(url)
        page.wait_for_selector("#go")
        return page

    yield come
    for context in contexts:
        context.close()
    for key in list(sessions._by_key):
        sessions.close(key)
    assert not faults


@pytest.fixture(scope="module")
def clip(folder):
    return write_clip(folder / "holiday.mp4")


def upload(page, path) -> None:
    page.click("#source label:has-text('Upload')")
    page.set_input_files("#upload input[type=file]", str(path))


def state(page, word: str) -> None:
    page.wait_for_selector(f"#line strong:has-text('{word}')")


def ask(page, words: str) -> str:
    """The whole answer, as shown."""
    page.fill("#question textarea", words)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#chat .message-row.user-row:has-text('{words[:20]}')")
    page.wait_for_selector("#chat .message-row:last-child .facts")
    return page.inner_text("#chat .message-row.bot-row >> nth=-2")


def hide(page, hidden: bool) -> None:
    """As if another tab were looked at, or this one again: headless Chromium shows all of them."""
    page.evaluate(
        """(hidden) => { Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange")); }""",
        hidden,
    )


def player_time(page) -> float:
    return page.evaluate("window.vambaPlayerTime()")
