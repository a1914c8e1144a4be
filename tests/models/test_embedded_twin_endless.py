"""The transformer twin on a stream without an end: a window of its newest frames, bounded, counted, said."""

from __future__ import annotations

import pytest
import torch

from pipeline.keeping.packing import whole
from pipeline.models import shipped
from pipeline.models.embedded_net import TOKENS
from pipeline.models.embedded_twin import EmbeddedTwin
from pipeline.models.load import beside
from pipeline.options import ModelOptions
from tests.conftest import gap
from tests.models.test_embedded import ASSETS, FRAMES, ask, by, everything, exact, film, watched  # noqa: F401

pytestmark = pytest.mark.skipif(
    not (ASSETS / "twin.safetensors").is_file(),
    reason="assets/twin.safetensors is missing",
)
KEPT, SHOWN = 6, 12  # frames that the context holds here, and that are shown
ENDLESS = ModelOptions(endless=10)


@pytest.fixture(scope="module")
def twin() -> EmbeddedTwin:
    loaded = exact(twin=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbeddedTwin, "LIMIT", KEPT * TOKENS + 3)
        return EmbeddedTwin(loaded.net, loaded.tower, loaded.tokenizer, None, loaded.senses, endless=10)


@pytest.fixture(scope="module")
def states(twin, film):  # noqa: F811
    """Picture by picture."""
    found = [twin.start()]
    for frame in range(SHOWN):
        found.append(watched(twin, film, [slice(frame, frame + 1)], found[-1]))
    return found


def test_it_takes_no_more_however_long_it_goes_on(twin, states):
    for frames, state in enumerate(states):
        log = state.inner.memory.log
        assert state.dropped == max(0, frames - KEPT) and len(log) == TOKENS * len(state.inner.index)
        assert f"{state.dropped:,} frames" in state.dropped_note if state.dropped else not state.dropped_note
        assert sum(block.slots for block in log.blocks) <= twin.BLOCK_SLOTS
        assert state.disk_bytes == 0, "no file brings anything back, and none is claimed"
    assert {state.memory_bytes for state in states[KEPT:]} == {states[KEPT].memory_bytes}


def test_how_the_video_is_cut_does_not_change_what_the_window_holds(twin, film, states):  # noqa: F811
    other = watched(twin, film, [slice(0, 2), slice(2, 9), slice(9, SHOWN)])
    assert other.dropped == states[-1].dropped and other.dropped_note == states[-1].dropped_note
    for name in ("k", "v", "time"):
        one, two = (state.inner.memory.log.tensor(name) for state in (other, states[-1]))
        assert gap(one, two) < 1e-4, name


def test_an_older_state_goes_on_holding_what_it_held(twin, states):
    early = states[8]
    assert early.inner.index.tensor("time").tolist() == [2, 3, 4, 5, 6, 7], "others have gone on from it"
    assert [moment.time for moment in ask(twin, early, "What do you see at 0:05?").evidence] == [5]


def test_it_goes_on_after_it_was_packed(twin, film, states):  # noqa: F811
    state = twin.unpack(whole(twin.pack(states[9])))
    assert state.dropped == 9 - KEPT and state.dropped_note
    for frame in range(9, SHOWN):
        state = watched(twin, film, [slice(frame, frame + 1)], state)
    assert state.dropped == states[-1].dropped
    assert all(torch.equal(a, b) for a, b in zip(everything(state), everything(states[-1]), strict=True))


def test_what_fell_out_is_not_pointed_at(twin, states):
    answer = ask(twin, states[-1], "What do you see at 0:02?")
    assert all(moment.time >= SHOWN - KEPT for moment in answer.evidence)


def test_beside_a_model_without_an_end_it_is_told_so_and_says_what_it_does():
    assert beside("embedded-twin", ENDLESS).endless == beside("embedded", ENDLESS).endless == 10
    told, plain = (shipped.load_embedded(True, options=options) for options in (ENDLESS, None))
    assert told.policy == plain.policy and told.policy.amount == 819 * TOKENS
    assert "no file brings it back" in told.about and "file" not in plain.about
    assert "older ones lie in a file" in shipped.load_embedded(False, options=ENDLESS).about
