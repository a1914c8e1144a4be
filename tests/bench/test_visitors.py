"""`bench --visitors`: what it prints, and that its visitors do what they are said to do."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
import torch

import pipeline
import pipeline.models.load as loading
from pipeline import Engine, Frame
from pipeline.__main__ import main
from pipeline.bench.visitors import STOPPED_AFTER, Crowd, Numbers, measure_visitors
from tests.conftest import TINY, PairEyes
from tests.test_engine import ColourModel


class Quick(ColourModel):
    unit_frames, backend = 1, "cpu"


def frames() -> list[Frame]:
    return [Frame(np.full((4, 4, 3), 60 + i, np.uint8), float(i)) for i in range(8)]


def test_the_command_prints_a_table_and_one_document(monkeypatch):
    monkeypatch.setattr("pipeline.bench.visitors.load", lambda name: Quick())
    monkeypatch.setattr(loading, "check", lambda name: None)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["bench", "--visitors", "3", "--seconds", "0.1", "--minutes", "1", "--model", "quick"]) == 0
    *table, last = out.getvalue().strip().splitlines()
    document = json.loads(last)
    assert document["visitors"] == 3 and len(table) == len(document["parts"]) + 3
    assert set(document["words_beside_over_alone"]) == {"one file", "four files"}
    for name, part in document["parts"].items():
        assert any(line.startswith(name) for line in table)
        assert part["pictures_per_s"] > 0 or part["words_per_s"] > 0
        assert all(wait["median_s"] <= wait["worst_s"] for wait in part["waits"].values())


@pytest.mark.parametrize("wrong", [["--visitors", "0"], ["--visitors", "65"], ["--visitors", "2", "--seconds", "0"]])
def test_what_cannot_be_measured_is_refused(wrong, capsys):
    assert main(["bench", *wrong]) == 2 and "choose" in capsys.readouterr().err


def test_streams_that_go_on_live_print_a_table_and_one_document(monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "load", lambda name: Quick(watch_s=0.001))
    assert main(["bench", "--live", "3", "--seconds", "3", "--minutes", "1", "--model", "quick"]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    document = json.loads(last)
    assert (document["streams"], document["minutes"], len(table)) == (3, 1, 3)
    assert 0 < document["pictures_per_s"] <= 4, "a picture a second and stream, and one that had come before"


def test_live_streams_go_on_from_what_they_have_seen():
    engine = Engine(Quick())
    crowd, seen = Crowd(engine, frames()), []
    crowd.going = [crowd.watched(60)]
    watch = engine.watch
    engine.watch = lambda chunk, state: seen.append((state.frames, chunk.frames[0].time)) or watch(chunk, state)
    crowd.measure(["live"], 1.5)
    assert seen[0] == (60, 60.0) and crowd.going == []


@pytest.mark.parametrize("wrong", [["--live", "0"], ["--live", "257"], ["--live", "2", "--seconds", "0"]])
def test_streams_that_cannot_be_measured_are_refused(wrong, capsys):
    assert main(["bench", *wrong]) == 2 and "choose" in capsys.readouterr().err


def test_every_kind_of_visitor_gets_something_and_some_stop():
    """In as much time as a busy machine needs for that."""
    engine = Engine(Quick(watch_s=0.001, token_s=0.001))
    crowd = Crowd(engine, frames())
    crowd.seen = [crowd.watched(20)]
    assert crowd.seen[0].frames == 20
    for seconds in (1.5, 5.0, 20.0):
        found = crowd.measure(["answers", "live", "catching_up"], seconds)
        seen_all = set(found["waits"]) >= {"first_word", "word", "stop", "live_picture", "chunk"}
        if enough := seen_all and found["answers"] > 3:
            break
    assert enough, found
    assert 0 < found["stopped"] < found["answers"] and STOPPED_AFTER > 1


def test_the_published_size_is_driven_the_same_way(tiny_vamba):
    """With tiny shapes: the tokenizer's place is enough for questions to be put."""
    from pipeline.models.vamba_model import VambaModel

    model = VambaModel(tiny_vamba(torch.float32, vocab=1100), PairEyes(TINY.d_model, torch.float32), Numbers())
    for seconds in (0.6, 5.0):
        found = measure_visitors(Engine(model), frames(), 2, seconds, (1, 1))
        if served := all(part["words_per_s"] or part["pictures_per_s"] for part in found["parts"].values()):
            break
    assert served, found
