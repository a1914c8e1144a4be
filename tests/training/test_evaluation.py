"""Evaluation: a prompt that runs once scores its answers as whole rows do; the plot draws the larger of two samples."""

import contextlib

import numpy as np
import pytest

from pipeline.training.episodes import World
from pipeline.training.evaluate import with_blank
from pipeline.training.evaluator import Evaluator
from pipeline.training.plot import merged
from pipeline.training.student import flat_table
from tests.training.test_training import CPU, Words, album, features, net


@pytest.fixture
def evaluator(monkeypatch):
    world = World(album())
    table = flat_table(features(len(world.pictures)), "cpu")
    monkeypatch.setattr(Evaluator, "autocast", lambda self: contextlib.nullcontext())
    return Evaluator(net().eval(), with_blank(table), with_blank(table), world, Words(), CPU)


def test_a_prompt_that_runs_once_scores_its_answers_as_whole_rows_do(evaluator):
    kept, index = evaluator.watch(np.arange(12))
    prompts, answers = [[5, 6, 7, 8], [9, 10, 11]], [[20, 21, 22], [23], [24, 25]]
    reads, seen, frames = [(0, 1), (7, 8, 9)], 11, len(index.times)
    once = evaluator.matrix(prompts, answers, kept, frames, seen, reads)
    rows = [(p, a, r) for p, r in zip(prompts, reads) for a in answers]
    asked, said, looked = zip(*rows)
    whole = evaluator.likelihood(asked, said, kept, frames, [seen] * len(rows), looked)[0].reshape(2, 3)
    assert np.abs(once - whole).max() < 1e-4 and np.ptp(once) > 0.1
    other = evaluator.matrix(prompts, answers, kept, frames, seen, [(3, 4), (7, 8, 9)])
    assert np.abs(other[0] - once[0]).max() > 1e-6 and np.allclose(other[1], once[1], atol=1e-5), "evidence counts"


def test_of_two_evaluations_the_larger_sample_is_drawn():
    small, large = ({"1": {"when": {"share": s, "n": n}}} for s, n in ((0.5, 10), (0.7, 90)))
    more = {"60": {"at_of_shots": {"share": 0.6, "n": 5}}}
    for order in ([small, large, more], [large, more, small]):
        assert merged(order) == large | more
