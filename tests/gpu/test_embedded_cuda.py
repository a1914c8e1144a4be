"""The embedded model and its twin on a GPU, through the engine: every sense looks, every kind of question is answered.

Senses, index and planner compute on the CPU from what networks made on the GPU. Twice a tensor was left behind there,
and nothing could be watched or asked; no test here asked for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.engine import Engine
from pipeline.models.load import load
from pipeline.stream import Frame, Question, Sampling, StreamState, VideoChunk

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"), pytest.mark.cuda]
QUESTIONS = (
    "What do you see?",
    "What was there at 0:03?",
    "When did you see a ball?",
    "Is there a person?",
    "Has anybody been sitting?",
    "What came after the ball?",
    "How many people are there?",
    "How many scenes were there?",
    "What happened so far?",
    "What did you see first?",
    "What colour is it?",
    "Where is this?",
    "Is it dark?",
    "Who are you?",
)


def frames() -> list[Frame]:
    """Three scenes of a disc on a plain ground."""
    rows, columns = np.mgrid[:234, :416]
    shown = []
    for second in range(24):
        rgb = np.full((234, 416, 3), 30 + 90 * (second // 8), np.uint8)
        rgb[(rows - 120) ** 2 + (columns - 60 - 12 * second) ** 2 < 50**2] = (200, 60, 40)
        shown.append(Frame(rgb, float(second)))
    return shown


@pytest.fixture(scope="module", params=["embedded", "embedded-twin"])
def engine(request) -> Iterator[Engine]:
    made = Engine(load(request.param, device="cuda"))
    made.warm_up()
    yield made


def watched(engine: Engine) -> StreamState:
    state, shown = engine.start(), frames()
    for first in range(0, len(shown), 8):
        state = engine.watch(VideoChunk(tuple(shown[first : first + 8])), state)
    engine.confirm(state)
    return state


def test_every_kind_of_question_is_answered(engine) -> None:
    state = watched(engine)
    for text in QUESTIONS:
        *_, answer = engine.ask(Question(text), state, Sampling(max_tokens=8))
        assert answer.text, text


def test_a_question_about_an_earlier_one_is_answered(engine) -> None:
    before = ((QUESTIONS[2], "At 0:00."),)
    *_, answer = engine.ask(Question("And then?", before), watched(engine), Sampling(max_tokens=8))
    assert answer.text


@pytest.mark.parametrize("rule", ["a person", "a ball", "a dog leaves"])
def test_a_rule_is_looked_for(engine, rule) -> None:
    seen = engine.model.spotter(rule).seen(watched(engine), -1.0)
    assert [time for time, _ in seen] == [frame.time for frame in frames()]
