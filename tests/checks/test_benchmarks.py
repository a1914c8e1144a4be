"""Question files as their authors publish them (made ones of that form in tests/data/benchmarks); what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest

from pipeline.checks.benchmarks import read_benchmark, video_of
from pipeline.stream import UserError

FILES = Path(__file__).parents[1] / "data" / "benchmarks"


def read(name: str):
    return read_benchmark(FILES / name)


def test_video_mme_by_video_and_by_row() -> None:
    name, choices = read("video_mme.json")
    assert name == "Video-MME" and [choice.id for choice in choices] == ["001-1", "001-2", "002-1"]
    assert choices[0].options == ("Red.", "Blue.", "Green.", "Grey.") and [c.answer for c in choices] == [0, 1, 2]
    assert choices[0].videos == ("red_then_blue", "001")
    sorted_by = {"duration": "short", "domain": "Made", "sub_category": "Colours", "task_type": "Attribute Perception"}
    assert dict(choices[0].categories) == sorted_by
    _, rows = read("video_mme_rows.json")
    assert rows == [choices[0], choices[2]]


def test_the_authors_first_names_of_fields_are_known_too(tmp_path) -> None:
    videos = json.loads((FILES / "video_mme.json").read_text())
    for video in videos:
        for new, old in (("duration_category", "duration"), ("video_category", "domain")):
            video[new] = video.pop(old)
        video["video_sub_category"] = video.pop("sub_category")
        for question in video["questions"]:
            question["choices"] = [option[3:] for option in question.pop("options")]
    (tmp_path / "first.json").write_text(json.dumps(videos))
    assert read_benchmark(tmp_path / "first.json") == read("video_mme.json")


def test_a_prompt_is_that_of_video_mmes_authors() -> None:
    assert read("video_mme.json")[1][0].prompt == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\nWhich colour comes first?\n"
        "A. Red.\nB. Blue.\nC. Green.\nD. Grey.\nThe best answer is:"
    )


def test_lvbench_has_its_options_in_the_question() -> None:
    name, choices = read("video_info.meta.jsonl")
    assert name == "LVBench" and [choice.id for choice in choices] == ["1", "2", "3"]
    assert choices[0].text == "What is shown at the beginning?"
    assert choices[0].options == ("A red picture", "A blue picture", "A dog", "Nothing") and choices[1].answer == 1
    kinds = [("type", "made"), ("question_type", "entity recognition"), ("question_type", "temporal grounding")]
    assert list(choices[0].categories) == kinds


def test_mlvus_answer_is_an_options_text_and_its_videos_lie_in_folders(tmp_path) -> None:
    name, choices = read("1_plotQA.json")
    assert name == "MLVU" and [choice.answer for choice in choices] == [1, 2]
    assert choices[0].videos == ("1_plotQA/red_then_blue.mp4", "red_then_blue.mp4")
    (tmp_path / "red_then_blue.mp4").touch()
    assert video_of(choices[0], tmp_path) == tmp_path / "red_then_blue.mp4"
    (tmp_path / "1_plotQA").mkdir()
    (tmp_path / "1_plotQA" / "red_then_blue.mp4").touch()
    assert video_of(choices[0], tmp_path) == tmp_path / "1_plotQA" / "red_then_blue.mp4"
    assert video_of(choices[1], tmp_path) is None


def test_hourvideo_has_five_options_and_pictures_are_left_out() -> None:
    name, choices = read("dev_v1.0_annotations.json")
    assert name == "HourVideo" and [choice.id for choice in choices] == ["q1", "q3"]
    assert choices[1].options[4] == "Green" and choices[1].answer == 4
    assert "(A, B, C, D, or E)" in choices[1].prompt


def test_a_table_of_the_hub_is_read_where_pyarrow_is(monkeypatch, tmp_path) -> None:
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    rows = pandas.DataFrame(json.loads((FILES / "video_mme_rows.json").read_text()))
    monkeypatch.setattr(pandas, "read_parquet", lambda path: rows)
    assert read_benchmark(tmp_path / "test.parquet") == read("video_mme_rows.json")

    def missing(path):
        raise ImportError

    monkeypatch.setattr(pandas, "read_parquet", missing)
    with pytest.raises(UserError, match="needs pyarrow"):
        read_benchmark(tmp_path / "test.parquet")


MME = {"task_type": "t", "question": "q", "options": ["x", "y"], "answer": "A", "question_id": 1, "videoID": "v"}
MLVU = {"video": "v", "question": "q", "question_type": "t", "answer": "x", "candidates": ["x", "y"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "in no format"),
        ({"a": 1}, "in no format"),
        ([1, 2], "in no format"),
        ([MME | {"options": ["A. x"]}], "garbled"),
        ([MME | {"answer": "C"}], "garbled"),
        ([MME | {"videoID": None}], "garbled"),
        ([MLVU | {"answer": "z"}], "garbled"),
        ([{"video": "v", "question": "q", "question_type": "summary", "answer": "long"}], "No question"),
        ({"v": {"benchmark_dataset": [{"qid": 1, "question": "q"}]}}, "garbled"),
    ],
)
def test_what_is_none_of_them_is_refused_in_a_sentence(content, said, tmp_path) -> None:
    (tmp_path / "questions.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        read_benchmark(tmp_path / "questions.json")


def test_what_is_no_json_is_refused_in_a_sentence(tmp_path) -> None:
    for name in ("questions.json", "questions.jsonl"):
        (tmp_path / name).write_text("no json")
        with pytest.raises(UserError, match="cannot be read"):
            read_benchmark(tmp_path / name)


def test_a_videos_name_is_no_path(tmp_path) -> None:
    (tmp_path / "secret.mp4").touch()
    (tmp_path / "videos").mkdir()
    row = {"task_type": "t", "question": "q", "options": ["x", "y"], "answer": "A", "question_id": 1}
    for name in ("../secret", str(tmp_path / "secret")):
        (tmp_path / "questions.json").write_text(json.dumps([row | {"videoID": name}]))
        (choice,) = read_benchmark(tmp_path / "questions.json")[1]
        assert choice.videos == ("secret",) and video_of(choice, tmp_path / "videos") is None


def test_questions_of_one_name_are_told_apart(tmp_path) -> None:
    videos = json.loads((FILES / "video_mme.json").read_text())
    for video in videos:
        for question in video["questions"]:
            question["question_id"] = "1"
    (tmp_path / "same.json").write_text(json.dumps(videos))
    assert [choice.id for choice in read_benchmark(tmp_path / "same.json")[1]] == ["1", "1#2", "1#3"]
