"""Pictures of a webcam: every one taken, waiting or counted."""

from __future__ import annotations

import threading
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.camera import FrameQueue, thumbnail
from pipeline.stream import Frame, UserError
from tests.sources.test_corpus import clean

PICTURE = np.zeros((4, 6, 3), np.uint8)


@given(st.lists(st.one_of(st.just(None), st.integers(0, 5)), max_size=80), st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_every_offer_is_taken_waiting_or_counted(actions, maxlen):
    """None offers a picture, a number takes that many. Oldest first, newest kept, nothing unaccounted for."""
    ticks = iter(range(10_000))
    queue, seen = FrameQueue(maxlen, clock=lambda: float(next(ticks))), []
    for action in actions:
        if action is None:
            queue.offer(PICTURE)
        else:
            seen += queue.take(action, timeout=0)
        assert queue.offered == queue.taken + queue.waiting + queue.dropped and queue.waiting <= maxlen
    rest = queue.take(maxlen, timeout=0)
    times = [f.time for f in seen + rest]
    assert times == sorted(set(times))
    if rest:
        assert rest[-1].time == queue.offered - 1  # the newest is never the one to go


def test_offers_and_takes_from_many_threads_add_up():
    queue, taken = FrameQueue(4), []
    cameras = [threading.Thread(target=lambda: [queue.offer(PICTURE) for _ in range(200)]) for _ in range(3)]
    for camera in cameras:
        camera.start()
    while any(c.is_alive() for c in cameras) or queue.waiting:
        taken += queue.take(3, timeout=0.01)
    assert queue.offered == 600 == len(taken) + queue.dropped
    assert [f.time for f in taken] == sorted(f.time for f in taken)


def test_an_offer_is_a_small_copy_of_its_own():
    queue = FrameQueue(long_side=32)
    camera = np.full((48, 64, 3), 200, np.uint8)
    queue.offer(camera[:, ::-1])
    queue.offer(camera[:16, :16], time=3.5)
    camera[:] = 0
    big, small = queue.take(5, timeout=0)
    assert big.rgb.shape == (24, 32, 3) and big.time == 0 and small.rgb.shape == (16, 16, 3) and small.time == 3.5
    assert all(f.rgb.min() == 200 and f.rgb.flags.c_contiguous for f in (big, small))


def test_take_wakes_for_a_picture_and_for_the_end():
    queue = FrameQueue()
    threading.Timer(0.1, lambda: queue.offer(PICTURE)).start()
    start = time.monotonic()
    assert len(queue.take(4, timeout=10)) == 1
    threading.Timer(0.1, queue.close).start()
    assert queue.take(4, timeout=10) == [] and time.monotonic() - start < 5
    queue.offer(PICTURE)
    assert (queue.offered, queue.waiting) == (1, 0)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "picture",
        np.zeros((4, 6), np.uint8),
        np.zeros((4, 6, 4), np.uint8),
        np.zeros((4, 6, 3), np.float32),
        np.zeros((0, 6, 3), np.uint8),
        np.zeros((40_000, 2, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused_and_not_counted(bad):
    queue = FrameQueue()
    with pytest.raises(UserError) as error:
        queue.offer(bad)
    assert clean(str(error.value)) and queue.offered == 0


@pytest.mark.parametrize("moment", [float("nan"), -1.0, "now"])
def test_a_time_that_is_none_is_refused(moment):
    with pytest.raises(UserError):
        FrameQueue().offer(PICTURE, time=moment)


def test_thumbnails_keep_shape_and_colour():
    rgb = np.zeros((90, 320, 3), np.uint8)
    rgb[..., 0] = 250
    data = thumbnail(Frame(rgb, 0.0))
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert back.shape == (45, 160, 3) and back[..., 2].min() > 230 and back[..., 0].max() < 20
    assert cv2.imdecode(np.frombuffer(thumbnail(Frame(rgb[:, :40], 0.0)), np.uint8), 1).shape == (90, 40, 3)
