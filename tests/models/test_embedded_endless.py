"""The embedded model on a stream without an end: what lies in a file answers as what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.keeping.packing import whole
from pipeline.memory.disk import HOURS, Disk, Spool
from pipeline.models.embedded import EmbeddedModel
from pipeline.models.embedded_net import TOKENS
from pipeline.stream import StreamState
from tests.models.test_embedded import ASSETS, FRAMES, ask, by, everything, exact, film, watched  # noqa: F401

pytestmark = pytest.mark.skipif(
    not (ASSETS / "embedded.safetensors").is_file(),
    reason="assets/embedded.safetensors is missing",
)
SECONDS = 5  # that stay in memory
ASKED = ["What do you see at 0:02?", "What do you see at 0:19?", "Summarise the video.", "How many scenes are there?"]


@pytest.fixture(scope="module")
def plain() -> EmbeddedModel:
    return exact(twin=False)


@pytest.fixture(scope="module")
def endless(plain) -> EmbeddedModel:
    model = EmbeddedModel(plain.net, plain.tower, plain.tokenizer, None, plain.senses, SECONDS / 60)
    model.router = plain.router
    return model


def start(model: EmbeddedModel, block: int = 4) -> StreamState:
    """A stream with blocks of so many frames."""
    state = model.start()
    memory, index = state.inner.memory, state.inner.index
    memory = replace(memory, log=replace(memory.log, block_slots=block * TOKENS))
    return replace(state, inner=replace(state.inner, memory=memory, index=replace(index, block_slots=block)))


@pytest.fixture(scope="module")
def both(plain, endless, film):  # noqa: F811
    """The film as both models saw it, in the same cuts."""
    return tuple(watched(model, film, by(5), start(model)) for model in (plain, endless))


def test_answers_are_those_of_everything_kept(plain, endless, both):
    kept, far = both
    assert far.disk_bytes > 0.4 * far.memory_bytes and kept.disk_bytes == 0 and far.memory_bytes == kept.memory_bytes
    assert all(torch.equal(a, b) for a, b in zip(everything(far), everything(kept)))
    asked = [(text, None) for text in ASKED] + [("What is on the screen now?", at) for at in (2.0, 13.0)]
    for text, at in asked:
        told, want = ask(endless, far, text, at), ask(plain, kept, text, at)
        assert told.text == want.text and told.evidence == want.evidence and told.text


def test_a_question_reads_no_more_of_the_memory_than_its_frames(endless, both, monkeypatch):
    sizes, read = [], Spool.read

    def counted(self, count, start):
        sizes.append(count)
        return read(self, count, start)

    monkeypatch.setattr(Spool, "read", counted)
    ask(endless, both[1], "What do you see at 0:02?")
    memory = both[1].inner.memory
    slot = memory.log.slot_nbytes - 8
    index = both[1].inner.index
    assert sizes and sum(sizes) <= index.nbytes + 8 * TOKENS * slot


def test_where_things_lie_does_not_depend_on_the_cuts(endless, film, both):  # noqa: F811
    parts = watched(endless, film, [slice(0, 1), slice(1, 9), slice(9, 11), slice(11, FRAMES)], start(endless))
    for log, other in zip(*((s.inner.memory.log, s.inner.index) for s in (parts, both[1]))):
        assert [block.away is None for block in log.blocks] == [block.away is None for block in other.blocks]


def test_it_goes_on_after_it_was_packed(endless, film, both):  # noqa: F811
    state = watched(endless, film, by(5, last=15), start(endless))
    again = endless.unpack(whole(endless.pack(state)))
    assert again.disk_bytes == state.disk_bytes > 0
    again = watched(endless, film, by(5, first=15), again)
    assert all(torch.equal(a, b) for a, b in zip(everything(again), everything(both[1])))


def test_on_a_full_disk_memory_and_index_lose_the_same_frames_and_it_says_so(endless, film, monkeypatch):  # noqa: F811
    model = EmbeddedModel(endless.net, endless.tower, endless.tokenizer, None, endless.senses, SECONDS / 60)
    monkeypatch.setattr(Spool, "_room", lambda self, size, spare: False)
    state = start(model, 3)
    memory = replace(state.inner.memory.log, block_slots=32)  # no whole frames
    state = replace(state, inner=replace(state.inner, memory=replace(state.inner.memory, log=memory)))
    state = watched(model, film, by(4), state)
    assert state.dropped and f"disk is full: the oldest {state.dropped:,} frames" in state.dropped_note
    times = state.inner.index.tensor("time")
    assert torch.equal(state.inner.memory.log.tensor("time"), times.repeat_interleave(TOKENS))
    assert times.tolist() == [float(t) for t in range(state.dropped, FRAMES)]
    packed = whole(model.pack(state))
    inner = model.unpack(packed).inner  # which may lose more: it has no place, either
    left = inner.index.tensor("time")
    assert torch.equal(left, times[-len(left) :]) and torch.equal(
        inner.memory.log.tensor("time"), left.repeat_interleave(TOKENS)
    )
    assert inner.memory.dropped == FRAMES * TOKENS - len(inner.memory)
    assert ask(model, state, "What do you see at 0:21?").text


def test_a_day_is_kept(endless):
    assert isinstance(endless.disk, Disk) and (endless.disk.minutes, endless.disk.hours) == (SECONDS / 60, HOURS)
