"""What a written word costs, and the bytes that it must read at least."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.assets import ASSETS
from pipeline.bench.words import measure_words
from pipeline.models.shipped import load_embedded
from pipeline.stream import Frame, Question, VideoChunk


@pytest.mark.skipif(not (ASSETS / "embedded.safetensors").is_file(), reason="assets/embedded.safetensors is missing")
def test_a_word_reads_all_weights_of_the_column_and_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """137.8 million of four bytes, and little else."""
    monkeypatch.setattr("pipeline.bench.words.TRIES", 1)
    monkeypatch.setattr("pipeline.bench.words.COUNT", 2)
    model, dice = load_embedded(dtype=torch.float32, senses=()), np.random.default_rng(0)
    frames = tuple(Frame(dice.integers(0, 256, (96, 128, 3), np.uint8), float(i)) for i in range(3))
    state, question = model.watch(VideoChunk(frames), model.start()), Question("What is happening?")
    words = measure_words(model, question, state)
    assert words.first_s > 0 and words.a_second > 0
    assert 137.7e6 * 4 <= words.cost.bytes < 1.05 * 137.7e6 * 4
