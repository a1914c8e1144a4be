"""Text on screen: what is written is read with its second, and of pictures without writing nothing is said."""

import importlib.util
import threading

import av
import cv2
import numpy as np
import pytest

from pipeline.senses import text
from pipeline.senses.text import CANNOT, Line, Text, pieces, same, told
from pipeline.stream import Frame

needs_reader = pytest.mark.skipif(
    importlib.util.find_spec("rapidocr_onnxruntime") is None, reason="needs rapidocr-onnxruntime"
)


def page(words: str, shade: int = 60) -> np.ndarray:
    """A picture with words on it, and a gradient that is none."""
    rgb = np.full((240, 426, 3), shade, np.uint8)
    rgb[..., 2] = np.linspace(0, 120, 426).astype(np.uint8)
    cv2.putText(rgb, words, (30, 130), cv2.FONT_HERSHEY_SIMPLEX, 1.3, (255, 255, 255), 3, cv2.LINE_AA)
    return rgb


def film(path, pictures) -> str:
    """One picture a second as an MP4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        for rgb in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb)))
        container.mux(stream.encode())
    return str(path)


def gleaned(path: str, stop: threading.Event | None = None):
    return list(Text().glean(path, stop or threading.Event()))


@needs_reader
def test_what_is_written_is_read_where_it_is_and_nothing_where_it_is_not(tmp_path):
    pictures = [page("", 200)] * 4 + [page("EXIT NOW")] * 4 + [page("", 20)] * 4
    found = gleaned(film(tmp_path / "a.mp4", pictures))
    (event,) = [event for each in found for event in each.events]
    assert (event.kind, event.text) == ("text", "EXIT NOW") and event.weight >= 0.8
    assert 4 <= event.time < 6 and 7 <= event.until <= 9
    assert [each.until for each in found] == sorted(each.until for each in found) and found[-1].until == 12


def test_a_line_that_the_reader_doubts_is_not_told(monkeypatch):
    box = [[0, 0], [50, 0], [50, 10], [0, 10]]
    read = [(box, "SURELY", 0.81), (box, "PERHAPS", 0.79), (box, "-", 0.99)]
    monkeypatch.setattr(text, "_reader", lambda: lambda picture: (read, 0.0))
    assert [line.text for line in text.lines(page(""))] == ["SURELY"]


@needs_reader
def test_writing_that_stays_is_one_event(tmp_path):
    (event,) = [e for each in gleaned(film(tmp_path / "a.mp4", [page("OPEN DAY")] * 9)) for e in each.events]
    assert event.time == 0 and event.until == 9


def test_a_picture_that_stays_is_read_once(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(text, "lines", lambda rgb: read.append(rgb) or [])
    monkeypatch.setattr(text.importlib.util, "find_spec", lambda name: True)
    gleaned(film(tmp_path / "a.mp4", [page("ANY", 90)] * 12))
    assert len(read) == 1
    gleaned(film(tmp_path / "b.mp4", [page("ANY", shade) for shade in (0, 30, 60, 90) for _ in range(3)]))
    assert len(read) > 3


def test_without_a_reader_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(text.importlib.util, "find_spec", lambda name: None)
    (only,) = gleaned("no such file")
    assert only.lacks == CANNOT and not only.events


def test_it_ends_when_it_is_stopped(tmp_path, monkeypatch):
    stop = threading.Event()
    monkeypatch.setattr(text, "lines", lambda rgb: stop.set() or [])
    monkeypatch.setattr(text.importlib.util, "find_spec", lambda name: True)
    path = film(tmp_path / "a.mp4", [page(str(i), 20 * i) for i in range(12)])
    assert sum(bool(each.until) for each in gleaned(path, stop)) <= 2


def frames(shades):
    return iter([Frame(np.full((90, 160, 3), shade, np.uint8), float(i)) for i, shade in enumerate(shades)])


def test_a_piece_ends_with_its_shot_and_is_never_long():
    parts = list(pieces(frames([10] * 7 + [240] * 2), threading.Event()))
    assert [([frame.time for frame in piece], end) for piece, end in parts] == [
        ([0, 1, 2], 3),
        ([3, 4, 5], 6),
        ([6], 7),
        ([7, 8], 9),
    ]


def line(left, top, words, score=0.9):
    return Line(left, top, left + 10 * len(words), top + 20, words, score)


def test_lines_of_one_text_follow_each_other_and_others_stand_behind_a_bar():
    title = [line(100, 100, "THE OPEN MOVIE"), line(120, 125, "PRESENTS", 0.82)]
    assert told(title) == ("THE OPEN MOVIE PRESENTS", 0.82)
    assert told([*title, line(600, 400, "12:30")])[0] == "THE OPEN MOVIE PRESENTS | 12:30"
    assert told([]) == ("", 0.0)


def test_a_letter_in_ten_may_be_read_otherwise():
    assert same("THE PEACH OPEN MOVIE PROJECT", "THE PEACH 0PEN MOVIE PROJECT")
    assert not same("EXIT", "EDIT") and not same("Chapter one", "Chapter two") and not same("x y", "")
