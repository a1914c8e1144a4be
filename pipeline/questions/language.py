"""Whether a question is English: by its script, and by small words that English has and has not."""

from __future__ import annotations

import re

# Words that alone make a question of no English word another language's: what people ask with, and what there is.
_ASKING = (
    "ist wer wo wann wie warum wieviel wieviele welche welcher welches welchen sind sieht siehst gibt zeig zeige "
    "zeigt passiert hier gerade nicht kommt steht kannst macht machen dann jemand beschreibe beschreib",
    "quoi où combien quel quelle quels quelles comment quand qui est-ce sont montre montrez fait vois voit "
    "couleur pourquoi décris décrivez après puis dans avec homme",
    "qué quién quien cuándo cuando cuánto cuántos cuántas cuanto cuantos cuantas dónde donde cómo hay está están "
    "muestra muéstrame muestrame ves pasa aparece después alguien hace",
    "cosa chi quando dove come quanti quante quanto sono trova mostra mostrami vedi vede succede perché descrivi poi",
    "quem onde quantos quantas quanto há tem estão aparecem aparece você mostra mostre acontece descreva depois",
    "wat wie waar wanneer hoe hoeveel welke zijn niet zie zien gebeurt laat ligt beschrijf daar daarna doet iemand",
    "vad vem var hvor hvem hvad hva når när hur hvordan många mange mennesker människor är finns noen nogen ikke "
    "inte visar",
    "missä mitä kuka milloin kuinka monta montako onko mikä näkyy ovat",
    "co kto gdzie kiedy jak jaki ile jest są widać pokaż czy kde kdo kdy jaký kolik jsou není vidět opisz popiš potem",
    "mi mit hol ki mikor hány mennyi hogyan milyen látható csinál",
    "ce cine unde când cum câți câte este sunt arată",
    "ne kim nerede nasıl kaç var mı mi neler zaman göster",
    "kas kur kada kiek yra kāds cik kus millal mitu",
    "apa siapa mana dimana jelaskan terjadi kapan berapa adalah apakah bagaimana orang kahan kaun kya kitne hai "
    "kab kaise",
    "anong ginagawa sino nasaan kailan ilan paano nini nani wapi lini ngapi yuko iko",
    "què qui on quants quan zer nor non noiz zenbat što tko gdje kada koliko gde",
)
_SMALL = (  # articles and the like: two of them are needed
    "das der die den dem ein eine einen es und auf im zu mit ich du wird bei le les la un une des sur il elle y "
    "el los las una uno en qual de del di nel che gli c è lo e os as um uma na em het een er op in niet je det "
    "ett på i där w z se v si az egy pe şi bu bir ada yang ang sa ng au"
)
_ENGLISH = (
    "the is are were did does what who where when how why which there at and it this that you see can has have "
    "any to show on he she they many much me my from into about with last first before after again someone anyone "
    "people person i his her their its be been will would not of for or please tell find"
)
_SHARED = "was die in is a an me he no on as do i o video of color come non man mi ne mit e si nor or her at er"
_SHARED_ASKING = (
    "wat come var on nor non zijn mana comment hier cosa ki ce ne mi ano co kas"  # English words or names as well
)
_MARKS = "äöüßéèêàçñãõąęłńśźżóåøğışœ¿¡âîșțăőűěščřžýůėųūīāņļķơưđ"


def is_english(text: str) -> bool:
    """Whether `text` may be English; what has no words at all may."""
    letters = [c for c in text if c.isalpha()]
    if sum(ord(c) > 0x24F for c in letters) * 3 > len(letters):
        return False
    words = set(re.findall(r"[^\W\d_]+(?:-ce)?", text.lower()))
    english = len(words & (set(_ENGLISH.split()) - set(_SHARED.split())))
    strange = min(2, len(set(text.lower()) & set(_MARKS))) if len(words) > 1 else 0
    doubtful = set(_SHARED.split()) | set(_SHARED_ASKING.split())
    asking = max(len(words & (set(some.split()) - doubtful)) for some in _ASKING)
    small = len(words & (set(_SMALL.split()) - set(_SHARED.split())))
    maybe = max(len(words & set(some.split()) & set(_SHARED_ASKING.split())) for some in _ASKING)
    return 2 * asking + small + maybe + strange < 2 or 2 * english >= 2 * asking + small + maybe + strange
