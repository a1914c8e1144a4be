"""LiveSession: one visitor's stream and conversations, commanded by plain values and seen as a `View`.

No command waits for a chunk or a token; watching and answering have threads of their own.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from app.live import forking, uploads
from app.live.bed import Bed
from app.live.comeback import Back
from app.live.conversation import FULL, Answering, Conversation, Subject, clean
from app.live.legs import Leg, Start
from app.live.probing import Prober
from app.live.shared import Seat, Shared, Watched
from app.live.shelf import Shelf
from app.live.subject import awaited
from app.live.switch import Switch
from app.live.undoable import Undoable
from app.live.uploads import Source
from app.live.view import CLEAR, NOTHING_WATCHED, RESET, UPLOAD, WEBCAM, Phase, Turn, View
from app.live.watching import Watch
from pipeline import Answer, Engine, Rule, TakenOver, UserError

LATE_S = 2.0  # camera pictures may still arrive for so long after Reset
UNDO_S = 30.0  # Clear and Reset can be taken back for so long


class LiveSession:
    """A source and its lifetime, and a conversation with each model."""

    def __init__(
        self,
        engine: Engine,
        rival: Engine | None = None,
        shelf: Shelf | None = None,
        name: str = "",
        secret: str = "",
        admit: Callable[[Bed], bool] | None = None,
    ) -> None:
        """shelf, name: where this stream is kept if it is to be, and as what. secret: their key. admit: see `Bed`."""
        self.engine, self.rival, self.shelf, self.name = engine, rival, shelf, name
        self.switch = Switch(engine, shelf, name, secret)
        self.forked = ""  # of what this is a fork, in a sentence
        self.watch: Watched | None = None
        self.prober = Prober()
        self.conversations = tuple(Conversation(partial(self._subject, model)) for model in (0, 1))
        self._upload: Source | None = None  # the visitor's file; stays while something else is watched
        self._comparing = False
        self._stream = 0  # the number of the stream being watched; watching it again keeps it
        self._undoable: Undoable | None = None
        self._questions = itertools.count(1)
        self._commands = threading.RLock()  # one command at a time; watching and answering do not take it
        self._reset_at = -math.inf
        self._closed = self._lost = False
        self.bed = Bed(lambda: self.watch, self._stays_awake, self._commands, admit)

    def view(self) -> View:
        """All that may be known of the stream, now. It never changes afterwards."""
        watch = self.watch if not self.lost else None
        upload = self._upload.upload if self._upload else None
        engines = [self.engine, self.rival] if self.rival else [self.engine]
        about = View(
            upload=str(upload) if upload and upload.exists() else None,  # Gradio cleans by age
            comparing=self._comparing,
            answering=any(conversation.busy for conversation in self.conversations),
            names=tuple(engine.name for engine in engines),
            conversations=tuple(conversation.turns for conversation in self.conversations),
            stream=self._stream,
            forgotten=self.conversations[0].forgotten,
            undo=held.deed if (held := self._undoable) else "",
            keeping=self.switch.on,
            encrypting=self.switch.encrypt,
            kept=self.switch.view(),
            forked=self.forked,
            recalled=self.prober.view(),
        )
        if self.lost:
            return replace(about, phase=Phase.ENDED, error=str(TakenOver()))
        return watch.view(about) if watch else about

    @property
    def lost(self) -> bool:
        """Whether another process goes on with the stream (pipeline/keeping/taking.py): nothing of it goes on here."""
        return self._lost or self.switch.lost

    def add_rule(self, text: str, cool_down: float | None = None) -> Rule:
        """Tells of it from now on, and where the model keeps an index also of what was seen. Raises UserError for what
        cannot be judged, and where nothing is watched. cool_down: seconds of the video between two alerts."""
        rule = self._watched("tell of").noticing.add_rule(clean(text), cool_down)
        self.bed.rouse_soon()
        return rule

    def remove_rule(self, number: int) -> None:
        """No more alerts of it; those that were sent stay."""
        if watch := self.watch:
            watch.noticing.remove_rule(number)

    def clip(self, at: float, out: str | Path) -> None:
        """Writes the seconds around a moment as an MP4; where there is a file it reads that. Raises UserError."""
        self._watched("cut").clip(at, out)

    def probe(self) -> None:
        """Asks what is remembered; the view's `recalled` grows. Raises UserError where nothing is watched."""
        self.prober.start(self.watch)

    def _watched(self, deed: str) -> Watched:
        self._check_open()
        if (watch := self.watch) is None:
            raise UserError(NOTHING_WATCHED.format(deed))
        return watch

    # The source

    def open_file(self, path: str | Path, source: str = UPLOAD, name: str = "") -> None:
        """Watches a file from its start; an upload through our own copy. name: for the page. What was said about
        another stream stays, but is not carried along to the questions about this one."""
        self._check_open()
        self.bed.take_place()
        path = Path(path)
        opened = uploads.take_over(path, name) if source == UPLOAD else Source(source, name, path)
        with self._commands:
            if self._closed:
                uploads.let_go(opened)
            self._check_open()
            before = self._upload if opened.upload else None
            self._upload = opened if opened.upload else self._upload
            self._start_another(opened, before)

    def open_camera(self, source: str = WEBCAM) -> None:
        """Watches what is offered from now on. source: a webcam, or a shared screen."""
        with self._commands:
            self._check_open()
            self._start_another(Source(source))

    def open_shared(self, shared: Shared) -> None:
        """Takes a seat at an operator's stream."""
        with self._commands:
            self._check_open()
            self._end_stream()
            self.switch.turn(False, None)
            self.watch, self.forked = Seat(shared, self.rival if self._comparing else None), ""

    def offer(self, rgb: np.ndarray, jpeg: bytes = b"") -> None:
        """A camera picture, uint8 (height, width, 3). Returns at once; starts the camera's stream where none runs.
        jpeg: what it was read from, so that it can be kept.

        Pictures that were on their way when the visitor pressed Reset start nothing.
        """
        watch = self.watch
        if watch is None or (watch.camera is None and not isinstance(watch, Seat)):
            if time.monotonic() - self._reset_at < LATE_S:
                return
            self.open_camera()
        if watch := self.watch:
            watch.offer(rgb, jpeg)

    def pause(self) -> None:
        if watch := self.watch:
            watch.pause()

    def resume(self) -> None:
        if watch := self.watch:
            watch.resume()

    def again(self) -> None:
        """The same source from its start, with nothing seen; what was said and what is to be told stay."""
        with self._commands:
            self._check_open()
            if isinstance(watch := self.watch, Watch):
                self.bed.take_place()
                self._end_watch()
                self._start(watch.source, watch.noticing.rules)

    def reset(self) -> None:
        """Forgets what was seen, the conversation and the file; `undo` brings them back for a while."""
        with self._commands:
            self.delete_kept()
            self._reset_at = time.monotonic()
            words, watch, upload = self._take_words(), self.watch, self._upload
            at_work = watch is not None and self.has_file and watch.view(View()).phase is Phase.WATCHING
            if watch:
                watch.pause()
            self.watch = self._upload = None
            self._undoable = Undoable(RESET, words, self._reset_at, watch, at_work, upload).after(self._undoable)

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
        return isinstance(watch, Watch) and watch.camera is None

    @property
    def holds_nothing(self) -> bool:
        """Whether nothing would be lost with it: no stream (or one of what was no video), no words, nothing to undo; or
        all of it goes on elsewhere."""
        words = any(conversation.turns for conversation in self.conversations)
        empty = self.watch is None or self.watch.came_to_nothing
        return self._lost or (empty and self._undoable is None and not words)

    def close(self) -> None:
        """Ends everything and deletes the visitor's file, pictures and words. May be called twice."""
        with self._commands:
            self._closed = True
            self._take_words()
            self._end()

    def _end(self) -> None:
        """All but what was said."""
        with self._commands:
            self._forget_undoable()
            self._end_watch()
            self._forget_upload()

    def _start_another(self, source: Source, before: Source | None = None) -> None:
        """What was reset cannot be brought back beside it: a visitor has one stream. before: a file that gives way."""
        self.bed.take_place()
        self._end_stream(before)
        self._start(source)

    def _end_stream(self, before: Source | None = None) -> None:
        self._end_watch(before)
        if self._undoable and self._undoable.deed == RESET:
            self._forget_undoable()
        self._stream += 1

    def _start(self, source: Source, rules: tuple[Rule, ...] = ()) -> None:
        start = Start(self.engine.start(), (Leg(source),), rules=rules)
        rival = self.rival if self._comparing else None
        self.watch, self.forked = Watch(source, self.engine, rival, start, admit=self.bed.admitted), ""
        self.switch.follow(self.watch)

    def _end_watch(self, file: Source | None = None) -> None:
        self.stop_answer()
        self.prober.stop()
        watch, self.watch = self.watch, None
        if watch:
            watch.close()
        self._forget_files(watch, file)
        self.switch.end(watch)

    def _forget_files(self, watch: Watched | None, file: Source | None) -> None:
        """A stream's files and one more, but for what is still the visitor's."""
        sources = [leg.source for leg in watch.legs] if watch else []
        uploads.let_all_go([*sources, *([file] if file else [])], but=self._upload)

    def _forget_upload(self) -> None:
        """The file goes at once: a worker in the middle of a chunk has it open, and needs no name for it."""
        if self._upload:
            uploads.let_go(self._upload)
        self._upload = None

    def _stays_awake(self) -> bool:
        """Whether something is being asked, or what was seen is to be written encrypted or not at all."""
        return any((self.switch.encrypt, self.prober.running, *(one.busy for one in self.conversations)))

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("This session was closed, so nothing was started; reload the page to begin a new one.")
        self._here()

    # Keeping

    def keep(self, on: bool, encrypt: bool = False) -> None:
        """Keeps what was and will be watched and said, encrypted or not, or writes no more; what is kept stays. Raises
        UserError."""
        with self._commands:
            self._check_open()
            self.switch.turn(on, self.watch, encrypt)

    def delete_kept(self) -> None:
        """All that is kept of this visitor's stream, at once; watching goes on, and nothing more is kept."""
        with self._commands:
            self.switch.delete(self.watch)

    def keep_words(self) -> None:
        """Writes what was said and noticed since this was called last, or gives up what was lost; for a clock."""
        if self.switch.lost:
            self._lost = True
            self._end()
        if keep := self.switch.keep:
            keep.said(tuple(conversation.turns for conversation in self.conversations))
            if watch := self.watch:
                keep.noticed(watch.noticing.events, watch.noticing.rules)

    def take_along(self) -> Generator[bytes, None, None]:
        """An archive of what is kept, piece by piece. Raises UserError, where nothing is kept too."""
        self.keep_words()
        return self.switch.taken_along()

    # Going on

    def go_on(self, back: Back) -> None:
        """Goes on with a stream as if nothing had happened: a kept one, or a fork of another session's."""
        with self._commands:
            self._check_open()
            for conversation, turns in zip(self.conversations, back.words):
                conversation.put_back(turns)
            self._questions = itertools.count(1 + max((turn.id for turns in back.words for turn in turns), default=0))
            source = back.start.legs[-1].source
            self._upload = source if source.upload else None
            self._stream = back.stream
            self.forked = back.forked
            self.switch.go_on(back.keep)
            self.watch = Watch(source, self.engine, None, back.start, back.keep, self.bed.admitted)

    def branch(self, at: float, other: LiveSession, video: int = 0) -> Back:
        """What another session goes on with as if this stream had been seen until a second of it and no further; it
        stands there. This one stays as it is. video: bytes of a file that is to follow. Raises UserError where nothing
        was seen, or not so early."""
        with self._commands:
            self._check_open()
            self.keep_words()
            words = tuple(conversation.turns for conversation in self.conversations)
            back = forking.branch(self.watch, self.bed.rouse, self.switch, other.switch, words, at, video)
            return back._replace(stream=self._stream)

    def join(self, timeout: float) -> None:
        """After `close`: waits for what is still being written or asked."""
        self.switch.join(timeout)
        self.prober.join(timeout)

    # Asking

    def ask(self, text: str, at: float | None = None) -> int:
        """The number of a new question to every model that is compared. It is answered when its turn has come, and
        what is asked in the first moment waits for the first picture.

        at: second of the video it is about, None for "as of now". Raises UserError where too many wait already.
        """
        with self._commands:
            self._check_open()
            if any(conversation.full() for conversation in self.conversations):
                raise UserError(FULL)
            return self._put(Answering(self._turn(clean(text), at), 1 + self._comparing))

    def retry(self) -> int | None:
        """The number of a new question: the newest one that was begun, once more. An answer to it that is being
        written ends; its turn stays until the new answer begins."""
        with self._commands:
            begun = [turn for turn in self.conversations[0].turns if not turn.place]
            if not begun or begun[-1].again:
                return None
            last = begun[-1]
            self.stop_answer(last.id)
            at = last.at if last.stream == self._stream else None
            again = replace(self._turn(last.question, at), repeats=last.repeats + 1, retry_of=last.first)
            return self._put(Answering(again, 1 + self._comparing, instead_of=last.id))

    def withdraw(self, question: int) -> None:
        """Takes a question back; where its answer was begun, it stays."""
        for conversation in self.conversations:
            conversation.withdraw(question)

    def stop_answer(self, question: int | None = None) -> None:
        """Ends every answer being written (to that question) within one token. Questions that wait stay in line."""
        for conversation in self.conversations:
            conversation.stop(question)

    def mark(self, question: int, model: int, wrong: bool) -> None:
        """The visitor says that a model's answer is wrong, or takes that back. Kept with the turn and sent nowhere."""
        if model in range(len(self.conversations)):
            self.conversations[model].mark(question, wrong)

    def follow(self, model: int = 0) -> Iterator[None]:
        """At once and whenever something of a model's conversation changes, until all is answered."""
        return self.conversations[model].follow()

    def answer(self, question: int, model: int = 0) -> Iterator[Answer]:
        """A model's Answer to the question as it grows, from the empty one on; watching goes on meanwhile.

        Yields nothing for a question that is not known (any more) or was not put to this model, and no more where it
        ends in an error.
        """
        return self.conversations[model].answers(question)

    # Clearing, and taking that back

    def clear_chat(self) -> None:
        """Forgets the conversations, not what was seen. `undo` brings them back for a while."""
        with self._commands:
            if any(conversation.turns for conversation in self.conversations):
                self._undoable = Undoable(CLEAR, self._take_words(), time.monotonic()).after(self._undoable)

    def undo(self) -> bool:
        """Takes the newest Clear or Reset back; whether there was one."""
        with self._commands:
            held, self._undoable = self._undoable, None
            if held is None:
                return False
            if held.deed == RESET:
                self.watch, self._upload = held.watch or self.watch, held.upload or self._upload
            if held.watch and held.at_work:
                held.watch.resume()
            for conversation, turns in zip(self.conversations, held.words):
                conversation.put_back(turns)
            return True

    def let_go_of_undoable(self, older_than: float = UNDO_S) -> None:
        """Forgets for good what was cleared or reset so many seconds ago."""
        with self._commands:
            if self._undoable and time.monotonic() - self._undoable.since >= older_than:
                self._forget_undoable()

    def _forget_undoable(self) -> None:
        held, self._undoable = self._undoable, None
        if held:
            if held.watch:
                held.watch.close()
            self._forget_files(held.watch, held.upload)

    def _take_words(self) -> tuple[tuple[Turn, ...], ...]:
        return tuple(conversation.take_out() for conversation in self.conversations)

    def _turn(self, text: str, at: float | None) -> Turn:
        return Turn(next(self._questions), text, at, stream=self._stream)

    def _put(self, answering: Answering) -> int:
        self.bed.wanted()
        for conversation in self.conversations[: answering.models]:
            conversation.put(answering)
        return answering.turn.id

    def _subject(self, model: int, answering: Answering) -> Subject:
        """What a question is put to, once there is a first picture. Raises UserError where its stream is over."""
        engine = self.rival if model and self.rival else self.engine
        return awaited(answering, model, engine, self._here, self.bed.rouse)

    def _here(self) -> tuple[Watched | None, int]:
        """The stream and its number. Raises UserError where it goes on elsewhere."""
        if self.lost:
            raise TakenOver
        return self.watch, self._stream
