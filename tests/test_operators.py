"""What operators read, and a crowd of visitors that the page serves while they do."""

from __future__ import annotations

import json
import os
import socket
import threading
import urllib.error
import urllib.request

import pytest

from pipeline import UserError
from pipeline.__main__ import main
from tests.fake_model import fake_engine, picture, write_clip

pytest.importorskip("gradio")
pytest.importorskip("prometheus_client")

from app.live import census as counting
from app.live.census import census
from app.live.table import Sessions
from app.operators import Operators
from pipeline import Frame, Question, VideoChunk

KEYS = (
    "streams",
    "streams_lost",
    "refused",
    "errors",
    "answers",
    "words_per_s",
    "pictures_per_s",
    "waits_s",
    "servers",
)


def read(address: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def values(text: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


@pytest.fixture
def operators():
    """Their addresses, at any free port."""
    found = Operators("127.0.0.1", 0)
    yield found
    found.close()


@pytest.fixture
def at(operators):
    return f"http://{operators.host}:{operators.port}"


@pytest.fixture
def sessions():
    table = Sessions(fake_engine(), fake_engine("Twin"), places=3)
    yield table
    table.shut()


@pytest.fixture
def page():
    """A port where something answers, as the page does."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        yield door.getsockname()[1]


def test_nobody_is_sent_before_the_models_are_there_nor_after_the_end(operators, at, sessions, page) -> None:
    assert read(f"{at}/ready")[0] == 503 and read(f"{at}/health") == (200, "ok\n")
    assert values(read(f"{at}/metrics")[1])["vamba_ready"] == 0
    operators.open(lambda: census(sessions), page)
    assert read(f"{at}/ready") == (200, "ok\n") and values(read(f"{at}/metrics")[1])["vamba_ready"] == 1
    operators.end()
    code, why = read(f"{at}/ready")
    assert code == 503 and "ending" in why and read(f"{at}/health")[0] == 200


def test_a_page_that_does_not_answer_is_not_ready(operators, at, sessions) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        operators.open(lambda: census(sessions), free.getsockname()[1])
        code, why = read(f"{at}/ready")
    assert code == 503 and "page does not answer" in why


def test_what_is_counted_is_what_was_done(operators, at, sessions, page) -> None:
    operators.open(lambda: census(sessions), page)
    engine = sessions.engine
    state = engine.watch(VideoChunk(tuple(Frame(picture((0, 200, 0)), float(n)) for n in range(6))), engine.start())
    answers = list(engine.ask(Question("What is there?"), state))
    key, session = sessions.ensure(None)
    session.open_camera()
    for _ in range(30):
        session.offer(picture((0, 200, 0)))
    now = values(read(f"{at}/metrics")[1])
    view = session.view()
    assert now[f'vamba_words_total{{model="{engine.name}"}}'] == answers[-1].tokens > 0
    assert now[f'vamba_answers_total{{model="{engine.name}"}}'] == 1
    assert 6 <= now[f'vamba_pictures_total{{model="{engine.name}"}}'] <= 6 + view.frames + 8
    assert now[f'vamba_dropped_total{{model="{engine.name}"}}'] <= view.dropped
    assert view.dropped == engine.tally.done.dropped > 0, "the counts of a server are those of its streams"
    assert now['vamba_streams{phase="watching"}'] == 1 and now["vamba_places"] == 3 and now["vamba_places_free"] == 2
    assert key not in read(f"{at}/metrics")[1]


def test_counts_never_fall_when_a_stream_ends(sessions) -> None:
    key, session = sessions.ensure(None)
    session.open_camera()
    for _ in range(30):
        session.offer(picture((0, 200, 0)))
    before = census(sessions).models[0].counts
    sessions.close(key)
    after = census(sessions)
    assert all(after.models[0].counts[name] >= count for name, count in before.items()) and before["dropped"] > 0
    assert sum(after.streams.values()) == 0 and after.free == 3


def test_a_model_that_hangs_is_told(operators, at, sessions, page, monkeypatch) -> None:
    operators.open(lambda: census(sessions), page)
    at_work, go_on = threading.Event(), threading.Event()
    errand = threading.Thread(target=sessions.engine.between, args=(lambda: (at_work.set(), go_on.wait(20)),))
    errand.start()
    assert at_work.wait(20)
    monkeypatch.setattr(counting, "HANGS_S", 0.0)
    code, why = read(f"{at}/health")
    go_on.set()
    errand.join()
    assert code == 503 and sessions.engine.name in why and "restart it" in why
    assert read(f"{at}/health") == (200, "ok\n")


def test_a_taken_address_has_its_sentence(operators) -> None:
    with pytest.raises(UserError, match=r"Metrics cannot be served at .* choose another"):
        Operators(operators.host, operators.port)


@pytest.fixture
def served(tmp_path):
    from app.page.ui import build, launch_options

    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path / "uploads")
    table = Sessions(fake_engine(watch_s=0.01, token_s=0.01), None, places=4)
    blocks = build(table)
    _, address, _ = blocks.queue(max_size=64, default_concurrency_limit=8).launch(
        prevent_thread_lock=True, quiet=True, inbrowser=False, **launch_options(table)
    )
    yield table, address
    blocks.close(verbose=False)
    table.shut()
    os.environ.pop("GRADIO_TEMP_DIR") if before is None else os.environ.update(GRADIO_TEMP_DIR=before)


def test_a_crowd_is_served_and_counted(served, operators, at, tmp_path, capsys) -> None:
    table, address = served
    operators.open(lambda: census(table), int(address.rstrip("/").rpartition(":")[2]))
    clip = write_clip(tmp_path / "clip.mp4", seconds=4)
    told = ["--visitors", "4", "--seconds", "8", "--metrics", at, "--seed", "3", "--json"]
    assert main(["stress", address, str(clip), *told]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(KEYS) <= set(found)
    assert found["streams"] >= 4 and found["streams_lost"] == 0 and found["errors"] == {} and found["answers"] >= 2
    assert {"open", "picture", "status", "first_word", "word"} <= set(found["waits_s"])
    assert found["servers"][0]["words_per_s"] > 0 and found["servers"][0]["pictures_per_s"] > 0
    assert sum(census(table).streams.values()) == 0, "everybody closed what they opened"


def test_more_visitors_than_places_are_refused_and_nothing_else_happens(served, tmp_path, capsys) -> None:
    _, address = served
    clip = write_clip(tmp_path / "clip.mp4", seconds=4)
    assert main(["stress", address, str(clip), "--visitors", "8", "--seconds", "5", "--live", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["refused"] > 0 and found["streams_lost"] == 0


def test_a_stream_that_is_closed_behind_its_visitor_is_lost(served, tmp_path, capsys) -> None:
    table, address = served
    clip = write_clip(tmp_path / "clip.mp4", seconds=4)
    over = threading.Event()

    def close_all() -> None:
        while not over.wait(1.0):
            for key in list(table._by_key):
                table.close(key)

    thief = threading.Thread(target=close_all)
    thief.start()
    try:
        assert main(["stress", address, str(clip), "--visitors", "4", "--seconds", "6", "--live", "0", "--json"]) == 1
    finally:
        over.set()
        thief.join()
    assert json.loads(capsys.readouterr().out)["streams_lost"] > 0


@pytest.mark.parametrize(
    "address", ["http://192.0.2.1:7860", "https://127.0.0.1:7860", "127.0.0.1", "http://", "ftp://localhost"]
)
def test_nobody_elses_server_is_put_under_load(address, tmp_path, capsys) -> None:
    clip = write_clip(tmp_path / "clip.mp4", seconds=1)
    assert main(["stress", address, str(clip)]) == 2
    assert "no page on this machine" in capsys.readouterr().err


def test_where_no_page_answers_nobody_comes(tmp_path, capsys) -> None:
    clip = write_clip(tmp_path / "clip.mp4", seconds=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert main(["stress", f"http://127.0.0.1:{free.getsockname()[1]}", str(clip)]) == 2
    assert "No page of Vamba Live answers" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--visitors", "0"], ["--visitors", "100000"], ["--seconds", "0"], ["--live", "2"]])
def test_the_crowd_is_bounded(flags, tmp_path, capsys) -> None:
    assert main(["stress", "http://127.0.0.1:7860", str(tmp_path), *flags]) == 2
    assert "cannot come" in capsys.readouterr().err
