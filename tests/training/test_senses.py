"""The table of late senses: what counts as right, missed and false, and which clips are gone through."""

import threading
from pathlib import Path

import pytest

from pipeline.stream import Event, Gleaned
from pipeline.training import senses
from pipeline.training.senses import Score, Stretch, alike, found, judged, main, row, summed

THERE = [Stretch(2.0, 4.0, "The garden."), Stretch(9.0, 12.0, "Rockets and cats.")]


@pytest.mark.parametrize(
    ("told", "right", "false"),
    [
        ([], 0, 0),
        ([Event(2.1, "speech", "the Garden", 1.0, 3.9)], 1, 0),
        ([Event(2.1, "speech", "the Garden", 1.0, 3.9), Event(9.5, "speech", "Rockets, and cuts!", 1.0, 11)], 2, 0),
        ([Event(2.1, "speech", "You are welcome", 1.0, 3.9)], 0, 0),  # heard, but not what was said: missed
        ([Event(5.0, "speech", "The garden.", 1.0, 6.0)], 0, 1),  # said when nobody spoke
    ],
)
def test_a_stretch_is_right_with_its_words_and_what_is_told_of_nothing_is_false(told, right, false):
    assert judged(THERE, told) == Score(1, 0, right, 2 - right, false)


def test_a_clip_without_counts_what_is_told_of_it():
    assert judged([], [Event(1.0, "text", "EXIT", 1.0, 2.0)]) == Score(0, 1, 0, 0, 1)


def test_words_may_stand_among_others_and_not_be_others():
    assert alike("At last: ROCKETS and cats | 5", "Rockets and cats.") and not alike("Pockets", "Rockets and cats.")


def test_scores_of_clips_add_up_in_a_line():
    both = summed([Score(1, 0, 2, 1, 0, 3.0, 30.0), Score(0, 1, 0, 0, 2, 1.0, 30.0)])
    assert row("speech", both) == "| `speech` | 1 with, 1 without | 2 of 3 | 1 | 2 | 240 |"


def test_clips_are_those_of_the_table_that_lie_there(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "unknown.mp4").touch()
    path, known = tmp_path / "a.mp4", {"a.mp4": {"text": [[0.0, 2.0, "EXIT"]], "sound": None}, "b.mp4": {}}
    assert found([tmp_path], known, "text") == {path: [Stretch(0.0, 2.0, "EXIT")]}
    assert found([tmp_path], known, "speech") == {path: []} and not found([tmp_path], known, "sound")


class Always:
    name, doing, kinds, cost_s = "sound", "", ("sound",), 0.0

    def glean(self, path: str, stop: threading.Event):
        yield Gleaned(22.0, (Event(0.0, "sound", "sound", 1.0, 14.0), Event(15.0, "sound", "music", 1.0, 19.0)))


def test_the_command_prints_a_line_a_sense(monkeypatch, capsys):
    """Over the clip that was made for the tests; sounds that are no music have no truth and are not counted."""
    monkeypatch.setattr(senses, "late_senses", lambda wanted: (Always(),))
    main([str(Path(__file__).parents[1] / "data" / "sound")])
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith("| `sound` | 1 with, 0 without | 1 of 1 | 0 | 0 | ")


def test_folders_without_clips_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "no clip of senses.json for sound lies there" in capsys.readouterr().err
