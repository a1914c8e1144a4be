"""Recorded passes that several answers share: each answer is what it would be alone, whoever else is being served."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.gpu.device import TILE
from pipeline.gpu.ragged_tables import Sheet, Tiles
from pipeline.layers.reading import Instants, TextDecoder
from pipeline.models import vamba_together
from pipeline.models.vamba_graphs import TextRecordings
from pipeline.models.vamba_together import (
    ANSWERS,
    KINDS,
    WORDS,
    Kind,
    Part,
    SharedPass,
    SharedRecordings,
    groups_of,
    kind_of,
    passes_of,
)
from tests.conftest import gap
from tests.gpu.test_recordings import INTERPRETED, PLACES, apply, kernels_only, net, prompt, recorded, remembered

assert net and recorded  # fixtures
MEMORIES = [remembered(n + 1) for n in range(4)]
SMALL = (Kind(3, 3, 16, 3), Kind(6, 6, 16, 2), Kind(24, 6, 16, 2, 16, 16), Kind(64, 6, 16, 3, 32, 32))


@pytest.fixture
def shared(recorded: TextRecordings, monkeypatch) -> SharedRecordings:
    if INTERPRETED:
        from pipeline.gpu import kernels

        monkeypatch.setattr(vamba_together, "kernels_for", lambda x: kernels)
        monkeypatch.setattr(vamba_together, "KINDS", SMALL)
        monkeypatch.setattr(vamba_together, "ANSWERS", SMALL[-1].answers)
        monkeypatch.setattr(vamba_together, "WORDS", SMALL[-1].words)
    return SharedRecordings(recorded)


def parts_of(memories: list[int], lengths: list[int]) -> list[Part]:
    """The n-th has so many words, and looks at that memory, of 1 to 4 slots."""
    readers = [SimpleNamespace(memory=memory, instants=Instants(memory)) for memory in MEMORIES]
    return [Part(n, readers[m], [0] * k, [range(k)]) for n, (m, k) in enumerate(zip(memories, lengths))]


@settings(max_examples=60, deadline=None)
@given(asked=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 1, 1, 5, 40, 128])), min_size=1, max_size=70))
def test_every_answer_is_in_one_pass_that_has_a_recording_for_it(asked):
    parts = parts_of(*map(list, zip(*asked)))
    passes = list(passes_of(parts))
    assert [part for some in passes for part in some] == parts
    for some in passes:
        kind = kind_of(groups_of(some), 7)
        sizes = [len(part.ids) for part in some]
        assert len(some) <= min(ANSWERS, kind.answers) and sum(sizes) <= min(WORDS, kind.words)
        assert max(sizes) <= kind.each and kind in KINDS
        for group in groups_of(some):
            assert len({part.memory for part in group}) == 1


def test_a_pass_is_cut_where_the_sums_of_all_would_take_too_much(monkeypatch):
    """A memory of 4 slots has one tile and two pictures, so a word keeps 3 sums; one of 1 slot 2."""
    monkeypatch.setattr(vamba_together, "MOST_KEPT", 8)
    parts = parts_of([3, 3, 0, 3, 3, 0, 0], [1, 1, 1, 9, 1, 1, 1])
    assert [part.kept for part in parts] == [3, 3, 2, 27, 3, 2, 2]
    assert [[part.number for part in some] for some in passes_of(parts)] == [[0, 1, 2], [3], [4, 5, 6]]


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 150), min_size=1, max_size=30), first=st.integers(0, 200))
def test_every_part_of_a_tile_that_is_one_pictures_has_a_number_of_its_own(lengths, first):
    ends = torch.tensor(lengths).cumsum(0)
    tiles = Tiles.of(ends, first, sum(lengths))
    pictures = [n for n, length in enumerate(lengths) for _ in range(length)]
    parts = [((first % TILE + slot) // TILE, picture) for slot, picture in enumerate(pictures)]
    numbers = {part: sum(part) for part in parts}
    assert len(set(numbers.values())) == len(numbers) and 0 <= max(numbers.values()) < tiles.sums
    for tile, place in enumerate(tiles.places.tolist()):
        inside = [picture for other, picture in numbers if other == tile]
        assert place == tile + min(inside) and (tile in tiles.mixed.tolist()) == (len(inside) > 1)


def test_a_sheet_sends_what_was_put_into_it_and_nothing_older():
    sheet = Sheet({"a": (3,), "b": (2, 2)}, torch.device("cpu"))
    sheet.clear({"b": (7, 8)})
    sheet.add("a", (1,))
    sheet.add("a", (2,))
    sheet.add("b", (3, 4))
    sheet.send()
    assert sheet.there["a"].tolist() == [1, 2, 0] and sheet.there["b"].tolist() == [[3, 4], [7, 8]]
    sheet.clear({})
    sheet.put("b", 1, (5,))
    sheet.send()
    assert sheet.there["a"].tolist() == [0, 0, 0] and sheet.there["b"].tolist() == [[0, 0], [5, 0]]
    with pytest.raises(AssertionError):
        sheet.put("a", 1, (1, 2, 3))


@apply(kernels_only)
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("seed", [0] if INTERPRETED else range(3))
def test_answers_that_come_and_go_are_those_alone(seed, eight_bit, net, shared):
    """Questions are read in passes in which others get their words; the interpreter takes seconds a pass."""
    chance = random.Random(seed)
    memories = [remembered(n, eight_bit=eight_bit, seed=n, dropped=3 * (n == 70)) for n in (100, 70, 31)]
    talks: list[tuple[TextDecoder, TextDecoder]] = []
    most = 4 if INTERPRETED else 24
    for turn in range(3 if INTERPRETED else 12):
        if turn == 2:
            memories.append(remembered(200, eight_bit=eight_bit, seed=1))
        asked = [([chance.randrange(1, 96)], None) for _ in talks]
        while len(talks) < 3 or (len(talks) < most and chance.random() < 0.6):
            memory, ids = replace(chance.choice(memories)), prompt(chance.randint(6, 12), turn)
            talks.append((TextDecoder(net, memory, PLACES), TextDecoder(net, memory, PLACES)))
            asked.append((ids, [range(2), range(3, len(ids))]))
        found = shared.feed([ours for ours, _ in talks], *zip(*asked))
        assert found is not None
        for logits, (ids, spans), (ours, plain) in zip(found, asked, talks):
            want = plain.feed(ids, spans)
            assert gap(logits, want) < 1e-3 and int(logits.argmax()) == int(want.argmax())
            assert gap(ours.gazes, plain.gazes) < 1e-3
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
        patch.setattr(SharedPass, "play", full)
        assert shared.feed(talks, [[1], [2], [3]], [None] * 3) is None
    assert [decoder.cache.length for decoder in talks] == lengths
    assert all(set(decoder.cache.used) == {length} for decoder, length in zip(talks, lengths))
    assert shared.feed(talks, [[1], [2], [3]], [None] * 3) is not None


@apply(kernels_only)
def test_what_is_prepared_changes_nothing(net, shared):
    memory = remembered(40)
    shared.prepare(memory)
    ours, plain = ([TextDecoder(net, memory, PLACES) for _ in range(2)] for _ in range(2))
    for n, pair in enumerate(zip(ours, plain)):
        for decoder in pair:
            decoder.question([5, 6, 7], prompt(4 + n))
    for logits, want in zip(
        shared.feed(ours, [[1], [2]], [None] * 2), (decoder.feed([n + 1]) for n, decoder in enumerate(plain))
    ):
        assert gap(logits, want) < 1e-3


@apply(kernels_only)
def test_what_cannot_be_recorded_is_not(net, shared):
    memory = remembered(40)
    others = TextDecoder(net, memory, PLACES), TextDecoder(net, memory, (0, 1))
    for decoder in others:
        decoder.question([5, 6, 7], prompt(4))
    assert shared.feed(others, [[1], [2]], [None] * 2) is None
