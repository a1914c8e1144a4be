"""Files that other programs open: a parser of WebVTT, SubRip and CSV reads what was meant, whatever the text is."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.__main__ import main
from pipeline.stream import Event
from pipeline.timeline.export import LONGEST, as_json, csv_table, markdown, srt, vtt
from tests.fake_model import write_clip
from tests.timeline.made import Colours

webvtt = pytest.importorskip("webvtt", reason="webvtt-py is not installed")
EVENTS = (
    Event(0.0, "shot", until=4.0),
    Event(0.0, "caption", "A dog.", until=3.5),
    Event(3599.9996, "caption", "A <b>cat</b> & more --> here.\n\nNOTE it", until=3603.0),
    Event(3603.0, "alert", "A person came into view.", 0.8, 3604.0),
    Event(3604.0, "caption", "A person."),
)
END = 3700.0
READABLE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(str.strip)


def test_a_parser_of_webvtt_reads_the_captions():
    cues = list(webvtt.from_buffer(io.StringIO(vtt(EVENTS, END))))
    assert [(cue.start, cue.end, cue.raw_text) for cue in cues] == [
        ("00:00:00.000", "00:00:03.500", "A dog."),
        ("01:00:00.000", "01:00:03.000", "A &lt;b&gt;cat&lt;/b&gt; &amp; more --&gt; here. NOTE it"),
        ("01:00:04.000", "01:00:14.000", "A person."),
    ]
    assert cues[2].end_in_seconds - cues[2].start_in_seconds == LONGEST


@given(st.lists(READABLE, min_size=1, max_size=5))
@settings(deadline=None)
def test_whatever_a_caption_says_it_is_one_cue(texts):
    events = [Event(float(at), "caption", text, until=at + 1.0) for at, text in enumerate(texts)]
    assert len(list(webvtt.from_buffer(io.StringIO(vtt(events, 99.0))))) == len(texts)
    assert len(list(webvtt.from_buffer(io.StringIO(srt(events, 99.0)), format="srt"))) == len(texts)


def test_nothing_to_say_is_an_empty_file_of_its_kind():
    assert vtt((), 0.0) == "WEBVTT\n" and srt((), 0.0) == "" and csv_table([]) == ""
    assert json.loads(as_json((), {}))["events"] == []


def test_json_has_every_event_in_order_of_time():
    document = json.loads(as_json(EVENTS[::-1], {"video": "a.mp4"}))
    assert document["video"] == "a.mp4" and [one["time"] for one in document["events"]] == [0, 0, 3599.9996, 3603, 3604]
    assert document["events"][-1]["until"] is None


def test_markdown_reads_and_shows_no_markup_of_others():
    text = markdown(EVENTS, "[x](http://e) *clip*", END)
    assert text.startswith("# \\[x\\](http://e) \\*clip\\*") and "## Alerts\n\n- 1:00:03 to 1:00:04: A person" in text
    assert "\\<b\\>" in text and "## Chapters" not in text


def test_a_table_is_no_program():
    rows = list(csv.DictReader(io.StringIO(csv_table([{"at": -1.5, "text": "=1+1"}, {"at": 2, "text": 'a "b", c'}]))))
    assert rows == [{"at": "-1.5", "text": "'=1+1"}, {"at": "2", "text": 'a "b", c'}]


@pytest.fixture
def colours(monkeypatch):
    import pipeline

    monkeypatch.setattr(pipeline, "load", lambda name, **options: Colours())


@pytest.mark.parametrize("kind", ["vtt", "srt", "json", "md", "csv"])
def test_the_command_writes_each_format(colours, kind, tmp_path, capsys):
    clip, out = write_clip(tmp_path / "clip.mp4"), tmp_path / "out"
    assert main(["events", str(clip), "--format", kind]) == 0
    told = capsys.readouterr().out
    assert main(["events", str(clip), "--format", kind, "--out", str(out)]) == 0
    if kind == "vtt":
        assert [cue.text for cue in webvtt.from_buffer(io.StringIO(told))] == ["red", "blue"]
    elif kind == "json":
        document = json.loads(told)
        assert [one["text"] for one in document["events"] if one["kind"] == "caption"] == ["red", "blue"]
        assert sum(chunk["frames"] for chunk in document["chunks"]) == 12
    elif kind == "csv":
        assert sum(int(row["frames"]) for row in csv.DictReader(io.StringIO(told))) == 12
    assert bool(told) and (kind in ("json", "csv") or out.read_text() == told)


def test_where_it_cannot_be_written_is_said(colours, tmp_path, capsys):
    clip = write_clip(tmp_path / "clip.mp4")
    assert main(["events", str(clip), "--out", str(tmp_path / "no" / "out")]) == 2
    assert "could not be written" in capsys.readouterr().err
