"""Real uploads to a running page, in a small folder: what fits, what is refused, and what goes."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.live import uploads
from app.live.table import Sessions
from app.page.ui import build, launch_options
from app.page.uploading import NO_LENGTH
from tests.fake_model import fake_engine, until, write_clip

MB = 1 << 20
LARGEST = 4 * MB  # of one file
EDGE = "an-edge-between-parts"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """(address, sessions) of a running page whose uploads have a folder of their own."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("uploads"))
    sessions = Sessions(fake_engine(watch_s=0.01), None, places=2)
    blocks = build(sessions)
    options = launch_options(sessions) | {"max_file_size": LARGEST}
    _, url, _ = blocks.queue().launch(prevent_thread_lock=True, quiet=True, inbrowser=False, **options)
    yield url.rstrip("/"), sessions
    blocks.close(verbose=False)
    sessions.shut()
    os.environ.pop("GRADIO_TEMP_DIR") if before is None else os.environ.update(GRADIO_TEMP_DIR=before)


def swept() -> bool:
    """Whether all is gone: an upload is noted only after its visitor has the answer."""
    uploads.sweep(older_than=-1)
    return on_disk() == 0


@pytest.fixture(autouse=True)
def small(page, monkeypatch):
    """Three and a half megabytes for everybody, all of it free."""
    until(swept)
    monkeypatch.setattr(uploads.room, "ceiling", int(3.5 * MB))
    yield
    until(lambda: uploads.room.reserved == 0)


def body(content: bytes) -> bytes:
    head = f'--{EDGE}\r\nContent-Disposition: form-data; name="files"; filename="clip.mp4"\r\n\r\n'
    return head.encode() + content + f"\r\n--{EDGE}--\r\n".encode()


def connection(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urllib.parse.urlparse(url).netloc, timeout=30)


def post(url: str, content: bytes) -> tuple[int, str]:
    """The status and the words of the answer."""
    line = connection(url)
    line.request("POST", "/gradio_api/upload", body(content), {"Content-Type": f"multipart/form-data; boundary={EDGE}"})
    answer = line.getresponse()
    text = answer.read().decode()
    line.close()
    return answer.status, text


def on_disk() -> int:
    return sum(uploads.sizes(uploads.folder()))


def test_uploads_together_stay_below_the_ceiling(page):
    answers = [post(page[0], os.urandom(MB)) for _ in range(5)]
    assert [status for status, _ in answers] == [200, 200, 200, 507, 507]
    said = answers[-1][1]
    assert "no room" in said and said.endswith(".") and "/" not in said
    assert on_disk() == 3 * MB
    assert uploads.sweep() == 0, "they have their ten minutes"
    assert uploads.sweep(older_than=-1) == 3 and on_disk() == 0
    assert post(page[0], os.urandom(MB))[0] == 200


def test_many_at_once_stay_below_it_too(page):
    with ThreadPoolExecutor(12) as pool:
        statuses = [status for status, _ in pool.map(lambda _: post(page[0], os.urandom(MB)), range(12))]
    assert set(statuses) <= {200, 507} and 1 <= statuses.count(200) <= 3
    assert on_disk() == statuses.count(200) * MB


def test_an_aborted_upload_gives_its_room_back_and_its_piece_goes(page):
    line, whole = connection(page[0]), body(os.urandom(3 * MB))
    line.putrequest("POST", "/gradio_api/upload")
    line.putheader("Content-Type", f"multipart/form-data; boundary={EDGE}")
    line.putheader("Content-Length", str(len(whole)))
    line.endheaders(whole[: 2 * MB])
    until(lambda: on_disk() > 0)
    assert uploads.room.reserved == len(whole)
    assert post(page[0], os.urandom(2 * MB))[0] == 507, "the rest of the other one is reserved"
    line.close()
    until(lambda: uploads.room.reserved == 0)
    uploads.sweep(older_than=-1)
    until(lambda: on_disk() == 0)
    assert post(page[0], os.urandom(3 * MB))[0] == 200


def test_an_upload_without_its_size_is_refused_in_words(page):
    line = connection(page[0])
    line.request("POST", "/gradio_api/upload", iter([b"x"]), {"Content-Type": f"multipart/form-data; boundary={EDGE}"})
    answer = line.getresponse()
    assert answer.status == 411 and answer.read().decode().endswith(".")


def test_what_a_stream_watches_stays(page, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4")
    status, text = post(page[0], clip.read_bytes())
    path = Path(json.loads(text)[0])
    assert status == 200 and path.exists()
    key, session = page[1].ensure(None)
    session.open_file(path, name="clip.mp4")
    until(lambda: session.view().frames > 0)
    assert uploads.sweep(older_than=-1) == 0 and path.exists()
    page[1].close(key)
    until(lambda: not path.exists())


def test_what_is_watched_and_what_is_ours_is_never_swept(page, tmp_path):
    """A path that is no upload, whoever names it, stays."""
    ours = tmp_path / "example.mp4"
    ours.write_bytes(b"ours")
    uploads.arrived([str(ours)])
    time.sleep(0.01)
    assert uploads.sweep(older_than=0) == 0 and ours.exists()


# In the browser


@pytest.fixture
def chooser(browser, page):
    """A visitor who is about to choose a file."""
    context = browser.new_context()
    one = context.new_page()
    one.goto(page[0])
    one.click("#source label:has-text('Upload')")
    yield one
    context.close()
    for key in list(page[1]._by_key):
        page[1].close(key)


def choose(one, content: bytes) -> None:
    one.wait_for_selector("#upload input[type=file]", state="attached")
    one.set_input_files("#upload input[type=file]", {"name": "a.mp4", "mimeType": "video/mp4", "buffer": content})


def told(one, words: str) -> None:
    one.wait_for_selector(f"[data-testid=toast-text]:text-is('{words}')")
    assert "Idle" in one.inner_text("#line") and one.locator("#upload input[type=file]").count() == 1
    one.click("[data-testid=toast-body] button")
    one.wait_for_selector("[data-testid=toast-body]", state="detached")


def test_who_finds_the_disk_full_reads_so_and_may_try_again(chooser, page, monkeypatch, tmp_path):
    monkeypatch.setattr(uploads.room, "ceiling", MB // 1024)
    choose(chooser, os.urandom(MB))
    told(
        chooser,
        "There is no room for this upload beside those of other visitors, so it was not taken; "
        "try again in ten minutes, or choose a smaller file.",
    )
    monkeypatch.setattr(uploads.room, "ceiling", 3 * MB)
    choose(chooser, write_clip(tmp_path / "clip.mp4").read_bytes())
    chooser.wait_for_selector("#line strong:has-text('Ended')")


LARGER = "This file is larger than the page takes, so it was not taken; choose a smaller one."


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(chooser):
    sent = []
    chooser.on("request", lambda request: sent.append(request.url) if "/upload?" in request.url else None)
    choose(chooser, bytes(LARGEST + 1))
    told(chooser, LARGER)
    assert sent == []


def test_the_server_refuses_it_as_well(page, monkeypatch):
    monkeypatch.setattr(uploads.room, "ceiling", 100 * MB)
    assert post(page[0], os.urandom(LARGEST + MB))[0] == 413


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (411, NO_LENGTH, NO_LENGTH),
        (413, "<html>Payload Too Large</html>", LARGER),
        (500, "", "The server did not take this file (error 500), so nothing is watched; try again in a minute."),
        (None, "", "The server did not answer, so nothing was taken; try again in a moment."),
    ],
)
def test_whatever_the_server_or_a_proxy_answers_is_a_sentence(chooser, status, body, sentence):
    def answer(route) -> None:
        route.fulfill(status=status, body=body, content_type="text/plain") if status else route.abort()

    chooser.route("**/gradio_api/upload?**", answer)
    choose(chooser, b"x" * 1000)
    told(chooser, sentence)
