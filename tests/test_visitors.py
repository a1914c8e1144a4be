"""Several visitors of one engine at once: their words share passes, and each gets what it gets alone."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import Engine, Question, Sampling, UserError, VideoChunk
from pipeline.engine import AHEAD
from pipeline.stream import Answer, Model, Pass, StreamState, Token
from pipeline.works import Word, Writing


class Counting(Model):
    """Counts on from a number; every count is a pass, which several may share. full: of more there is none."""

    name, answers_together = "Counting", 4

    def __init__(self, full: int = 99) -> None:
        self.full, self.passes = full, []
        self.broken: set[int] = set()

    def start(self) -> StreamState:
        return StreamState((), frames=1)

    def watch(self, chunk, state):
        return state

    def ask(self, question, state, sampling):
        raise AssertionError("the engine asks in steps")

    def steps(self, question, state, sampling):
        count = int(question.text)
        for piece in range(2):  # a prompt in two pieces
            yield Pass(None, [count, piece])
        for _ in range(sampling.max_tokens):
            count = yield Pass(None, [count])
            yield Token(count, f"{count} ")

    def passed(self, passes):
        time.sleep(0.001)
        self.passes.append([tuple(one.ids) for one in passes])
        if len(passes) > self.full:
            raise MemoryError
        assert len(passes) == 1 or all(one.shared for one in passes)
        if any(one.ids[0] in self.broken for one in passes):
            raise UserError("This number is broken, so it is not counted on; take another.")
        return [one.ids[0] + 1 for one in passes]


def words_of(engine: Engine, starts: list[int], words: int) -> list[Answer | Exception]:
    """The last Answer of each, asked at the same time, or the error it ended in."""
    found: list = [None] * len(starts)

    together = threading.Barrier(len(starts))

    def ask(n: int) -> None:
        together.wait(10)
        try:
            *_, found[n] = engine.ask(Question(str(starts[n])), engine.start(), Sampling(max_tokens=words))
        except UserError as error:
            found[n] = error

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(starts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def said(start: int, words: int) -> str:
    return "".join(f"{n} " for n in range(start + 1, start + words + 1))


@pytest.mark.parametrize("full", [99, 1])
def test_words_share_passes_and_each_answer_is_its_own(full):
    """Also where memory has no room for two at once: then each is served alone, and nobody notices."""
    model = Counting(full)
    starts = [1000, 2000, 3000, 4000, 5000, 6000]
    for start, answer in zip(starts, words_of(Engine(model), starts, 40)):
        assert answer.text == said(start, 40) and answer.done and answer.tokens == 40
    assert max(map(len, model.passes)) in (2, 3, 4), "words went alone, or more together than may"


def test_an_error_is_told_to_whose_it_is():
    model = Counting()
    model.broken = {3005}
    one, other, third = words_of(Engine(model), [1000, 3000, 5000], 30)
    assert one.text == said(1000, 30) and third.text == said(5000, 30) and isinstance(other, UserError)


def writing(model: Counting, start: int, stop: threading.Event | None = None) -> Word:
    steps = model.steps(Question(str(start)), model.start(), Sampling())
    return Word(Writing(lambda: steps, stop or threading.Event(), lambda _: None))


def test_one_question_is_read_at_a_time_between_words():
    """Turn by turn: two answers get their words while two questions are read in pieces, one after the other."""
    model = Counting()
    engine = Engine(model)
    old, new = [writing(model, n) for n in (10, 20)], [writing(model, n) for n in (300, 400)]
    for word in old:
        while not word.over:
            engine._do([word])
        assert word.writing.take()
    model.passes.clear()
    waiting = [Word(word.writing) for word in old] + new
    for _ in range(4):
        turn = engine._together(waiting)
        assert turn[0] is waiting[0] and len([w for w in turn if w.writing.long]) <= 1
        engine._do(turn)
        for word in (w for w in waiting if w.over):
            word.writing.take()
        waiting = [Word(w.writing) if w in turn and w.writing in [o.writing for o in old] else w for w in waiting]
    assert all(len([p for p in shared if len(p) == 2]) <= 1 for shared in model.passes)
    assert [p[0][0] for p in model.passes if len(p[0]) == 2] == [300, 300, 400, 400][: len(model.passes)]


def test_stop_ends_an_answer_between_two_pieces_of_its_question():
    model, stop = Counting(), threading.Event()
    engine, word = Engine(model), writing(model, 7, stop)
    engine._do([word])
    assert model.passes == [[(7, 0)]] and not word.over
    stop.set()
    engine._do([word])
    assert word.over and word.writing.take() is None and word.writing.stopped and len(model.passes) == 1


def test_visitors_of_one_vamba_get_their_own_answers(tiny_model, clip):
    """Four visitors, two on the same stream: text and evidence as alone."""
    model = tiny_model()
    engine, frames = Engine(model), clip(16)
    states = [engine.watch(VideoChunk(frames[:n]), engine.start()) for n in (5, 16, 9)]
    asked = [(f"what is {n}?", states[n % 3]) for n in range(4)]
    found: list = [None] * len(asked)

    def ask(n: int) -> None:
        *_, found[n] = engine.ask(Question(asked[n][0]), asked[n][1], Sampling(max_tokens=8))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for (text, state), answer in zip(asked, found):
        *_, alone = Engine(model).ask(Question(text), state, Sampling(max_tokens=8))
        assert answer.text == alone.text and [e.time for e in answer.evidence] == [e.time for e in alone.evidence]


class Reading(Counting):
    """One whose questions, too, are read in shared passes: of several at once so many as a pass holds."""

    reads_together, holds = True, 3

    def joined(self, passes):
        words = [one for one in passes if len(one.ids) == 1]
        return [*words, *[one for one in passes if len(one.ids) > 1][: max(1, self.holds - len(words))]]

    def passed(self, passes):
        self.passes.append([tuple(one.ids) for one in passes])
        if len(passes) > self.full:
            raise MemoryError
        if len(passes) == 1 and passes[0].ids[0] in self.broken:
            raise UserError("This number is broken, so it is not counted on; take another.")
        if any(one.ids[0] in self.broken for one in passes):
            raise MemoryError
        return [one.ids[0] + 1 for one in passes]


readers = st.lists(
    st.tuples(
        st.integers(0, 6),  # joins in this round
        st.integers(1, 9),  # of so many words
        st.sampled_from([None, None, 0, 2, 5]),  # is stopped after so many
        st.integers(1, 4),  # comes back for the next word after so many rounds
        st.booleans(),  # its number is broken in the middle
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=80, deadline=None)
@given(readers=readers, full=st.sampled_from([1, 2, 99]))
def test_any_mix_of_readers_gets_what_each_gets_alone(readers, full):
    """Round by round, without threads: who joins late, stops, reads slowly, breaks, or is too much for the memory."""
    model = Reading(full)
    engine = Engine(model)
    stops = [threading.Event() for _ in readers]
    model.broken = {100 * n + 3 for n, (*_, broken) in enumerate(readers) if broken}
    writings: list[Writing | None] = [None] * len(readers)
    waiting: dict[int, Word] = {}
    back = [begin for begin, *_ in readers]
    found: list[list[int]] = [[] for _ in readers]
    ended: list[str | None] = [None] * len(readers)
    for turn in range(200):
        for n, (_, words, _, _, _) in enumerate(readers):
            if writings[n] is None and back[n] <= turn:
                steps = model.steps(Question(str(100 * n)), model.start(), Sampling(max_tokens=words))
                writings[n] = Writing(lambda steps=steps: steps, stops[n], engine._forget)
                engine._writing[writings[n]] = None
            if writings[n] is not None and ended[n] is None and n not in waiting and back[n] <= turn:
                waiting[n] = Word(writings[n])
        line = [word for word in waiting.values() if not word.over]
        if line:
            engine._do(engine._together(line))
        for n, word in [(n, word) for n, word in waiting.items() if word.over]:
            del waiting[n]
            back[n] = turn + readers[n][3]
            try:
                token = word.writing.take()
            except UserError:
                ended[n] = "broken"
                continue
            if token is None:
                ended[n] = "stopped" if word.writing.stopped else "end"
                continue
            found[n].append(token.id)
            if readers[n][2] is not None and len(found[n]) >= max(1, readers[n][2]):
                stops[n].set()
        assert all(len(one.ready) <= AHEAD for one in writings if one is not None)
    for n, (_, words, stop, _, broken) in enumerate(readers):
        most = min(words, 99 if stop is None else max(1, stop), 3 if broken else 99)
        assert found[n] == [100 * n + 1 + i for i in range(len(found[n]))] and ended[n] is not None
        assert len(found[n]) == most, (readers[n], found[n], ended[n])
    for shared in model.passes:
        assert len(shared) <= model.answers_together
        assert len([1 for ids in shared if len(ids) > 1]) <= model.holds


def test_a_reader_that_is_busy_gets_a_word_beforehand_and_no_more_than_two():
    model = Reading()
    engine = Engine(model)
    quick, slow = writing(model, 10), writing(model, 20)
    for one in (quick, slow):
        engine._writing[one.writing] = None
    engine._do([quick, slow])  # first pieces
    for _ in range(2):
        engine._do([Word(quick.writing), Word(slow.writing)])
    for _ in range(6):
        quick.writing.take()
        engine._do([Word(quick.writing)])
    assert len(slow.writing.ready) == AHEAD and len(quick.writing.ready) == 1
    assert engine._draw(slow.writing).id == 21  # without a turn


def test_who_leaves_during_a_turn_is_closed_after_it():
    """A generator may be closed by a thread that holds the turn it is in: the garbage collector's."""
    closed, inside = [], []
    model = Reading()

    def steps():
        try:
            while True:
                yield Pass(None, [1])
                yield Token(1, "a")
        finally:
            closed.append(True)

    one = Word(Writing(steps, threading.Event(), lambda _: None))
    was = model.passed

    def passed(passes):
        one.writing.close()
        inside.append(list(closed))
        return was(passes)

    model.passed = passed
    Engine(model)._do([one])
    assert inside == [[]] and closed == [True]
