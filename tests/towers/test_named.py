"""Better eyes: a tiny checkpoint, written here, names what the index then holds; the state stays what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import UserError, load
from pipeline.models.embedded import EmbeddedModel
from pipeline.questions.index import read_index
from pipeline.stream import Frame, Question, Sampling, VideoChunk
from pipeline.towers.named import NamingEyes

WORDS = ["a", "photo", "of", "taken", "dog", "cat", "cup", "water", "snow", "street", "the"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP of random weights, 12 numbers wide, whose pictures are 16 pixels a side."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel

    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("siglip")
    small = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    letters = {chr(c): c - 30 for c in range(33, 127)}
    vocabulary = {"<pad>": 0, "<unk>": 1, "</s>": 2, **letters}
    text = {"vocab_size": len(vocabulary) + 2, "max_position_embeddings": 24, "projection_size": 12, **small}
    vision = {"image_size": 16, "patch_size": 8, **small}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    own = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> EmbeddedModel:
    found = load("embedded", device="cpu", eyes=str(checkpoint))
    assert isinstance(found, EmbeddedModel)
    return found


FRAMES = tuple(
    Frame(np.random.default_rng(i).integers(0, 255, (64, 96, 3)).astype(np.uint8), float(i)) for i in range(3)
)


def test_what_they_name_is_in_the_index(model: EmbeddedModel) -> None:
    state = model.watch(VideoChunk(FRAMES), model.start())
    index = read_index(state.inner.index, model.cfg.cut)
    assert model.eyes is not None
    pictures = model.eyes._pictures([frame.rgb for frame in FRAMES])
    wanted = (model.eyes.net.logit_scale.exp() * pictures @ model.eyes.things.T).softmax(-1)
    assert torch.equal(index.features.classes[:, 0], wanted.argmax(-1))
    assert torch.allclose(index.features.class_probs[:, 0], wanted.amax(-1), atol=1e-5)
    assert index.sensed["places"].shape == (3, len(model.senses.places.words))  # type: ignore[union-attr]


def test_the_state_is_made_without_them(model: EmbeddedModel) -> None:
    seen = model.watch(VideoChunk(FRAMES), model.start())
    eyes, model.eyes = model.eyes, None
    try:
        plain = model.watch(VideoChunk(FRAMES), model.start())
    finally:
        model.eyes = eyes
    assert all(torch.equal(a.ssm, b.ssm) for a, b in zip(seen.inner.states, plain.inner.states, strict=True))
    classes = [state.inner.index.tensor("classes") for state in (seen, plain)]
    assert not torch.equal(*classes)


def test_a_place_with_more_than_half_of_the_share_is_said(model: EmbeddedModel) -> None:
    places = model.senses.places
    assert places is not None
    sayable = places.words.index("snow")
    odds = torch.full((1, len(places.words)), -9.0)
    odds[0, sayable] = 3.0
    assert places.say(model.senses.placed(odds)["places"].numpy())[0][0] == "snow"
    odds[0, sayable] = -1.0
    assert places.say(model.senses.placed(odds)["places"].numpy()) == []


def test_a_stream_seen_by_other_eyes_is_refused_in_words(model: EmbeddedModel) -> None:
    packed = model.pack(model.watch(VideoChunk(FRAMES), model.start()))
    assert model.unpack(packed).frames == 3
    plain = EmbeddedModel(model.net, model.tower, model.tokenizer, None, model.senses)
    with pytest.raises(UserError, match="kept by another model"):
        plain.unpack(packed)


def test_they_are_asked_as_the_others_are(model: EmbeddedModel) -> None:
    state = model.watch(VideoChunk(FRAMES), model.start())
    text = "".join(token.text for token in model.ask(Question("What do you see?"), state, Sampling(max_tokens=8)))
    assert text


def test_what_is_no_such_model_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The eyes could not be loaded, so nothing was;"):
        NamingEyes.load(tmp_path, ("street",))
    with pytest.raises(UserError, match="There is no model called"):
        load("embedded", device="cpu", eyes="nonsense")
