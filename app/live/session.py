"""LiveSession: one visitor's stream and conversations, commanded by plain values and seen as a `View`.

No command waits for a chunk or a token; watching and answering have threads of their own.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from app.live import uploads
from app.live.conversation import BUSY, TURNS, Answering, Conversation, clean
from app.live.uploads import Source
from app.live.view import UPLOAD, WEBCAM, Turn, View
from app.live.viewing import Viewing
from app.live.watching import Watch
from pipeline import Answer, Engine, UserError

LATE_S = 2.0  # camera pictures may still arrive for so long after Reset


class LiveSession:
    """A source and its lifetime, and a conversation with each model."""

    def __init__(self, engine: Engine, rival: Engine | None = None) -> None:
        self.engine, self.rival = engine, rival
        self.watch: Watch | None = None
        self.conversations = (Conversation(), Conversation())
        self._upload: Source | None = None  # the visitor's file; stays while something else is watched
        self._comparing = False
        self._answerings: dict[int, Answering] = {}  # by question, oldest first
        self._questions = itertools.count(1)
        self._commands = threading.RLock()  # one command at a time; watching and answering do not take it
        self._reset_at = -math.inf
        self._closed = False

    def view(self) -> View:
        """All that may be known of the stream, now. It never changes afterwards."""
        watch = self.watch
        upload = self._upload.upload if self._upload else None
        engines = [self.engine, self.rival] if self.rival else [self.engine]
        about = View(
            upload=str(upload) if upload and upload.exists() else None,  # Gradio cleans by age
            comparing=self._comparing,
            answering=any(conversation.busy for conversation in self.conversations),
            names=tuple(engine.name for engine in engines),
            conversations=tuple(conversation.turns for conversation in self.conversations),
        )
        return watch.view(about) if watch else about

    # The source

    def open_file(self, path: str | Path, source: str = UPLOAD, name: str = "") -> None:
        """Watches a file from its start, in a new conversation; an upload through our own copy. name: for the page."""
        self._check_open()
        path = Path(path)
        opened = uploads.take_over(path, name) if source == UPLOAD else Source(source, name, path)
        with self._commands:
            if self._closed:
                uploads.let_go(opened)
            self._check_open()
            self._end_watch()
            self.clear_chat()
            if opened.upload:
                self._forget_upload()
                self._upload = opened
            self._start(opened)

    def open_camera(self) -> None:
        """Watches what is offered from now on, in a new conversation."""
        with self._commands:
            self._check_open()
            self._end_watch()
            self.clear_chat()
            self._start(Source(WEBCAM))

    def offer(self, rgb: np.ndarray) -> None:
        """A camera picture, uint8 (height, width, 3). Returns at once; starts the camera's stream where none runs.

        Pictures that were on their way when the visitor pressed Reset start nothing.
        """
        watch = self.watch
        if watch is None or watch.camera is None:
            if time.monotonic() - self._reset_at < LATE_S:
                return
            self.open_camera()
        if watch := self.watch:
            watch.offer(rgb)

    def pause(self) -> None:
        if watch := self.watch:
            watch.pause()

    def resume(self) -> None:
        if watch := self.watch:
            watch.resume()

    def again(self) -> None:
        """The same source from its start, with nothing seen; what was said stays."""
        with self._commands:
            self._check_open()
            if watch := self.watch:
                self._end_watch()
                self._start(watch.source)

    def reset(self) -> None:
        """Forgets what was seen, the conversation and the file."""
        with self._commands:
            self._reset_at = time.monotonic()
            self._end_watch()
            self.clear_chat()
            self._forget_upload()

    def compare(self, on: bool) -> None:
        """Adds or removes the second model. For a file it first sees what the other has seen."""
        with self._commands:
            self._comparing = on and self.rival is not None
            if watch := self.watch:
                watch.compare(self.rival if self._comparing else None)

    @property
    def has_file(self) -> bool:
        """Whether there is a stream that goes on without its page."""
        watch = self.watch
        return watch is not None and watch.camera is None

    def close(self) -> None:
        """Ends everything and deletes the visitor's file, pictures and words. May be called twice."""
        with self._commands:
            self._closed = True
            self.reset()

    def _start(self, source: Source) -> None:
        self.watch = Watch(source, self.engine, self.rival if self._comparing else None)

    def _end_watch(self) -> None:
        self.stop_answer()
        if watch := self.watch:
            watch.close()
        self.watch = None

    def _forget_upload(self) -> None:
        """The file goes at once: a worker in the middle of a chunk has it open, and needs no name for it."""
        if self._upload:
            uploads.let_go(self._upload)
        self._upload = None

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("This session was closed, so nothing was started; reload the page to begin a new one.")

    # Asking

    def ask(self, text: str, at: float | None = None) -> int:
        """The number of a new question to every model that is compared; `answer` then writes.

        at: second of the video it is about, None for "as of now". Raises UserError while an answer is being written
        that was not stopped.
        """
        with self._commands:
            if any(conversation.busy for conversation in self.conversations):
                raise UserError(BUSY)
            return self._put(Turn(next(self._questions), clean(text), at))

    def retry(self) -> int | None:
        """The number of a new question: the newest one once more, in its place as soon as its answer begins."""
        with self._commands:
            self.stop_answer()
            turns = self.conversations[0].turns
            if not turns:
                return None
            last = turns[-1]
            again = Turn(next(self._questions), last.question, last.at, last.repeats + 1)
            return self._put(again, instead_of=last.id)

    def answer(self, question: int, model: int = 0) -> Iterator[Answer]:
        """Grows a model's turn of the question and yields its Answer, token by token; watching goes on meanwhile.

        Yields nothing for a question that is not known (any more) or was not put to this model.
        """
        answering = self._answerings.get(question)
        if answering is None or model >= answering.models:
            return
        watch = self.watch
        engine = self.rival if model and self.rival else self.engine
        viewing = (watch.viewing(model) if watch else None) or Viewing(engine)
        picture = watch.thumbnails.near if watch else lambda at: None
        yield from self.conversations[model].answer(answering, viewing, picture)

    def stop_answer(self) -> None:
        """Ends every answer being written, by whichever model, within one token; and those that have not begun."""
        with self._commands:
            for answering in self._answerings.values():
                answering.stopped.set()

    def clear_chat(self) -> None:
        """Forgets the conversations, not what was seen."""
        with self._commands:
            self.stop_answer()
            self._answerings.clear()
            for conversation in self.conversations:
                conversation.forget()

    def _put(self, turn: Turn, instead_of: int | None = None) -> int:
        self._answerings[turn.id] = Answering(turn, 2 if self._comparing else 1, instead_of)
        while len(self._answerings) > TURNS:
            del self._answerings[next(iter(self._answerings))]
        return turn.id
