"""The page as a server: it answers, its API works with a real file, and its answers forbid what they must."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.fake_model import fake_engine, until, write_clip

gr = pytest.importorskip("gradio")

from app.live.table import Sessions  # noqa: E402
from app.page.ui import build, launch_options  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(url, sessions) of a running page over two fake engines; uploads in a folder of its own."""
    uploads = tmp_path_factory.mktemp("uploads")
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    sessions = Sessions(fake_engine(watch_s=0.01), fake_engine("Twin"), places=2)
    page = build(sessions)
    _, url, _ = page.queue().launch(prevent_thread_lock=True, quiet=True, inbrowser=False, **launch_options(sessions))
    yield url.rstrip("/"), sessions
    page.close(verbose=False)
    sessions.shut()
    os.environ.pop("GRADIO_TEMP_DIR") if before is None else os.environ.update(GRADIO_TEMP_DIR=before)


@pytest.fixture(scope="module")
def client(server):
    from gradio_client import Client

    return Client(server[0], verbose=False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "holiday.mp4")


@pytest.fixture(autouse=True)
def empty(server):
    """Every test finds all places free."""
    yield
    for key in list(server[1]._by_key):
        server[1].close(key)


def test_the_page_is_served_with_headers_that_forbid_foreign_pictures(server):
    with urllib.request.urlopen(server[0]) as response:
        assert response.status == 200 and "img-src 'self' data: blob:" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "Vamba Live" in response.read().decode()


def test_the_api_offers_five_calls_and_no_internals(client):
    calls = client.view_api(return_format="dict", print_info=False)
    named = {"/watch", "/status", "/ask", "/alerts", "/close", "/sources", "/open", "/camera", "/recall"}
    assert set(calls["named_endpoints"]) == named
    assert not calls["unnamed_endpoints"]


def test_a_program_watches_asks_and_closes(client, server, clip):
    from gradio_client import handle_file

    key = client.predict(handle_file(clip), api_name="/watch")
    until(lambda: client.predict(key, api_name="/status")["state"] == "ended")
    status = client.predict(key, api_name="/status")
    assert status["frames"] == 12 and status["state_bytes"] == 290_000 and status["memory_bytes"] == 36_000
    steps = client.submit(key, "What now?", -1, api_name="/ask")
    answer = steps.result()
    assert answer["done"] and answer["text"].startswith("12 frames") and answer["evidence"][0]["weight"] > 0
    assert len(steps.outputs()) > 1, "it streams"
    assert client.predict(key, api_name="/close") is True and len(server[1]) == 0


def test_a_program_is_told_of_what_its_rules_say(client, clip):
    """The fake model keeps no index and never says yes."""
    from gradio_client import handle_file

    key = client.predict(handle_file(clip), api_name="/watch")
    told = client.predict(key, "tell me when it is blue", 30, api_name="/alerts")
    assert [(rule["rule"], rule["cool_down"]) for rule in told["rules"]] == [("tell me when it is blue", 30)]
    assert client.predict(key, "", 10, api_name="/alerts")["alerts"] == []


def test_a_file_that_is_no_video_is_an_error_and_gives_no_key(client, server, tmp_path):
    from gradio_client import handle_file

    letter = tmp_path / "letter.mp4"
    letter.write_text("dear reader, " * 200)
    with pytest.raises(Exception, match="not a video"):
        client.predict(handle_file(letter), api_name="/watch")
    assert len(server[1]) == 0, "it holds no place"


@pytest.mark.parametrize("at", ["abc", 1e9, "nan", 500])
def test_a_second_that_is_none_of_the_videos_is_refused_in_a_sentence(client, clip, at):
    from gradio_client import handle_file

    key = client.predict(handle_file(clip), api_name="/watch")
    with pytest.raises(Exception, match="does not have"):
        client.predict(key, "What now?", at, api_name="/ask")
    assert client.predict(key, "What now?", 3, api_name="/ask")["done"]


def test_errors_are_one_sentence_and_foreign_keys_open_nothing(client, clip, capfd):
    from gradio_client import handle_file

    for call in ((("x" * 22,), "/status"), (("x" * 22, "hello", -1), "/ask")):
        with pytest.raises(Exception, match="no session with this key"):
            client.predict(*call[0], api_name=call[1])
    keys = [client.predict(handle_file(clip), api_name="/watch") for _ in range(2)]
    with pytest.raises(Exception, match="All 2 places are taken"):
        client.predict(handle_file(clip), api_name="/watch")
    assert len(set(keys)) == 2
    assert "Traceback" not in capfd.readouterr().err, "what a program does wrong is no fault of ours"


@pytest.mark.parametrize("path", ["/etc/passwd", str(ROOT / "app.py"), str(ROOT / "assets" / "example.mp4") + "x"])
def test_no_file_of_the_machine_can_be_watched(server, path):
    """A program that claims to have uploaded a path of the server."""
    body = json.dumps({"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}).encode()
    call = server[0] + "/gradio_api/call/watch"
    sent = urllib.request.Request(call, body, {"content-type": "application/json"})
    with urllib.request.urlopen(sent) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{call}/{event}") as response:
        said = response.read().decode()
    assert "event: error" in said and "Traceback" not in said and path not in said
    assert not any(one.watch for one in server[1]._by_key.values())


@pytest.mark.parametrize("path", ["/gradio_api/file=/etc/passwd", "/gradio_api/file=app.py", "/file=../app.py"])
def test_no_file_of_the_machine_is_served(server, path):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(server[0] + path)
    assert refused.value.code in (403, 404)
