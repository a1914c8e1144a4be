"""`evaluate` on a tiny benchmark of our own, with tiny models: both ways of answering, going on after a kill."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.checks.benchmarks import LETTERS, read_benchmark
from pipeline.commands import evaluate
from pipeline.commands.ask import Viewer, watch_file
from pipeline.commands.evaluate import letter_of
from pipeline.engine import Engine
from pipeline.models.load import load
from pipeline.stream import Question, Sampling
from tests.models.test_published_systems import checkpoint
from tests.test_cli import write_video

FILES = Path(__file__).parent / "data" / "benchmarks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The benchmark's two videos."""
    made = tmp_path_factory.mktemp("videos")
    write_video(made / "red_then_blue.mp4", ["red", "red", "blue"])
    write_video(made / "only_green.mp4", ["green"] * 3)
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    made = tmp_path_factory.mktemp("models")
    return {name: str(checkpoint(name, made / name)) for name in ("mmmamba-hybrid", "vamba", "qwen2-vl")}


def run(capsys, folder, model: str, file: str, results: Path, *more: str) -> tuple[int, str, str]:
    """Exit code, the table, and the document or what stderr says."""
    where = ["--benchmark", str(FILES / file), "--videos", str(folder), "--results", str(results)]
    code = main(["evaluate", *where, "--model", model, *more])
    told = capsys.readouterr()
    table, _, last = told.out.rstrip("\n").rpartition("\n")
    return code, table, last if code == 0 else told.err


@pytest.mark.parametrize(
    "file", ["video_mme.json", "video_info.meta.jsonl", "1_plotQA.json", "dev_v1.0_annotations.json"]
)
def test_every_format_is_asked_and_counted(capsys, tmp_path, folder, models, file) -> None:
    code, table, last = run(capsys, folder, models["mmmamba-hybrid"], file, tmp_path / "r.jsonl")
    document, name = json.loads(last), read_benchmark(FILES / file)[0]
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()[1:]]
    asked = len(read_benchmark(FILES / file)[1])
    assert code == 0 and document["benchmark"] == name and document["asked"] == len(rows) == asked
    for way in ("likelihood", "letter"):
        assert document["overall"][way] == sum(row[way] == row["answer"] for row in rows) / asked
    assert document["not_understood"] == sum(row["letter"] is None for row in rows)
    for kind, values in document["categories"].items():
        for value, shares in values.items():
            members = [row for row in rows if [kind, value] in row["categories"]]
            assert shares["answers"] == len(members) > 0 and f"{kind}: {value}" in table
    assert all(row["mode"] == "native" and row["pictures"] >= 3 for row in rows)


@pytest.mark.parametrize("name", ["mmmamba-hybrid", "vamba", "qwen2-vl"])
def test_the_likeliest_letter_is_that_of_the_logits_its_answer_is_drawn_from(folder, models, name) -> None:
    engine = Engine(load(models[name], "cpu"))
    choice = read_benchmark(FILES / "video_mme.json")[1][0]
    viewer = Viewer(engine, engine.start())
    watch_file([viewer], str(folder / "red_then_blue.mp4"), 1.0, None)
    question = Question(choice.prompt)
    logits = engine.model.first_logits(question, viewer.state)
    token = next(iter(engine.model.ask(question, viewer.state, Sampling(max_tokens=1))))
    assert int(logits.argmax()) == token.id
    vocabulary = [engine.model.tokenizer.decode([number]).strip() for number in range(len(logits))]
    scores = [float(logits[vocabulary.index(letter)]) for letter in "ABCD"]
    row = evaluate.answered(viewer, choice)
    assert row["likelihood"] == LETTERS[scores.index(max(scores))] and all(map(math.isfinite, scores))


def test_a_model_whose_answers_are_composed_is_asked_by_letter_alone(capsys, tmp_path, folder, monkeypatch) -> None:
    from tests.fake_model import FakeModel

    monkeypatch.setattr(evaluate.pipeline, "load", lambda name, **options: FakeModel())
    code, table, last = run(capsys, folder, "any", "video_mme.json", tmp_path / "r.jsonl")
    document = json.loads(last)
    assert code == 0 and document["overall"]["likelihood"] is None and document["overall"]["letter"] is not None
    assert "–" in table


def test_what_was_killed_goes_on_and_asks_nothing_twice(capsys, tmp_path, folder, models, monkeypatch) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    want = run(capsys, folder, models["mmmamba-hybrid"], "video_mme.json", whole)
    original, asked = evaluate.answered, []

    def dying(viewer, choice):
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append(choice.id)
        return original(viewer, choice)

    monkeypatch.setattr(evaluate, "answered", dying)
    assert run(capsys, folder, models["mmmamba-hybrid"], "video_mme.json", killed)[0] == 130
    with killed.open("a") as file:
        file.write('{"id": "001-2", "lik')  # as a kill in the middle of a line leaves it
    monkeypatch.setattr(
        evaluate, "answered", lambda viewer, choice: asked.append(choice.id) or original(viewer, choice)
    )
    assert run(capsys, folder, models["mmmamba-hybrid"], "video_mme.json", killed) == want
    assert asked == ["001-1", "001-2", "002-1"] and killed.read_text() == whole.read_text()
    monkeypatch.setattr(evaluate.pipeline, "load", lambda *_, **__: pytest.fail("nothing is left to ask"))
    assert run(capsys, folder, models["mmmamba-hybrid"], "video_mme.json", killed) == want


def test_answers_of_something_else_are_not_gone_on_with(capsys, tmp_path, folder, models) -> None:
    run(capsys, folder, models["mmmamba-hybrid"], "video_mme.json", tmp_path / "r.jsonl")
    for other in (["--fps", "2"], ["--mode", "streamed"]):
        code, _, said = run(capsys, folder, models["mmmamba-hybrid"], "video_mme.json", tmp_path / "r.jsonl", *other)
        assert code == 2 and "another model, file or option" in said


@pytest.mark.parametrize("text", ["my notes\n", '[1, 2]\n"a"\n', '{"a": 1}\n{"b": 2}\n', "\xff\n", "no line"])
def test_a_file_that_holds_no_results_stays_as_it_is(capsys, tmp_path, folder, text) -> None:
    results = tmp_path / "r.jsonl"
    results.write_bytes(text.encode("latin-1"))
    code, _, said = run(capsys, folder, "any", "video_mme.json", results)
    assert code == 2 and "no file of results" in said and results.read_bytes() == text.encode("latin-1")


def test_videos_that_are_not_there_are_counted_and_broken_ones_told(capsys, tmp_path, folder, models) -> None:
    some = tmp_path / "some"
    some.mkdir()
    (some / "only_green.mp4").write_bytes((folder / "only_green.mp4").read_bytes())
    model = models["mmmamba-hybrid"]
    code, table, last = run(capsys, some, model, "video_mme.json", tmp_path / "r.jsonl")
    assert code == 0 and json.loads(last)["missing_videos"] == 1 and json.loads(last)["overall"]["answers"] == 1
    assert "1 videos are not there" in table
    (some / "red_then_blue.mp4").write_bytes(b"no video")
    code, table, last = run(capsys, some, model, "video_mme.json", tmp_path / "r.jsonl")
    assert code == 0 and json.loads(last)["overall"]["answers"] == 1 and json.loads(last)["unwatched_videos"] == 1
    assert "1 videos could not be watched" in table
    assert run(capsys, tmp_path / "none", model, "video_mme.json", tmp_path / "x.jsonl")[0] == 2
    assert run(capsys, folder, model, "no such file", tmp_path / "x.jsonl")[0] == 2


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        (" (C) ", "C"),
        ("D. Grey.", "D"),
        ("The best answer is: A", "A"),
        ("The answer is (B), because", "B"),
        ("Blue", "B"),
        ("A blue picture comes last", None),  # an article is no letter
        ("E", None),
        ("Because of this", None),
        ("", None),
    ],
)
def test_which_letter_an_answer_means(said, letter) -> None:
    assert letter_of(said, ("Red.", "Blue.", "Green.", "Grey.")) == letter
