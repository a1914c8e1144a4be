"""For tests of the page: a small deterministic Model that remembers mean colours, and a small coloured clip."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from app.live.view import Phase
from pipeline import Answer, Engine, StreamState, UserError
from pipeline.stream import Model, Token

RED, BLUE = (200, 20, 20), (20, 20, 200)


class FakeModel(Model):
    """Sees the mean colour of every frame. watch_s, token_s: seconds a frame and a token take."""

    unit_frames, long_side, backend = 1, 224, "cpu, fp32"
    caption_question = ""  # it is asked what a test asks, and nothing else
    about = "A counting model for tests: it knows when it saw which colour, and nothing else."

    def __init__(self, name="Fake Vamba", watch_s=0.0, token_s=0.0, grow=3_000, constant=290_000) -> None:
        self.name, self.watch_s, self.token_s, self.grow, self.constant = name, watch_s, token_s, grow, constant
        self.fail_at: float | None = None  # the second of the video at which watching fails, once
        self.refuses: set[int] = set()  # seconds whose chunk fails every time
        self.samplings: list = []
        self.gate = threading.Event()  # cleared: watching waits
        self.gate.set()
        self.watching = False
        self.speaks = threading.Event()  # cleared: answering waits
        self.speaks.set()

    def start(self) -> StreamState:
        return StreamState((), state_bytes=self.constant)

    def chunk_frames(self, backlog: int) -> int:
        return min(backlog, 4)

    def watch(self, chunk, state):
        self.watching = True
        self.gate.wait()
        self.watching = False
        time.sleep(self.watch_s * len(chunk.frames))
        if self.fail_at is not None and chunk.frames[-1].time >= self.fail_at:
            self.fail_at = None
            raise UserError("The numbers overflowed, so that part was left out; go on watching.")
        if self.refuses & {round(frame.time) for frame in chunk.frames}:
            raise UserError("The numbers overflowed, so that part was left out; go on watching.")
        seen = tuple((frame.time, tuple(int(c) for c in frame.rgb.mean((0, 1)))) for frame in chunk.frames)
        return replace(
            state,
            inner=state.inner + seen,
            frames=state.frames + len(seen),
            seen_until=chunk.seen_until,
            memory_bytes=state.memory_bytes + self.grow * len(seen),
        )

    def ask(self, question, state, sampling):
        """`F frames, last (r, g, b), N turns before: the question`, resting on the middle of what was seen."""
        self.samplings.append(sampling)
        times = np.array([at for at, _ in state.inner])
        weights = np.exp(-0.5 * ((times - times.mean()) / 1.5) ** 2)
        last, turns = state.inner[-1][1], len(question.history)
        words = f"{state.frames} frames, last {last}, {turns} turns before: {question.text}"
        for index, word in enumerate(words.split(" ")):
            self.speaks.wait()
            time.sleep(self.token_s)
            yield Token(index, word if index == 0 else f" {word}", (times, weights / weights.sum()))


def fake_engine(*args, **options) -> Engine:
    return Engine(FakeModel(*args, **options))


def picture(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((48, 64, 3), colour, np.uint8)


def write_clip(path: Path, seconds: int = 12, fps: int = 5) -> Path:
    """A small H.264 clip: the first half red, the second half blue."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(seconds * fps):
            rgb = picture((200, 20, 20) if index < seconds * fps / 2 else (20, 20, 200))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return path


def ended(session) -> bool:
    """Whether a session's stream is over."""
    return session.view().phase is Phase.ENDED


def seen(session, model: int = 0) -> tuple:
    """(second, mean colour) of every frame a model of the session has seen."""
    return session.watch.viewing(model).state.inner


def asked(session, text: str, model: int = 0, at: float | None = None):
    """A new question's growing answer by one model; the question is put at once."""
    question = session.ask(text, at)
    return session.answer(question, model)


def whole(answers) -> Answer:
    """The last, whole answer."""
    return list(answers)[-1]


def until(true, seconds: float = 10.0) -> None:
    """Waits until true() holds; fails when it does not within so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
