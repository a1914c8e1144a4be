"""Words that a question looks for in what was said or written: quoted ones, else those that carry a meaning."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.questions.wordings import plain

_QUOTED = re.compile(r"""["“”«»]([^"“”«»]+)["“”«»]|(?<!\w)['‘’]([^'‘’]+)['‘’](?!\w)""")
_SCREEN = re.compile(r"\bon (the )?(screen|display|sign)\b")
_CAPITALS = re.compile(r"\b[A-Z]{3,}\b")
_SPELT = re.compile(r"\b(words?|title|text|letters?|captions?|written|writing|spelled|spelt)\b")
# What a question is made of, whatever it asks for: function words, and those for saying, writing and hearing.
_FRAME = frozenset(
    re.findall(
        r"\w+",
        """
    a about above after again all aloud also am an and any anybody anyone anything anywhere appear appeared appears
    are as at audio be been before being but by called can caption captions clip come comes could dialogue did display
    do does doing ever everybody everyone exact exactly film first for from get gets give guy had has have he hear
    heard her here him his how i in into is it its just lady last letter letters listen man me mention mentioned
    mentions moment movie my name named narrator no not now of off on once one ones or our out over part people person
    phrase please point quote read reads repeat said same saw say saying says screen second seconds see seen sentence
    she show shown shows sign so somebody someone something sound speak speaker speaking speaks spoke spoken still
    talk talked talking talks tell tells text than that the their them then there these they thing things this those
    time times title to transcribe transcript up us uttered verbatim video voice was we were what when where which
    while who whole whom why will with woman word wording words write writes writing written yet you your
""",
    )
)


def sought(text: str) -> tuple[str, ...]:
    """In small letters, in the question's order."""
    quoted = " ".join(a or b for a, b in _QUOTED.findall(text))
    return tuple(words_of(quoted)) or tuple(
        word for word in words_of(plain(text)) if not (word in _FRAME or word.isdigit())
    )


def spelt(text: str) -> bool:
    """Whether it quotes words, writes them in capitals, or says that it is about words."""
    return bool((_CAPITALS.search(text) and not text.isupper()) or _QUOTED.search(text) or _SPELT.search(plain(text)))


def on_screen(text: str) -> bool:
    return bool(_SCREEN.search(plain(text)))


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, in small letters."""
    return re.findall(r"[^\W_]+", re.sub(r"(?<=\w)['’](?=\w)", "", text.lower()))


def has(text: str, words: Sequence[str]) -> bool:
    """Whether all words stand in a text, be it in another number or tense."""
    there = {stem(word) for word in words_of(text)}
    return all(stem(word) in there for word in words)


def stem(word: str) -> str:
    """A word without the ending of a plural or a tense."""
    for ending, instead in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending) + instead
    return word.removesuffix("e") if len(word) > 3 else word
