"""Whether a question is English: by its script, and by small words that English has not."""

from __future__ import annotations

import re

_FOREIGN = {
    "was ist wer wo wann wie warum welche welcher welches der die das ein eine einen ist sind sieht siehst gibt es und "
    "nicht bei auf im zu mit ich du kannst passiert wird",
    "que qu qui quoi quand où est sont il elle y le la les un une des dans sur quel quelle quels combien comment se "
    "passe fait vois pas avec couleur",
    "qué que quién cuándo dónde cómo cuántos cuántas hay es está están el la los las un una en qual de color vídeo veo "
    "ves pasa por",
    "che cosa chi quando dove come quanti quante è sono il lo la gli le un una nel di colore vedi succede c",
    "o que quem quando onde como quantos quantas há é são o a os as um uma no na em de cor você vê acontece",
    "wat wie waar wanneer hoe hoeveel welke is zijn de het een er op in niet zie je gebeurt van kleur",
    "co kto gdzie kiedy jak ile jest są na w czy widać",
    "vad vem var när hur många är det en ett på finns ser du i",
    "ne kim nerede nasıl kaç var mı bu ne zaman",
}
_ENGLISH = (
    "the is are were did does what who where when how why which of there at and it this that you see can has have any "
    "to show on he she they"
)
_SHARED = "was die in is a an me he no on as do i o video of color"  # words of both, or that misspell


def is_english(text: str) -> bool:
    """Whether `text` may be English; what has no words at all may."""
    letters = [c for c in text if c.isalpha()]
    if sum(ord(c) > 0x24F for c in letters) * 3 > len(letters):
        return False
    words = re.findall(r"[^\W\d_]+", text.lower())
    english = _count(words, set(_ENGLISH.split()) - set(_SHARED.split()))
    strange = any(c in "äöüßéèêàçñãõąęłńśźżóåøğışœ¿¡" for c in text.lower()) and english < 2 and len(words) > 1
    foreign = strange + max(_count(words, set(some.split()) - set(_SHARED.split())) for some in _FOREIGN)
    return foreign < 2 - strange or english >= foreign


def _count(words: list[str], known: set[str]) -> int:
    return sum(word in known for word in words)
