"""How written answers are scored: BLEU-4, CIDEr, token F1, error bars, and a judge for hand-written questions.

All scores work on lower-case words without punctuation. BLEU: Papineni et al. 2002 (corpus level, closest reference
length, no smoothing). CIDEr: Vedantam et al. 2015, equations 1-3, without stemming, length penalty or clipping (so not
CIDEr-D), document frequencies from the references given, and the usual factor of 10.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

WORD = re.compile(r"\d+:\d\d(?::\d\d)?|[a-z0-9]+(?:['-][a-z0-9]+)*")


def words(text: str) -> list[str]:
    """Lower-case words, numbers and clock times of a text."""
    return WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> Counter:
    """How often each run of n tokens occurs."""
    return Counter(zip(*(tokens[i:] for i in range(n))))


def bleu4(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4 in 0..1 of N answers against N lists of references. 0 if any n-gram order has no match."""
    matched, total = np.zeros(4), np.zeros(4)
    length = reference_length = 0
    for answer, refs in zip(answers, references, strict=True):
        said, wanted = words(answer), [words(r) for r in refs]
        length += len(said)
        reference_length += min((abs(len(w) - len(said)), len(w)) for w in wanted)[1]
        for n in range(1, 5):
            best: Counter = Counter()
            for tokens in wanted:
                best |= ngrams(tokens, n)
            matched[n - 1] += sum((ngrams(said, n) & best).values())
            total[n - 1] += max(len(said) - n + 1, 0)
    if not matched.all():
        return 0.0
    brevity = min(0.0, 1.0 - reference_length / length)
    return float(math.exp(brevity + np.log(matched / total).mean()))


def _weights(tokens: Sequence[str], n: int, found_in: Counter, documents: int) -> dict:
    """TF-IDF vector of a sentence's n-grams (equation 1, without the sentence's length, which the cosine cancels)."""
    return {g: c * math.log(documents / max(1, found_in[g])) for g, c in ngrams(tokens, n).items()}


def _cosine(a: dict, b: dict) -> float:
    dot = sum(w * b[g] for g, w in a.items() if g in b)
    norm = math.sqrt(sum(w * w for w in a.values()) * sum(w * w for w in b.values()))
    return dot / norm if norm else 0.0


def cider(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean CIDEr x 10 of N answers against N lists of references; needs N > 1, as one document has no frequencies."""
    if len(answers) < 2:
        raise ValueError("CIDEr needs at least two answers: its weights come from how words spread over them")
    wanted = [[words(r) for r in refs] for refs in references]
    score = 0.0
    for n in range(1, 5):
        found_in = Counter(g for refs in wanted for g in {g for tokens in refs for g in ngrams(tokens, n)})
        for answer, refs in zip(answers, wanted, strict=True):
            said = _weights(words(answer), n, found_in, len(wanted))
            score += sum(_cosine(said, _weights(r, n, found_in, len(wanted))) for r in refs) / len(refs)
    return 10.0 * score / 4 / len(answers)


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Best word-overlap F1 of an answer over its references, 0..1; two empty texts agree."""
    said = Counter(words(answer))
    return max(_f1(said, Counter(words(r))) for r in references)


def _f1(said: Counter, wanted: Counter) -> float:
    total = sum(said.values()) + sum(wanted.values())
    return 2 * sum((said & wanted).values()) / total if total else 1.0


def binomial_error(share: float, n: int) -> float:
    """One standard error of a share measured on n independent cases."""
    return math.sqrt(share * (1 - share) / n) if n else math.nan


def bootstrap(values: Sequence[float], rng: np.random.Generator, rounds: int = 1000) -> tuple[float, float, float]:
    """(mean, low, high): the mean and the middle 95 % of means over resampled values."""
    sample = np.asarray(values, float)
    means = sample[rng.integers(0, len(sample), (rounds, len(sample)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(sample.mean()), float(low), float(high)


def judge(record: dict, answer: str, evidence_times: Sequence[float] = ()) -> bool:
    """Is an answer to a record of clip_questions.json right?

    Every group of `expected` must match in at least one of its patterns (regular expressions, whole words, any case),
    none of `forbidden` may. Where `expected_time` is [low, high] seconds, a time the answer states must lie in it; if
    the answer states none, the first of `evidence_times` (the moment it rests on most) must. `anywhere`: parts of words
    match as well.
    """
    if says_forbidden(record, answer):
        return False
    if not all(any(_matches(record, p, answer) for p in group) for group in record["expected"]):
        return False
    return _rests_on(record.get("expected_time"), answer, evidence_times)


def says_forbidden(record: dict, answer: str) -> bool:
    return any(_matches(record, pattern, answer) for pattern in record.get("forbidden") or ())


def _matches(record: dict, pattern: str, answer: str) -> bool:
    pattern = pattern if record.get("anywhere") else rf"(?<!\w)(?:{pattern})(?!\w)"
    return re.search(pattern, answer, re.IGNORECASE) is not None


# Only these say that an answer does not know; no other words count as doubt.
DOUBTS = re.compile(
    r"\bI (?:am not (?:sure|certain)|cannot (?:tell|say|hear|read)|can't tell|do not know|don't know)\b", re.IGNORECASE
)


def outcome(record: dict, answer: str, evidence_times: Sequence[float] = ()) -> str:
    """ "right", "unsure" or "false": an honest doubt is none of the other two, unless it says something forbidden.

    The doubt's own words are none: where "not" and "cannot" are forbidden, what they mean is a denial.
    """
    if DOUBTS.search(answer):
        return "false" if says_forbidden(record, DOUBTS.sub(" ", answer)) else "unsure"
    return "right" if judge(record, answer, evidence_times) else "false"


def stated_times(answer: str) -> list[float]:
    """Seconds of all clock times (m:ss or h:mm:ss) in a text."""
    found = re.findall(r"(?<![\d:])(?:(\d+):)?(\d{1,2}):(\d\d)(?![\d:])", answer)
    return [int(h or 0) * 3600 + int(m) * 60 + int(s) for h, m, s in found]


def _rests_on(span: Sequence[float] | None, answer: str, evidence_times: Sequence[float]) -> bool:
    if span is None:
        return True
    times = stated_times(answer) or list(evidence_times)[:1]
    return bool(times) and all(span[0] <= t <= span[1] for t in times)
