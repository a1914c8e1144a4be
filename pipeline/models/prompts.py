"""Chat formats of the systems that are one sequence, as the published code writes them, in ids.

A stream is encoded piece by piece; its ids are those of the whole string, because pieces meet only at special tokens or
at pictures. What a visitor typed is encoded as plain text, so that the name of a mark in it cannot end a turn.
"""

from __future__ import annotations

from typing import Any

from pipeline.stream import Question, UserError


class Marks:
    """A tokenizer's special tokens by name, and its plain text."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._known = tokenizer, tokenizer.get_vocab()

    def id(self, name: str) -> int:
        """UserError where the tokenizer lacks it."""
        if name not in self._known:
            raise UserError(
                f"The model's tokenizer has no {name}, so the model was not loaded; "
                "use the tokenizer files of the same checkpoint."
            )
        return self._known[name]

    def some(self, *names: str) -> set[int]:
        """Ids of those that are there."""
        return {self._known[name] for name in names if name in self._known}

    def text(self, text: str) -> list[int]:
        """Plain text in one piece."""
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) if text else []

    @property
    def bos(self) -> list[int]:
        """What the tokenizer puts in front of a prompt."""
        number = self._tokenizer.bos_token_id
        return [] if number is None else [number]


class InternPrompt:
    """mmMamba's and HoVLE's ("internlm2-chat"): frames are numbered, and stand in the visitor's first turn."""

    system = (
        "system\n你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
        "是一个有用无害的人工智能助手。"
    )

    def __init__(self, tokenizer: Any):
        marks = self._marks = Marks(tokenizer)
        self._start, self._end = marks.id("<|im_start|>"), marks.id("<|im_end|>")
        self._open, self._close = marks.id("<img>"), marks.id("</img>")
        self.opening = [*marks.bos, self._start, *marks.text(self.system), self._end, self._start]
        self.stops = {self._end, self._start} | marks.some("</s>")

    def before(self, unit: int) -> list[int]:
        return [*self._marks.text(f"{self._pending(unit - 1)}Frame-{unit}: "), self._open]

    def after(self, unit: int) -> list[int]:
        return [self._close]

    def question(self, question: Question, units: int) -> list[int]:
        ids, before = [], self._pending(units)
        for asked, answered in [*question.history, (question.text, "")]:
            ids += [*self._marks.text(before + asked), self._end, self._start]
            ids += [*self._marks.text("assistant\n" + answered), self._end, self._start]
            before = "user\n"
        return ids[:-2]  # the last answer is open

    def _pending(self, units: int) -> str:
        """Text that is not yet encoded after so many frames: it belongs to the next piece."""
        return "\n" if units else "user\n"


class ZephyrPrompt:
    """ML-Mamba's: pictures come first, with nothing before or between them; the role marks are plain text."""

    opening: tuple[int, ...] = ()

    def __init__(self, tokenizer: Any):
        self._marks = Marks(tokenizer)
        self._end = self._marks.id("<|endoftext|>")
        self.stops = {self._end}

    def before(self, unit: int) -> list[int]:
        return []

    def after(self, unit: int) -> list[int]:
        return []

    def question(self, question: Question, units: int) -> list[int]:
        ids, before = [], "<|user|>\n"
        for asked, answered in [*question.history, (question.text, "")]:
            asked = asked.replace("<image>", "").strip()  # as the published code does
            ids += [*self._marks.text(before + asked), self._end]
            ids += [*self._marks.text(f"\n<|assistant|>\n{answered}"), self._end]
            before = "\n<|user|>\n"
        return ids[:-1]  # the last answer is open


class GemmaPrompt:
    """Gemamba's: clips stand in the visitor's first turn."""

    def __init__(self, tokenizer: Any):
        marks = self._marks = Marks(tokenizer)
        self._start, self._end = marks.id("<start_of_turn>"), marks.id("<end_of_turn>")
        self.opening = [marks.id("<bos>"), self._start, *marks.text("user\n")]
        self.stops = {self._end} | marks.some("<eos>")

    def before(self, unit: int) -> list[int]:
        return []

    def after(self, unit: int) -> list[int]:
        return []

    def question(self, question: Question, units: int) -> list[int]:
        line = self._marks.text("\n")
        ids, before = [], "\n"
        for asked, answered in [*question.history, (question.text, "")]:
            ids += [*self._marks.text(before + asked), self._end, *line, self._start]
            ids += [*self._marks.text("model\n" + answered), self._end, *line, self._start]
            before = "user\n"
        return ids[: -2 - len(line)]  # the last answer is open
