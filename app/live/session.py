"""LiveSession: one visitor's stream and conversation, the only mutable thing of the page; and the table of them.

A session is reached by a random 128-bit key and by nothing else. Gradio's own session hash is guessable and its State
is not storage (it is dropped by capacity without a word), so the page keeps only our key there.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from app.live import uploads
from app.live.watching import Column, Watch
from pipeline import Answer, Engine, Question, Sampling, UserError

log = logging.getLogger(__name__)

PLACES = 8  # visitors at once; each holds a state, a memory and one worker
IDLE_S = 600  # a session without a file is closed after so long without a sign of its page
KEEP_S = 3600  # one with a file goes on watching, and keeps what it saw, for so long without its page
LEFT_S = 6  # after the page said goodbye; a reconnecting page shows itself within a second
UNUSED_S = 30  # without a stream and without a sign of its page: gives way to a newcomer
TURNS = 100  # kept of a conversation
ISSUED = 10_000  # keys of pages that have not started anything; each is one short string
LATE_S = 2.0  # camera pictures may still arrive for so long after Reset
HISTORY = 4  # earlier turns a question carries along


@dataclass(frozen=True)
class Turn:
    """A question, and the answer as far as it is written. `error` is a sentence where there is no answer.

    pictures: JPEGs of the answer's moments, kept with it so that they outlive the stream's own thumbnails.
    """

    question: str
    at: float | None = None
    answer: Answer | None = None
    error: str = ""
    pictures: tuple[bytes | None, ...] = ()


class LiveSession:
    """One visitor: a source being watched, one conversation per engine, and a private folder."""

    def __init__(self, engine: Engine, rival: Engine | None = None) -> None:
        self.engine, self.rival = engine, rival
        self.comparing = False
        self.watch: Watch | None = None
        self.chats: tuple[list[Turn], list[Turn]] = ([], [])  # one per column
        self.first_tokens: tuple[list, list] = ([], [])  # per column: (second of the video, wall seconds)
        self.source, self.file_name = "", ""  # the name as the visitor wrote it; only ever shown escaped
        self.repeats = 0  # how often the newest question was asked again
        self.shown: dict[str, str] = {}  # what the page shows already, so that only changes travel
        self.touched = time.monotonic()
        self.left: float | None = None
        self._writing = (threading.Lock(), threading.Lock())  # one answer at a time per column
        self._stop = threading.Event()
        self._commands = threading.RLock()  # one command at a time; watching and asking do not take it
        self._reset_at = -math.inf
        self._own: Path | None = None  # our copy of the file
        self._upload: Path | None = None  # Gradio's copy, which the player shows
        self._closed = False

    # Watching

    def open_file(self, path: str | Path, source: str = "Upload", name: str = "") -> None:
        """Watches a file from its start, in a new conversation; an upload through our own copy. name: for the page."""
        with self._commands:
            self._check_open()
            self._take_file(Path(path), uploaded=source == "Upload")
            self._new_stream(source, name)
            self._start(self._own or Path(path))

    def open_camera(self) -> None:
        """Watches what is offered from now on."""
        with self._commands:
            self._check_open()
            self._new_stream("Webcam", "")
            self._start(None)

    def offer(self, rgb: np.ndarray) -> None:
        """A camera picture, uint8 (height, width, 3). Returns at once; starts the camera's stream where none runs.

        Pictures that were on their way when the visitor pressed Reset start nothing.
        """
        watch = self.watch
        if watch is None or watch.camera is None or watch.ended:
            if time.monotonic() - self._reset_at < LATE_S:
                return
            self.open_camera()
        if watch := self.watch:
            watch.offer(rgb)

    def pause(self) -> None:
        if self.watch:
            self.watch.pause()

    def resume(self) -> None:
        if self.watch:
            self.watch.resume()

    def again(self) -> None:
        """The same source from its start, with nothing seen."""
        with self._commands:
            self._check_open()
            if self.watch is not None:
                self._start(self.watch.path)

    def reset(self) -> None:
        """Forgets what was seen, the conversation and the file."""
        with self._commands:
            self._reset_at = time.monotonic()
            self._end_watch()
            self._new_stream("", "")
            self._delete_copy()
            if self._upload:
                uploads.give_up(self._upload)
            self._upload = None

    def compare(self, on: bool) -> None:
        """Adds or removes the second engine. For a file it first sees what the other has seen."""
        with self._commands:
            self.comparing = on and self.rival is not None
            if self.watch and self.comparing and len(self.watch.columns) == 1:
                self.watch.add(self.rival)
            elif self.watch and not self.comparing:
                self.watch.remove_second()

    def column(self, index: int) -> Column | None:
        columns = self.watch.columns if self.watch else []
        return columns[index] if index < len(columns) else None

    def _new_stream(self, source: str, name: str) -> None:
        self.source, self.file_name = source, name
        self.clear_chat()

    def _start(self, path: Path | None) -> None:
        self._end_watch()
        for measured in self.first_tokens:
            measured.clear()
        engines = [self.engine, self.rival] if self.comparing and self.rival else [self.engine]
        self.watch = Watch(engines, path)

    def _end_watch(self) -> None:
        self.stop_answer()
        if self.watch:
            self.watch.close()
        self.watch = None

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("This session was closed, so nothing was started; reload the page to begin a new one.")

    def _take_file(self, path: Path, uploaded: bool) -> None:
        before, self._upload = self._upload, path if uploaded else None
        if uploaded:
            uploads.use(path)
        if before:
            uploads.give_up(before)
        self._end_watch()
        self._delete_copy()
        self._own = uploads.own_copy(path) if uploaded else None

    def _delete_copy(self) -> None:
        if self._own:
            uploads.delete_copy(self._own)
        self._own = None

    # Asking

    def ask(self, text: str, at: float | None = None, column: int = 0, again: int = 0) -> Iterator[Answer]:
        """Grows the newest turn of a column's chat and yields its Answer, token by token; watching goes on meanwhile.

        The first Answer is empty and comes at once, so that the question shows while its answer is being thought of.

        at: second of the video the question is about, None for "as of now". again: how often it was asked before;
        from the first repetition on the words are drawn at random, or the answer would be the same.
        Errors a visitor can mend end up as the turn's `error`, not as an exception.
        """
        chat = self.chats[column]
        if not self._writing[column].acquire(blocking=False):
            raise UserError("The last answer is still being written, so this question waits; press Stop first.")
        try:
            self._stop.clear()
            turn = Turn(clean(text), at)
            question = Question(turn.question, self._history(chat), at)
            chat.append(turn)
            del chat[:-TURNS]
            yield Answer("", 0.0, 0.0)
            sampling = Sampling(temperature=0.7, top_p=0.9, seed=again) if again else Sampling()
            yield from self._answers(question, turn, column, sampling)
        finally:
            self._writing[column].release()

    def _answers(self, question: Question, turn: Turn, column: int, sampling: Sampling) -> Iterator[Answer]:
        watched, answers = self.column(column), None
        state = watched.settled if watched else (self.rival if column else self.engine).start()
        try:
            answers = (self.rival if column else self.engine).ask(question, state, sampling, self._stop)
            for answer in answers:
                turn = self._grow(turn, answer, column)
                yield answer
        except UserError as error:
            self._replace(column, turn, replace(turn, error=str(error)))
        except GeneratorExit:  # the page went away in mid-answer: what was written stays, marked as cut
            if turn.answer and not turn.answer.done:
                self._replace(column, turn, replace(turn, answer=replace(turn.answer, done=True, stopped=True)))
            raise
        except Exception:
            log.exception("answering failed")
            sentence = "Something failed on our side, so there is no answer; what was seen is safe, please ask again."
            self._replace(column, turn, replace(turn, error=sentence))
        finally:
            if answers is not None:
                answers.close()

    def _grow(self, turn: Turn, answer: Answer, column: int) -> Turn:
        if turn.answer is None and answer.first_token_s is not None:
            self.first_tokens[column].append((answer.seen_until, answer.first_token_s))
        pictures = turn.pictures
        if answer.done and self.watch:
            pictures = tuple(self.watch.thumbnails.near(moment.time) for moment in answer.evidence)
        grown = replace(turn, answer=answer, pictures=pictures)
        self._replace(column, turn, grown)
        return grown

    def _replace(self, column: int, old: Turn, new: Turn) -> None:
        """Turns are values; the chat may have been cleared while this one was written."""
        chat = self.chats[column]
        if chat and chat[-1] is old:
            chat[-1] = new

    def _history(self, chat: list[Turn]) -> tuple[tuple[str, str], ...]:
        done = [(turn.question, turn.answer.text) for turn in chat if turn.answer and turn.answer.text]
        return tuple(done[-HISTORY:])

    @property
    def answering(self) -> bool:
        return any(lock.locked() for lock in self._writing)

    def stop_answer(self) -> None:
        """Ends answers being written within one token."""
        self._stop.set()

    def finish_answer(self, patience: float = 5.0) -> None:
        """Ends answers being written, and waits for their last token."""
        self.stop_answer()
        for writing in self._writing:
            if writing.acquire(timeout=patience):
                writing.release()

    def take_back(self) -> Turn | None:
        """Removes the newest turn of every column, to ask it again; None where there is none."""
        self.repeats += 1
        last = self.chats[0][-1] if self.chats[0] else None
        for chat in self.chats:
            if chat:
                chat.pop()
        return last

    def clear_chat(self) -> None:
        """Forgets the conversation, not what was seen."""
        self.stop_answer()
        for chat in self.chats:
            chat.clear()

    # Living and ending

    @property
    def upload(self) -> str | None:
        """Where Gradio keeps the visitor's file for the player, while it is there (it cleans by age)."""
        return str(self._upload) if self._upload and self._upload.exists() else None

    @property
    def has_file(self) -> bool:
        return self.watch is not None and self.watch.path is not None

    def touch(self) -> None:
        """The page is there."""
        self.touched, self.left = time.monotonic(), None

    def overdue(self, now: float) -> bool:
        """Whether nobody will come back, on a monotonic clock (a changed wall clock must not end a stream)."""
        if self.has_file:
            return now - self.touched > KEEP_S
        return now - self.touched > IDLE_S or (self.left is not None and now - self.left > LEFT_S)

    def expendable(self, now: float) -> bool:
        """Whether this session gives way to a newcomer: its page has gone, or it holds nothing and is not looked at."""
        return self.left is not None or (self.watch is None and now - self.touched > UNUSED_S)

    def close(self) -> None:
        """Ends everything and deletes the visitor's file, pictures and words. May be called twice."""
        with self._commands:
            self._closed = True
            self.reset()


class Sessions:
    """The sessions of a server by key: a bounded number, freed when their page has gone."""

    def __init__(self, engine: Engine, rival: Engine | None = None, places: int = PLACES) -> None:
        self.engine, self.rival, self.places = engine, rival, places
        self._by_key: dict[str, LiveSession] = {}
        self._pages: dict[str, str] = {}  # Gradio's page hash -> key; only to hear of a closed tab
        self._issued: dict[str, None] = {}  # keys without a session, oldest first
        self._lock = threading.Lock()
        self._closing = threading.Event()
        threading.Thread(target=self._reap_for_ever, name="reaper", daemon=True).start()

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: str | None, page: str | None = None) -> LiveSession | None:
        """The session of a key, touched; None for a key that is unknown, foreign or over. page: who is there now."""
        session = self._by_key.get(key) if isinstance(key, str) else None
        if session:
            session.touch()
            if page:
                self._pages[page] = key
        return session

    def issue(self) -> str:
        """A key for a page that was opened. It takes no place until something is started with it.

        Without one, a question sent while a file was arriving found a session of its own, which had seen nothing.
        """
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._issued[key] = None
            while len(self._issued) > ISSUED:
                del self._issued[next(iter(self._issued))]
        return key

    def awaits(self, key: str | None) -> bool:
        """Whether the key was issued and nothing was started with it yet."""
        return isinstance(key, str) and key in self._issued

    def ensure(self, key: str | None, page: str | None = None) -> tuple[str, LiveSession]:
        """The session of a key; or a new one, under that key if it was issued and under a new one if not.

        Raises UserError when every place is taken.
        """
        with self._lock:
            session, retired = self.get(key, page), None
            if session is None:
                retired = self._make_room()
                key = key if self.awaits(key) else secrets.token_urlsafe(16)
                self._issued.pop(key, None)
                session = self._by_key[key] = LiveSession(self.engine, self.rival)
                if page:
                    self._pages[page] = key
        if retired:
            retired.close()
        return key, session

    def _make_room(self) -> LiveSession | None:
        """Takes out the session that nobody has looked at for longest, where every place is taken."""
        if len(self._by_key) < self.places:
            return None
        gone = [key for key, session in self._by_key.items() if session.expendable(time.monotonic())]
        if not gone:
            raise UserError(
                f"All {self.places} places are taken at the moment, so nothing was started; please try again in a "
                "few minutes."
            )
        return self._by_key.pop(min(gone, key=lambda key: self._by_key[key].touched))

    def leave(self, page: str | None) -> None:
        """A page said goodbye. A dropped connection looks the same, so a session with a file only becomes the
        first to make room; it is kept for `KEEP_S`."""
        session = self._by_key.get(self._pages.get(page, ""))
        if session:
            session.left = time.monotonic()

    def close(self, key: str | None) -> None:
        """Frees a session at once; a key that is not there is no error."""
        with self._lock:
            session = self._by_key.pop(key, None) if isinstance(key, str) else None
        if session:
            session.close()

    def reap(self, now: float | None = None) -> int:
        """Closes what is overdue; returns how many."""
        now = time.monotonic() if now is None else now
        overdue = [key for key, session in list(self._by_key.items()) if session.overdue(now)]
        for key in overdue:
            self.close(key)
        with self._lock:
            self._pages = {page: key for page, key in self._pages.items() if key in self._by_key}
        return len(overdue)

    def _reap_for_ever(self) -> None:
        while not self._closing.wait(2.0):
            try:
                self.reap()
                uploads.sweep()
            except Exception:  # a reaper that dies keeps every later visitor's memory for ever
                log.exception("closing a finished session failed")

    def shut(self) -> None:
        """Closes every session; for the end of the server and for tests."""
        self._closing.set()
        for key in list(self._by_key):
            self.close(key)


def clean(text: object) -> str:
    """A visitor's text as UTF-8 can carry it: a lone surrogate breaks the event stream, a NUL most tools."""
    return str(text or "").encode("utf-8", "replace").decode().replace("\0", "").strip()
