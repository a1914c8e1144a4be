"""What kind of question is asked: a small sentence encoder, fine-tuned whole, with one output a kind.

all-MiniLM-L6-v2 (22.7 M parameters, arXiv 2002.10957) reads the wording; the mean of its token vectors, and what a
parser found in the question (`Known`), go through one linear layer. Words the encoder does not know are first spelt
like the nearest word people use in such questions ("waht coulor" reads as "what colour"). It ships in 6 and 8 bits
(`assets/router.*`) and answers in a few milliseconds on one core. `pipeline.training.router` makes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.weights.quant import from_file

MOST_TOKENS = 64  # of a question; what comes later is not read


class Known(NamedTuple):
    """What a parser knows of a question: whether it names a second, a stretch of time, a thing, a number."""

    time: bool = False
    stretch: bool = False
    thing: bool = False
    number: bool = False


class RouterNet(nn.Module):
    """Token ids (B, T) and their mask, known (B, 4) -> logits (B, kinds)."""

    def __init__(self, encoder: dict[str, Any], kinds: int):
        from transformers import BertConfig, BertModel

        super().__init__()
        self.encoder = BertModel(BertConfig(**encoder), add_pooling_layer=False)
        self.head = nn.Linear(self.encoder.config.hidden_size + len(Known._fields), kinds)

    def forward(self, ids: Tensor, mask: Tensor, known: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask[..., None].to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        return self.head(torch.cat([mean, known.to(mean.dtype)], dim=-1))


class Spelling:
    """Nearest words for misspelt ones (norvig.com/spell-correct.html). words: what people use, the most used first."""

    def __init__(self, words: Sequence[str], tokenizer: Any):
        self.rank = {word: i for i, word in enumerate(words)}
        self.known = set(words) | {piece for piece in tokenizer.get_vocab() if not piece.startswith("##")}

    def __call__(self, text: str) -> str:
        return re.sub(r"[^\W\d_]{3,}", lambda found: self.nearest(found[0]), text)

    def knows(self, word: str) -> bool:
        return self.nearest(word).lower() in self.known

    def nearest(self, word: str) -> str:
        """The word itself if it is known or nothing is one slip away."""
        lowered = word.lower()
        if lowered in self.known:
            return word
        near = [other for other in slips(lowered) if other in self.rank]
        return min(near, key=self.rank.__getitem__, default=word)


def slips(word: str) -> Iterator[str]:
    """All words one lost, swapped, wrong or added letter away."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    for i in range(len(word) + 1):
        left, right = word[:i], word[i:]
        yield from (left + letter + right for letter in letters)
        if right:
            yield left + right[1:]
            yield from (left + letter + right[1:] for letter in letters)
        if len(right) > 1:
            yield left + right[1] + right[0] + right[2:]


class Router:
    """Wording -> how likely each kind of question is."""

    def __init__(self, net: RouterNet, tokenizer: Any, kinds: tuple[str, ...], words: Sequence[str]):
        self.net, self.tokenizer, self.names = net.eval(), tokenizer, kinds
        self.spelling = Spelling(words, tokenizer)

    @classmethod
    def load(cls, assets: Path) -> Router:
        """From `router.json`, `router.safetensors` and `router-tokenizer.json`. FileNotFoundError without them."""
        config = json.loads((assets / "router.json").read_text(encoding="utf-8"))
        with torch.device("meta"):
            net = RouterNet(config["encoder"], len(config["kinds"]))
        net.encoder.embeddings.register_buffer("position_ids", torch.arange(512)[None], persistent=False)
        net.encoder.embeddings.register_buffer("token_type_ids", torch.zeros(1, 512, dtype=torch.long), False)
        net.load_state_dict(from_file(load_file(assets / "router.safetensors")), assign=True)
        tokenizer = read_tokenizer(assets / "router-tokenizer.json")
        return cls(net.requires_grad_(False), tokenizer, tuple(config["kinds"]), config["words"])

    def reads(self, text: str) -> bool:
        """Whether one of the words is known, or stands for a number; of "asdfgh jkl" none is."""
        return any(part.isdigit() or self.spelling.knows(part) for part in re.findall(r"[^\W_]+", text))

    @torch.no_grad()
    def kinds(self, text: str, known: Known) -> dict[str, float]:
        """Probability of every kind, likeliest first. They add up to 1: two true kinds share it."""
        ids, mask = encode(self.tokenizer, [self.spelling(text)])
        chances = self.net(ids, mask, torch.tensor([known], dtype=torch.float32))[0].softmax(-1)
        order = chances.argsort(descending=True).tolist()
        return {self.names[i]: float(chances[i]) for i in order}


def read_tokenizer(path: Path) -> Any:
    """A `tokenizers.Tokenizer` that cuts at MOST_TOKENS and fills a batch up to its longest."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(MOST_TOKENS)
    tokenizer.enable_padding()
    return tokenizer


def encode(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (B, T) each."""
    found = tokenizer.encode_batch(texts)
    return torch.tensor([f.ids for f in found]), torch.tensor([f.attention_mask for f in found])
