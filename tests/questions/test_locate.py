"""Locating without weights: what questions name, what notes say, and where the planner goes for hand-made scores."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.questions.locator import (
    ALIKE,
    LISTED,
    LONG_TAKE,
    PLANS,
    READ,
    SEEN,
    Index,
    Located,
    Planner,
    Verdict,
    index_log,
    note,
    read_index,
    spoken,
    spread,
)  # fmt: skip
from pipeline.questions.wordings import wording_plan
from pipeline.towers.efficientnet import FrameFeatures, labels

COCO = {word: i for i, word in enumerate(labels()["coco"])}
IMAGENET = {word: i for i, word in enumerate(labels()["imagenet"])}
SURE = {"find": (1.0, 0.0, 0.0), "yesno": (1.0, 0.0, 0.0), "here": (1.0, 0.0, 0.0), "towers": (5.0, 1.5)}
QUARTERS = {"left": (0.0, 0.3, 0.2, 0.7), "right": (0.8, 0.3, 1.0, 0.7), "centre": (0.4, 0.4, 0.6, 0.6)}


# ---------------------------------------------------------------- hand-made findings of the towers


def features(frames: int, detections: dict[int, list[tuple]] | None = None, classes: dict[int, tuple] | None = None):
    """Findings of `frames` frames: {frame: [(thing, score, place)]} and {frame: (ImageNet word, probability)}."""
    ids, scores = torch.full((frames, 8), -1), torch.zeros(frames, 8)
    boxes, probs = torch.zeros(frames, 8, 4), torch.zeros(frames, 5)
    named = torch.arange(5).repeat(frames, 1) + 900
    for frame, found in (detections or {}).items():
        for i, (thing, score, place) in enumerate(found):
            ids[frame, i], scores[frame, i] = COCO[thing], score
            boxes[frame, i] = torch.tensor(QUARTERS[place])
    for frame, (word, probability) in (classes or {}).items():
        named[frame, 0], probs[frame, 0] = IMAGENET[word], probability
    blank = torch.zeros(0)
    return FrameFeatures(blank, blank, named, probs, blank, ids, scores, boxes)


class HandMade:
    """Stand-in for the trained Locator: the score of a frame is its key's only number."""

    def scores(self, query, keys):
        return keys[None, :, 0]


def located(plan: str, nowhere: float = 0.0) -> Located:
    logits = torch.zeros(1, len(PLANS))
    logits[0, PLANS.index(plan)] = 1
    return Located(torch.ones(1, 1), logits, torch.tensor([nowhere]))


def index(scores, starts=(0,), seen: FrameFeatures | None = None) -> Index:
    """One frame a second."""
    keys = torch.tensor(scores, dtype=torch.float32)[:, None]
    return Index(np.arange(len(scores), dtype=float), keys, np.array(starts), seen or features(len(scores)))


def plan(name: str, idx: Index, text: str = "go on", calibration: dict = SURE, nowhere: float = 0.0) -> Verdict:
    return Planner(HandMade(), calibration).plan(text, located(name, nowhere), idx)


def shots(*scores_and_lengths) -> Index:
    """An index of shots given as (score of every frame, frames)."""
    scores = [s for s, n in scores_and_lengths for _ in range(n)]
    return index(scores, np.cumsum([0, *(n for _, n in scores_and_lengths)])[:-1])


# ---------------------------------------------------------------- notes


def test_every_plan_has_a_note_that_says_its_verdict():
    for name in PLANS:
        found = note(Verdict(name, (0,), 35.0), ["dog"], 50.0)
        lost = note(Verdict(name, (0,), 35.0, found=False), ["dog"], 50.0)
        if name == "chat":
            assert found == lost == "(chat)"
        else:
            assert found == ("(yes, at 0:35: dog)" if name.startswith("yesno") else "(at 0:35: dog)")
            assert "0:35" not in lost and "dog" not in lost and lost.startswith("(no")
    assert note(Verdict("after", (0,), found=False), [], 5) == "(nothing after)"
    assert note(Verdict("before", (0,), found=False), [], 5) == "(nothing before)"
    assert note(Verdict("yesno", (0,), found=False), [], 5) == "(no)"


def test_notes_of_counts_late_times_and_unsure_moments():
    assert note(Verdict("count", (0,), 9.0, count=8), ["dog"], 9) == "(8 scenes)"
    assert note(Verdict("count", (0,), 9.0, count=1), ["dog"], 9) == "(1 scene)"
    assert note(Verdict("count_of", (0,), 9.0, count=2, times=(12.0, 40.0)), [], 50) == "(2 scenes: 0:12, 0:40)"
    assert note(Verdict("count_of", (0,), 9.0, False, count=0), [], 50) == "(0 scenes)"
    assert note(Verdict("at", (0,), 35.0, late=True), ["dog"], 40.0) == "(now 0:40, later)"
    assert note(Verdict("at", (0,), 3605.0), [], 4000.0) == "(at 1:00:05: unsure)"


def test_spoken_marks_doubt_counts_and_places():
    seen = features(
        3,
        {0: [("person", 0.9, "left"), ("person", 0.8, "left"), ("tie", 0.7, "centre")], 1: [("dog", 0.6, "right")],
         2: [("cat", 0.35, "left")]},
        {1: ("goldfish", 0.2), 2: ("rooster", 0.1)},
    )  # fmt: skip
    assert spoken(seen, [0]) == ["2 person left", "tie"]
    assert spoken(seen, [1]) == ["dog right", "maybe goldfish"]
    assert spoken(seen, [2]) == [], "a weak detection and a weak class are not said at all"
    assert spoken(seen, [0, 1, 2]) == ["2 person left", "tie", "dog right", "maybe goldfish"]
    assert spoken(seen, [0, 1], at_most=2) == ["2 person left", "tie"]


def test_the_best_frame_of_a_moment_speaks_for_each_word():
    seen = features(2, {0: [("dog", 0.5, "left")], 1: [("dog", 0.8, "right"), ("dog", 0.6, "right")]})
    assert spoken(seen, [0, 1]) == ["2 dog right"]
    spread_out = features(1, {0: [("dog", 0.8, "right"), ("dog", 0.6, "left")]})
    assert spoken(spread_out, [0]) == ["2 dog"], "things on both sides have no one place"


# ---------------------------------------------------------------- frames, shots, spreads


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
    log, seen = index_log(4, 1280), features(6, {2: [("dog", 0.9, "left")]})
    novelty = torch.tensor([1, 0, 0, 0.5, 0.1, 0.9])
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        log = log.append(
            time=torch.arange(6.0)[part], key=torch.eye(6, 4)[part], novelty=novelty[part],
            classes=seen.classes[part], class_probs=seen.class_probs[part], det_ids=seen.det_ids[part],
            det_scores=seen.det_scores[part], det_boxes=seen.det_boxes[part],
        )  # fmt: skip
    idx = read_index(log, cut=0.3)
    assert idx.starts.tolist() == [0, 3, 5] and idx.times.tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(idx.keys.float(), torch.eye(6, 4)) and torch.equal(idx.features.det_ids, seen.det_ids)
    cut_off = read_index(log.drop_oldest(1), cut=0.3)
    assert cut_off.starts.tolist() == [0, 2, 4], "what is left of a shot whose beginning was dropped is a shot"


# ---------------------------------------------------------------- the planner: times


def test_at_goes_to_the_named_time_within_its_shot():
    idx = shots((0, 10), (9, 10), (0, 10))
    verdict = plan("now", idx, "What do you see at 0:05?")
    assert (verdict.plan, verdict.time, verdict.found, verdict.late) == ("at", 5.0, True, False)
    assert 5 in verdict.frames and len(verdict.frames) == READ and set(verdict.frames) <= set(range(10))
    edge = plan("find", idx, "What is shown at 0:10?")
    assert edge.time == 10 and set(edge.frames) <= set(range(10, 20)), "never over a cut"


def test_a_time_the_video_has_not_reached_is_late():
    idx = shots((0, 10))
    assert plan("at", idx, "What is shown at 5:00?").late
    assert not plan("at", idx, "What is shown at 0:10?").late, "a second of grace: the newest frame is meant"
    assert plan("at", idx, "What is shown at 0:11?").late


@pytest.mark.parametrize("name", ["chat", "yesno", "count", "count_of"])
def test_a_named_time_does_not_overrule_what_is_no_moment(name):
    assert plan(name, shots((3, 10)), "Was it there 5 seconds ago?").plan == name


# ---------------------------------------------------------------- the planner: finding


def test_find_takes_the_best_shot_and_its_peak():
    idx = index([-2, -2, -2, 1, 1, 6, 1, -2, -2], (0, 3, 7))
    verdict = plan("find", idx)
    assert verdict.found and verdict.time == 3 and 5 in verdict.frames and set(verdict.frames) <= set(range(3, 7))


def test_a_shot_scores_as_the_log_mean_exp_of_its_frames():
    scores = [0.5, 2.0, -1.0, 3.0, 3.5]
    fit = Planner(HandMade(), SURE).fit("x", located("find", 0.25), index(scores, (0, 3)))
    for shot, part in enumerate((scores[:3], scores[3:])):
        expected = math.log(sum(math.exp(s - 0.25) for s in part) / len(part))
        assert fit.shots[shot] == pytest.approx(expected)


def test_find_refuses_below_the_calibration_and_more_so_among_many_shots():
    few, many = shots((0, 3), (1.5, 3)), shots((1.5, 3), *[(0, 3)] * 30)
    strict = SURE | {"find": (1.0, 0.0, -1.0)}
    assert plan("find", few, calibration=strict).found and not plan("find", many, calibration=strict).found
    assert plan("find", few, nowhere=1.0).found and not plan("find", few, nowhere=2.0).found
    assert not plan("yesno", few, calibration=SURE | {"yesno": (1.0, -2.0, 0.0)}).found


def test_refusals_say_so_for_the_newest_frames():
    idx = shots((-3, 5), (-4, 5))
    for name, plan_name in (("find", "find"), ("about", "find"), ("yesno", "yesno"), ("yesno_now", "yesno_now")):
        verdict = plan(name, idx)
        assert (verdict.plan, verdict.found) == (plan_name, False) and set(verdict.frames) <= set(range(5, 10))


@pytest.mark.parametrize(("name", "frames"), [("after", range(8, 12)), ("before", range(0, 4))])
def test_before_and_after_step_one_shot(name, frames):
    verdict = plan(name, shots((-2, 4), (5, 4), (-2, 4)))
    assert verdict.found and verdict.time == frames[0] and set(verdict.frames) <= set(frames)


@pytest.mark.parametrize(("name", "scores"), [("after", (-2, -2, 5)), ("before", (5, -2, -2))])
def test_before_and_after_refuse_at_the_edge(name, scores):
    verdict = plan(name, shots(*[(s, 4) for s in scores]))
    assert (verdict.plan, verdict.found) == (name, False)


def long_take() -> Index:
    """One shot of 40 frames in which frames 15..20 fit, the best being 18."""
    scores = [-9.0] * 40
    scores[15:21] = [4.0, 4.0, 5.0, 6.0, 5.0, 4.0]
    return index(scores)


def test_in_a_long_take_the_stretch_that_fits_is_found():
    assert len(long_take().times) > LONG_TAKE
    verdict = plan("find", long_take())
    assert verdict.time == 15 and 18 in verdict.frames and set(verdict.frames) <= set(range(15, 21))


def test_in_a_long_take_before_and_after_are_the_rest_of_it():
    after, before = plan("after", long_take()), plan("before", long_take())
    assert after.found and after.time == 21 and max(after.frames) < 21 + 2 * READ
    assert before.found and before.time == 15 - 2 * READ and max(before.frames) < 15


def test_a_short_shot_is_taken_whole():
    scores = [-9.0] * LONG_TAKE
    scores[10] = 9.0
    assert plan("find", index(scores)).time == 0


def test_first_takes_the_earliest_that_fits_nearly_as_well():
    idx = shots((-5, 3), (4, 3), (-5, 3), (5, 3))
    assert plan("find", idx, "When is the thing shown?").time == 9
    assert plan("find", idx, "When is the thing first shown?").time == 3
    far = shots((-5, 3), (5 - ALIKE - 0.5, 3), (-5, 3), (5, 3))
    assert plan("find", far, "When is the thing first shown?").time == 9, "too far below to be the same thing"


def test_about_prefers_the_present_and_else_looks_back():
    assert plan("about", shots((6, 4), (1, 4))).time == 7, "it is here now"
    assert plan("about", shots((6, 4), (-1, 4))).time == 0, "it was there before"


# ---------------------------------------------------------------- the planner: counting, listing, now


def test_count_counts_scenes_and_count_of_the_sure_ones():
    idx = shots((3, 2), (-3, 2), (2, 2), (-3, 2), (1, 2))
    assert plan("count", idx).count == 5
    verdict = plan("count_of", idx)
    assert (verdict.count, verdict.times, verdict.found) == (3, (0.0, 4.0, 8.0), True)
    assert set(verdict.frames) == {0, 4, 8} and verdict.time is None, "it rests on its scenes, not on now"
    none = plan("count_of", shots((-3, 2), (-3, 2)))
    assert (none.count, none.times, none.found) == (0, (), False) and none.frames


def test_count_of_names_no_more_times_than_a_list_has():
    verdict = plan("count_of", shots(*[(3, 2)] * 20))
    assert verdict.count == 20 and len(verdict.times) == LISTED and len(verdict.frames) <= READ


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
@settings(max_examples=80, deadline=None)
def test_a_list_covers_a_few_moments_in_order(lengths):
    idx = shots(*[(0, n) for n in lengths])
    listed = plan("list", idx).listed
    assert min(len(lengths), LISTED) <= len(listed) <= LISTED
    firsts = [f[0] for f in listed]
    assert firsts == sorted(set(firsts))
    for moment in listed:
        assert 1 <= len(moment) <= READ and len({idx.shot_of(f) for f in moment}) == 1
    named = {idx.shot_of(f) for f in firsts}
    left_out = [n for s, n in enumerate(lengths) if s not in named]
    assert not left_out or len(lengths) > LISTED


def test_a_question_about_a_stretch_sees_nothing_else():
    """Six shots of five seconds; the dog's score is high in the second and the fourth."""
    idx = shots((-3, 5), (9, 5), (-3, 5), (8, 5), (-3, 5), (-3, 5))
    assert plan("find", idx, "When was the dog there?").time == 5
    assert plan("find", idx, "When was the dog there after 0:10?").time == 15
    assert plan("find", idx, "When was the dog there in the last 14 seconds?").time == 15
    assert plan("after", idx, "When was the dog there after 0:10?").plan == "find", "the head hears the word after"
    assert not plan("yesno", idx, "Was there a dog in the first 4 seconds?").found
    assert not plan("yesno_now", idx, "Is there a dog in the last 9 seconds?").found
    assert plan("yesno", idx, "Was there a dog between 0:05 and 0:09?").found
    assert plan("count", idx, "How many scenes are there in the first 12 seconds?").count == 3
    listed = plan("now", idx, "What do you see in the last 12 seconds?").listed
    assert [idx.shot_of(m[0]) for m in listed] == [3, 4, 5] and listed[0][0] >= 17
    assert plan("at", idx, "What happened after 1:00?").late
    assert plan("last", idx, "Was there a dog in the last 9 seconds?").plan == "yesno", "the head hears the word last"
    for asked in ("What was shown", "What could be seen"):
        assert len(plan("last", idx, f"{asked} in the last 12 seconds?").listed) == 3
    assert plan("first", idx, "What was the first thing in the last 12 seconds?").time == 17
    assert plan("chat", idx, "Hello, in the first minute").plan == "chat"


STRETCHES = (
    "in the last {} seconds",
    "in the first {} minutes",
    "between 0:{1:02d} and {0}:00",
    "since {}:00",
    "before 0:{1:02d}",
)


@given(
    st.sampled_from(PLANS), st.sampled_from(STRETCHES), st.integers(0, 99), st.integers(0, 59),
    st.sampled_from(["What did you see", "Was there a dog", "Which people were there", "How many scenes", ""]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_no_stretch_leads_out_of_the_video(name, stretch, number, second, asked):
    idx = shots((1, 4), (-3, 1), (5, 20), (2, 5))
    verdict = plan(name, idx, f"{asked} {stretch.format(number, second)}?")
    inside = [f for moment in (verdict.frames, *verdict.listed) for f in moment]
    assert verdict.frames and min(inside) >= 0 and max(inside) < 30
    assert verdict.time is None or 0 <= verdict.time <= 29


def test_a_follow_up_goes_on_from_the_last_verdict():
    idx = shots((-3, 5), (9, 5), (-3, 5), (-3, 5))
    dog = plan("find", idx, "When was the dog there?")

    def then(name, text, earlier=dog):
        return Planner(HandMade(), SURE).plan(text, located(name, 0.0), idx, ("When was the dog there?", earlier))

    assert then("now", "And then?").time == 10 and then("now", "What came before it?").time == 0
    assert then("chat", "When?")[:3] == ("find", dog.frames, 5.0) and then("about", "What colour is it?").time == 5
    again = then("now", "And then?")
    assert then("now", "What happened next?", again).time == 15
    assert not then("now", "And then?", then("now", "and then?", again)).found, "nothing comes after the end"
    both = dog._replace(plan="list", listed=((1, 2), (6, 7)))
    assert then("now", "And then?", both).time == 10 and not then("now", "And before that?", both).found
    nowhere = dog._replace(found=False)
    assert then("find", "When was it?", nowhere).time == 5, "then it is looked for"
    assert then("yesno", "Is it a dog?").plan == "yesno"
    shown = features(20, {n: [("dog", 0.9, "left")] for n in range(10, 15)})
    quiet = shots((-2.5, 5), (-2.5, 5), (-2.5, 5), (-2.5, 5))._replace(features=shown)
    asked = ("Was there a dog?", dog._replace(listed=((1, 2),)))
    often = Planner(HandMade(), SURE).plan("How often was it there?", located("now", 0.0), quiet, asked)
    assert (often.count, often.times) == (1, (10.0,)), "it is the dog"
    assert then("find", "When was it there in the last 4 seconds?").time != 5, "who names a stretch means it"


@given(st.integers(0, 29), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_a_cut_index_is_a_video_of_its_own(start, length):
    idx = shots((1, 7), (2, 3), (3, 12), (4, 8))
    stop = min(30, start + length)
    part = idx.cut(start, stop)
    assert part.times.tolist() == idx.times[start:stop].tolist() and torch.equal(part.keys, idx.keys[start:stop])
    assert part.starts[0] == 0 and len(part.features.det_ids) == stop - start
    assert all(idx.shot_of(start + f) - idx.shot_of(start) == part.shot_of(f) for f in range(stop - start))


def test_a_list_of_things_is_where_the_towers_see_them():
    """Whatever the trained scores say; at most as many moments as fit, the surest, in order; the best frame leads."""
    idx = shots(*[(9, 9)] * 10)
    scores = torch.zeros(90, 8)
    ids = torch.full((90, 8), COCO["person"])
    ids[:, 0] = COCO["dog"]
    for n, shot in enumerate((1, 3, 4, 5, 6, 7, 8)):
        scores[9 * shot + 2, 0] = 0.5 + n / 100
    scores[0, 0] = SEEN - 0.01
    idx = idx._replace(features=idx.features._replace(det_ids=ids, det_scores=scores))
    verdict = plan("list", idx, "Which animals did you see?")
    assert [m[0] // 9 for m in verdict.listed] == [3, 4, 5, 6, 7, 8] and verdict.found
    assert all(9 * (m[0] // 9) + 2 in m for m in verdict.listed)
    none = plan("list", idx, "Which cars did you see?")
    assert not none.found and not none.listed
    assert len(plan("list", idx, "What did you see?").listed) == LISTED


def test_a_long_take_is_listed_in_parts():
    listed = plan("list", index([0.0] * 100)).listed
    assert len(listed) == LISTED and listed[0][0] == 0 and listed[-1][-1] == 99


@pytest.mark.parametrize("name", ["now", "last", "chat", "yesno_now"])
def test_now_is_the_newest_frames_of_the_newest_shot(name):
    idx = shots((9, 20), (-1, 2))
    assert plan(name, idx).frames == (20, 21) and plan(name, idx).time == 21
    assert plan(name, shots((9, 20), (2, 20))).frames == (36, 37, 38, 39)


def test_only_the_newest_frames_decide_what_is_seen_now():
    idx = index([9.0] * 10 + [-3.0] * READ)
    assert not plan("yesno_now", idx).found, "it was there, it has left"
    assert plan("yesno_now", index([-9.0] * 10 + [3.0] * READ)).found
    assert plan("yesno", idx).found


def test_first_is_the_beginning():
    verdict = plan("first", shots((0, 5), (9, 5)))
    assert verdict.time == 0 and set(verdict.frames) <= set(range(5))


# ---------------------------------------------------------------- the planner: what the towers know


def test_a_detection_raises_and_its_absence_lowers_the_fit():
    seen = features(6, {4: [("dog", 0.8, "left")]})
    idx, planner = index([0.0] * 6, (0, 3), seen), Planner(HandMade(), SURE)
    plain, about = (planner.fit(t, located("find"), idx).frames for t in ("Where is it?", "Where is the dog?"))
    assert plain.tolist() == [0.0] * 6
    assert about[4] == pytest.approx(5.0 * 0.8 - 1.5) and about[[0, 1, 2, 3, 5]].tolist() == [-1.5] * 5
    verdict = plan("find", idx, "Where is the dog?")
    assert verdict.found and verdict.time == 3 and 4 in verdict.frames
    assert not plan("find", idx, "Where is the cat?").found, "the towers would have seen a cat"


def test_without_a_calibration_the_towers_have_no_say():
    seen = features(4, {0: [("dog", 0.9, "left")]})
    alone = {k: v for k, v in SURE.items() if k != "towers"}
    fit = Planner(HandMade(), alone).fit("the dog", located("find"), index([1.0] * 4, seen=seen))
    assert fit.frames.tolist() == [1.0] * 4


def test_a_video_without_people_in_the_detectors_eyes_has_none():
    """The locator alone would say yes (5 above "nowhere"): on real clips it did, of an empty table."""
    empty, busy = (features(4, {1: [("person", score, "left")]}) for score in (0.2, 0.8))
    for seen, found in ((empty, False), (busy, True)):
        idx = index([5.0] * 4, seen=seen)
        assert plan("yesno", idx, "Has anyone shown up?").found == found
        assert plan("yesno", idx, "Has a tree shown up?").found, "only people are missed so seldom"


def test_what_has_come_so_far_is_not_about_now():
    idx = shots((5.0, 4), (-9.0, 4))  # there first, gone now
    assert not plan("yesno_now", idx, "Is there a tree now?").found
    assert plan("yesno_now", idx, "Has a tree come by now?").found


@pytest.mark.parametrize(
    ("text", "expected"), [("How does this one open?", "first"), ("What did the video start with?", "first"),
                           ("What is there when it ends?", "last"), ("How do you open a bottle?", None)],
)  # fmt: skip
def test_wordings_of_the_two_ends(text, expected):
    assert wording_plan(text) == expected
