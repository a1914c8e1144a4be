"""The training questions: reproducible, balanced, resting on the right moments; and the scores that measure answers."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.training import data, episodes, metrics
from pipeline.training.phrases import wordings
from pipeline.training.questions import agree

DATA = Path(__file__).parents[3] / "shared" / "data"
CLOCK = re.compile(r"\d+:\d\d")


@pytest.fixture(scope="module")
def pictures():
    if not (DATA / data.CAPTIONS).exists():
        pytest.skip("the training pictures are not here")
    return data.pictures(DATA)


@pytest.fixture(scope="module")
def world(pictures):
    return episodes.World(pictures)


@pytest.fixture(scope="module")
def split(pictures):
    return {s: np.array([i for i, p in enumerate(pictures) if p.split == s]) for s in ("train", "dev", "test")}


@pytest.fixture(scope="module")
def made(world, split):
    """120 training episodes of 6 s to 10 min, 16 questions each."""
    rng = np.random.default_rng(11)
    lengths = (6, 15, 40, 90, 200, 600)
    return [episodes.generate(world, split["train"], rng, lengths[i % 6], 16) for i in range(120)]


def asked(made, *recipes):
    return [(e, q) for e in made for q in e.questions if q.recipe in recipes]


# --- pictures ----------------------------------------------------------------------------------------------------


def test_captions_become_sentences():
    assert data.tidy_sentence("A dog runs . ") == "A dog runs."
    assert data.tidy_sentence("two  MEN , one in red ..") == "Two MEN, one in red."
    assert data.tidy_sentence("A MAN SITS") == "A man sits."
    assert data.tidy_sentence(' . "') == ""


def test_pictures_are_all_there_in_a_fixed_order(pictures):
    assert Counter(p.source for p in pictures) == {"flickr": 8091, "imagenet": 1000, "caltech": 1818}
    assert pictures == data.pictures(DATA)
    labels = data.imagenet_words(pictures)
    assert (len(labels), labels[1], labels[999]) == (1000, "goldfish", "toilet paper")
    sentences = [c for p in pictures for c in p.captions]
    assert all(re.fullmatch(r"[A-Z0-9'].*[^ .]\.", s) for s in sentences)


def test_pixels_come_in_the_order_asked_for_and_bad_files_are_named(pictures):
    some = [pictures[0], pictures[-1], pictures[8200], pictures[0]]
    pixels = data.read_all(DATA, some, workers=2)
    assert all(p.shape == (224, 224, 3) and p.dtype == np.uint8 for p in pixels)
    assert np.array_equal(pixels[0], pixels[3]) and not np.array_equal(pixels[0], pixels[1])
    with pytest.raises(ValueError, match=r"x\.webp"):
        data._decode(b"not a picture", "x.webp")


# --- videos ------------------------------------------------------------------------------------------------------


def test_same_seed_same_episode(world, split):
    one, two, other = (
        episodes.generate(world, split["train"], np.random.default_rng(s), 80, 20, "dev") for s in (3, 3, 4)
    )
    assert np.array_equal(one.frames, two.frames) and one.questions == two.questions
    assert not np.array_equal(one.frames, other.frames)


def test_frames_shots_and_views_agree(made):
    for e in made:
        assert len(e.questions) == 16 and len(e.frames) == len(e.shot_of_frame) == e.shots[-1].end
        assert e.frames[:, 1].min() >= 0 and e.frames[:, 1].max() < episodes.VIEWS
        for i, shot in enumerate(e.shots):
            assert (e.shot_of_frame[shot.start : shot.end] == i).all() and shot.end > shot.start
            assert (e.frames[shot.start : shot.end, 0] == shot.picture).all()
            assert i == 0 or (shot.start == e.shots[i - 1].end and shot.picture != e.shots[i - 1].picture)


def test_shot_lengths_spread(made):
    lengths = Counter(s.end - s.start for e in made for s in e.shots[:-1])
    assert set(range(2, 13)) <= set(lengths) and min(lengths) == 2 and max(lengths) <= 41
    assert 0.02 < sum(n for length, n in lengths.items() if length > 12) / lengths.total() < 0.25


def test_an_hour_and_a_moment(world, split):
    hour = episodes.generate(world, split["train"], np.random.default_rng(0), 3600, 40)
    assert len(hour.shots) > 80 and max(q.asked_at for q in hour.questions) == 3599
    assert len(episodes.generate(world, split["train"], np.random.default_rng(0), 6, 30).questions) == 30
    with pytest.raises(ValueError, match="6 frames"):
        episodes.generate(world, split["train"], np.random.default_rng(0), 5, 1)


def test_held_out_pictures_never_train(pictures, made, world, split):
    used = {int(p) for e in made for p in e.frames[:, 0]}
    assert used and all(pictures[p].split == "train" for p in used)
    pairs = episodes.retrieval_pairs(world, split["train"], np.random.default_rng(0), 500)
    assert len(pairs) == 500 and all(pictures[p].split == "train" and text for p, text in pairs)


# --- questions ---------------------------------------------------------------------------------------------------


def test_every_recipe_and_kind_occurs_with_only_sensible_text(made):
    questions = [q for e in made for q in e.questions]
    assert {q.recipe for q in questions} == set(episodes.RECIPES)
    assert {q.kind for q in questions} == set(episodes.KINDS)
    for q in questions:
        assert q.text.strip() == q.text and "{" not in q.text + q.answer and "  " not in q.text + q.answer
        assert q.answer and q.answer[-1] in ".!?"


def test_questions_rest_only_on_what_has_been_seen(made):
    for e, q in asked(made, *episodes.RECIPES):
        assert 0 <= q.asked_at < len(e.frames)
        assert all(e.shots[s].start <= q.asked_at for s in (*q.target_shots, *q.refer_shots))
        assert q.note_time is None or q.note_time <= q.asked_at
        assert (not q.target_shots) or not q.absent
        if q.target_shots and q.note_time is not None:
            first = e.shots[q.target_shots[0]]
            assert first.start <= q.note_time < first.end, q


def test_times_and_counts_in_answers_are_the_notes(made):
    for _, q in asked(made, *(episodes.RECIPES.keys() - {"chat"})):
        noted = {episodes.clock(t) for t in (q.note_time, q.named_time, *q.note_times) if t is not None}
        assert set(CLOCK.findall(q.answer)) <= noted, q
        if q.recipe in ("count", "count_of") and q.note_count:
            assert (
                int(q.answer.lower().removeprefix("there has been ").removeprefix("there have been ").split()[0])
                == q.note_count
            )


def test_moments_named_by_time_are_the_targets(made):
    for e, q in asked(made, "at"):
        assert q.target_shots == (e.shot_of_frame[q.named_time],)
    for e, q in asked(made, "now"):
        assert q.target_shots == (e.shot_of_frame[q.asked_at],)
    for _, q in asked(made, "notyet"):
        assert q.named_time > q.asked_at and q.absent


def test_neighbours_are_neighbours(made):
    pairs = asked(made, "after", "before")
    edges = [q for _, q in pairs if not q.target_shots]
    assert 0 < len(edges) < len(pairs) / 2 and all(q.answer.startswith("Nothing") for q in edges)
    for e, q in pairs:
        step = 1 if q.recipe == "after" else -1
        assert q.target_shots in ((), (q.refer_shots[0] + step,)), q
        assert q.target_shots or q.refer_shots[0] == (0 if step < 0 else e.shot_of_frame[q.asked_at])


@pytest.fixture(scope="module")
def plain(world):
    """question without marks -> the one thing it asks about, for all trained wordings with a bare thing in them."""
    found = {}
    for section in ("when", "yesno", "yesno_now", "after", "before", "describe"):
        for template in (t for line in wordings("train")[section] for t in line):
            for c in (c for c in world.concepts if c.asked):
                found[template.replace("{np}", c.one).replace("{one}", c.one).lower().strip("?.")] = c
    return found


def shown(pictures, shots, first, last):
    """All words of the captions and classes of shots first..last."""
    seen = {shots[s].picture for s in range(first, last + 1)}
    text = " ".join(t for p in seen for t in (*pictures[p].captions, pictures[p].label or ""))
    return set(re.findall(r"[a-z-]+", text.lower()))


def test_words_of_when_fit_their_shots_and_no_other(pictures, world, made, plain):
    checked = 0
    for e, q in asked(made, "when"):
        target = {e.shots[s].picture for s in q.target_shots}
        assert len(target) == 1 and q.note_time == e.shots[q.target_shots[0]].start
        if concept := plain.get(q.text.lower().strip("?.")):
            others = [s for s in e.shots[: e.shot_of_frame[q.asked_at] + 1] if s.picture not in target]
            assert world.mentions[target.pop(), world.number[concept.noun]] >= 2
            assert not others or not shown(pictures, others, 0, len(others) - 1) & concept.words, q.text
            checked += 1
    assert checked > 10


def test_absent_things_are_absent(pictures, made, plain):
    """No caption of a shot seen so far (of the current shot, for "now") has a word for a denied thing."""
    checked = 0
    for e, q in asked(made, "yesno", "where_nothing"):
        concept = plain.get(q.text.lower().strip("?."))
        if concept and q.absent:
            last = int(e.shot_of_frame[q.asked_at])
            now = q.answer.endswith(("No.", "now.", "moment."))
            assert not shown(pictures, e.shots, last if now else 0, last) & concept.words, q.text
            checked += 1
    assert checked > 40


@pytest.fixture(scope="module")
def described(world):
    """Question -> concepts of the description it borrows, or None where it borrows none or was mistyped."""
    notes = {f.np.lower(): world.notes[p][k] for p, found in enumerate(world.phrases) for k, f in found}
    sections = ("when", "after", "before", "describe", "yesno")
    templates = [t for name in sections for line in wordings("train")[name] for t in line]
    frames = {agree(t, start).lower().strip("?.") for t in templates for start in ("a", "two")}

    def look_up(question):
        said = question.text.lower().strip("?.")
        for start, end in ((a, b) for b in range(len(said), 8, -1) for a in range(b - 8) if said[a:b] in notes):
            if said[:start] + "{np}" + said[end:] in frames:
                return notes[said[start:end]]
        return None

    return look_up


def test_descriptions_fit_their_shot_and_no_other(world, made, described):
    checked = 0
    for e, q in asked(made, "when", "after", "before", "where_nothing", "yesno"):
        note = described(q)
        if note is not None:
            right = {e.shots[s].picture for s in q.refer_shots}
            seen = {s.picture for s in e.shots[: e.shot_of_frame[q.asked_at] + 1]} - right
            assert not any((world.mentions[p][note] > 0).all() for p in seen), q.text
            assert all((world.mentions[p][note] > 0).all() for p in right), q.text
            checked += 1
    assert checked > 150


def test_denied_descriptions_lack_a_thing_of_theirs(world, made, described):
    """Up to 100 shots, something a denied description names is in none of them; a shot never holds most of it."""
    checked = 0
    for e, q in asked(made, "where_nothing", "yesno"):
        note = described(q) if q.absent else None
        if note is not None:
            seen = world.mentions[[s.picture for s in e.shots[: e.shot_of_frame[q.asked_at] + 1]]][:, note] > 0
            assert seen.mean(1).max() <= 0.6 and (len(seen) > 100 or not seen.any(0).all()), q.text
            checked += 1
    assert checked > 50


def test_yes_and_no_balance(made, plain):
    answers = Counter(q.answer[:2] for _, q in asked(made, "yesno"))
    assert set(answers) == {"Ye", "No"} and abs(answers["Ye"] / answers.total() - 0.5) < 0.08
    for e in made:
        signs = [q.answer.startswith("Yes") for q in e.questions if q.recipe == "yesno"]
        assert abs(2 * sum(signs) - len(signs)) <= 1, "each video asks as many of either"
    common = {"dog", "man", "woman", "child", "person", "animal", "snow", "water", "beach"}
    nouns = Counter(q.answer[:2] for _, q in asked(made, "yesno") if _about(plain, q) in common)
    assert nouns.total() > 20 and min(nouns.values()) > 0.2 * nouns.total(), (
        "a common word must not give the answer away"
    )


def _about(plain, question):
    concept = plain.get(question.text.lower().strip("?."))
    return concept.noun if concept else None


def test_evaluation_wordings_are_never_trained(world, split, made):
    train, held = wordings("train"), wordings("dev")
    for section in train.keys() - {"refusals"}:
        told, kept = ({t for line in part[section] for t in line} for part in (train, held))
        assert told and kept and not told & kept, section
    shapes = {re.sub(r"\{.*?\}", "", t).lower() for t in (t for line in held["now"] for t in line)}
    said = {q.text.lower() for _, q in asked(made, "now")}
    assert not {s.strip(" ?.") for s in said} & {s.strip(" ?.") for s in shapes}


def test_choices_hold_the_answer_first_and_no_twin(world, split):
    rng = np.random.default_rng(5)
    found = [q for _ in range(20) for q in episodes.generate(world, split["test"], rng, 60, 12, "test").questions]
    chosen = [q for q in found if q.choices]
    assert len(chosen) > 60
    assert all(q.choices[0] == q.answer and len(set(q.choices)) == len(q.choices) == 8 for q in chosen)


def test_concept_words(pictures):
    flickr = [p for p in pictures if p.source == "flickr"][:800]
    vocabulary = episodes.caption_vocabulary(flickr, 200)
    assert len(vocabulary) == len(set(vocabulary)) == 200
    assert {"dog", "running", "water", "red"} <= set(vocabulary) and not {"dogs", "runs", "the", "watering"} & set(
        vocabulary
    )
    dog = data.Picture("x", "flickr", "train", ("Two dogs run.",))
    assert {vocabulary[i] for i in episodes.caption_words([*flickr, dog], vocabulary)[-1]} >= {"dog", "running"}


# --- scores ------------------------------------------------------------------------------------------------------


def test_bleu_by_hand():
    """5 words of 6 match: 5/6 words, 3/5 pairs, 2/4 triples, 1/3 fours; same length, so no penalty."""
    answer, reference = "the cat sat on a mat", "The cat sat on the mat."
    assert metrics.bleu4([answer], [[reference]]) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    short = metrics.bleu4(["a b c d e"], [["a b c d e f g"]])
    assert short == pytest.approx(math.exp(1 - 7 / 5))
    assert metrics.bleu4(["a b c"], [["a b c"]]) == 0
    # of references with 6 and 9 words the nearer counts: no penalty for an answer of 6
    assert metrics.bleu4(["a b c d e f"], [["a b c d e f g h i", "a b c d e f"]]) == pytest.approx(1)


def test_cider_by_hand():
    """Two documents of one word order each. Perfect answers score 10; a word in every document weighs nothing."""
    references = [["a red dog runs"], ["a blue car stops"]]
    assert metrics.cider([r[0] for r in references], references) == pytest.approx(10)
    assert metrics.cider(["a", "a"], references) == 0
    # "red" against "a red dog runs": 1-gram cosine 1/sqrt(3), nothing longer; the other answer is empty.
    assert metrics.cider(["red", ""], references) == pytest.approx(10 * (1 / math.sqrt(3)) / 4 / 2)
    with pytest.raises(ValueError):
        metrics.cider(["a"], [["a"]])


def test_f1_and_error_bars():
    assert metrics.token_f1("a dog", ["A dog runs."]) == pytest.approx(0.8)
    assert metrics.token_f1("cat", ["dog", "cat"]) == 1 and metrics.token_f1("", [""]) == 1
    assert metrics.binomial_error(0.5, 100) == pytest.approx(0.05)
    mean, low, high = metrics.bootstrap([0, 1] * 50, np.random.default_rng(0))
    assert mean == 0.5 and 0.38 < low < 0.42 and 0.58 < high < 0.62


def test_judge():
    record = {"expected": [["dogs?"], ["black", "dark"]], "forbidden": ["cat"], "expected_time": [10, 20]}
    assert metrics.judge(record, "Two Dogs, dark ones, at 0:12.")
    assert metrics.judge(record, "A black dog.", [15.0, 99.0])
    assert not metrics.judge(record, "A black dog.", [5.0]) and not metrics.judge(record, "A black dog.")
    assert not metrics.judge(record, "A black dog, at 0:25.", [15.0])
    assert not metrics.judge(record, "A dog.", [15.0]) and not metrics.judge(record, "A black dog and a cat.", [15.0])
    assert not metrics.judge({"expected": [["no"]]}, "Nobody knows.")
    assert metrics.stated_times("from 0:35 to 1:00:05") == [35, 3605]


@pytest.mark.parametrize("name", ["clip_questions", "clip_questions_2", "clip_questions_3"])
def test_clip_questions_are_answerable_and_balanced(name):
    path = Path(metrics.__file__).with_name(f"{name}.json")
    questions = json.loads(path.read_text(encoding="utf-8"))["questions"]
    assert len(questions) >= 40 and len({q["clip"] for q in questions}) == 6
    assert {q["kind"] for q in questions} <= set(episodes.KINDS)
    yesno = [q for q in questions if q["kind"] == "yesno"]
    yes = sum(metrics.judge(q | {"expected_time": None}, "Yes.") for q in yesno)
    no = sum(metrics.judge(q, "No, I have not seen that.") for q in yesno)
    assert yes + no == len(yesno) and abs(yes - no) <= 4
    always = max(
        sum(metrics.judge(q, text, [1.0]) for q in questions)
        for text in ("Yes.", "No, I have not seen that.", "A man.")
    )
    assert always < len(questions) / 2, "one phrase must not pass for understanding"
