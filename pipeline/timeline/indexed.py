"""What producers read of an index of frames (questions/index.py): words for a caption, where a rule's thing is seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from pipeline.memory.log import Log
from pipeline.questions.facts import Known, described
from pipeline.questions.index import Index, read_index
from pipeline.questions.things import ANIMALS, Things, kinds_of_animal, named_things, vetted
from pipeline.senses.sensed import Senses
from pipeline.stream import StreamState
from pipeline.timeline.alerts import CLEAR, LASTS, SURE
from pipeline.timeline.ratios import Found, Ratios
from pipeline.timeline.rules import Read
from pipeline.towers.frame_tower import FrameFeatures


def rows_between(log: Log, start: float, end: float) -> Index:
    """The frames of some seconds as a video of one shot: those whose time is at least `start` and less than `end`."""
    first, last = (int(n) for n in np.searchsorted(log.tensor("time").numpy(), (start, end)))
    return read_index(log.drop_oldest(first).until(max(last - first, 0)), math.inf)


def shown(log: Log, senses: Senses, start: float, end: float) -> str:
    """A few words for what the pictures of some seconds surely show, as a sentence; "" where that is nothing."""
    index = rows_between(log, start, end)
    words = described(Known(index, senses), range(len(index.times))) if len(index.times) else ""
    return words and f"{words[0].upper()}{words[1:]}."


# Kinds of which false alarms were measured (pipeline/training/alerts.py).
MEASURED = set(named_things("person dog cat car bus bicycle horse bird boat train cow motorcycle").coco)
# Kinds that the towers are readier to name than they are right, and the score from which they mostly are: what flies,
# hangs or stands on a branch is soon a bird. Chosen on one part of stills, measured on another (training/README.md).
READY = {id: 0.85 for id in named_things("bird").coco}


class IndexSpotter:
    """Looks for what a rule tells of in the index that `log_of` gives of a state. ratios: None where the index is not
    of the kind that they were learnt from."""

    def __init__(self, rule: Read, log_of: Callable[[StreamState], Log], ratios: Ratios | None = None) -> None:
        self.rule, self.says, self.gone, self._log_of = rule, rule.says, rule.gone, log_of
        known = ratios is not None and all(ratios.knows(things) for _, things in rule.things)
        self._ratios = ratios if known and rule.number == 1 and not rule.gone else None
        self.adds_up = self._ratios is not None

    def seen(self, state: StreamState, since: float) -> Sequence[tuple[float, float]]:
        log = self._log_of(state)
        first = int(np.searchsorted(log.tensor("time").numpy(), since, "right"))
        log = log.drop_oldest(first)
        index = read_index(log, math.inf)
        scores = np.array([self._scores(things, log, index) for _, things in self.rule.things])
        best = scores.max(0) if self.rule.either else scores.min(0)
        return list(zip(index.times.tolist(), best.tolist()))

    def _scores(self, things: Things, log: Log, index: Index) -> np.ndarray:
        if self._ratios is None:
            return scores_of(things, self.rule.number, index.features)
        return chances(self._ratios, things, log, index)


def chances(ratios: Ratios, things: Things, log: Log, index: Index) -> np.ndarray:
    """(F,) how likely the thing is there, at even odds beforehand, in the frames of an index and its log."""
    towers = index.features._replace(det_ids=log.tensor("det_ids").long(), det_scores=log.tensor("det_scores"))
    surely = seen_surely(things, 1, towers)
    found = Found(towers, surely, index.sensed["places"].astype(np.float32), index.keys.float().numpy())
    return np.exp(-np.logaddexp(0.0, -ratios.of(things, found)))


def scores_of(things: Things, number: int, features: FrameFeatures) -> np.ndarray:
    """(F,) what an alert is judged by: how surely a thing is seen so often, on the scale that its kind was given."""
    scores = seen_surely(things, number, features)
    sure = min((READY.get(id, SURE) for id in things.coco), default=SURE)  # of several kinds: of the one seldom wrong
    scores = calibrated(scores, sure)
    return scores if set(things.coco) <= MEASURED else no_more_than_doubts(scores)


def calibrated(scores: np.ndarray, sure: float) -> np.ndarray:
    """The same scores on a scale where what is sure from `sure` on is so from SURE on; 0 and 1 stay."""
    return np.where(scores < sure, scores * SURE / sure, 1 - (1 - scores) * (1 - SURE) / (1 - sure))


def no_more_than_doubts(scores: np.ndarray) -> np.ndarray:
    """The scores of a kind of which it was never measured how often it is wrong for long: those between CLEAR and SURE
    are pressed together below LASTS, since a table may be half a chair in every picture."""
    doubts = (scores >= CLEAR) & (scores < SURE)
    return np.where(doubts, CLEAR + (scores - CLEAR) / (SURE - CLEAR) * (LASTS - 0.01 - CLEAR), scores)


def seen_surely(things: Things, number: int, features: FrameFeatures) -> np.ndarray:
    """(F,) 0 to 1: how surely a thing is seen so often in each frame.

    The detector knows the thing, of animals as far as the classifier lets it, or the classifier names it.
    """
    hits = torch.isin(features.det_ids, torch.tensor(things.coco, dtype=torch.long))
    seen = (vetted(features) * hits).sort(1, descending=True).values[:, number - 1]
    if number > 1:
        return seen.double().numpy()
    kin = itertools.chain(*(kinds_of_animal(id) for id in things.coco if id in ANIMALS))
    own = torch.tensor(sorted({*things.classes, *kin}), dtype=torch.long)
    named = (features.class_probs * torch.isin(features.classes, own)).sum(1)
    return torch.maximum(seen, named).double().numpy()
