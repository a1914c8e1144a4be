"""A session whose stream lives in another process: each command is a call to wherever that is by now."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from app.live.view import UPLOAD, WEBCAM, Phase, View
from pipeline import Answer, Rule, UserError

PIECE = 1 << 20  # bytes of an archive that are sent at once


class Asked(NamedTuple):
    """A question that was put and not answered yet."""

    text: str
    at: float | None


class Calls(Protocol):
    """What finds a stream by its key, and calls there; see `FarSessions`. All raise UserError."""

    def look(self, key: str) -> View | None: ...

    def hand_on(self, path: Path) -> Path: ...

    def do(self, key: str, deed: str, *values: Any) -> tuple[Any, View]: ...

    def changed(self, key: str, model: int) -> tuple[bool, View]: ...

    def call(self, key: str, verb: str, *values: Any) -> Any: ...

    def asked(self, key: str, number: int, question: Asked) -> None: ...


class FarSession:
    """One visitor's stream, wherever it is. seen: what was seen of it just now."""

    def __init__(self, table: Calls, key: str, seen: View | None = None) -> None:
        self._table, self._key, self._seen = table, key, seen

    def view(self) -> View:
        """Of this moment. What a command saw, or who was found, is told once without asking again."""
        seen, self._seen = self._seen, None
        try:
            return seen or self._table.look(self._key) or View(phase=Phase.CLOSED)
        except UserError as error:
            return View(phase=Phase.ENDED, error=str(error))

    def _do(self, deed: str, *values: Any) -> Any:
        value, self._seen = self._table.do(self._key, deed, *values)
        return value

    def open_file(self, path: str | Path, source: str = UPLOAD, name: str = "") -> None:
        there = self._table.hand_on(Path(path)) if source == UPLOAD else Path(path)
        self._do("open_file", there, source, name)

    def open_camera(self, source: str = WEBCAM) -> None:
        self._do("open_camera", source)

    def open_shared(self, shared: Any) -> None:
        raise UserError("This server has no cameras for everybody, so none was opened; start a video of your own.")

    def offer(self, rgb: np.ndarray, jpeg: bytes = b"") -> None:
        self._table.call(self._key, "offer", jpeg)

    def pause(self) -> None:
        self._do("pause")

    def resume(self) -> None:
        self._do("resume")

    def again(self) -> None:
        self._do("again")

    def reset(self) -> None:
        self._do("reset")

    def compare(self, on: bool) -> None:
        self._do("compare", on)

    def ask(self, text: str, at: float | None = None) -> int:
        question = self._do("ask", text, at)
        self._table.asked(self._key, question, Asked(text, at))
        return question

    def retry(self) -> int | None:
        return self._do("retry")

    def withdraw(self, question: int) -> None:
        self._do("withdraw", question)

    def stop_answer(self) -> None:
        self._do("stop_answer")

    def mark(self, question: int, model: int, wrong: bool) -> None:
        self._do("mark", question, model, wrong)

    def follow(self, model: int = 0) -> Iterator[None]:
        busy = True
        while busy:
            busy, self._seen = self._table.changed(self._key, model)
            yield

    def answer(self, question: int, model: int = 0) -> Iterator[Answer]:
        before = None
        for _ in self.follow(model):
            turns = self._seen.conversations[model] if self._seen else ()
            turn = next((one for one in turns if one.id == question), None)
            if turn is None or turn.error:
                return
            answer = turn.answer or Answer("", 0.0, 0.0)
            if answer != before:
                yield answer
            before = answer
            if answer.done:
                return

    def clear_chat(self) -> None:
        self._do("clear_chat")

    def undo(self) -> bool:
        return self._do("undo")

    def add_rule(self, text: str, cool_down: float | None = None) -> Rule:
        return self._do("add_rule", text, cool_down)

    def remove_rule(self, number: int) -> None:
        self._do("remove_rule", number)

    def probe(self) -> None:
        self._do("probe")

    def clip(self, at: float, out: str | Path) -> None:
        Path(out).write_bytes(self._table.call(self._key, "clip", at))

    def keep(self, on: bool, encrypt: bool = False) -> None:
        self._do("keep", on, encrypt)

    def delete_kept(self) -> None:
        self._do("delete_kept")

    def take_along(self) -> Generator[bytes, None, None]:
        path = Path(self._table.call(self._key, "take"))
        try:
            with path.open("rb") as file:
                while piece := file.read(PIECE):
                    yield piece
        finally:
            path.unlink(missing_ok=True)
