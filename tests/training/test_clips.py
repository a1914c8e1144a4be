"""Questions on clips: asked when nothing later has been seen, judged as written, counted right; and the baseline."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.engine import Engine
from pipeline.stream import Frame
from pipeline.towers.frame_tower import ASSETS, FrameFeatures, labels
from pipeline.training import clips
from pipeline.training.clips import Asked, EngineWatcher, StockChat, WordsAlone, ask_clip, lines, parts, summary
from pipeline.training.metrics import outcome
from tests.fake_model import FakeModel, fake_engine, write_clip


def record(ask_at=None, expected=".*", **changes) -> dict:
    return {
        "clip": "a.mp4",
        "question": "What?",
        "ask_at": ask_at,
        "kind": "now",
        "expected": [[expected]],
        "forbidden": [],
        "expected_time": None,
    } | changes


def frames_at(*seconds: float) -> list[Frame]:
    return [Frame(np.full((4, 6, 3), int(s), np.uint8), s) for s in seconds]


def test_a_question_is_put_before_anything_later_is_seen():
    records = [record(None), record(2), record(2.5), record(0)]
    got = [
        ([f.time for f in seen], [r["ask_at"] for r in asked])
        for seen, asked in parts(frames_at(0, 1, 2, 3, 4), records)
    ]
    assert got == [([0], [0]), ([1, 2], [2]), ([], [2.5]), ([3, 4], [None])]


def test_a_question_for_after_the_end_is_put_at_the_end():
    (only,) = parts(frames_at(0, 1), [record(60), record(None)])
    assert len(only[0]) == 2 and len(only[1]) == 2


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Twelve seconds: six red, six blue."""
    return write_clip(tmp_path_factory.mktemp("clips") / "a.mp4")


def test_a_clip_is_watched_at_one_frame_a_second(clip):
    """The fake model says how many frames it has seen; the clip is red until 6 s."""
    records = [record(None, "12 frames"), record(3, "4 frames"), record(7, r"8 frames, last \(19, 19, 199\).*")]
    rows = list(ask_clip(EngineWatcher(fake_engine()), clip, records))
    assert [row.right for row in rows] == [True] * 3, [row.answer for row in rows]
    assert [round(row.asked_at) for row in rows] == [3, 7, 11]
    assert all(row.evidence for row in rows)


def test_clips_do_not_see_each_other(clip):
    watcher = EngineWatcher(fake_engine())
    first, second = (list(ask_clip(watcher, clip, [record(3)])) for _ in range(2))
    assert first == second


def test_frames_go_in_as_large_as_the_model_wants():
    sizes = []

    class Counting(FakeModel):
        def watch(self, chunk, state):
            sizes.append(len(chunk.frames))
            return super().watch(chunk, state)

    watcher = EngineWatcher(Engine(Counting()))
    watcher.begin()
    watcher.see(frames_at(*range(10)))
    assert sizes == [4, 4, 2] and watcher.state.frames == 10


def test_a_gif_is_a_clip(tmp_path):
    pictures = [Image.new("RGB", (64, 48), (20 * i, 0, 0)) for i in range(5)]
    pictures[0].save(tmp_path / "b.gif", save_all=True, append_images=pictures[1:], duration=1000)
    (row,) = ask_clip(EngineWatcher(fake_engine()), tmp_path / "b.gif", [record(2, "3 frames")])
    assert row.right, row.answer


def test_the_moment_counts_but_is_told_apart(clip):
    """The fake model rests every answer on the middle of what it saw, here 5.5 s."""
    records = [record(expected="12 frames", expected_time=span) for span in ([5, 6], [0, 2])]
    records.append(record(expected="a bird", expected_time=[5, 6]))
    rows = list(ask_clip(EngineWatcher(fake_engine()), clip, records))
    assert [(row.right, row.said_right) for row in rows] == [(True, True), (False, True), (False, False)]
    assert [clips.line(row).split("frames")[0].split()[3] for row in rows[:2]] == ["right", "(moment)"]


def row(clip: str, kind: str, right: bool, said_right: bool = True) -> Asked:
    return Asked(clip, kind, "What?", 1.0, "This.", (0.5,), right, said_right, "right" if right else "false")


def test_shares_and_their_errors():
    rows = [row("a", "now", True), row("a", "now", False), row("b", "when", True), row("b", "now", True)]
    told = summary(rows)
    assert (told["right"], told["error"], told["asked"], told["said_right"]) == (0.75, 0.217, 4, 1.0)
    assert told["per_kind"] == {
        "now": {"right": 0.667, "error": 0.272, "asked": 3},
        "when": {"right": 1.0, "error": 0.0, "asked": 1},
    }
    assert told["per_clip"]["a"]["right"] == 0.5 and told["per_clip"]["b"]["asked"] == 2


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_the_command_ends_in_a_line_of_json(clip, flags, monkeypatch, capsys, tmp_path):
    source = tmp_path / "questions.json"
    source.write_text(json.dumps({"questions": [record(3, "4 frames"), record(3, "a bird")]}))
    by_clip = clips.read_questions(clip.parent, source)
    monkeypatch.setattr(clips, "read_questions", lambda videos, source: by_clip)
    monkeypatch.setattr(clips, "load", lambda name: FakeModel())
    monkeypatch.setattr("sys.argv", ["clips", "--videos", str(clip.parent), *flags])
    clips.main()
    printed = capsys.readouterr().out.splitlines()
    told = json.loads(printed[-1])
    assert (told["model"], told["right"], told["asked"]) == ("embedded", 0.5, 2)
    assert ("answers" in told, len(printed) > 2) == ((True, False) if flags else (False, True))


def test_a_missing_clip_is_no_smaller_exam(tmp_path):
    with pytest.raises(SystemExit, match=r"bbb_480p_30s\.mp4"):
        clips.read_questions(tmp_path)


# ---------------------------------------------------------------- the baseline


def sure_of(words: list[str]) -> FrameFeatures:
    """Features of frames in which the classifier is sure of one thing each and the detector sees nothing."""
    count, blank = len(words), torch.zeros(len(words), 0)
    ids = torch.tensor([[labels()["imagenet"].index(word)] for word in words])
    return FrameFeatures(
        blank,
        blank,
        ids,
        torch.full((count, 1), 0.9),
        blank,
        torch.full((count, 8), -1),
        torch.zeros(count, 8),
        torch.zeros(count, 8, 4),
    )


def test_what_a_person_would_paste():
    """One line for as long as the towers name the same; nothing from after the question."""
    pasted, named = [], iter(["broom"] * 9 + ["banana"] + ["accordion"] * 2)
    baseline = WordsAlone(
        lambda frames: sure_of([next(named) for _ in frames]), lambda message: pasted.append(message) or "A broom."
    )
    baseline.begin()
    baseline.see(frames_at(*range(10)))  # two runs of the towers
    assert baseline.answer("What now?") == ("A broom.", [])
    baseline.see(frames_at(75, 76))
    baseline.answer("And now?")
    first, second = pasted
    assert "0:00 - 0:08: broom\n0:09: banana\n" in first and "What now?" in first and "accordion" not in first
    assert "0:00 - 0:08: broom\n0:09: banana\n1:15 - 1:16: accordion\n" in second and "And now?" in second


def test_a_single_second_has_one_time():
    assert list(lines([(0.0, "a"), (1.0, "b"), (2.0, "a")])) == ["0:00: a", "0:01: b", "0:02: a"]
    assert list(lines([])) == []


@pytest.fixture(scope="module")
def stock() -> StockChat:
    if not (ASSETS / "lm-00001-of-00002.safetensors").exists():
        pytest.skip("the language model's files are not in assets/")
    return StockChat()


def test_the_stock_model_reads_what_was_pasted(stock):
    """It is weak, but a wrong rotary base or a garbled matrix makes it speak in tongues."""
    assert "dog" in stock("0:00 - 0:09: dog\n\nWhat animal is in the video?").lower()


def test_shared_keys_and_values_change_no_answer(stock, monkeypatch):
    monkeypatch.setattr(clips, "MOST_TOKENS", 8)
    asked = [f"0:00 - 0:03: broom\n0:04: dog\n\nWhat is at 0:0{second}?" for second in (4, 2, 2)]
    shared = [stock(message) for message in asked]
    for message, answer in zip(asked, shared, strict=True):
        stock.cache.crop(-stock.cache.get_seq_length())
        stock.held = []
        assert stock(message) == answer


def test_a_doubt_is_neither_right_nor_false_unless_it_says_something_forbidden() -> None:
    record = {"expected": [["red"]], "forbidden": ["blue"]}
    assert outcome(record, "It is red.") == "right"
    assert outcome(record, "It is green.") == "false"
    assert outcome(record, "I am not sure of its colour.") == "unsure"
    assert outcome(record, "I cannot tell, perhaps red.") == "unsure"
    assert outcome(record, "I cannot tell; a blue shirt.") == "false"
    assert outcome(record, "Hard to say, perhaps red.") == "right", "only the doubts of the list are doubts"


def test_the_words_of_a_doubt_are_no_denial():
    record = {"expected": [["yes"]], "forbidden": ["no", "not", "cannot"]}
    assert outcome(record, "I am not sure.") == outcome(record, "I cannot tell more.") == "unsure"
    assert outcome(record, "I am not sure; I have not seen it.") == "false"
    assert outcome(record, "No.") == "false"


@pytest.mark.parametrize("number", clips.QUESTIONS)
def test_every_question_says_what_must_not_be_said(number):
    records = json.loads(clips.QUESTIONS[number].read_text())["questions"]
    assert all(record["forbidden"] and record["expected"] for record in records)


def test_visitors_questions_are_asked_at_the_end_and_judged_by_parts_of_words(clip, tmp_path):
    asked = [
        {"ask": "What?", "any": ["12 fra", "nothing"], "not": ["oil"]},
        {"ask": "What?", "any": ["12 frames"], "not": ["ame"]},
    ]
    source = tmp_path / "visitors.json"
    source.write_text(json.dumps({"sets": [{"file": str(clip), "q": asked}]}))
    by_clip = clips.read_visitors(source)
    rows = clips.run(EngineWatcher(fake_engine()), clip.parent.parent, by_clip, lambda text: None)
    assert [row.outcome for row in rows] == ["right", "false"]
    source.write_text(json.dumps({"sets": [{"file": "no such clip.mp4", "q": asked}]}))
    with pytest.raises(SystemExit, match="no such clip"):
        clips.read_visitors(source)
