"""The engine's promises with a model small enough to read: turns, stop, snapshots, refusals.

`ColourModel` really watches and really answers, in microseconds: it remembers every frame's mean colour and, asked
for a colour, looks at the frames that have it. So engine logic is tested without weights.
"""

import threading
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import Engine, Frame, Question, Sampling, StreamState, UserError, VideoChunk, mmss
from pipeline.engine import ANSWER_TOKENS, QUESTION_CHARACTERS, Overflowed, checked
from pipeline.stream import Model, Token
from pipeline.turns import Flow
from pipeline.works import Chunk

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (90, 90, 90)}


class ColourModel(Model):
    """A Model whose memory is (times, mean colours) and whose answers name the second a colour was strongest."""

    name = "Colour model"
    unit_frames = 2
    long_side = 16

    def __init__(self, watch_s: float = 0.0, token_s: float = 0.0) -> None:
        self.watch_s, self.token_s = watch_s, token_s
        self.drawn = self.closed = 0

    def start(self) -> StreamState:
        return StreamState(())

    def watch(self, chunk: VideoChunk, state: StreamState) -> StreamState:
        time.sleep(self.watch_s)
        seen = state.inner + tuple((f.time, *f.rgb.reshape(-1, 3).mean(0)) for f in chunk.frames)
        return replace(
            state, inner=seen, frames=len(seen), seen_until=seen[-1][0], state_bytes=64, memory_bytes=32 * len(seen)
        )

    def ask(self, question, state, sampling):
        times, colours = np.hsplit(np.array(state.inner, np.float64), [1])
        wanted = next((rgb for name, rgb in COLOURS.items() if name in question.text.lower()), (0, 0, 0))
        score = -np.linalg.norm(colours - np.array(wanted), axis=1) / 20
        weights = np.exp(score - score.max())
        weights /= weights.sum()
        words = f"I saw that at {mmss(times[weights.argmax(), 0])} of {len(times)} frames .".split()
        try:
            for index in range(sampling.max_tokens):
                time.sleep(self.token_s)
                self.drawn += 1
                yield Token(index, words[index] + " " if index < len(words) else "again ", (times[:, 0], weights))
        finally:
            self.closed += 1


def frame(second: float, colour: str = "grey", noise: int = 0) -> Frame:
    rng = np.random.default_rng(int(second * 10))
    rgb = np.full((8, 8, 3), COLOURS[colour], np.int16) + rng.integers(-noise, noise + 1, (8, 8, 3))
    return Frame(np.clip(rgb, 0, 255).astype(np.uint8), float(second))


def chunk(*seconds: float, colour: str = "grey") -> VideoChunk:
    return VideoChunk(tuple(frame(s, colour) for s in seconds))


def watched(engine: Engine, frames: list[Frame]) -> StreamState:
    return engine.watch(VideoChunk(tuple(frames)), engine.start())


# --- turns -----------------------------------------------------------------------------------------------------------


def word_is_waited_for(engine: Engine) -> bool:
    return any(work.flow is Flow.ANSWERS for work in list(engine._turns._line._waiting))


def until(true) -> None:
    """Waits until true() holds; fails after ten seconds."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.0005)


class Timed(ColourModel):
    """Takes its time on a clock of its own, which nothing else moves."""

    def __init__(self, frame_s: float, word_s: float) -> None:
        super().__init__()
        self.frame_s, self.word_s, self.now, self.spent = frame_s, word_s, 0.0, {"frames": 0.0, "words": 0.0}
        self.chunks: list[int] = []
        self.meanwhile = lambda: None  # what happens while a chunk is watched

    def clock(self) -> float:
        return self.now

    def watch(self, chunk, state):
        self._take("frames", self.frame_s * len(chunk.frames))
        self.chunks.append(len(chunk.frames))
        self.meanwhile()
        return super().watch(chunk, state)

    def ask(self, question, state, sampling):
        for token in super().ask(question, state, sampling):
            self._take("words", self.word_s)
            yield token

    def _take(self, what: str, seconds: float) -> None:
        self.now += seconds
        self.spent[what] += seconds


@pytest.mark.parametrize("watchers", [1, 4])
@pytest.mark.parametrize(("frame_s", "word_s"), [(0.015, 0.04), (0.003, 0.02), (0.05, 0.01)])
def test_an_answer_gets_half_of_the_time_beside_files(watchers, frame_s, word_s):
    """However many files are watched without a pause, and however long their chunks are: theirs are cut meanwhile."""
    model = Timed(frame_s, word_s)
    engine, ended = Engine(model, model.clock), threading.Event()
    state, chunk_of_16 = watched(engine, [frame(0), frame(1)]), chunk(*range(2, 18))

    def watch_for_ever() -> None:
        while not ended.is_set():
            engine.watch(chunk_of_16, state)

    threads = [threading.Thread(target=watch_for_ever) for _ in range(watchers)]
    for thread in threads:
        thread.start()
    answers = engine.ask(Question("grey?"), state, Sampling(max_tokens=60))
    model.meanwhile = lambda: until(lambda: ended.is_set() or word_is_waited_for(engine))  # they read quickly
    next(answers)
    model.spent, model.chunks = {"frames": 0.0, "words": 0.0}, []
    while next(answers).tokens < 60:
        pass
    spent, slices = dict(model.spent), list(model.chunks)
    ended.set()
    answers.close()
    for thread in threads:
        thread.join(5)
    a_slice = max(frame_s * model.unit_frames, 0.03)
    assert spent["words"] >= 59 * word_s * 0.99 and spent["frames"] <= spent["words"] + 16 * frame_s + a_slice
    assert max(slices[1:], default=0) * frame_s <= a_slice + 1e-9


def test_nobody_waits_and_chunks_stay_whole():
    model = Timed(0.01, 0.01)
    engine = Engine(model, model.clock)
    state = watched(engine, [frame(0)])
    list(engine.ask(Question("grey?"), state, Sampling(max_tokens=3)))
    engine.watch(chunk(*range(1, 17)), state)
    unread = engine.ask(Question("grey?"), state)
    next(unread)
    model.now += 10  # the reader went away
    engine.watch(chunk(*range(1, 17)), state)
    assert model.chunks == [1, 16, 16]


def test_a_chunk_in_slices_is_the_chunk():
    model = Timed(0.01, 0.01)
    engine = Engine(model, model.clock)
    state = watched(engine, [frame(0)])
    answers = engine.ask(Question("grey?"), state)
    next(answers)
    model.now += 0.5  # too long to be waited for, too short to be taken for gone
    seen = engine.watch(chunk(*range(1, 18)), state)
    assert len(model.chunks) > 5 and seen.inner == watched(Engine(ColourModel()), [frame(s) for s in range(18)]).inner


def test_an_open_answer_that_nobody_reads_holds_nobody_up():
    engine = Engine(ColourModel())
    state = watched(engine, [frame(0)])
    answer = engine.ask(Question("grey?"), state)
    next(answer)
    done = threading.Event()
    threading.Thread(target=lambda: engine.watch(chunk(1), state) and done.set(), daemon=True).start()
    assert done.wait(5)


def test_a_failing_watch_gives_its_turn_back():
    class Broken(ColourModel):
        def watch(self, chunk, state):
            raise RuntimeError("broken")

    engine = Engine(Broken())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            engine.watch(chunk(0), engine.start())


# --- answers ---------------------------------------------------------------------------------------------------------


def test_an_answer_grows_and_the_last_one_is_whole():
    engine = Engine(ColourModel(token_s=0.01))
    state = watched(engine, [frame(s) for s in range(3)])
    answers = list(engine.ask(Question("grey?"), state, Sampling(max_tokens=7)))
    assert [a.tokens for a in answers] == [1, 2, 3, 4, 5, 6, 7, 7]
    assert all(later.text.startswith(sooner.text) for sooner, later in pairwise(answers))
    assert [a.done for a in answers] == [False] * 7 + [True] and not answers[-1].stopped
    assert answers[-1].first_token_s >= 0.01
    assert answers[0].tokens_per_s is None and 2 < answers[-1].tokens_per_s <= 100


@pytest.mark.parametrize("tokens", [1, 3])
def test_stop_comes_within_one_token(tokens):
    model, stop = ColourModel(), threading.Event()
    engine = Engine(model)
    answers = []
    for answer in engine.ask(Question("grey?"), watched(engine, [frame(0)]), stop=stop):
        answers.append(answer)
        if answer.tokens == tokens:
            stop.set()
    assert model.drawn == tokens and model.closed == 1
    assert answers[-1].done and answers[-1].stopped and answers[-1].tokens == tokens


def test_stop_while_waiting_for_a_turn_draws_no_token():
    began, gate = threading.Event(), threading.Event()

    class Slow(ColourModel):
        def watch(self, chunk, state):
            if state.frames:
                began.set()
                gate.wait(5)
            return super().watch(chunk, state)

    model, stop, last = Slow(), threading.Event(), []
    engine = Engine(model)
    state = watched(engine, [frame(0)])
    answers = engine.ask(Question("grey?"), state, stop=stop)
    next(answers)
    watcher = threading.Thread(target=engine.watch, args=(chunk(1), state))
    watcher.start()
    assert began.wait(5)
    reader = threading.Thread(target=lambda: last.extend(answers))
    reader.start()
    until(lambda: word_is_waited_for(engine))
    stop.set()
    gate.set()
    for thread in (watcher, reader):
        thread.join(5)
    assert model.drawn == 1 and last[-1].stopped


def test_stopping_after_the_end_is_not_stopped():
    stop = threading.Event()
    engine = Engine(ColourModel())
    for answer in engine.ask(Question("grey?"), watched(engine, [frame(0)]), Sampling(max_tokens=2), stop):
        if answer.tokens == 2:
            stop.set()
    assert answer.done and not answer.stopped


def test_closing_early_closes_the_model_and_frees_the_turn():
    model = ColourModel()
    engine = Engine(model)
    state = watched(engine, [frame(0)])
    answers = engine.ask(Question("grey?"), state)
    next(answers)
    answers.close()
    assert model.drawn == 1 and model.closed == 1
    assert engine.watch(chunk(1), state).frames == 2


def test_the_models_stream_is_closed_even_when_somebody_else_holds_it():
    closed = []

    class Stream:  # not a generator: nothing closes it by itself
        def __iter__(self):
            return self

        def __next__(self):
            return Token(0, "la ")

        def close(self):
            closed.append(True)

    model = ColourModel()
    model.ask = lambda *_: Stream()
    engine = Engine(model)
    for answer in engine.ask(Question("sing"), watched(engine, [frame(0)]), Sampling(max_tokens=2)):
        assert bool(closed) == answer.done
    assert closed == [True]


def test_a_model_that_never_ends_is_cut_at_max_tokens():
    class Endless(ColourModel):
        def ask(self, question, state, sampling):
            while True:
                yield Token(0, "la ")

    engine = Engine(Endless())
    *_, last = engine.ask(Question("sing"), watched(engine, [frame(0)]), Sampling(max_tokens=9))
    assert last.text == "la " * 9 and last.done and not last.stopped and last.evidence == ()


def test_an_old_state_is_a_snapshot():
    """Watching on and asking leave it as it was: the same question to it gives the same answer."""
    engine = Engine(ColourModel())
    early = watched(engine, [frame(0), frame(1, "red")])
    before = [replace(a, first_token_s=0, tokens_per_s=0) for a in engine.ask(Question("red?"), early)]
    late = engine.watch(chunk(2, 3, colour="red"), early)
    assert list(engine.ask(Question("red?"), late))[-1].text != before[-1].text
    after = [replace(a, first_token_s=0, tokens_per_s=0) for a in engine.ask(Question("red?"), early)]
    assert after == before and early.frames == 2


def test_the_clock_of_an_answer():
    engine = Engine(ColourModel())
    state = watched(engine, [frame(0), frame(10)])

    def asked(question: Question, state: StreamState = state) -> tuple[float, float]:
        answer = next(engine.ask(question, state))
        return answer.asked_at, answer.seen_until

    assert asked(Question("grey?")) == (10, 10)
    assert asked(Question("grey?", at=4.5)) == (4.5, 10)
    assert asked(Question("grey?", at=0.0)) == (0, 10), "the first second is a time, not 'no time'"
    assert asked(Question("grey?"), replace(state, held=(frame(11),))) == (11, 11)


def test_the_model_gets_the_pinned_time_and_clean_text():
    got = []

    class Listening(ColourModel):
        def ask(self, question, state, sampling):
            got.append(question)
            return super().ask(question, state, sampling)

    engine = Engine(Listening())
    list(engine.ask(Question("  a\0b \ud800? ", at=3.0), watched(engine, [frame(0)])))
    assert got[0].at == 3.0 and got[0].text == "ab ??"


# --- refusals --------------------------------------------------------------------------------------------------------


def one_sentence(error: pytest.ExceptionInfo) -> bool:
    text = str(error.value)
    return text.endswith(".") and text.count(". ") == 0 and "/" not in text


@pytest.mark.parametrize(
    "question",
    [Question(""), Question(" \0\n"), Question("x" * (QUESTION_CHARACTERS + 1))]
    + [Question("when?", at=at) for at in (-1.0, float("nan"), float("inf"))],
)
def test_questions_that_cannot_be_asked(question):
    engine = Engine(ColourModel())
    with pytest.raises(UserError) as error:
        engine.ask(question, watched(engine, [frame(0)]))  # at once, not at the first token
    assert one_sentence(error)


def test_earlier_turns_are_cleaned_like_the_question():
    """A lone surrogate or a NUL in a remembered answer broke the tokenizer, or cut the text."""
    question = checked(Question("hi", (("a\ud800", "b\0c"),)), Sampling())
    assert question.history == (("a?", "bc"),)


def test_the_longest_question_is_asked():
    engine = Engine(ColourModel())
    assert next(engine.ask(Question("x" * QUESTION_CHARACTERS), watched(engine, [frame(0)]))).tokens == 1


def test_asking_before_anything_was_seen():
    engine = Engine(ColourModel())
    with pytest.raises(UserError) as error:
        engine.ask(Question("grey?"), engine.start())
    assert one_sentence(error)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(max_tokens=n) for n in (0, -1, ANSWER_TOKENS + 1)]
    + [Sampling(temperature=-0.1), Sampling(temperature=float("nan")), Sampling(top_p=0.0), Sampling(top_p=1.1)],
)
def test_sampling_no_model_can_follow(sampling):
    engine = Engine(ColourModel())
    with pytest.raises(UserError) as error:
        engine.ask(Question("grey?"), watched(engine, [frame(0)]), sampling)
    assert one_sentence(error)


def test_a_state_that_is_not_finite_is_never_handed_out():
    class Overflowing(ColourModel):
        def is_finite(self, state):
            return state.seen_until != 5

    engine = Engine(Overflowing())
    good = watched(engine, [frame(0), frame(1)])
    with pytest.raises(UserError, match=r"0:04 and 0:05") as error:
        engine.watch(chunk(4, 5), good)
    assert one_sentence(error)
    assert engine.watch(chunk(6), good).frames == 3, "the last good state goes on"


class Late(ColourModel):
    """Tells a chunk late whether its numbers are some, as a GPU does: second 5 makes them none."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []  # frames of the states that were waited for

    def finite_later(self, state):
        def told() -> bool:
            self.asked.append(state.frames)
            return all(at != 5 for at, *_ in state.inner)

        return told


def test_a_state_is_confirmed_while_the_next_chunk_is_at_work():
    engine = Engine(model := Late())
    state = watched(engine, [frame(0), frame(1)])
    assert model.asked == []
    state = engine.watch(chunk(2, 3), state)
    assert model.asked == [2]
    engine.confirm(state)
    engine.confirm(state)
    assert model.asked == [2, 4], "what is known is not asked again"


def test_numbers_that_overflow_are_noticed_a_chunk_late_and_what_was_before_goes_on():
    engine = Engine(Late())
    good = watched(engine, [frame(0), frame(1)])
    bad = engine.watch(lost := chunk(4, 5), good)
    for _ in range(2):  # whoever holds it is told, however often
        with pytest.raises(Overflowed, match=r"0:04 and 0:05") as error:
            engine.watch(chunk(6), bad)
        assert one_sentence(error) and error.value.good is good and error.value.lost == lost.frames
        with pytest.raises(Overflowed):
            engine.confirm(bad)
    assert list(engine.ask(Question("grey?"), bad))[-1].seen_until == 1, "the last good state answers"
    assert engine.watch(chunk(6), good).frames == 3


def test_a_chunk_that_overflows_while_it_is_cut_fails_as_a_whole():
    class Small(Late):
        def watch(self, chunk, state):
            if len(chunk.frames) > 2:
                raise MemoryError
            return super().watch(chunk, state)

    engine = Engine(Small())
    good = watched(engine, [frame(0), frame(1)])
    with pytest.raises(UserError, match=r"0:04 and 0:09") as error:
        engine.watch(chunk(4, 5, 6, 7, 8, 9), good)
    assert not isinstance(error.value, Overflowed), "the caller's state is good"
    engine.confirm(good)


@pytest.mark.parametrize("streams", [1, 2])
def test_a_slice_is_over_when_the_gpu_has_done_it_while_somebody_waits_for_a_word(streams):
    """What is still being worked at would be the next word's time, and not that of watching."""

    class Shared(Late):
        frames_together = 64

    engine = Engine(model := Shared())
    works = [Chunk(chunk(2, 3), watched(engine, [frame(0), frame(1)])) for _ in range(streams)]
    answer = engine.ask(Question("Where was it red?"), works[0].state)
    asked = len(model.asked)
    next(answer)
    engine._do(works)
    assert all(work.done for work in works) and model.asked[asked:].count(4) == streams
    answer.close()
    engine._do([Chunk(chunk(4, 6), works[0].state)])
    assert model.asked.count(6) == 0, "nobody waits, so the next chunk is begun meanwhile"


def test_a_gpu_model_watches_and_writes_once_before_the_first_visitor():
    class Compiling(ColourModel):
        backend = "cuda, bf16"

        def __init__(self) -> None:
            super().__init__()
            self.chunks: list[int] = []

        def watch(self, chunk, state):
            self.chunks.append(len(chunk.frames))
            return super().watch(chunk, state)

    engine = Engine(model := Compiling())
    engine.warm_up()
    assert model.chunks == [2, 2, 2, 4, 4, 4, 8, 8, 8, 16] and model.drawn == 2
    Engine(quiet := ColourModel()).warm_up()
    assert quiet.drawn == 0


@settings(max_examples=30, deadline=None)
@given(room=st.integers(2, 16), frames=st.integers(1, 40))
def test_a_chunk_too_large_for_memory_is_cut_and_nothing_is_lost(room, frames):
    class Small(ColourModel):
        def watch(self, chunk, state):
            if len(chunk.frames) > room:
                raise MemoryError
            return super().watch(chunk, state)

    seconds = range(frames)
    seen = watched(Engine(Small()), [frame(s) for s in seconds])
    assert seen.inner == watched(Engine(ColourModel()), [frame(s) for s in seconds]).inner


def test_no_room_at_all_is_said_and_leaves_the_state():
    class Full(ColourModel):
        def watch(self, chunk, state):
            raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory at 0xdeadbeef")

        def ask(self, question, state, sampling):
            yield Token(0, "one")
            raise MemoryError

    engine = Engine(Full())
    with pytest.raises(UserError, match="0:07") as error:
        engine.watch(chunk(7, 8, 9), engine.start())
    assert one_sentence(error)
    answers = engine.ask(Question("grey?"), watched(Engine(ColourModel()), [frame(0)]))
    assert next(answers).text == "one"
    with pytest.raises(UserError) as error:
        next(answers)
    assert one_sentence(error)


@given(backlog=st.integers(0, 5000), unit=st.sampled_from([1, 2, 4]))
def test_chunks_are_small_live_and_large_catching_up(backlog, unit):
    model = ColourModel()
    model.unit_frames = unit
    frames = Engine(model).chunk_frames(backlog)
    assert frames % unit == 0 and frames >= unit and frames <= max(backlog, unit)
    assert Engine(model).chunk_frames(0) == unit and Engine(model).chunk_frames(1000) >= 4 * unit


def test_the_model_may_choose_its_chunks():
    model = ColourModel()
    model.chunk_frames = lambda backlog: backlog // 3
    assert [Engine(model).chunk_frames(n) for n in (0, 3, 30)] == [1, 1, 10]
