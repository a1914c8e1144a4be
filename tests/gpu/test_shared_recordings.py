"""Recorded passes that several answers share: each answer is what it would be alone, whoever else is being written."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from pipeline.layers.reading import TextDecoder
from pipeline.models import vamba_together
from pipeline.models.vamba_graphs import TextRecordings
from pipeline.models.vamba_together import ANSWERS, ROWS, SharedPasses, SharedRecordings, power_of_two, shared_rows
from tests.conftest import gap
from tests.gpu.test_recordings import INTERPRETED, PLACES, apply, kernels_only, net, prompt, recorded, remembered

assert net and recorded  # fixtures


@pytest.fixture
def shared(recorded: TextRecordings, monkeypatch) -> SharedRecordings:
    monkeypatch.setattr(vamba_together, "STEP_SLOTS", 128)
    if INTERPRETED:
        from pipeline.gpu import kernels

        monkeypatch.setattr(vamba_together, "kernels_for", lambda x: kernels)
    return SharedRecordings(recorded)


def partitions(answers: int, most: int) -> Iterator[list[int]]:
    """Every way to split so many answers into groups of at most `most`, largest first."""
    if not answers:
        yield []
    for size in range(min(answers, most), 0, -1):
        yield from ([size, *rest] for rest in partitions(answers - size, size))


@pytest.mark.parametrize("answers", range(1, ANSWERS + 1))
def test_every_answer_has_a_row_and_no_pass_is_larger_than_its_room(answers):
    for sizes in partitions(answers, answers):
        ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
        passes = list(shared_rows([list(range(end - size, end)) for end, size in zip(ends, sizes)]))
        assert sorted(n for _, some in passes for group in some for n in group) == list(range(answers))
        for words, some in passes:
            assert power_of_two(len(some)) * words <= ROWS and max(map(len, some)) <= words == power_of_two(words)


@apply(kernels_only)
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("seed", [0] if INTERPRETED else range(3))
def test_answers_that_come_and_go_are_those_alone(seed, eight_bit, net, shared):
    chance = random.Random(seed)
    memories = [remembered(n, eight_bit=eight_bit, seed=n, dropped=3 * (n == 70)) for n in (100, 70, 31)]
    talks: list[tuple[TextDecoder, TextDecoder]] = []
    most, turns = (4, (0, 6)) if INTERPRETED else (8, range(10))  # the interpreter takes a second a word
    for turn in turns:
        if turn == 6:
            memories.append(remembered(200, eight_bit=eight_bit, seed=1))  # more than there was room for
        while len(talks) < 3 or (len(talks) < most and chance.random() < 0.6):
            memory, ids = replace(chance.choice(memories)), prompt(chance.randint(1, 20), turn)
            talks.append((TextDecoder(net, memory, PLACES), TextDecoder(net, memory, PLACES)))
            for decoder in talks[-1]:
                decoder.question([5, 6, 7], ids)
        tokens = [chance.randrange(1, 96) for _ in talks]
        found = shared.feed([ours for ours, _ in talks], tokens)
        assert found is not None
        for logits, token, (ours, plain) in zip(found, tokens, talks):
            want = plain.feed([token])
            assert gap(logits, want) < 1e-3 and int(logits.argmax()) == int(want.argmax())
            assert gap(ours.gazes, plain.gazes) < 1e-3 and gap(ours.looked, plain.looked) < 1e-2
            assert ours.cache.length == plain.cache.length and ours.cache.used == plain.cache.used
        if len(talks) > 2 and chance.random() < 0.5:
            talks.pop(chance.randrange(len(talks)))


@apply(kernels_only)
def test_a_pass_that_fails_leaves_everything_to_the_plain_code(net, shared, monkeypatch):
    memory = remembered(40)
    talks = [TextDecoder(net, memory, PLACES) for _ in range(3)]
    for n, decoder in enumerate(talks):
        decoder.question([5, 6, 7], prompt(4 + n))
    lengths = [decoder.cache.length for decoder in talks]

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(SharedPasses, "play", full)
        assert shared.feed(talks, [1, 2, 3]) is None
    assert [decoder.cache.length for decoder in talks] == lengths
    assert all(set(decoder.cache.used) == {length} for decoder, length in zip(talks, lengths))
    assert shared.feed(talks, [1, 2, 3]) is not None


@apply(kernels_only)
def test_what_is_prepared_changes_nothing(net, shared):
    memory = remembered(40)
    shared.prepare(memory)
    ours, plain = ([TextDecoder(net, memory, PLACES) for _ in range(2)] for _ in range(2))
    for n, pair in enumerate(zip(ours, plain)):
        for decoder in pair:
            decoder.question([5, 6, 7], prompt(4 + n))
    for logits, want in zip(shared.feed(ours, [1, 2]), (decoder.feed([n + 1]) for n, decoder in enumerate(plain))):
        assert gap(logits, want) < 1e-3


@apply(kernels_only)
def test_what_cannot_be_recorded_is_not(net, shared):
    memory = remembered(40)
    others = TextDecoder(net, memory, PLACES), TextDecoder(net, memory, (0, 1))
    for decoder in others:
        decoder.question([5, 6, 7], prompt(4))
    assert shared.feed(others, [1, 2]) is None
