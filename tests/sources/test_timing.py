"""The clock and the sampler alone: what stamps of any kind become."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.reader.timing import Clock, Sampler, Timeline
from tests.sources.test_video import on_screen

TICKS = 90_000  # of the clock in a second
STREAM = Timeline(Fraction(1, TICKS), Fraction(30), sender=True)
FILE = Timeline(Fraction(1, TICKS), Fraction(30), zero=0, player=True)
many = settings(max_examples=200, deadline=None)


def run(stamps: list[float | None], timeline: Timeline = STREAM, durations: list[float] | None = None) -> Clock:
    """The clock after pictures with these stamps in seconds; `times` are what they became."""
    clock = Clock(timeline)
    durations = durations or [0.0] * len(stamps)
    pts = [None if at is None else round(at * TICKS) for at in stamps]
    settled = [s for p, d in zip(pts, durations, strict=True) for s in clock.offer(None, p, round(d * TICKS))]
    clock.times = [at for _, at in settled + clock.finish()]
    return clock


@given(st.lists(st.one_of(st.none(), st.integers(-(2**40), 2**40)), min_size=1, max_size=40))
@many
def test_time_starts_at_zero_and_only_goes_forward(stamps):
    times = run([None if s is None else s / TICKS for s in stamps]).times
    assert len(times) == len(stamps) and times[0] == 0 and all(a < b for a, b in itertools.pairwise(times))


steps = st.sampled_from([1 / 60, 1 / 30, 0.04, 0.1, 0.2, 1.0, 60.0])
wild = st.one_of(st.floats(-40_000, -0.3), st.floats(0.3, 40_000), st.just(2.0**33 / TICKS - 9800), st.just(1.7e9))


@given(steps, st.lists(st.tuples(st.integers(2, 30), wild), min_size=1, max_size=12), st.sampled_from([STREAM, FILE]))
@many
def test_lone_wild_stamps_change_nothing(step, outliers, timeline):
    """Anywhere but at the very start, once or every few pictures, either way."""
    truth = [i * step for i in range(sum(gap for gap, _ in outliers) + 3)]
    stamps, at = list(truth), 0
    for gap, off in outliers:
        at += gap
        stamps[at] += off if abs(off) > 2 * step else 3 * step * np.sign(off)
    times = run(stamps, timeline).times
    assert np.abs(np.array(times) - truth).max() <= max(0.2, step / 2)
    others = [i for i, (a, b) in enumerate(zip(stamps, truth, strict=True)) if a == b]
    assert [times[i] for i in others] == pytest.approx([truth[i] for i in others], abs=0.2)


@given(steps, st.floats(-40_000, 40_000).filter(lambda off: abs(off) > 0.3), st.booleans())
@many
def test_a_wild_stamp_at_either_end_of_a_stream_changes_nothing(step, off, first):
    step = min(step, 0.1)
    truth = [i * step for i in range(40)]
    stamps = list(truth)
    stamps[0 if first else -1] += off if abs(off) > 20 * step else 20 * step * np.sign(off) + np.sign(off)
    clock = run(stamps)
    assert np.abs(np.array(clock.times) - truth).max() < 0.2 and clock.end < truth[-1] + 0.4


@given(steps, st.floats(1.5, 1e9), st.integers(8, 20), st.integers(3, 20))
@many
def test_a_lasting_jump_back_is_joined(step, back, before, after):
    """A wrap, or a spliced recording: time goes on from where it was."""
    stamps = [i * step for i in range(before)]
    stamps += [stamps[-1] - back - 1000 * step + i * step for i in range(after)]
    clock = run(stamps)
    assert clock.times == pytest.approx([i * step for i in range(before + after)], abs=0.1) and clock.joined == 1


@pytest.mark.parametrize(
    "timeline,gap,believed",
    [
        (FILE, 600, True),
        (FILE, 3600, True),
        (FILE, 30_000, True),
        (FILE, 1.7e9, False),
        (STREAM, 600, True),
        (STREAM, 3600, True),
        (STREAM, 32_400, False),
        (STREAM, 1.7e9, False),
    ],
)
def test_a_lasting_gap_is_believed_within_reason(timeline, gap, believed):
    stamps = [i * 0.1 for i in range(20)] + [gap + i * 0.1 for i in range(20)]
    times = run(stamps, timeline).times
    assert times == pytest.approx(stamps if believed else [i * 0.1 for i in range(40)], abs=0.1)


@given(st.lists(st.sampled_from([0.016, 0.04, 0.5, 3.0, 30.0, 600.0]), min_size=1, max_size=40))
@many
def test_stillness_of_any_length_is_kept(gaps):
    stamps = [0.0, *np.cumsum(gaps)]
    assert run(stamps, FILE).times == pytest.approx(stamps, abs=1e-4)


@pytest.mark.parametrize("step", [60, 3600, 7 * 86_400])
def test_slow_pictures_are_no_jumps(step):
    for timeline in (FILE, STREAM):
        assert run([i * step for i in range(9)], timeline).times == pytest.approx([i * step for i in range(9)])


@pytest.mark.parametrize("start,first", [(5.0, 5.0), (1800.0, 1800.0), (-1.0, 0.0), (1.7e9, 0.0)])
def test_a_file_that_starts_late_keeps_the_players_seconds(start, first):
    stamps = [start + 0.1 * i for i in range(10)]
    assert run(stamps, FILE).times == pytest.approx([first + 0.1 * i for i in range(10)], abs=1e-4)


@given(st.floats(2, 1e6), st.one_of(st.none(), st.floats(2.0, 100.0)))
@many
def test_the_last_pictures_duration_is_believed_within_the_files(lasts, ends):
    """The header's end holds; where it is silent, a last picture longer than all others is not believed."""
    stamps, durations = [i * 0.1 for i in range(20)], [0.1] * 19 + [lasts]
    end = run(stamps, replace(FILE, ends=ends), durations).end
    assert end == pytest.approx(2.0 if ends is None else min(max(ends, 2.0), 1.9 + lasts), abs=1e-3)


def test_no_last_picture_of_a_file_of_seconds_stays_for_hours():
    end = run([i * 0.1 for i in range(20)], replace(FILE, ends=36_002.0), [0.1] * 19 + [36_000]).end
    assert end == pytest.approx(2.0)


def test_missing_stamps_take_the_durations():
    assert run([None, None, 7.0, None, 7.3], STREAM, [0.1] * 5).times == pytest.approx([0, 0.1, 0.2, 0.3, 0.5])


@given(st.lists(st.floats(0.001, 5.0), min_size=1, max_size=60), st.sampled_from([0.3, 1.0, 2.0, 7.5]))
@many
def test_sampling_is_what_was_on_the_screen(gaps, fps):
    stamps = [0.0, *np.cumsum(gaps)]
    sampler = Sampler(fps)
    kept = [index for i, at in enumerate(stamps) for index, _ in sampler.offer(i, at)]
    kept += [index for index, _ in sampler.finish(stamps[-1] + 0.04)]
    assert kept == on_screen(stamps, stamps[-1] + 0.04, fps)


@given(st.floats(0.0, 9.0), st.lists(st.floats(0.001, 5.0), min_size=1, max_size=30), st.sampled_from([0.3, 1.0, 7.5]))
@many
def test_the_first_picture_is_on_the_screen_from_the_start(start, gaps, fps):
    stamps = [start, *(start + np.cumsum(gaps))]
    sampler = Sampler(fps)
    kept = [index for i, at in enumerate(stamps) for index, _ in sampler.offer(i, at)]
    assert kept[:1] in ([0], []) and 0 in kept + [i for i, _ in sampler.finish(stamps[-1] + 0.04)]
