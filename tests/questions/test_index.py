"""The table of what was seen: shots and their frames, spreads, cuts, and what was appended."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.questions.index import SENSED, index_log, read_index, spread
from tests.questions.made import features, index, shots


@given(st.integers(1, 60), st.data())
@settings(max_examples=60, deadline=None)
def test_shots_and_their_frames_agree(frames, data):
    starts = sorted({0, *data.draw(st.lists(st.integers(0, frames - 1), max_size=8))})
    idx = index([0.0] * frames, starts)
    assert [f for s in range(len(starts)) for f in idx.frames_of(s)] == list(range(frames))
    assert all(f in idx.frames_of(idx.shot_of(f)) for f in range(frames))


@given(st.integers(0, 50), st.integers(1, 40), st.integers(1, 8), st.data())
@settings(max_examples=150, deadline=None)
def test_spread_stays_inside_in_order_and_around(start, length, at_most, data):
    frames = range(start, start + length)
    around = data.draw(st.one_of(st.none(), st.sampled_from(list(frames))))
    picked = spread(frames, at_most, around)
    assert len(picked) == min(at_most, length) and set(picked) <= set(frames)
    assert list(picked) == sorted(set(picked))
    if around is None:
        assert picked[0] == frames[0] and (len(picked) == 1 or picked[-1] == frames[-1])
    else:
        assert around in picked and picked[-1] - picked[0] == len(picked) - 1


def test_the_index_is_what_was_appended():
    log, seen = index_log(4, {"light": 2}), features(6, {2: [("dog", 0.9, "left")]})
    novelty, light = torch.tensor([1, 0, 0, 0.5, 0.1, 0.9]), torch.arange(12).reshape(6, 2).half()
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        log = log.append(
            time=torch.arange(6.0)[part],
            key=torch.eye(6, 4)[part],
            novelty=novelty[part],
            classes=seen.classes[part],
            class_probs=seen.class_probs[part],
            det_ids=seen.det_ids[part],
            det_scores=seen.det_scores[part],
            det_boxes=seen.det_boxes[part],
            **{SENSED + "light": light[part]},
        )
    idx = read_index(log, cut=0.3)
    assert idx.starts.tolist() == [0, 3, 5] and idx.times.tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(idx.keys.float(), torch.eye(6, 4)) and torch.equal(idx.features.det_ids, seen.det_ids)
    assert (
        idx.sensed["light"].tolist() == light.tolist() and idx.cut(2, 5).sensed["light"].tolist() == light[2:5].tolist()
    )
    cut_off = read_index(log.drop_oldest(1), cut=0.3)
    assert cut_off.starts.tolist() == [0, 2, 4], "what is left of a shot whose beginning was dropped is a shot"


@given(st.integers(0, 29), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_a_cut_index_is_a_video_of_its_own(start, length):
    idx = shots((1, 7), (2, 3), (3, 12), (4, 8))
    stop = min(30, start + length)
    part = idx.cut(start, stop)
    assert part.times.tolist() == idx.times[start:stop].tolist() and torch.equal(part.keys, idx.keys[start:stop])
    assert part.starts[0] == 0 and len(part.features.det_ids) == stop - start
    assert all(idx.shot_of(start + f) - idx.shot_of(start) == part.shot_of(f) for f in range(stop - start))
