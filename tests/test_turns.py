"""Turns shared by time: a simulated machine with simulated readers and watchers, on a clock that only it moves."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.turns import GATHER_S, MOST_GATHER_S, PATIENCE_S, READING_S, Flow, Line, Turns, Work


class Asked(Work):
    """Readers of words come back, watchers may not."""

    @property
    def returns(self) -> bool:
        return self.done and self.flow is Flow.ANSWERS


class Visitor:
    """Comes back with the next work `away_s` after the last one is done; one work takes `takes_s`."""

    def __init__(self, flow: Flow, takes_s: float, away_s: float = 0.0, comes_s: float = 0.0):
        self.flow, self.takes_s, self.away_s, self.comes_s = flow, takes_s, away_s, comes_s
        self.had_s, self.waits, self.since = 0.0, [], comes_s


def simulate(visitors: list[Visitor], seconds: float) -> float:
    """Runs the machine for so long; returns how long it stood idle."""
    line: Line[Work] = Line()
    now = idle = 0.0
    works: dict[Visitor, Work] = {}
    while now < seconds:
        for visitor in sorted((v for v in visitors if v not in works and v.comes_s <= now), key=lambda v: v.comes_s):
            works[visitor] = Asked(visitor.flow, visitor)
            visitor.since = now
            line.join(works[visitor])
        if not (turn := line.next(now)):
            now, idle = now + 0.0005, idle + 0.0005
            continue
        (work,) = line.doing = turn
        visitor: Visitor = work.owner
        visitor.waits.append(now - visitor.since)
        now += visitor.takes_s
        visitor.had_s += visitor.takes_s
        work.done = True
        line.finish(now - visitor.takes_s, now)
        del works[visitor]
        visitor.comes_s = now + visitor.away_s
    return idle


def had(visitors: list[Visitor], flow: Flow) -> float:
    return sum(v.had_s for v in visitors if v.flow is flow)


takes = st.floats(0.002, 0.2)


@settings(max_examples=30, deadline=None)
@given(words=st.lists(takes, min_size=1, max_size=4), chunks=st.lists(takes, min_size=1, max_size=6))
def test_both_get_half_while_both_wait(words, chunks):
    """To within a turn: however many there are of each, and however long their turns are."""
    visitors = [Visitor(Flow.ANSWERS, s, 0.002) for s in words] + [Visitor(Flow.WATCHING, s) for s in chunks]
    simulate(visitors, 10.0)
    answers, watching = had(visitors, Flow.ANSWERS), had(visitors, Flow.WATCHING)
    longest = max(words) + max(chunks)
    assert abs(answers - watching) <= 2 * longest
    for flow in Flow:  # and nobody of either starves
        several = [v for v in visitors if v.flow is flow]
        turns = [len(v.waits) for v in several]
        assert min(turns) >= max(turns) - len(several)


@pytest.mark.parametrize(("watchers", "least"), [(1, 0.4), (4, 0.4), (7, 0.4)])
def test_words_a_second_beside_watched_files(watchers, least):
    """The embedded model's times on two cores: 36 ms a word, 30 ms a slice, and a page that takes 3 ms a word."""
    alone, beside = Visitor(Flow.ANSWERS, 0.036, 0.003), Visitor(Flow.ANSWERS, 0.036, 0.003)
    simulate([alone], 20.0)
    simulate([beside, *(Visitor(Flow.WATCHING, 0.03) for _ in range(watchers))], 20.0)
    assert len(beside.waits) >= least * len(alone.waits)


@settings(max_examples=20, deadline=None)
@given(flow=st.sampled_from(list(Flow)), takes_s=takes, other_s=takes, absent=st.floats(1.0, 20.0))
def test_nobody_saves_up_turns_while_away(flow, takes_s, other_s, absent):
    """Who comes late gets half from then on, not all that was missed; and waits for one turn, not for a queue."""
    other = Flow(1 - flow)
    late, always = Visitor(flow, takes_s, 0.0, absent), Visitor(other, other_s)
    simulate([late, always], absent + 10.0)
    assert late.had_s <= 5.0 + 2 * (takes_s + other_s)
    assert late.waits[0] <= 2 * other_s + PATIENCE_S


def test_who_leaves_the_machine_leaves_it_to_the_others():
    """A slow reader (half a second a word) costs watching next to nothing, and is not waited for."""
    reader, watcher = Visitor(Flow.ANSWERS, 0.03, 0.5), Visitor(Flow.WATCHING, 0.03)
    idle = simulate([reader, watcher], 30.0)
    assert watcher.had_s > 0.9 * 30 and max(reader.waits) <= 0.031
    assert idle <= (PATIENCE_S + 0.001) * len(reader.waits)


def test_a_reader_is_one_for_a_while_only():
    line: Line[Work] = Line()
    assert not line.answering(0.0)
    word = Asked(Flow.ANSWERS, self := object())
    line.join(word)
    line.doing = line.next(0.0)
    word.done = True
    line.finish(-0.1, 0.0)
    assert line.answering(READING_S / 2) and not line.answering(READING_S * 1.1)
    line.forget(self)
    assert not line.answering(0.0)


def taken(line: Line[Work], flow: Flow, owners: list[object], began: float, now: float) -> None:
    """A turn in which all of these are served."""
    works = [Asked(flow, owner) for owner in owners]
    for work in works:
        line.join(work)
    line.doing = line.next(began + 10)
    assert len(line.doing) == len(works)
    for work in line.doing:
        work.done = True
    line.finish(began, now)


def test_words_wait_for_nobody():
    """Whose reader is not back gets his word all the same, written beforehand."""
    line: Line[Work] = Line(lambda waiting: waiting)
    taken(line, Flow.ANSWERS, ["one", "other"], 0.0, 0.1)
    line.join(Work(Flow.ANSWERS, "one"))
    assert len(line.next(0.1)) == 1


def test_what_another_turn_ended_is_in_nobodys_way():
    line: Line[Work] = Line(lambda waiting: waiting)
    first, second = Asked(Flow.ANSWERS, "one"), Asked(Flow.ANSWERS, "other")
    for work in (first, second):
        line.join(work)
    first.done = True
    assert line.next(0.0) == [second]
    line.doing = [second]
    second.done = True
    line.finish(0.0, 0.1)
    assert not line.next(0.1) and line.answering(0.1)


@pytest.mark.parametrize("flow", list(Flow))
def test_an_unread_question_keeps_its_place_and_a_slice_of_a_chunk_does_not(flow):
    line: Line[Work] = Line()
    first, second = Work(flow), Work(flow)
    for work in (first, second):
        line.join(work)
    line.doing = line.next(0.0)
    line.finish(0.0, 1.0)
    assert line.next(10.0) == [first if flow is Flow.ANSWERS else second]


@pytest.mark.parametrize("took", [0.002, 0.04, 1.0])
def test_streams_that_were_watched_together_wait_half_a_pass_for_each_other(took):
    line: Line[Work] = Line(lambda waiting: waiting)
    taken(line, Flow.WATCHING, [None, None], 0.0, took)
    line.join(Work(Flow.WATCHING))
    most = min(MOST_GATHER_S, max(GATHER_S, took / 2))
    assert not line.next(took + 0.9 * most) and line.next(took + 1.1 * most)
    line.join(Work(Flow.WATCHING))
    assert len(line.next(took)) == 2  # nobody is missing
    taken_alone: Line[Work] = Line()
    taken(taken_alone, Flow.WATCHING, [None], 0.0, 0.1)
    taken_alone.join(Work(Flow.WATCHING))
    assert taken_alone.next(0.1)


# Threads


def test_a_work_is_done_once_and_errors_come_to_who_waits():
    done: list[Work] = []

    def do(works):
        done.extend(works)
        for work in works:
            if work.owner % 3 == 0:
                raise ValueError(work.owner)
            work.done = True

    turns, failed = Turns(do, Line()), Counter()

    def run(number: int) -> None:
        try:
            turns.run(Work(Flow(number % 2), number))
        except ValueError as error:
            failed[error.args[0]] += 1

    threads = [threading.Thread(target=run, args=(n,)) for n in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(work.owner for work in done) == list(range(60))
    assert failed == Counter(range(0, 60, 3))


def test_an_interrupted_waiter_leaves_nothing_behind():
    turns, gate = Turns(lambda works: gate.wait(5) and [setattr(work, "done", True) for work in works], Line()), None
    gate = threading.Event()
    holder = threading.Thread(target=turns.run, args=(Work(Flow.WATCHING, 0),))
    holder.start()
    while not turns._line.doing:
        time.sleep(0.001)

    def interrupt(_=None):
        raise KeyboardInterrupt

    was, turns._moved.wait = turns._moved.wait, interrupt
    with pytest.raises(KeyboardInterrupt):
        turns.run(Work(Flow.ANSWERS, 1))
    turns._moved.wait = was
    gate.set()
    holder.join(5)
    turns.run(Work(Flow.WATCHING, 2))
    assert not turns._line._waiting


def test_ctrl_c_in_a_turn_ends_only_that_work():
    def do(works):
        if works[0].owner == "interrupted":
            raise KeyboardInterrupt
        works[0].done = True

    turns: Turns[Work] = Turns(do, Line())
    with pytest.raises(KeyboardInterrupt):
        turns.run(Work(Flow.WATCHING, "interrupted"))
    turns.run(Work(Flow.WATCHING, "next"))


def test_what_is_not_over_gets_another_turn_behind_the_others():
    order = []

    def do(works):
        order.append(works[0].owner)
        works[0].left -= 1
        works[0].done = not works[0].left

    line: Line = Line()
    for owner, left in (("a", 3), ("b", 1), ("c", 2)):
        work = Work(Flow.WATCHING, owner)
        work.left = left
        line.join(work)
    while turn := line.next(0.0):
        line.doing = turn
        do(turn)
        line.finish(0.0, 0.01)
    assert order == ["a", "b", "c", "a", "c", "a"]
