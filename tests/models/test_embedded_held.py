"""What the embedded model and its twin hold: nothing large twice, no file, and of an hour what is theirs by nature."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.assets import ASSETS
from pipeline.layers.reading import TextCache
from pipeline.memory.memory import Memory
from pipeline.models.embedded import EmbeddedModel
from pipeline.models.embedded_net import TOKENS
from pipeline.models.embedded_reading import Reading
from pipeline.models.embedded_twin import Behind
from pipeline.models.shipped import load_embedded
from pipeline.stream import Frame, Question, VideoChunk

pytestmark = pytest.mark.skipif(
    not (ASSETS / "embedded.safetensors").is_file(), reason="assets/embedded.safetensors is missing"
)
LARGE = 1 << 20  # bytes


@pytest.fixture(scope="module")
def pair() -> tuple[EmbeddedModel, EmbeddedModel]:
    return load_embedded(dtype=torch.float32), load_embedded(True, dtype=torch.float32)


def held(model: EmbeddedModel) -> Iterator[Tensor]:
    """Every tensor of its networks."""
    assert model.router is not None
    nets: list[nn.Module] = [model.net, model.tower, model.router.net, *model.senses.nets]
    for net in nets:
        yield from net.state_dict(keep_vars=True).values()


def test_nothing_large_is_held_twice(pair: tuple[EmbeddedModel, EmbeddedModel]) -> None:
    places = defaultdict[tuple[object, ...], dict[int, Tensor]](dict)
    for tensor in (one for model in pair for one in held(model)):
        if tensor.nbytes >= LARGE:
            alike = (tensor.shape, tensor.dtype, float(tensor.detach().double().sum()))
            places[alike][tensor.data_ptr()] = tensor
    twice = [alike for alike, found in places.items() if len(found) > 1]
    assert len(places) > 200 and not twice


def test_the_two_differ_by_their_columns_alone(pair: tuple[EmbeddedModel, EmbeddedModel]) -> None:
    """By nature the twin's own layers, projections and locator are another's: 443 MB in fp32."""
    both, one = ({t.data_ptr(): t.nbytes for m in some for t in held(m)} for some in (pair, pair[:1]))
    assert sum(both.values()) - sum(one.values()) < 450e6 < 0.75 * sum(one.values())


def test_no_tensor_keeps_more_than_itself(pair: tuple[EmbeddedModel, EmbeddedModel]) -> None:
    """One that lies in a mapped file keeps all of the file."""
    for tensor in (one for model in pair for one in held(model)):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_what_is_shared_ends_with_the_last_who_has_it() -> None:
    from pipeline.models import shipped

    model = load_embedded(senses=())
    there = [one for one in shipped._alike.values() if one is model.alike]
    assert len(there) == 1
    del there, model
    assert not [key for key, one in shipped._alike.items() if not one.senses.widths]


def filled(memory: Memory, seconds: int) -> Memory:
    """As after so many pictures, one a second, whose keys nobody wrote: the pages are not even touched."""
    for second in range(0, seconds, 8):
        times = torch.arange(second, second + 8, dtype=torch.float64).repeat_interleave(TOKENS)
        memory = memory.append(times)[0].applied()
    return memory


def allocated(memory: Memory) -> int:
    return sum(tensor.nbytes for block in memory.log.blocks for tensor in block.tensors.values())


@pytest.mark.parametrize("which", [0, 1])
def test_an_hour_is_what_it_is_by_nature(pair: tuple[EmbeddedModel, EmbeddedModel], which: int) -> None:
    """The model's grows with the hour, the twin's stands from minute 13.6 on; both hold at most two blocks more."""
    model = pair[which]
    hour = filled(model.start().inner.memory, 3600)
    cfg = model.cfg.vamba
    a_slot = model._memory_layers * cfg.n_kv_heads * cfg.head_dim * 2 * 4 + 8
    slots = 3600 * TOKENS if which == 0 else model.policy.amount
    assert hour.nbytes == slots * a_slot
    assert allocated(hour) <= hour.nbytes + 2 * model.BLOCK_SLOTS * a_slot <= 1.6 * hour.nbytes
    assert hour.nbytes == pytest.approx({0: 276.8e6, 1: 377.4e6}[which], rel=1e-2)


def seen(model: EmbeddedModel, count: int):
    dice, state = np.random.default_rng(0), model.start()
    frames = tuple(Frame(dice.integers(0, 256, (96, 128, 3), np.uint8), float(i)) for i in range(count))
    return model.watch(VideoChunk(frames), state)


def test_a_question_to_the_twin_copies_no_video(pair: tuple[EmbeddedModel, EmbeddedModel]) -> None:
    """Its cache holds the question, however much was watched; and what it reads is what it would read from a copy."""
    twin, question = pair[1], Question("What is happening?")
    rooms = []
    for count in (2, 40):
        reading = Reading(twin, question, state := seen(twin, count))
        assert isinstance(reading.cache, Behind) and reading.cache.room is not None
        rooms.append(reading.cache.room.nbytes)
    assert rooms[0] == rooms[1]
    memory, cfg = state.inner.memory, twin.cfg.vamba
    copy = TextCache(cfg.n_layers)
    for layer in range(cfg.n_layers):
        for k, v in memory.blocks(layer, torch.float32):
            copy.keep(layer, k[None], v[None])
    ids = reading.turn(question.text)
    positions = torch.arange(len(memory), len(memory) + len(ids))
    with torch.no_grad():
        h = twin.net.vamba.model.embed_tokens(torch.tensor([ids]))
        behind = Behind(cfg.n_layers, memory)
        found, wanted = (twin.net.vamba.read(h, positions, cache.attend, None) for cache in (behind, copy))
    assert float((found - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())
    assert math.isclose(float(wanted.std()), float(found.std()), rel_tol=1e-4) and float(wanted.std()) > 0
