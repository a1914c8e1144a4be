"""A View: all that may be known of a stream. It travels by pickle, and what was taken never changes."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from app.live.view import Phase, View
from tests.fake_model import asked, ended, fake_engine, picture, until


def taken(made, clip) -> list[View]:
    """Views of a stream's whole life: idle, paused in the middle, ended, answered by two models, reset."""
    session = made(fake_engine(watch_s=0.01), fake_engine("Twin"))
    views = [session.view()]
    session.compare(True)
    session.open_file(clip, "Example", "holiday.mp4")
    until(lambda: session.view().frames >= 4)
    session.pause()
    views.append(session.view())
    session.resume()
    until(lambda: ended(session))
    views.append(session.view())
    question = session.ask("what?")
    for model in (0, 1):
        list(session.answer(question, model))
    views.append(session.view())
    session.reset()
    return [*views, session.view()]


def test_a_view_survives_the_way_to_another_process(made, clip):
    for view in taken(made, clip):
        assert pickle.loads(pickle.dumps(view)) == view


def test_a_view_never_changes_after_it_was_taken(made, clip):
    """Watched on, asked, compared, forgotten: what was seen stays as it was seen."""
    session = made(fake_engine(watch_s=0.01), fake_engine("Twin"))
    session.open_file(clip, "Example", "holiday.mp4")
    until(lambda: session.view().frames >= 4)
    answers = asked(session, "in the middle?")
    for _ in range(3):
        next(answers)
    view = session.view()
    before = pickle.dumps(view)
    list(answers)
    session.compare(True)
    until(lambda: ended(session) and len(session.view().models) == 2)
    session.reset()
    session.open_camera()
    session.offer(picture((1, 2, 3)))
    assert pickle.dumps(view) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        view.error = "changed"


def test_a_view_tells_the_story_of_its_stream(made, clip):
    idle, paused, over, answered, reset = taken(made, clip)
    assert [one.phase for one in (idle, paused, over)] == [Phase.IDLE, Phase.PAUSED, Phase.ENDED]
    assert paused.frames < over.frames == 12 and over.seen_until == pytest.approx(11)
    assert [(one.name, one.state_bytes, one.memory_bytes) for one in over.models] == [
        ("Fake Vamba", 290_000, 36_000),
        ("Twin", 290_000, 36_000),
    ]
    assert all(len(one.samples) >= 3 and one.samples[-1].at == over.seen_until for one in over.models)
    assert [round(at) for at, _ in over.film] == list(range(12)) and over.film[0].jpeg.startswith(b"\xff\xd8")
    assert over.conversations == ((), ()) and [len(turns) for turns in answered.conversations] == [1, 1]
    assert [len(one.first_tokens) for one in answered.models] == [1, 1]
    assert reset == View(names=idle.names, comparing=True, stream=1, undo="Reset")


def test_nothing_but_values_is_in_a_view(made, clip):
    """A lock, a tensor or a list would make it a window instead of a picture."""
    plain = (str, int, float, bool, bytes, type(None), Phase)

    def check(value, where: str) -> None:
        if dataclasses.is_dataclass(value):
            assert type(value).__dataclass_params__.frozen, where
            for field in dataclasses.fields(value):
                check(getattr(value, field.name), f"{where}.{field.name}")
        elif isinstance(value, tuple):
            for part in value:
                check(part, where)
        else:
            assert type(value) in plain, f"{where} is a {type(value).__name__}"

    for view in taken(made, clip):
        check(view, "view")
