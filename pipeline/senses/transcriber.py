"""Whisper: from a stretch of sound to sentences with their seconds (arXiv 2212.04356), run by transformers.

The small one that ships (whisper-tiny.en, 8 bits on the disk) needs no network; any other is had by its name on the Hub
or its folder. The seconds of a word come from where the decoder's cross-attention looks (its `alignment_heads`).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.stream import UserError
from pipeline.weights.hub import folder_of
from pipeline.weights.quant import from_file

RATE = 16_000  # samples a second
TOKENS = 224  # of a stretch at most: what Whisper was trained to write
LIKELY = 0.37  # mean likelihood of a token from which a stretch is believed: exp(-1), as Whisper's own rule has it
REPEATING = 3.5  # length over compressed length from which it is a loop; of four sentences said twice it is 2.5
SENTENCE = re.compile(r"[.?!…][\"')\]]*$")
WORDS = 24  # of a sentence at most, where no mark ends it
END, START, NO_TIMES = 50_256, 50_257, 50_362  # tokens of Whisper's English models
EXAMPLE = "openai/whisper-small"


class Said(NamedTuple):
    """A sentence: seconds from the stretch's start, its words, and how likely they were to the network, 0 to 1."""

    time: float
    until: float
    text: str
    sure: float


class Transcriber:
    """model: transformers' WhisperForConditionalGeneration. hears: its feature extractor. words: ids -> text."""

    def __init__(self, model: Any, hears: Any, words: Callable[[Sequence[int]], str]) -> None:
        self._model, self._hears, self._words = model.eval(), hears, words

    @torch.no_grad()
    def sentences(self, samples: np.ndarray, voiced: Sequence[tuple[float, float]]) -> list[Said]:
        """Of at most 30 seconds, float32, one channel, RATE a second. voiced: where a voice is, seconds from and to."""
        heard = self._hears(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
        features = heard.input_features.to(self._model.device, self._model.dtype)
        encoded = self._model.model.encoder(features)
        with _quietly():
            out = self._model.generate(
                features,
                attention_mask=heard.attention_mask,
                encoder_outputs=encoded,
                max_new_tokens=TOKENS,
                return_timestamps=True,
                return_token_timestamps=True,
            )
        ids, ends = out["sequences"][0], out["token_timestamps"][0]
        text = self._words([token for token in ids.tolist() if token < self._end])
        sure = self._likelihood(ids, encoded)
        if sure < LIKELY or len(text) / len(zlib.compress(text.encode())) > REPEATING:
            return []
        return [said._replace(sure=sure) for said in sentences(self._timed(ids, ends), voiced)]

    @property
    def _end(self) -> int:
        """The first token that is no part of a word."""
        return int(self._model.generation_config.eos_token_id)

    def _timed(self, ids: Tensor, ends: Tensor) -> Iterator[tuple[str, float]]:
        """Words with the seconds at which they end."""
        word, end = list[int](), 0.0
        for token, at in zip(ids.tolist(), ends.tolist()):
            if token >= self._end:
                continue
            if word and self._words([token]).startswith(" "):
                yield self._words(word), end
                word = []
            word, end = [*word, token], at
        if word:
            yield self._words(word), end

    def _likelihood(self, ids: Tensor, encoded: Any) -> float:
        """The geometric mean of the likelihoods of the tokens that stand for words."""
        begun = torch.tensor([self._model.generation_config.decoder_start_token_id])
        spoken = ids < self._end
        if not spoken.any():
            return 0.0
        read = torch.cat([begun, ids])[None]
        logits = self._model(encoder_outputs=encoded, decoder_input_ids=read).logits[0, :-1]
        chosen = logits.float().log_softmax(-1).gather(1, ids[:, None])[:, 0]
        return float(chosen[spoken].mean().exp())


def sentences(timed: Iterator[tuple[str, float]], voiced: Sequence[tuple[float, float]]) -> list[Said]:
    """Words with their ends -> sentences. A sentence begins where the word before it ended or, if nobody spoke then,
    where a voice begins."""
    found, words, start, last = list[Said](), list[str](), 0.0, 0.0
    over = max((end for _, end in voiced), default=0.0)
    for word, end in timed:
        if not words:
            start = next((max(last, begins) for begins, ends in voiced if ends > last), last)
        words.append(word)
        last = min(end, over) if over else end
        if SENTENCE.search(word) or len(words) >= WORDS:
            found.append(Said(start, max(start, last), "".join(words).strip(), 0.0))
            words = []
    if words:
        found.append(Said(start, max(start, last), "".join(words).strip(), 0.0))
    return [said for said in found if any(c.isalnum() for c in said.text)]


@contextmanager
def _quietly() -> Iterator[None]:
    """Whisper's own `generate` warns of the settings that it makes itself."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def load_transcriber(assets: Path, name: str = "") -> Transcriber:
    """The one that ships, or a model of the Hub or a folder. Raises UserError for a name that is none."""
    return _named(name) if name else _shipped(assets)


def _shipped(assets: Path) -> Transcriber:
    from tokenizers import Tokenizer
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    told = json.loads((assets / "speech.json").read_text(encoding="utf-8"))
    tokens: dict[str, Any] = {
        "decoder_start_token_id": START,
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": END,
    }
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig(**told["network"], **tokens))
    state = {f"model.{key}": w for key, w in from_file(load_file(assets / "speech.safetensors")).items()}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    times = {"no_timestamps_token_id": NO_TIMES, "is_multilingual": False, "max_initial_timestamp_index": 50}
    model.generation_config = GenerationConfig(**tokens, **told["writing"], **times)
    words = Tokenizer.from_file(str(assets / "speech-tokenizer.json"))
    return Transcriber(model.requires_grad_(False), WhisperFeatureExtractor(), words.decode)


def _named(name: str) -> Transcriber:
    from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

    folder = folder_of(name, [], EXAMPLE)
    try:
        model = WhisperForConditionalGeneration.from_pretrained(folder)
        hears, words = WhisperFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{name} holds no Whisper model that can be read, so nothing is heard with it; name one such as {EXAMPLE}."
        ) from error
    return Transcriber(model.requires_grad_(False), hears, lambda ids: str(words.decode(list(ids))))
