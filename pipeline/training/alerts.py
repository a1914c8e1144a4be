"""How many alerts come and how many are false: `python -m pipeline.training.alerts --data DIR --videos DIR`.

Footage is made: minutes of real clips, looped with other crops, mirrored, brighter and darker, and pans over stills
that no training of ours has seen, a new one every five pictures, which no camera shows. False alarms of a rule are
counted an hour of footage that does not hold its thing; recall over visits: a still that shows the thing after pictures
that do not. Model, index, rules and thresholds are the product's; nothing is asked of it. One JSON line last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from pipeline.models.embedded import EmbeddedModel
from pipeline.models.shipped import load_embedded
from pipeline.sources.file import open_video
from pipeline.stream import Frame, Rule, StreamState, VideoChunk
from pipeline.timeline.alerts import COOL_DOWN, Armed
from pipeline.training.data import Picture, pictures, read_all

WORDS = ("person", "dog", "cat", "car", "bus", "bicycle", "horse", "bird", "boat", "train", "cow", "motorcycle")
SIZE = (416, 312)  # of a picture of the footage
VISIT = 5  # pictures that a still stays
LOOP = 30  # pictures of one variation of a clip
BEFORE = 4  # pictures without the thing before a visit
TOGETHER = 30  # pictures of a chunk
RESTART = 300  # pictures after which a stream begins anew
# What a clip holds of these words, or may be said to hold.
HOLDS = {
    "bbb_480p_30s.mp4": "bird cow",
    "intel_bottle-detection.mp4": "person",
    "intel_fruit-and-vegetable-detection.gif": "person",
    "intel_one-by-one-person-detection.mp4": "person",
    "intel_worker-zone-detection.gif": "person car truck bus",
    "mdn_flower.mp4": "",
}
# Words of a caption that tell of a thing, or of one that holds it: who rides a horse is a person.
TOLD = {
    "person": r"man|men|wom[ae]n|boys?|girls?|child\w*|kids?|people|persons?|players?|ladies|lady|guys?|crowd|team|"
    r"baby|toddler|adults?|\w+ists?|\w+ers?|someone|somebody|hands?|face|he|she|his|her|they|group|couple|family",
    "dog": r"dogs?|pupp\w+|\w*hounds?|terriers?|retrievers?|poodles?|collies?|animals?|labs?|labradors?|"
    r"pets?|shepherds?",
    "bicycle": r"\w*bik\w+|\w*cycl\w+|bmx",
    "motorcycle": r"\w*bik\w+|motor\w+|scooters?|moped|atv|rac\w+",
    "horse": r"horses?|pon\w+|rid\w+|rodeo|bull|jockey|polo|cowboys?|animals?",
    "car": r"cars?|truck\w*|street\w*|road\w*|traffic|vehicles?|rac\w+|taxi|van|suv|jeep|city|parking\w*|"
    r"bus|buses|driv\w+",
    "bus": r"bus|buses|street\w*|traffic|city|van",
    "bird": r"birds?|seagulls?|ducks?|gulls?|goose|geese|pigeons?|parrots?|swans?|chickens?|animals?|eagle|owl",
    "boat": r"boats?|canoes?|kayak\w*|ships?|raft\w*|sail\w*|wakeboard\w*|surf\w*|row\w*|ski\w*|water|lake|"
    r"ocean|harbor",
    "train": r"trains?|track\w*|subway|station|rail\w*",
    "cat": r"cats?|kitten\w*|animals?|pets?",
    "cow": r"cows?|cattle|bulls?|calf|rodeo|animals?|ox\w*|goats?|sheep",
}


# Of clips that hold persons: pictures (one a second) in which nobody is, looked at one by one.
EMPTY = {
    "intel_bottle-detection.mp4": {*range(6), 8, 9, 10, 14, 15, *range(19, 22), 25, 26, 27, 30, 33, 34, 38, 39},
    "intel_fruit-and-vegetable-detection.gif": set(range(7)),
    "intel_one-by-one-person-detection.mp4": {
        *(*range(6), 21, 22, *range(46, 51), *range(71, 75), *range(88, 93), *range(121, 124), *range(137, 140))
    },
}


class Made(NamedTuple):
    """Consecutive pictures of one thing. holds: words that may be seen in it; word: what it is shown for. clip,
    numbers: where they come from."""

    frames: list[np.ndarray]
    holds: frozenset[str]
    word: str = ""
    clip: str = ""
    numbers: Sequence[int] = ()

    def may_show(self, word: str) -> list[bool]:
        """Of each picture."""
        if word not in self.holds:
            return [False] * len(self.frames)
        empty = EMPTY.get(self.clip, set()) if word == "person" else set()
        return [number not in empty for number in self.numbers] if empty else [True] * len(self.frames)


def window(rgb: np.ndarray, centre: Sequence[float], width: float) -> np.ndarray:
    """A crop of it, as large as the footage's pictures. centre, width: shares of the picture."""
    height, wide = rgb.shape[:2]
    across, high = max(8, int(wide * width)), max(8, int(height * width))
    left = int((wide - across) * centre[0])
    top = int((height - high) * centre[1])
    return cv2.resize(np.ascontiguousarray(rgb[top : top + high, left : left + across]), SIZE)


def varied(pictures_: Sequence[np.ndarray], rng: np.random.Generator, narrowest: float) -> list[np.ndarray]:
    """The same pictures under a window that moves, mirrored or not, brighter or darker."""
    (a, b), widths = rng.uniform(0, 1, (2, 2)), rng.uniform(narrowest, 1, 2)
    steps, gain, mirrored = np.linspace(0, 1, len(pictures_)), rng.uniform(0.7, 1.2), rng.random() < 0.5
    crops = [window(rgb, a + (b - a) * s, widths[0] + (widths[1] - widths[0]) * s) for rgb, s in zip(pictures_, steps)]
    return [np.clip((crop[:, ::-1] if mirrored else crop) * gain, 0, 255).astype(np.uint8) for crop in crops]


def looped(videos: Path, rng: np.random.Generator) -> Iterator[Made]:
    """Endless: half a minute of a clip from anywhere in it, looped and varied."""
    clips = {}
    for name in HOLDS:
        with open_video(str(videos / name), fps=1.0, long_side=640) as video:
            clips[name] = [frame.rgb for frame in video]
    for name in itertools.cycle(HOLDS):
        start = int(rng.integers(len(clips[name])))
        numbers = [i % len(clips[name]) for i in range(start, start + LOOP)]
        frames = varied([clips[name][i] for i in numbers], rng, 0.6)
        yield Made(frames, frozenset(HOLDS[name].split()), "", name, numbers)


def told_of(picture: Picture) -> frozenset[str]:
    """The words that its captions may be telling of."""
    text = " ".join(picture.captions).lower()
    return frozenset(word for word, pattern in TOLD.items() if re.search(rf"\b({pattern})\b", text))


def shown_for(picture: Picture, word: str) -> bool:
    """Whether most of its captions name the thing by its own word, so that it is no matter of the background."""
    names = {"person": r"man|woman|boy|girl|child|person|men|women|boys|girls|people|children|lady|guy"}
    named = [re.search(rf"\b({names.get(word, word + 's?')})\b", line.lower()) for line in picture.captions]
    return sum(map(bool, named)) >= 4


def panned(data: Path, rng: np.random.Generator) -> Iterator[Made]:
    """A still after the other that no training of ours has seen, each under a moving window."""
    stills = [one for one in pictures(data) if one.source == "flickr" and one.split != "train"]
    stills = [stills[i] for i in rng.permutation(len(stills))]
    for still, rgb in zip(stills, read_all(data, stills)):
        word = next((word for word in ("dog", "bicycle", "horse", "person") if shown_for(still, word)), "")
        yield Made(varied([rgb] * VISIT, rng, 0.85 if word else 0.7), told_of(still), word)


@dataclass
class Scores:
    """What the towers make of pictures, a second apart; for `Armed` a spotter."""

    scores: Sequence[float]
    says: str = ""
    gone: bool = False
    adds_up: bool = False

    def seen(self, state: StreamState, since: float) -> Sequence[tuple[float, float]]:
        return list(enumerate(self.scores))


def alerts_of(scores: Sequence[float], cool_down: float = COOL_DOWN, adds_up: bool = False) -> int:
    """How many alerts pictures with these scores give."""
    armed = Armed(Rule("", "", cool_down, 1), Scores(scores, adds_up=adds_up))
    return len(list(armed.judge(StreamState(()))))


@dataclass
class Tally:
    """Of one kind of footage. without: scores of a word over the footage that does not hold it. visits: of a word that
    is shown, whether each was told. adds_up: of each word, see `Spotter`."""

    adds_up: Mapping[str, bool]
    pictures: int = 0
    without: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    visits: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))

    def add(self, made: Made, scores: dict[str, list[float]]) -> None:
        self.pictures += len(made.frames)
        for word in WORDS:
            self.without[word] += [score for score, may in zip(scores[word], made.may_show(word)) if not may]
        if made.word:
            scores_of_visit = [0.0] * BEFORE + scores[made.word]
            self.visits[made.word].append(alerts_of(scores_of_visit, 0.0, self.adds_up[made.word]) > 0)

    def told(self) -> dict[str, Any]:
        """False alarms of all rules and each, with the hours of footage they were judged on; recall of each word."""
        false = {word: alerts_of(scores, adds_up=self.adds_up[word]) for word, scores in self.without.items()}
        hours = sum(map(len, self.without.values())) / 3600
        low, high = poisson_interval(sum(false.values()))
        return {
            "pictures": self.pictures,
            "rule_hours": round(hours, 2),
            "false": sum(false.values()),
            "false_an_hour": round(sum(false.values()) / hours, 2),
            "interval_95": [round(low / hours, 2), round(high / hours, 2)],
            "false_of": {word: count for word, count in Counter(false).most_common() if count},
            "recall": {word: [sum(told), len(told)] for word, told in self.visits.items()},
        }


def poisson_interval(count: int, outside: float = 0.05) -> tuple[float, float]:
    """The exact interval of a Poisson mean of which `count` were seen (Garwood 1936), by bisection."""

    def below(mean: float, most: int) -> float:
        return sum(math.exp(n * math.log(mean) - mean - math.lgamma(n + 1)) for n in range(most + 1))

    def where(true: Callable[[float], bool]) -> float:
        low, high = 1e-9, 10.0 * (count + 5)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if true(middle) else (low, middle)
        return low

    lower = where(lambda mean: 1 - below(mean, count - 1) < outside / 2) if count else 0.0
    return lower, where(lambda mean: below(mean, count) > outside / 2)


def judged(model: EmbeddedModel, footage: Iterable[Made], most: int) -> Tally:
    """So many pictures of the footage, watched as one video, and every rule on them."""
    spotters = {word: model.spotter(f"tell me when a {word} comes") for word in WORDS}
    tally, state = Tally({word: spotter.adds_up for word, spotter in spotters.items()}), model.start()
    for made in footage:
        since = state.frames - 1.0
        for i in range(0, len(made.frames), TOGETHER):
            some = made.frames[i : i + TOGETHER]
            chunk = tuple(Frame(rgb, float(state.frames + j)) for j, rgb in enumerate(some))
            state = model.watch(VideoChunk(chunk), state)
        scores = {word: [score for _, score in spotter.seen(state, since)] for word, spotter in spotters.items()}
        tally.add(made, scores)
        print(f"{tally.pictures} pictures", end="\r", file=sys.stderr, flush=True)
        if tally.pictures >= most:
            break
        state = state if state.frames < RESTART else model.start()
    return tally


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=1.0, help="of footage of each kind, a picture a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    rng, most = np.random.default_rng(args.seed), round(args.hours * 3600)
    model = load_embedded(device=args.device)
    footage = {"clips": looped(args.videos, rng), "stills": panned(args.data, rng)}
    told = {kind: judged(model, made, most).told() for kind, made in footage.items()}
    print(json.dumps(told))
    return told


if __name__ == "__main__":
    main()
