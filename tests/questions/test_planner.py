"""Where the planner goes for hand-made scores: times, finding, counting, stretches, follow-ups, the towers' say."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.questions.asked import parse
from pipeline.questions.facts import surely
from pipeline.questions.index import Index
from pipeline.questions.locator import PLANS
from pipeline.questions.notes import SEEN
from pipeline.questions.planner import ALIKE, LISTED, LONG_TAKE, READ, Earlier, Planner, sure_stays
from pipeline.questions.things import named_things
from tests.questions.made import COCO, SURE, HandMade, features, index, located, plan, shots

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
    fit = Planner(HandMade(), SURE).fit(named_things("x"), located("find", 0.25), index(scores, (0, 3)))
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


@pytest.mark.parametrize("best", [5, 5 + LONG_TAKE])
def test_what_fits_in_a_long_take_ends_with_it(best):
    """The shots beside it fit nearly as well, so that only the cut holds the found stretch back."""
    take = range(5, 5 + LONG_TAKE + 1)
    scores = [5.0] * (take.stop + 5)
    scores[best] = 6.0
    idx = index(scores, (0, take.start, take.stop))
    frames, peak = Planner(HandMade(), SURE)._run(take, np.array(scores))
    assert (frames, peak) == (take, best)
    verdict = plan("find", idx)
    assert verdict.time == take.start and best in verdict.frames and set(verdict.frames) <= set(take)
    for name, near in (("after", range(take.stop, take.stop + 5)), ("before", range(5))):
        beside = plan(name, idx)
        assert beside.found and set(beside.frames) <= set(near)


@pytest.mark.parametrize(("name", "rest"), [("after", range(23, 25)), ("before", range(5, 7))])
def test_the_rest_of_a_long_take_ends_with_it(name, rest):
    scores = [-9.0] * 30
    scores[7:23] = [6.0] * 16
    verdict = plan(name, index(scores, (0, 5, 25)))
    assert verdict.found and set(verdict.frames) == set(rest)


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
    st.sampled_from(PLANS),
    st.sampled_from(STRETCHES),
    st.integers(0, 99),
    st.integers(0, 59),
    st.sampled_from(["What did you see", "Was there a dog", "Which people were there", "How many scenes", ""]),
)
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
        told = Earlier(parse("When was the dog there?", 19.0), earlier)
        return Planner(HandMade(), SURE).plan(parse(text, 19.0), located(name, 0.0), idx, told)

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
    told = Earlier(parse("Was there a dog?", 19.0), dog._replace(listed=((1, 2),)))
    often = Planner(HandMade(), SURE).plan(parse("How often was it there?", 19.0), located("now", 0.0), quiet, told)
    assert (often.count, often.times) == (1, (10.0,)), "it is the dog"
    assert then("find", "When was it there in the last 4 seconds?").time != 5, "who names a stretch means it"


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


def test_a_summary_tells_the_shots_that_show_something():
    """A cat in two of eleven shots was left out because the even ones were told."""
    seen = features(110, {f: [("cat", 0.9, "left")] for f in (*range(30, 40), *range(70, 80))})
    listed = plan("list", index([0.0] * 110, tuple(range(0, 110, 10)), seen)).listed
    assert len(listed) == LISTED and {30, 70} <= {moment[0] for moment in listed}
    assert listed == tuple(sorted(listed))


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
    plain, about = (
        planner.fit(named_things(t), located("find"), idx).frames for t in ("Where is it?", "Where is the dog?")
    )
    assert plain.tolist() == [0.0] * 6
    assert about[4] == pytest.approx(5.0 * 0.8 - 1.5) and about[[0, 1, 2, 3, 5]].tolist() == [-1.5] * 5
    verdict = plan("find", idx, "Where is the dog?")
    assert verdict.found and verdict.time == 3 and 4 in verdict.frames
    assert not plan("find", idx, "Where is the cat?").found, "the towers would have seen a cat"


def test_without_a_calibration_the_towers_have_no_say():
    seen = features(4, {0: [("dog", 0.9, "left")]})
    alone = {k: v for k, v in SURE.items() if k != "towers"}
    fit = Planner(HandMade(), alone).fit(named_things("the dog"), located("find"), index([1.0] * 4, seen=seen))
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


def test_a_summary_leaves_out_nothing_that_is_surely_seen():
    """A cat between the four pictures of a long scene that were looked at was left out."""
    for cat in (range(7, 10), range(33, 36), range(50, 58)):
        seen = {f: [("dog", 0.9, "left")] for f in range(60)} | {f: [("cat", 0.8, "left")] for f in cat}
        idx = index([0.0] * 60, (0, 40), features(60, seen))
        verdict = plan("list", idx, "Describe")
        assert any("a cat" in surely(idx, moment) for moment in verdict.listed), cat
        times = [idx.times[moment[0]] for moment in verdict.listed]
        assert times == sorted(set(times)) and len(times) <= 12


def test_what_is_added_to_a_summary_runs_over_no_cut():
    """People of a scene were told of the second before they came, where somebody was half seen."""
    seen = features(20, {f: [("person", 0.8, "left")] for f in range(4, 16)})
    assert sure_stays(index([0.0] * 20, (0, 6), seen)) == [range(6, 16)]
