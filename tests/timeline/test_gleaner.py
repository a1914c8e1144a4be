"""Late senses go through a stream's files one after the other; what they find stands at its seconds of the stream."""

import threading

import pytest

from pipeline.stream import Event, Gleaned, UserError
from pipeline.timeline.gleaner import Gleaner, Played


class Heard:
    """Finds a word every ten seconds of a file of a minute."""

    name, doing, kinds, cost_s = "speech", "Listening", ("speech",), 1.0

    def __init__(self, after=lambda until: None):
        self.after, self.files = after, []

    def glean(self, path, stop):
        self.files.append(path)
        if path == "broken":
            raise UserError("It is broken.")
        if path == "silent":
            yield Gleaned(0.0, lacks="The video has no sound.")
            return
        for until in range(10, 70, 10):
            if stop.is_set():
                return
            yield Gleaned(float(until), (Event(until - 5.0, "speech", f"{path} {until}", 1.0, until - 1.0),))
            self.after(until)


class Read(Heard):
    name, doing, kinds = "text", "Reading text", ("text",)


def test_events_stand_at_the_streams_seconds_and_end_where_their_file_gave_way():
    gleaner = Gleaner([Heard()])
    gleaner.go_through([Played("a", 0.0, 28.0), Played("b", 30.0)])
    assert [(e.time, e.text) for e in gleaner.events] == [(5, "a 10"), (15, "a 20"), (25, "a 30")] + [
        (30 + 10 * n - 5, f"b {10 * n}") for n in range(1, 7)
    ]
    assert gleaner.events[2].until == 28
    (reach,) = gleaner.reaches
    assert reach.done and reach.until == 90 and not reach.lacks


def test_how_far_it_has_come_is_told_and_never_ahead_of_the_events():
    seen = []
    gleaner = Gleaner([Heard(lambda until: seen.append((gleaner.reaches[0].until, len(gleaner.events))))])
    told = []
    gleaner.go_through([Played("a")], told=told.append)
    assert seen == [(10 * n, n) for n in range(1, 7)]
    assert [reach.until for reach in told] == [10, 20, 30, 40, 50, 60, 60] and [r.done for r in told] == [False] * 6 + [
        True
    ]


def test_a_sense_that_goes_through_it_again_replaces_its_own_alone():
    before = (Event(1.0, "speech", "old"), Event(2.0, "text", "kept"))
    gleaner = Gleaner([Heard(), Read()], before)
    gleaner.go_through([Played("a")], wanted=["speech"])
    assert [e.text for e in gleaner.events] == ["kept", *(f"a {n}" for n in range(10, 70, 10))]
    assert [reach.done for reach in gleaner.reaches] == [True, False]


def test_it_ends_when_it_is_stopped_and_is_then_not_done():
    stop = threading.Event()
    gleaner = Gleaner([Heard(lambda until: stop.set()), Read()])
    gleaner.go_through([Played("a")], stop)
    assert len(gleaner.events) == 1 and not any(reach.done for reach in gleaner.reaches)


@pytest.mark.parametrize("why", ["silent", "broken"])
def test_a_file_that_gives_nothing_says_why_and_hinders_no_other(why):
    alone, both = Gleaner([Heard()]), Gleaner([Heard()])
    alone.go_through([Played(why)])
    assert alone.reaches[0].done and alone.reaches[0].lacks.startswith(("The video has no", "It is broken"))
    both.go_through([Played(why), Played("a", 5.0)])
    assert both.reaches[0].done and not both.reaches[0].lacks and len(both.events) == 6


def test_one_file_at_a_time_in_a_process():
    inside, most, lock = [0], [0], threading.Lock()

    class Counting(Heard):
        def glean(self, path, stop):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            yield from super().glean(path, stop)
            with lock:
                inside[0] -= 1

    gleaners = [Gleaner([Counting()]) for _ in range(4)]
    threads = [threading.Thread(target=each.go_through, args=([Played("a")],)) for each in gleaners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and all(len(each.events) == 6 for each in gleaners)
