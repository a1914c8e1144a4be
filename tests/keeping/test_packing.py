"""A stream packed and unpacked goes on bit for bit as if nothing had happened; the foreign and damaged are refused."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from pipeline.keeping.packing import grown_to, newer, spans, whole
from pipeline.memory.memory import Policy
from pipeline.models.embedded import EmbeddedModel
from pipeline.models.embedded_twin import EmbeddedTwin
from pipeline.models.shipped import load_embedded
from pipeline.stream import Frame, Model, Packed, Question, Sampling, StreamState, UserError, VideoChunk
from pipeline.towers.frame_tower import ASSETS
from tests.fake_model import FakeModel
from tests.models.test_sequence import ATTENDING, HYBRID, LINEAR
from tests.models.test_sequence import model as sequence_model
from tests.models.test_transformer import build

VAMBAS = {
    "plain": {},
    "eight bits": {"eight_bit": True},
    "window": {"policy": Policy("window", 3 / 60)},
    "budget": {"policy": Policy("budget", 11)},
    "positions": {"net": {"cross_rope": True, "mrope_section": (1, 1, 2)}},
    "on the host": {"gpu_memory": 4e-6},
    "eight bits, budget, on the host": {"eight_bit": True, "policy": Policy("budget", 33), "gpu_memory": 2e-6},
}
SEQUENCES = {"state alone": LINEAR, "state and keys": HYBRID, "keys alone, drops": ATTENDING}
OTHERS = [*SEQUENCES, "qwen2-vl", "qwen2-vl that drops", "embedded", "embedded, window", "twin", "twin, budget"]
EMBEDDED = {"embedded": Policy(), "embedded, window": Policy("window", 4 / 60), "twin": None}
EMBEDDED["twin, budget"] = Policy("budget", 70)


@pytest.fixture(scope="module")
def shipped() -> dict[bool, EmbeddedModel]:
    """By whether it is the twin; loaded once, all in fp32 but the tower."""
    if not (ASSETS / "embedded.safetensors").is_file():
        pytest.skip("assets/embedded.safetensors is missing")
    return {twin: load_embedded(twin, dtype=torch.float32) for twin in (False, True)}


@pytest.fixture
def model_of(tiny_model, request) -> Callable[[str], Model]:
    def make(name: str) -> Model:
        if name in VAMBAS:
            return tiny_model(**VAMBAS[name])
        if name in SEQUENCES:
            return sequence_model(SEQUENCES[name], limit=60 if "drops" in name else None)
        if name.startswith("qwen2-vl"):
            return build(limit=20 if "drops" in name else None)
        twin = name.startswith("twin")
        of = request.getfixturevalue("shipped")[twin]
        return (EmbeddedTwin if twin else EmbeddedModel)(of.net, of.tower, of.tokenizer, EMBEDDED[name], of.senses)

    return make


def pictures(count: int) -> tuple[Frame, ...]:
    """The last one stands to the end of its source."""
    pixels = np.random.default_rng(7).integers(0, 256, (count, 28, 56, 3), dtype=np.uint8)
    return tuple(Frame(rgb, 0.5 * i, 0.5 * i + 3 if i == count - 1 else None) for i, rgb in enumerate(pixels))


def written(packed: Packed) -> Packed:
    """There and back through bytes, as a file or a message takes it."""
    packed = whole(packed)
    document = json.dumps(packed.document, allow_nan=False)
    return Packed(load(save(packed.tensors)), json.loads(document))


def watched(model: Model, frames, slices, state: StreamState | None = None) -> StreamState:
    state = model.start() if state is None else state
    for part in slices:
        state = model.watch(VideoChunk(frames[part]), state)
    return state


def answered(model: Model, state: StreamState, at: float | None = None) -> list:
    tokens = model.ask(Question("What is it, and when?", at=at), state, Sampling(max_tokens=6))
    return [(t.id, t.text, None if t.looked is None else [part.tolist() for part in t.looked]) for t in tokens]


def assert_equal(model: Model, one: StreamState, other: StreamState) -> None:
    """All that a state is, to the last bit."""
    a, b = whole(model.pack(one)), whole(model.pack(other))
    assert a.document == b.document and set(a.tensors) == set(b.tensors)
    for name, tensor in a.tensors.items():
        assert torch.equal(tensor.nan_to_num(), b.tensors[name].nan_to_num()), name  # text has no time
    told = ("frames", "seen_until", "state_bytes", "memory_bytes", "host_bytes", "dropped", "dropped_note")
    assert [getattr(one, name) for name in told] == [getattr(other, name) for name in told]


@pytest.mark.parametrize("name", [*VAMBAS, *OTHERS])
def test_a_stream_goes_on_as_if_it_had_never_been_packed(name, model_of, cut) -> None:
    """Packed at three places of a random cutting, odd frames held and blocks half full."""
    model, frames = model_of(name), pictures(17 if name in EMBEDDED else 31)
    slices = cut(len(frames), 3)
    whole = watched(model, frames, slices)
    for stop in (1, len(slices) // 2, len(slices)):
        state = watched(model, frames, slices[:stop])
        again = model.unpack(written(model.pack(state)))
        assert_equal(model, again, state)
        again = watched(model, frames, slices[stop:], again)
        assert_equal(model, again, whole)
    assert answered(model, again) == answered(model, whole)
    assert answered(model, again, at=4.0) == answered(model, whole, at=4.0)
    assert whole.dropped or not any(word in name for word in ("window", "budget", "drops"))
    assert whole.host_bytes or "host" not in name


@pytest.mark.parametrize("name", ["plain", "qwen2-vl", "embedded", "twin", "state alone"])
def test_a_stream_that_has_seen_nothing_can_be_kept(name, model_of) -> None:
    model, frames = model_of(name), pictures(5)
    again = model.unpack(written(model.pack(model.start())))
    assert_equal(model, watched(model, frames, [slice(0, 5)], again), watched(model, frames, [slice(0, 5)]))


@pytest.mark.parametrize("name", ["plain", "eight bits", "qwen2-vl", "embedded"])
def test_nothing_is_shared_with_what_was_packed(name, model_of) -> None:
    """Neither way: watching on leaves the packed tensors alone, and whoever writes into them harms no stream."""
    model, frames = model_of(name), pictures(9)
    state = watched(model, frames, [slice(0, 5)])
    packed = whole(model.pack(state))
    was = {key: tensor.clone() for key, tensor in packed.tensors.items()}
    again = model.unpack(packed)
    onward = watched(model, frames, [slice(5, 9)], again)
    watched(model, frames[::-1], [slice(0, 4)], again)
    assert all(torch.equal(packed.tensors[key], tensor) for key, tensor in was.items())
    for tensor in packed.tensors.values():
        tensor.zero_()
    assert_equal(model, again, state)
    assert_equal(model, onward, watched(model, frames, [slice(5, 9)], state))


@pytest.mark.parametrize("name", [*VAMBAS, *OTHERS])
def test_what_grows_comes_in_pieces_too(name, model_of, cut) -> None:
    """Only what is new is copied after a chunk; the pieces put together are the whole, of what can still be seen."""
    model, frames = model_of(name), pictures(17 if name in EMBEDDED else 31)
    state, ends, rows = model.start(), {}, {}
    for part in cut(len(frames), 5):
        state = model.watch(VideoChunk(frames[part]), state)
        packed = model.pack(state)
        new = newer(packed, ends)
        for key, tensor in ((f"{part}.{name}", t) for part, of in new.items() for name, t in of.items()):
            rows[key] = torch.cat([rows[key], tensor]) if key in rows else tensor
        ends = grown_to(packed)
    assert {part: span.stop for part, span in spans(packed.document).items()} == ends
    seen = {
        f"{part}.{field}": rows[f"{part}.{field}"][len(rows[f"{part}.{field}"]) - len(slots) :]
        for part, slots in spans(packed.document).items()
        for field in packed.growing[part].since(0)
    }
    again = model.unpack(Packed(packed.tensors | seen, packed.document))
    assert_equal(model, again, state)


def test_a_memory_larger_than_the_tier_never_lies_on_the_device_at_once(model_of) -> None:
    """It comes back block by block, each settled before the next is made."""
    model = model_of("on the host")
    state = watched(model, pictures(30), [slice(0, 30)])
    settled, settle = [], model.tier.settle
    model.tier.settle = lambda log: settled.append(log) or settle(log)
    again = model.unpack(model.pack(state))
    assert again.inner.memory.log.host_blocks == state.inner.memory.log.host_blocks > 0
    assert [len(log.blocks) - log.host_blocks for log in settled] <= [3] * len(settled) and len(settled) > 2


@pytest.mark.parametrize("name", ["plain", "qwen2-vl", "embedded", "twin"])
def test_another_models_stream_is_refused(name, model_of, tiny_model) -> None:
    """Other systems, and the same one with other weights or another form of memory."""
    model = model_of(name)
    others = [n for n in ("plain", "eight bits", "qwen2-vl", "embedded", "twin", "state alone") if n != name]
    kept = [other.pack(watched(other, pictures(4), [slice(0, 3)])) for other in map(model_of, others)]
    if name == "plain":
        changed = tiny_model()
        changed.net.model.norm.weight += 0.25
        kept.append(changed.pack(changed.start()))
    for packed in kept:
        with pytest.raises(UserError, match="cannot go on"):
            model.unpack(packed)


def places(document: dict, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where values lie in a document, parts included."""
    found = [(*path, key) for key in document]
    for key, value in document.items():
        found += places(value, (*path, key)) if isinstance(value, dict) else []
    return found


def changed(document: dict, place: tuple[str, ...], value: object) -> dict:
    """A copy with another value there; `changed` itself as the value: none."""
    copy = json.loads(json.dumps(document))
    inside = copy
    for key in place[:-1]:
        inside = inside[key]
    if value is changed:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    return copy


@pytest.mark.parametrize("name", ["budget", "qwen2-vl", "embedded", "state and keys"])
def test_whatever_is_missing_or_garbled_is_refused_in_a_sentence(name, model_of) -> None:
    model = model_of(name)
    packed = whole(model.pack(watched(model, pictures(9), [slice(0, 9)])))
    document = packed.document
    values = (changed, "x", -1, True, None, [], ["budget", "x"], ["budget", -1], ["some", 1])
    documents = [changed(document, place, value) for place in places(document) for value in values]
    spoilt = [Packed(packed.tensors, wrong) for wrong in documents if wrong != document]
    for key, tensor in packed.tensors.items():
        rest = {other: t for other, t in packed.tensors.items() if other != key}
        wrong = [tensor[:0] if tensor.numel() else tensor[None], tensor.to(torch.complex64), tensor[None]]
        spoilt += [Packed(rest, document), *(Packed(rest | {key: t}, document) for t in wrong)]
    spoilt += [Packed({}, {}), Packed({}, []), Packed({}, document), Packed(packed.tensors, document | {"format": 2})]
    for one in spoilt:
        with pytest.raises(UserError, match="cannot go on"):
            model.unpack(one)


@pytest.mark.parametrize("name", ["budget", "qwen2-vl", "embedded", "state and keys"])
def test_no_number_however_large_does_harm(name, model_of) -> None:
    """Some cannot be told from a true one, such as how much was dropped; then the stream is usable all the same."""
    model = model_of(name)
    packed = whole(model.pack(watched(model, pictures(9), [slice(0, 9)])))
    for place in places(packed.document):
        try:
            state = model.unpack(Packed(packed.tensors, changed(packed.document, place, 10**15)))
        except UserError:
            continue
        assert watched(model, pictures(3), [slice(0, 3)], state).frames >= 12


def test_a_system_that_cannot_be_kept_says_so() -> None:
    model = FakeModel()
    with pytest.raises(UserError, match="cannot be kept"):
        model.pack(model.start())
    with pytest.raises(UserError, match="cannot be kept"):
        model.unpack(Packed({}, {}))
