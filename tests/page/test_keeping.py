"""Keeping in a real browser: the server is killed in the middle of an upload, and it is as if nothing had happened."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from app.live.shelf import Shelf
from app.live.table import Sessions
from app.live.view import Phase
from app.page.keeping import privacy
from app.page.ui import build, launch_options
from pipeline.keeping.archive import unpacked
from pipeline.keeping.found import notes
from tests.fake_model import fake_engine
from tests.keeping.streams import slow
from tests.page.conftest import ask, state, upload

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "tests/data/corpus/valid/h264_faststart.mp4"
QUESTION = "What is it?"


class Server:
    """A server that can be killed and started again, on one port and one shelf."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.process = folder, None
        self.url = f"http://127.0.0.1:{self.port}/"

    def start(self, seconds: float) -> None:
        uploads = self.uploads = self.folder / f"uploads {time.monotonic_ns()}"  # as on a Space: gone with the process
        command = [sys.executable, "-m", "tests.page.serving", str(self.port), str(self.folder / "shelf"), str(seconds)]
        self.process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "GRADIO_TEMP_DIR": str(uploads)})
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None and time.monotonic() < end, "the server did not start"
                time.sleep(0.2)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def server(tmp_path):
    one = Server(tmp_path)
    yield one
    one.kill()


@pytest.fixture
def come(browser):
    """come(url) -> a new visitor's page."""
    contexts = []

    def visit(url: str):
        contexts.append(browser.new_context())
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.goto(url)
        page.wait_for_selector("#go")
        return page

    yield visit
    for context in contexts:
        context.close()


def frames(page) -> int:
    return int(page.inner_text("#strip .tile:has-text('Frames seen') b").replace(",", "") or 0)


def browser_error() -> type[Exception]:
    from playwright.sync_api import Error

    return Error


@pytest.mark.browser
def test_a_server_killed_in_the_middle_of_an_upload_goes_on_to_the_same_answer(server, come):
    server.start(1.0)
    page = come(server.url)
    page.click("#keep input")
    upload(page, CLIP)
    page.wait_for_selector("#kept:has-text('MB, until')")
    page.fill("#question textarea", "What was it until now?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#chat .bot-row:has-text('E')")
    page.click("#stop")  # words take turns with a model that is slow to watch
    page.wait_for_selector("#chat .facts:has-text('stopped')")
    kept = server.folder / "shelf" / Shelf(server.folder / "shelf").names()[0]
    while not notes(kept, "turn"):  # a clock writes what was said
        time.sleep(0.1)
    state(page, "Watching")
    assert 0 < frames(page) < 40
    server.kill()
    server.start(0.05)
    with contextlib.suppress(browser_error()):  # where the page comes back by itself at the same moment
        page.reload()
    state(page, "Ended")
    page.wait_for_selector("#chat .user-row:has-text('What was it until now?')")
    assert page.locator("#chat .facts:has-text('stopped')").count() == 1
    page.wait_for_selector("#keep input:checked")  # a clock tells the switch
    page.click("#clear")  # what was said before is part of a question
    page.wait_for_selector("#chat .message-row", state="detached")
    seen, answer = frames(page), ask(page, QUESTION)
    assert seen > 50
    other = come(server.url)  # somebody for whom nothing was ever kept or killed
    upload(other, CLIP)
    state(other, "Ended")
    assert frames(other) == seen and ask(other, QUESTION) == answer
    taken = page.evaluate(
        """async () => { const key = sessionStorage.getItem("vamba-live");
        const answer = await fetch("live/take", { method: "POST", body: new URLSearchParams({ key }) });
        return [answer.headers.get("content-disposition"), (await answer.text()).slice(0, 13)]; }"""
    )
    assert taken == ['attachment; filename="stream.tar"', "contents.json"] and page.is_visible("#take")
    page.click("#delete")
    page.wait_for_selector("#delete", state="hidden")
    assert not page.is_checked("#keep input") and list((server.folder / "shelf").iterdir()) == []


def test_the_panel_is_there_only_where_streams_can_be_kept(tmp_path):
    for shelf in (None, Shelf(tmp_path)):
        sessions = Sessions(fake_engine(), None, shelf=shelf)
        page = build(sessions, CLIP)
        assert (privacy(True) in str(page.get_config_file())) == (shelf is not None)
        sessions.shut()


@pytest.mark.parametrize("encrypts", [True, False])
def test_who_can_read_it_is_told_in_two_sentences(encrypts):
    told = privacy(encrypts)
    assert len(re.findall(r"\. [A-Z]|\.$", told)) == 2
    assert ("choose “Encrypt”" in told) == encrypts and ("library that this server lacks" in told) == (not encrypts)


def longer(path: Path, more: int) -> Path:
    """The clip with so many more bytes, which mean nothing."""
    path.write_bytes(CLIP.read_bytes() + struct.pack(">I4s", 8 + more, b"free") + bytes(more))
    return path


def test_a_download_that_is_cut_leaves_nothing_and_the_next_one_is_whole(tmp_path, monkeypatch):
    """Encrypted, so that there are copies that could stay."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    sessions = Sessions(slow(0), None, 4, Shelf(tmp_path / "shelf"))
    key, session = sessions.ensure(None)
    session.keep(True, encrypt=True)
    session.open_file(longer(tmp_path / "clip.mp4", 60 << 20), "Example")
    while session.view().phase is not Phase.ENDED:
        time.sleep(0.05)
    page = build(sessions)
    _, url, _ = page.queue().launch(prevent_thread_lock=True, quiet=True, inbrowser=False, **launch_options(sessions))
    try:
        body = f"key={key}".encode()
        with socket.create_connection(("127.0.0.1", int(url.rstrip("/").rpartition(":")[2]))) as line:
            line.sendall(
                b"POST /live/take HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            assert b"200 OK" in line.recv(1000)
            assert {path.name for path in (tmp_path / "shelf").iterdir()} > {session.name}
        end = time.monotonic() + 30
        while {path.name for path in (tmp_path / "shelf").iterdir()} != {session.name}:
            assert time.monotonic() < end, "what was being taken along stays"
            time.sleep(0.1)
        assert list((tmp_path / "temporary").iterdir()) == []
        with urllib.request.urlopen(urllib.request.Request(f"{url}live/take", body)) as answer:
            (tmp_path / "stream.tar").write_bytes(answer.read())
        assert (unpacked(tmp_path / "stream.tar") / "video").stat().st_size > 60 << 20
    finally:
        page.close(verbose=False)
        sessions.shut()
