"""Two servers on one shelf: a visitor's stream is watched where they are; where it was before it ends in a sentence."""

from __future__ import annotations

import pytest

from app.live.shelf import LARGEST, Shelf, name_of
from app.live.view import Phase
from pipeline import TakenOver, UserError
from tests.keeping.streams import digest, slow
from tests.live.kept import ended, newest, quick, served, until, upload, visit

__all__ = ["quick", "served", "upload", "visit"]  # fixtures


def test_a_stream_goes_on_where_its_visitor_is_and_ends_where_they_were(visit, served, tmp_path) -> None:
    """To the same end as undisturbed; who lost it neither answers nor deletes."""
    whole = visit(keep=False).session
    ended(whole)
    here = visit(frames=6, seconds=0.2)
    here.session.ask("What is it?")
    there = served(slow(0.05))
    with pytest.raises(UserError, match="watched elsewhere"):
        there.bring_back(here.key)
    back = there.bring_back(here.key, by_force=True)
    assert back.view().frames >= 4
    view = here.session.view()
    assert view.error == str(TakenOver()) and view.phase is Phase.ENDED and view.told().detail == view.error
    commands = (
        lambda: here.session.ask("And now?"),
        lambda: here.session.open_camera(),
        lambda: here.session.keep(True),
        lambda: here.session.add_rule("tell me when a person enters"),
        lambda: here.session.branch(0.1, here.session),
        here.session.take_along,
        here.session.delete_kept,
        here.session.reset,
    )
    for command in commands:
        with pytest.raises(UserError, match="taken over elsewhere"):
            command()
    until(lambda: here.session.watch is None)  # the table's clock
    assert here.session.view().error == str(TakenOver()) and here.session.holds_nothing
    ended(back)
    assert digest(back.engine, newest(back)) == digest(back.engine, newest(whole))
    assert back.view().kept.nbytes and not back.view().kept.told
    assert here.table.bring_back(here.key) is here.session, "a late call gets nothing back"
    again = here.table.bring_back(here.key, by_force=True)
    ended(again)
    assert digest(again.engine, newest(again)) == digest(back.engine, newest(whole)) and back.view().error


def test_an_answer_that_is_being_written_ends_where_the_stream_is_lost(visit, served) -> None:
    here = visit(frames=6, seconds=0.2)
    conversation, engine, answers = here.session.conversations[0], here.session.engine, []
    ask = engine.ask

    def losing(*given):
        for answer in ask(*given):
            answers.append(answer)
            if len(answers) == 2:
                served(slow(0)).bring_back(here.key, by_force=True)
            yield answer

    engine.ask = losing
    asked = here.session.ask("What is it?")
    until(lambda: not conversation.busy)
    assert conversation.turns[-1].id == asked and conversation.turns[-1].error == str(TakenOver())


def test_a_server_that_starts_takes_nothing_from_one_that_lives(visit, served) -> None:
    here = visit(frames=6, seconds=0.1)
    other = served(slow(0))
    ended(here.session)
    assert len(other) == 0 and not here.session.lost and here.session.view().kept.nbytes


def test_what_another_server_may_still_write_is_counted_and_never_swept(tmp_path) -> None:
    here = Shelf(tmp_path / "shelf", 2 * LARGEST + 1000)
    there = Shelf(tmp_path / "shelf", 2 * LARGEST + 1000)
    kept = here.create(name_of("one"), {"backend": "none"}, 500)
    kept.note()
    other = there.create(name_of("two"), {"backend": "none"}, 0)
    with pytest.raises(UserError, match="no room"):
        there.create(name_of("three"), {"backend": "none"}, 0)
    assert there.sweep(now=1e12) == 0 and not kept.lost
    kept.close()
    assert there.sweep(now=1e12) == 1
    there.create(name_of("three"), {"backend": "none"}, 0).close()
    other.close()


def test_deleted_by_its_visitor_elsewhere_it_is_gone_everywhere(visit, served, tmp_path) -> None:
    """Also the part that somebody still writes; they watch on."""
    here = visit(frames=6, seconds=0.2)
    served(slow(0)).delete(here.key)
    assert not list((tmp_path / "shelf").iterdir())
    assert not here.session.lost
    ended(here.session)
    assert not list((tmp_path / "shelf").iterdir()) and "was deleted" in here.session.view().kept.told
