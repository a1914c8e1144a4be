"""Streams that nobody wants sleep on the disk: nothing of them is lost, mixed up or held, and who asks comes first."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from app.live.census import census
from app.live.session import LiveSession
from app.live.shelf import Shelf
from app.live.table import Sessions
from app.live.view import Phase
from pipeline import Dormitory, Engine, Sampling, UserError
from tests.fake_model import BLUE, RED, picture
from tests.keeping.streams import digest, slow
from tests.live.kept import ended, killed, newest, quick, upload  # noqa: F401

QUESTION = "What is it?"


def tiny(seconds: float = 0.0) -> Engine:
    """One that is asked what a test asks, and nothing else."""
    engine = slow(seconds)
    engine.model.caption_question = ""
    return engine


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr("app.live.conversation.sampling", lambda repeats: Sampling(max_tokens=8))


@pytest.fixture
def served() -> Iterator[Callable[..., Sessions]]:
    """served(places) -> a table whose streams may sleep."""
    tables: list[Sessions] = []

    def serve(
        places: int = 2, engine: Engine | None = None, rival: Engine | None = None, dormitory=None, **options
    ) -> Sessions:
        dormitory = Dormitory() if dormitory is None else dormitory
        tables.append(Sessions(engine or tiny(), rival, places, dormitory=dormitory, **options))
        return tables[-1]

    yield serve
    for table in tables:
        table.shut()


@pytest.fixture
def come(upload) -> Callable[..., tuple[str, LiveSession]]:  # noqa: F811
    """come(table) -> somebody new whose file was watched."""

    def arrive(table: Sessions, compare: bool = False) -> tuple[str, LiveSession]:
        key, session = table.ensure(None)
        session.compare(compare)
        session.open_file(upload)
        ended(session)
        until(lambda: session.bed.may_sleep)
        return key, session

    return arrive


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def answer(session: LiveSession, model: int = 0) -> str:
    """By itself: what was said before is no part of it."""
    session.clear_chat()
    question = session.ask(QUESTION)
    *_, last = session.answer(question, model)
    return last.text


def sleeps(session: LiveSession) -> bool:
    return session.view().asleep is not None and not session.bed.has_place


def told(session: LiveSession) -> tuple:
    """All that a page shows of it, but for what sleeping changes and clocks."""
    view = session.view()
    model = view.models[0]
    return view.phase, view.film, view.events, view.conversations, model.frames, model.seen_until, model.memory_bytes


def test_a_stream_sleeps_and_wakes_bit_for_bit(served, come):
    engine, rival = tiny(), tiny()
    table = served(2, engine, rival)
    _, session = come(table, compare=True)
    states = [viewing.state for viewing in session.watch.viewings]
    points = session.watch.points.states
    until(lambda: session.bed.may_sleep)
    before = [digest(one, state) for one, state in zip((engine, rival), states)]
    earlier = [digest(engine, state) for state in points]
    held = [weakref.ref(state) for state in (*states, *points)]
    known = told(session)
    del states, points
    assert session.bed.fall_asleep(table.room.dormitory) and sleeps(session) and told(session) == known
    gc.collect()
    assert not any(one() for one in held) and table.room.dormitory.nbytes > 0, "nothing is held but on the disk"
    kind, word, detail = session.view().told()
    assert (kind, word) == ("asleep", "Asleep") and "about 1 s" in detail
    assert session.bed.fall_asleep(table.room.dormitory), "it sleeps already"
    known = answer(session)
    assert known and not sleeps(session) and session.bed.has_place
    after = [digest(one, viewing.state) for one, viewing in zip((engine, rival), session.watch.viewings)]
    assert after == before and [digest(engine, state) for state in session.watch.points.states] == earlier
    assert table.room.dormitory.nbytes == 0 and session.view().told().kind == "ended"
    assert answer(session, 1) == known, "both were woken"


def test_many_visitors_share_few_places_and_all_get_their_own_answers(served, upload):  # noqa: F811
    """Twelve with room for three, each with pictures of its own; what lies in memory is of three at most."""
    engine = tiny()
    table = served(3, engine)
    visitors, rights = [], []
    for number in range(12):
        key, session = table.ensure(None)
        for n in range(6):
            session.offer(picture((20 * number, 3 * n, 200 - n)))
            until(lambda one=session: one.view().waiting == 0)
        until(lambda one=session: one.view().frames == 6)
        session.pause()
        until(lambda one=session: one.bed.may_sleep)
        rights.append((answer(session), digest(engine, newest(session))))
        visitors.append((key, session))
        assert table.room.awake(table._all) <= 3
    assert len({state for _, state in rights}) == 12
    for turn in (1, 5):
        for number in range(12):
            (key, session), (text, state) = visitors[number * turn % 12], rights[number * turn % 12]
            assert table.get(key) is session and answer(session) == text
            assert digest(engine, newest(session)) == state
            assert table.room.awake(table._all) <= 3 and len(table) == 12
    awake = [one for _, one in visitors if not sleeps(one)]
    assert len(awake) <= 3 and all(one.watch.viewings[0].state.inner is None for _, one in visitors if one not in awake)


def test_a_stream_that_is_watched_never_sleeps(served, upload):  # noqa: F811
    table = served(2, tiny(0.3))
    _, file = table.ensure(None)
    file.open_file(upload)
    until(lambda: file.view().frames)
    _, camera = table.ensure(None)
    camera.offer(picture(RED))
    until(lambda: camera.view().frames)
    assert not file.bed.may_sleep and not camera.bed.may_sleep
    assert not file.bed.fall_asleep(table.room.dormitory) and not camera.bed.fall_asleep(table.room.dormitory)
    with pytest.raises(UserError, match="All 2 places"):
        table.ensure(None)


def test_it_wakes_for_the_next_picture(served):
    table = served()
    _, session = table.ensure(None)
    session.offer(picture(RED))
    until(lambda: session.view().frames == 1)
    session.pause()
    until(lambda: session.bed.may_sleep)
    assert session.bed.fall_asleep(table.room.dormitory)
    session.resume()
    session.offer(picture(BLUE))
    until(lambda: session.view().frames == 2)
    assert not sleeps(session) and session.watch.viewings[0].state.inner is not None


def test_who_asks_while_it_falls_asleep_finds_it_awake(served, come):
    table = served()
    _, session = come(table)
    engine, dormitory = session.engine, table.room.dormitory
    right, begun, lay = answer(session), threading.Event(), dormitory.lay
    session.clear_chat()

    def slowly(*args):
        laid = lay(*args)
        begun.set()
        question.wait()
        return laid

    dormitory.lay, question = slowly, threading.Event()
    slept: list[bool] = []
    falling = threading.Thread(target=lambda: slept.append(session.bed.fall_asleep(dormitory)))
    falling.start()
    assert begun.wait(10)
    speaks, steps = threading.Event(), engine.model.steps

    def waiting(*args):
        speaks.wait()
        yield from steps(*args)

    engine.model.steps = waiting  # it is still being answered when the copy is done
    asked = session.ask(QUESTION)
    question.set()
    falling.join()
    assert slept == [False] and not sleeps(session) and session.bed.has_place
    speaks.set()
    *_, last = session.answer(asked)
    assert last.text == right
    gc.collect()
    assert dormitory.nbytes == 0, "the copy is thrown away"


def test_a_full_disk_leaves_it_awake_and_refuses_newcomers(served, come):
    table = served(1, dormitory=Dormitory(ceiling=1_000))
    _, session = come(table)
    right = answer(session)
    with pytest.raises(UserError, match="stays awake"):
        session.bed.fall_asleep(table.room.dormitory)
    with pytest.raises(UserError, match="All 1 places"):
        table.ensure(None)
    assert not sleeps(session) and answer(session) == right


def test_a_question_whose_stream_cannot_be_read_says_so_and_a_second_one_is_answered(served, come, monkeypatch):
    table = served()
    _, session = come(table)
    right = answer(session)
    assert session.bed.fall_asleep(table.room.dormitory)
    with monkeypatch.context() as broken:
        broken.setattr("os.preadv", lambda *_: 0)
        question = session.ask(QUESTION)
        until(lambda: session.view().turn(question).over)
        assert "nothing is deleted, ask again" in session.view().turn(question).error
    until(lambda: not session.view().waking)
    assert session.view().asleep is not None and session.bed.fall_asleep(table.room.dormitory)
    assert not session.bed.has_place, "it takes no place while it holds nothing"
    assert answer(session) == right


def test_stop_ends_the_wait_for_a_place(served, come, upload):  # noqa: F811
    """Nobody gives way: the question waits, Stop ends it, and the stream sleeps on until there is a place."""
    engine = tiny()
    table = served(1, engine)
    _, session = come(table)
    right = answer(session)
    camera_key, camera = table.ensure(None)
    assert sleeps(session)
    camera.offer(picture(RED))
    until(lambda: camera.view().frames)
    question = session.ask(QUESTION)
    until(lambda: session.view().waking)
    assert session.view().told().word == "Waking" and not session.view().turn(question).over
    session.stop_answer()
    until(lambda: session.view().turn(question).over)
    assert "ask it again" in session.view().turn(question).error and session.view().asleep is not None
    table.close(camera_key)
    until(lambda: session.view().asleep is None)
    assert answer(session) == right


def test_the_longest_idle_gives_way_first_and_nobody_loses_anything(served, come):
    table = served(2)
    (_, one), (_, two) = come(table), come(table)
    right = answer(two)
    answer(one)  # wanted last
    come(table)
    assert sleeps(two) and not sleeps(one) and answer(two) == right and sleeps(one)
    assert table.counted().startswith("2 of 2 places in memory are taken, 1 sleep on ")


def test_an_idle_stream_sleeps_by_itself_after_a_while(served, come):
    table = served(2, sleep_after=0.1)
    _, session = come(table)
    until(lambda: sleeps(session), 10)
    assert table.room.awake(table._all) == 0


def test_a_new_file_and_a_fork_find_a_sleeping_stream_as_it_was(served, come, upload):  # noqa: F811
    engine = tiny()
    table = served(3, engine)
    key, session = come(table)
    at = session.view().seen_until / 2
    _, awake = table.fork(key, at)
    until(lambda: awake.view().phase is Phase.PAUSED)
    assert session.bed.fall_asleep(table.room.dormitory)
    _, fork = table.fork(key, at)
    until(lambda: fork.view().phase is Phase.PAUSED)
    assert newest(fork).frames == newest(awake).frames and answer(fork) == answer(awake)
    assert session.bed.fall_asleep(table.room.dormitory)
    session.open_file(upload)
    ended(session)
    assert session.bed.has_place and table.room.dormitory.nbytes == 0


def test_reset_and_the_end_of_a_session_leave_nothing_on_the_disk(served, come):
    table = served(3)
    (key, one), (_, two) = come(table), come(table)
    assert all(session.bed.fall_asleep(table.room.dormitory) for session in (one, two))
    two.reset()
    assert two.undo() and sleeps(two) and answer(two)
    assert two.bed.fall_asleep(table.room.dormitory)
    two.reset()
    two.let_go_of_undoable(older_than=0)
    table.close(key)
    gc.collect()
    assert table.room.dormitory.nbytes == 0


def test_a_second_model_and_a_rule_wake_a_stream(served, come):
    engine, rival = tiny(), tiny()
    table = served(2, engine, rival)
    _, session = come(table)
    right = answer(session)
    assert session.bed.fall_asleep(table.room.dormitory)
    session.compare(True)
    until(lambda: len(session.view().models) == 2 and not session.view().models[1].behind)
    until(lambda: session.bed.may_sleep)
    assert answer(session, 1) == right
    until(lambda: session.bed.may_sleep)
    assert session.bed.fall_asleep(table.room.dormitory)
    session.add_rule("Is there a person?")
    until(lambda: session.view().asleep is None)


def test_a_kept_stream_that_sleeps_is_there_after_a_restart(come, tmp_path):
    engine = tiny()
    table = Sessions(engine, None, 2, Shelf(tmp_path / "shelf"), dormitory=Dormitory())
    key, session = come(table)
    session.keep(True)
    until(lambda: session.switch.keep and session.switch.keep.begun and session.switch.keep.keeper.wait())
    right, state = answer(session), digest(engine, newest(session))
    session.keep_words()
    until(lambda: session.bed.may_sleep)
    assert session.bed.fall_asleep(table.room.dormitory) and sleeps(session)
    assert session.switch.keep.keeper.wait()
    killed(tmp_path / "shelf")
    again = Sessions(engine, None, 2, Shelf(tmp_path / "shelf"), dormitory=Dormitory())
    back = again.bring_back(key)
    assert back.view().conversations[0][0].answer.text == right
    until(lambda: back.view().phase is Phase.ENDED)
    assert answer(back) == right and digest(engine, newest(back)) == state
    for one in (again, table):
        one.shut()


def test_operators_hear_how_many_sleep(served, come):
    table = served(1)
    assert (census(table).asleep, census(table).asleep_bytes) == (0, 0)
    come(table)
    assert census(table).asleep == 0
    _, second = come(table)
    counted = census(table)
    assert counted.asleep == 1 and counted.asleep_bytes == table.room.dormitory.nbytes > 0
    assert sum(counted.streams.values()) == 2 and counted.places == 1
    assert not sleeps(second)


def test_a_stream_that_is_kept_encrypted_does_not_sleep(served, come, tmp_path):
    """What sleeps is written as it is."""
    pytest.importorskip("cryptography")
    table = served(2, shelf=Shelf(tmp_path / "kept"))
    key, session = come(table)
    session.keep(True, encrypt=True)
    until(lambda: session.view().kept is not None and session.watch.rests)
    place = table._by_key[key]
    assert session.view().encrypting and not session.bed.may_sleep and not table.room.lulled(place)
    session.keep(False)
    until(lambda: session.bed.may_sleep)
    place.sleepless_until = 0.0
    assert table.room.lulled(place) and sleeps(session)
