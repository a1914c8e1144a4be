"""From question to ids and from logits to characters: the chat format, drawing the next token, unbroken text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from pipeline.gpu.device import sent
from pipeline.stream import Question, Sampling


class Detokenizer(Protocol):
    """What TextStream needs of a tokenizer; every transformers tokenizer has it."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str: ...


def generator(sampling: Sampling) -> torch.Generator:
    """A source of chance for one answer: same seed, same answer, on every device (it lives on the CPU)."""
    return torch.Generator().manual_seed(sampling.seed)


def sample(logits_V: torch.Tensor, sampling: Sampling, chance: torch.Generator) -> int:
    """The next token's id."""
    return int(drawn(logits_V[None], [sampling], [chance])[0])


def drawn(logits_NV: torch.Tensor, samplings: Sequence[Sampling], chances: Sequence[torch.Generator]) -> torch.Tensor:
    """The next token's id of each row, (N,), where the logits are; nobody waits for it.

    Greedy at temperature 0; else nucleus sampling (Holtzman et al., arXiv 1904.09751, 3.1).
    """
    ids_N = logits_NV.argmax(-1)
    warm = [n for n, one in enumerate(samplings) if one.temperature > 0]
    whole = [n for n in warm if samplings[n].top_p >= 1]
    for rows, draw in ((whole, _of_all), ([n for n in warm if n not in whole], _of_nucleus)):
        if rows:
            numbers = [(samplings[n].temperature, samplings[n].top_p, _chance(chances[n])) for n in rows]
            sent_N3 = sent(torch.tensor(numbers, dtype=torch.float64), ids_N.device)
            if len(rows) == len(ids_N):
                return draw(logits_NV, *sent_N3.split(1, dim=1))
            at = sent(torch.tensor(rows), ids_N.device)
            ids_N[at] = draw(logits_NV[at], *sent_N3.split(1, dim=1))
    return ids_N


def _chance(source: torch.Generator) -> float:
    """One uniform number, drawn on the CPU, so that the choice does not depend on the device's random numbers."""
    return float(torch.rand((), generator=source, dtype=torch.float64))


def _of_all(
    logits_NV: torch.Tensor, warmth_N1: torch.Tensor, top_N1: torch.Tensor, chance_N1: torch.Tensor
) -> torch.Tensor:
    """Of all tokens, in whatever order: to sort them takes an H100 0.2 ms a row."""
    cumulative_NV = (logits_NV.float() / warmth_N1.float()).softmax(-1).double().cumsum(-1)
    place_N1 = torch.searchsorted(cumulative_NV, chance_N1 * cumulative_NV[:, -1:], right=True)
    return place_N1.clamp(max=cumulative_NV.shape[1] - 1)[:, 0]


def _of_nucleus(
    logits_NV: torch.Tensor, warmth_N1: torch.Tensor, top_N1: torch.Tensor, chance_N1: torch.Tensor
) -> torch.Tensor:
    """The nucleus is the smallest set of most likely tokens whose probability reaches `top_p`; it always holds the
    likeliest one."""
    probs_NV, order_NV = (logits_NV.float() / warmth_N1.float()).softmax(-1).sort(descending=True, stable=True)
    cumulative_NV = probs_NV.double().cumsum(-1)
    last_N1 = (cumulative_NV < top_N1).sum(-1, keepdim=True).clamp(max=cumulative_NV.shape[1] - 1)
    place_N1 = torch.searchsorted(cumulative_NV, chance_N1 * cumulative_NV.gather(1, last_N1), right=True)
    return order_NV.gather(1, torch.minimum(place_N1, last_N1))[:, 0]


class TextStream:
    """Turns ids into text piece by piece: the pieces joined are the text of all ids.

    A character of several bytes may be spread over several tokens (an emoji often is); its bytes are held until it is
    complete. Only a short window is decoded per token, never the whole answer, so the cost stays flat. The window
    keeps the ids of the last piece in front, because some tokenizers (SentencePiece) drop the leading space of what
    they decode.
    """

    def __init__(self, tokenizer: Detokenizer):
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._shown = 0  # of the window, how many ids have been shown

    def push(self, token_id: int) -> str:
        """The characters this id completes; empty while a character is incomplete."""
        self._window.append(token_id)
        text = self._fresh()
        # A real character never needs more than 4 bytes, so a longer wait is a broken sequence: show it as it is.
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(self._window) - self._shown < 5:
            return ""
        return self._show(text)

    def flush(self) -> str:
        """What is still held when no more ids come: an unfinished character, shown as the replacement character."""
        return self._show(self._fresh())

    def _fresh(self) -> str:
        shown = self._tokenizer.decode(self._window[: self._shown], skip_special_tokens=True)
        return self._tokenizer.decode(self._window, skip_special_tokens=True)[len(shown) :]

    def _show(self, text: str) -> str:
        self._window = self._window[self._shown :]
        self._shown = len(self._window)
        return text


class ChatPrompt:
    """Qwen2's chat format around a video: Vamba and the transformer baseline are asked in the same words.

    A stream knows its beginning before any question: `before_video` is fixed, `after_video` carries the conversation.
    What a visitor typed is encoded as plain text, so that "<|im_end|>" in a question cannot end the turn.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.before_video = self._marks(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        )
        known = tokenizer.get_vocab()
        self.stops = {known[mark] for mark in ("<|im_end|>", "<|endoftext|>") if mark in known}

    def after_video(self, question: Question) -> list[int]:
        """The ids behind the video: earlier turns, oldest first, the question, and the opened answer."""
        ids = self._marks("<|vision_end|>")
        for asked, answered in question.history:
            ids += self._turn(asked) + self._typed(answered) + self._marks("<|im_end|>\n<|im_start|>user\n")
        return ids + self._turn(question.text)

    def _turn(self, text: str) -> list[int]:
        return self._typed(text) + self._marks("<|im_end|>\n<|im_start|>assistant\n")

    def _marks(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _typed(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
