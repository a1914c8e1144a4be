"""Answers that share their passes are the answers each would be alone: any mix of visitors, joins and stops."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.layers import reading
from pipeline.layers.reading import TextDecoder, looked_together
from pipeline.layers.together import Row, read_together
from pipeline.memory.memory import Memory
from pipeline.memory.tiers import Tier
from pipeline.models.answering import alone
from pipeline.stream import Pass, Question, Sampling, Token, VideoChunk
from tests.conftest import gap

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
PLACES = (1, 3)


def remembered(slots: int, dtype: torch.dtype, seed: int, eight_bit: bool = False, tier: Tier | None = None) -> Memory:
    made = torch.Generator().manual_seed(seed)
    memory = Memory.empty(4, 2, 8, dtype, block_slots=16, eight_bit=eight_bit, tier=tier)
    memory, write = memory.append((torch.arange(slots) // 3).double())
    write(slice(None), *torch.randn(2, 4, 2, slots, 8, generator=made, dtype=torch.float64).to(dtype))
    return memory.applied()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["plain", "eight_bit", "host"])
def test_a_word_of_each_in_one_pass_is_a_word_of_each_alone(kind, dtype, tiny_vamba):
    """Conversations of different lengths over different memories, two of them over the same one."""
    net = tiny_vamba(dtype)
    tier = Tier(3000, piece_bytes=500) if kind == "host" else None
    memories = [remembered(n, dtype, n, kind == "eight_bit", tier) for n in (50, 7, 90)]
    memories.append(replace(memories[0]))  # another value, the same slots
    memories.append(replace(memories[2], log=memories[2].log.until(31)))
    if tier:
        assert memories[0].host_slots
    ours, plain = ([TextDecoder(net, memory, PLACES) for memory in memories] for _ in range(2))
    for n, pair in enumerate(zip(ours, plain)):
        for decoder in pair:
            decoder.question([5, 6, 7], list(range(10, 12 + 9 * n)))
    for step in range(6):
        tokens = [(7 * step + 3 * n) % 90 + 1 for n in range(len(ours))]
        rows = [Row([t], d.cache.length, d.cache, d.memory, d.watch_layers) for t, d in zip(tokens, ours)]
        logits = read_together(net, rows)
        for row, one, other, found in zip(rows, ours, plain, logits):
            one.looked_at(1, row.looks)
            assert gap(found, other.feed(row.ids)) < TOLERANCE[dtype]
            assert gap(one.gazes, other.gazes) < TOLERANCE[dtype] and gap(one.looked, other.looked) < 1e-2
            assert one.cache.length == other.cache.length and one.cache.used == other.cache.used


def test_the_keys_of_one_memory_are_read_once(tiny_vamba, monkeypatch):
    net, reads = tiny_vamba(torch.float32), []
    memory = remembered(40, torch.float32, 1)
    was = Memory.attend_each
    monkeypatch.setattr(
        Memory, "attend_each", lambda self, place, q, want: reads.append(q.shape[1]) or was(self, place, q, want)
    )
    decoders = [TextDecoder(net, m, PLACES) for m in (memory, replace(memory), remembered(9, torch.float32, 2), memory)]
    read_together(net, [Row([3], 0, d.cache, d.memory) for d in decoders])
    assert sorted(reads) == [1] * 4 + [3] * 4  # four layers


def test_a_pass_that_fails_leaves_every_conversation_as_it_was(tiny_vamba, monkeypatch):
    net = tiny_vamba(torch.float32)
    decoders = [TextDecoder(net, remembered(n, torch.float32, n), PLACES) for n in (20, 30)]
    for decoder in decoders:
        decoder.question([5, 6], [7, 8, 9])
    kept = [decoder.feed([3]) for decoder in decoders]
    for decoder in decoders:
        decoder.cache.rewind([5] * 4)
        decoder.cache.length = 5
    with monkeypatch.context() as broken:
        broken.setattr(Memory, "attend_each", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            read_together(net, [Row([3], d.cache.length, d.cache, d.memory) for d in decoders])
    assert all(torch.equal(decoder.feed([3]), before) for decoder, before in zip(decoders, kept))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("piece", [3, 128])
def test_a_question_that_begins_with_what_was_read_before_is_the_one_read_anew(piece, dtype, tiny_vamba, monkeypatch):
    """Its opening's keys and where it looked are a value: later questions about the memory begin with a copy."""
    monkeypatch.setattr(reading, "PIECE", piece)
    net, memory, opening = tiny_vamba(dtype), remembered(50, dtype, 1), [5, 6, 7, 8]
    first = TextDecoder(net, memory, PLACES)
    first.question(opening, [9, 10])
    kept = first.opened(len(opening))
    first.feed([11])  # whoever it was of goes on
    for ids in ([12], list(range(20, 45))):
        ours, plain = TextDecoder(net, memory, PLACES, opening=kept), TextDecoder(net, memory, PLACES)
        read = [len(one.ids) for one in passes_of(ours.question_in_pieces(opening, ids))]
        assert sum(read) == len(ids)
        want = plain.question(opening, ids)
        for token in (3, 4):
            assert gap(ours.gazes, plain.gazes) < TOLERANCE[dtype] and gap(ours.looked, plain.looked) < 1e-2
            assert ours.cache.length == plain.cache.length and ours.cache.used == plain.cache.used
            logits, want = ours.feed([token]), plain.feed([token])
            assert gap(logits, want) < TOLERANCE[dtype]


@pytest.mark.parametrize(("reads", "piece"), [(10**9, 128), (50 * 20, 20), (50, 16)])
def test_a_piece_of_a_prompt_over_a_large_memory_has_few_words(reads, piece, tiny_vamba, monkeypatch):
    """So that others' words wait for no more than a stated number of words times slots, and each piece is worth it."""
    monkeypatch.setattr(reading, "MOST_READS", reads)
    net, memory = tiny_vamba(torch.float64), remembered(50, torch.float64, 1)
    ours, plain = TextDecoder(net, memory, PLACES), TextDecoder(net, memory, PLACES)
    assert ours.piece == piece
    ids = [7 * n % 90 + 1 for n in range(60)]
    passes = passes_of(ours.question_in_pieces([5, 6, 7, 8], ids))
    assert len(passes) == -(-64 // piece) and max(len(one.ids) for one in passes) <= piece
    monkeypatch.undo()
    want = plain.question([5, 6, 7, 8], ids)
    assert gap(ours.gazes, plain.gazes) < 1e-9 and gap(ours.feed([3]), plain.feed([3])) < 1e-9 and want.isfinite().all()


def passes_of(reading) -> list[Pass]:
    """Those of one question, each made at once."""
    found, given = [], None
    with contextlib.suppress(StopIteration):
        while True:
            found.append(reading.send(given))
            given = found[-1].reader.feed(found[-1].ids, found[-1].spans)
    return found


def test_where_several_look_is_found_together_as_alone(tiny_vamba):
    """Memories of several lengths, of one moment, and none; one that has no usual."""
    net = tiny_vamba(torch.float32)
    memories = [remembered(n, torch.float32, n) for n in (50, 7, 2, 90)]
    decoders = [TextDecoder(net, memory, PLACES) for memory in memories]
    for n, decoder in enumerate(decoders):
        decoder.question([5, 6], [7 + n, 8, 9])
    decoders += [TextDecoder(net, memories[0], PLACES), TextDecoder(net, None)]
    for decoder in decoders[-2:]:
        decoder.feed([3])
    for some in (decoders, decoders[2:], decoders[:1]):
        for ours, one in zip(looked_together(some), some, strict=True):
            want = one.looked
            assert (ours is None) == (want is None) and (ours is None or torch.equal(ours, want))


# Whole answers, with joins and stops


def said(steps) -> list[Token]:
    return list(steps)


def served(model, needs: dict[int, Pass], full: int) -> dict:
    """Words and questions in one pass, as the engine has it: where memory runs out, each by itself."""
    if not needs:
        return {}
    assert model.reads_together
    try:
        if len(needs) > full:
            raise MemoryError
        return dict(zip(needs, model.passed(list(needs.values()))))
    except MemoryError:
        return {n: model.passed([one])[0] for n, one in needs.items()}


def together(model, asked, begin: list[int], end: list[int], full: int) -> list[list[Token]]:
    """The tokens of all these answers; the n-th joins in round begin[n] and is left after end[n] tokens. Of more than
    `full` in one pass memory runs out."""
    found: list[list[Token]] = [[] for _ in asked]
    going: dict[int, tuple] = {}
    for turn in range(200):
        for n, one in enumerate(asked):
            if begin[n] == turn:
                going[n] = (model.steps(*one), None)
        needs = {}
        for n, (steps, sent) in list(going.items()):
            step = next(steps, None) if sent is None else steps.send(sent)
            while isinstance(step, Token) and len(found[n]) < end[n]:
                found[n].append(step)
                step = next(steps, None)
            if isinstance(step, Pass) and len(found[n]) < end[n]:
                needs[n] = step
            else:
                steps.close()
                del going[n]
        for n, sent in served(model, needs, full).items():
            going[n] = (going[n][0], sent)
        if not going and turn > max(begin):
            return found
    raise AssertionError("the answers do not end")


visitors = st.lists(
    st.tuples(
        st.integers(0, 3),  # which of the streams, at which length
        st.text("abcdef ?", min_size=1, max_size=150),
        st.sampled_from([None, 2.0, 5.0]),
        st.integers(0, 8),  # joins in this round
        st.integers(1, 6),  # stops after so many words
        st.sampled_from([0.0, 0.8]),
    ),
    min_size=2,
    max_size=4,
)


@settings(max_examples=8, deadline=None)
@given(
    visitors=visitors,
    retrieve=st.sampled_from([None, 4]),
    eight_bit=st.booleans(),
    full=st.sampled_from([2, 99]),
    piece=st.sampled_from([7, 128]),
)
def test_answers_together_are_the_answers_alone(visitors, retrieve, eight_bit, full, piece):
    """fp64: the same tokens, greedy or drawn, and the same evidence, whoever else is served, joins or stops, where
    memory runs out, and in whatever pieces questions are read between the words."""
    was, reading.PIECE = reading.PIECE, piece
    try:
        check_together(visitors, MODELS[retrieve, eight_bit], STATES[retrieve, eight_bit], full)
    finally:
        reading.PIECE = was


def check_together(visitors, model, states, full: int) -> None:
    asked = [
        (Question(text, (), at), states[which], Sampling(max_tokens=6, temperature=warmth, seed=n))
        for n, (which, text, at, _, _, warmth) in enumerate(visitors)
    ]
    ends = [end for *_, end, _ in visitors]
    model._openings.clear()
    found = together(model, asked, [begin for *_, begin, _, _ in visitors], ends, full)
    for one, end, ours in zip(asked, ends, found):
        model._openings.clear()  # alone all of the question is read
        want = said(model.ask(*one))[:end]
        assert [t.id for t in ours] == [t.id for t in want]
        for a, b in zip(ours, want):
            assert a.text == b.text and (a.looked is None) == (b.looked is None)
            if a.looked is not None:
                assert np.array_equal(a.looked[0], b.looked[0]) and np.allclose(a.looked[1], b.looked[1], atol=1e-6)


MODELS: dict = {}
STATES: dict = {}


@pytest.fixture(autouse=True, scope="module")
def streams():
    """Models and states of four lengths, one with an odd frame, made once: hypothesis draws among them."""
    from pipeline.layers.vamba import Vamba
    from pipeline.models.vamba_model import VambaModel
    from pipeline.stream import Frame
    from tests.conftest import TINY, Letters, PairEyes

    torch.manual_seed(0)
    net = Vamba(TINY).to(torch.float64).requires_grad_(False).eval()
    for name, p in net.named_parameters():
        if name.endswith("proj.weight"):
            torch.nn.init.normal_(p, std=2 * p.shape[1] ** -0.5)
    rng = np.random.default_rng(7)
    frames = [Frame(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), 0.5 * i) for i in range(24)]
    for retrieve in (None, 4):
        for eight_bit in (False, True):
            model = VambaModel(
                net,
                PairEyes(TINY.d_model, torch.float64),
                Letters(),
                block_slots=16,
                retrieve=retrieve,
                eight_bit=eight_bit,
            )
            MODELS[retrieve, eight_bit] = model
            ends = (1, 6, 13, 24)
            STATES[retrieve, eight_bit] = [model.watch(VideoChunk(tuple(frames[:n])), model.start()) for n in ends]


def test_an_answer_in_steps_closes_what_it_was_made_of():
    closed = []

    def steps():
        try:
            given = yield Pass(None, [1])
            yield Token(given, "a")
            yield Token(2, "b")
        finally:
            closed.append(True)

    answer = alone(steps(), lambda one: 7)
    assert next(answer).id == 7
    answer.close()
    assert closed == [True]
