"""The embedded model and its twin: words of several answers in shared passes are the words of each alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.models.embedded_reading import Reading
from pipeline.models.load import load
from pipeline.stream import Frame, Pass, Question, VideoChunk

QUESTIONS = ("Hello, who are you?", "Thanks!", "Tell me a joke about this.")


@pytest.mark.parametrize("name", ["embedded", "embedded-twin"])
def test_answers_together_are_the_answers_alone(name):
    """Greedy ids equal, logits within 1e-3 of the largest: the words stand in one matrix product instead of three."""
    model = load(name)
    rng = np.random.default_rng(3)
    frames = [Frame(rng.integers(0, 256, (117, 208, 3), dtype=np.uint8), float(i)) for i in range(6)]
    states = [model.watch(VideoChunk(tuple(frames[:n])), model.start()) for n in (3, 6, 6)]
    readings = []
    for pair in range(2):  # two readings of each question, of which one goes alone
        readings.append([])
        for text, state in zip(QUESTIONS, states):
            reading = Reading(model, Question(text), state)
            readings[pair].append((reading, reading.prompt(reading.moments()[0])))
    first = [[model.passed([Pass(*one)])[0] for one in some] for some in readings]
    tokens = [int(logits.argmax()) for logits in first[0]]
    for _ in range(5):
        shared = model.passed([Pass(reader, [t]) for (reader, _), t in zip(readings[0], tokens)])
        alone = [model.passed([Pass(reader, [t])])[0] for (reader, _), t in zip(readings[1], tokens)]
        for ours, want in zip(shared, alone):
            assert float((ours - want).abs().max()) <= 1e-3 * float(want.abs().max()) + (
                0.05 if ours.dtype == torch.bfloat16 else 0
            )
        tokens = [int(logits.argmax()) for logits in alone]
        assert [int(logits.argmax()) for logits in shared] == tokens
    assert [a.position for a, _ in readings[0]] == [b.position for b, _ in readings[1]]
