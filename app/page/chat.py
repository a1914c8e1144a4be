"""The conversation as the page shows it: a `View` in, Chatbot messages out.

The Chatbot renders HTML even where it renders no Markdown, remote images included, so every word that a visitor or a
model wrote is escaped here; what is markup is ours.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from app.live.view import TIME, Turn, View, seconds
from app.page.panels import chip, ordinal
from pipeline import Answer, mmss

Card = Callable[[str], Any]  # makes the page's HTML component of a piece of markup

ANOTHER = "Another video from here on. What was said before is not about this one."
GONE = "The earliest questions are not kept any more; this many are missing here:"
NOT_ASKED = '<p class="unasked">Not asked: this model was not compared then.</p>'


def messages(view: View, model: int, card: Card) -> list[dict[str, Any]]:
    """Chatbot messages of one model's conversation, oldest first.

    The second model's has a row for every question of the first one's, so that both show the same ones side by side.
    """
    own = {turn.first: turn for turn in view.conversations[model]}
    shown, stream = [], 0
    if view.forgotten:
        shown.append(_note(f"{GONE} {view.forgotten:,}.", card))
    for turn in view.conversations[0]:
        if stream and turn.stream != stream:
            shown.append(_note(ANOTHER, card))
        stream = turn.stream
        shown.append({"role": "user", "content": html.escape(turn.question, quote=False)})
        answered = own.get(turn.first)
        reply = _reply(answered, view, model, card) if answered else [card(NOT_ASKED)]
        shown.append({"role": "assistant", "content": reply})
    if stream and view.stream != stream:
        shown.append(_note(ANOTHER, card))
    return shown


def _note(words: str, card: Card) -> dict[str, Any]:
    return {"role": "assistant", "content": [card(f'<p class="note">{words}</p>')]}


def _reply(turn: Turn, view: View, model: int, card: Card) -> list[Any]:
    if turn.error:
        return [card(f'<p class="sorry" role="alert">{html.escape(turn.error)}</p>')]
    if turn.place:
        return [card(_waiting(turn))]
    answer = turn.answer
    if answer is None or not (answer.text or answer.done):
        return [card(_thinking("" if view.frames else "Waiting for the first picture"))]
    words = html.escape(plain(answer.text), quote=False) or "…"
    if not answer.done:
        return [words]
    here = turn.stream == view.stream  # the player shows what the answer is about
    foot_of = foot(turn, answer, model, here) + (_thinking("Asking again") if turn.again else "")
    words = linked(words, answer) if here else words
    return [card(f'<p class="words">{words}</p>') if "<button" in words else words, card(foot_of)]


def plain(text: str) -> str:
    """A model's words without markup: images and links keep their words, tags go."""
    text = re.sub(r"!?\[([^\]]*)\]\((?:[^()]|\([^()]*\))*\)", r"\1", text)
    return re.sub(r"</?[a-zA-Z!][^>]*>", "", text)


def linked(words: str, answer: Answer) -> str:
    """Escaped words with their times as buttons that seek the player. What was not seen yet is no moment to go to.

    They need a card: of a message's own text the Chatbot reads the markup out aloud, and takes the seconds away.
    """
    exact = {mmss(moment.time): moment.time for moment in answer.evidence}

    def button(match: re.Match[str]) -> str:
        at = exact.get(match[0], seconds(match))
        if at > answer.seen_until:
            return match[0]
        return f'<button type="button" class="time" data-seek="{at:.3f}">{match[0]}</button>'

    return TIME.sub(button, words)


def _waiting(turn: Turn) -> str:
    """Where a question stands in line; the one being answered is the first."""
    withdraw = f'<button type="button" data-deed="withdraw {turn.id}">Withdraw</button>'
    return f'<p class="waiting">Waiting, {ordinal(turn.place)} {withdraw}</p>'


def _thinking(words: str) -> str:
    label = f"<span>{words}</span>" if words else '<span class="unseen">Reading what was seen</span>'
    return f'<p class="thinking"><i></i><i></i><i></i>{label}</p>'


class Moment(NamedTuple):
    """What an answer rests on or says. weight: its share, None where the words alone name it."""

    time: float
    jpeg: bytes | None
    weight: float | None = None
    span: str = ""


def moments(turn: Turn, answer: Answer) -> list[Moment]:
    """In order of time, like the text beside them."""
    pictures = turn.pictures or (None,) * len(answer.evidence)
    rests_on = [
        Moment(one.time, jpeg, one.weight, f"{mmss(one.start)} to {mmss(one.end)}")
        for one, jpeg in zip(answer.evidence, pictures)
    ]
    return sorted([*rests_on, *(Moment(at, jpeg) for at, jpeg in turn.said)], key=lambda moment: moment.time)


def foot(turn: Turn, answer: Answer, model: int, here: bool) -> str:
    """Under a whole answer: its moments, what it had seen, and on demand how fast it came."""
    facts = [*_pinned(turn, answer), f"seen until {mmss(answer.seen_until)}", *_basis(answer)]
    facts += ["stopped"] if answer.stopped else []
    chips = "".join(chip(one.time, one.jpeg, one.weight, one.span, seek=here) for one in moments(turn, answer))
    chips = f'<div class="moments">{chips}</div>' if chips else ""
    seen = f'<details class="facts"><summary>{" · ".join(facts)}</summary><span>{_pace(answer)}</span></details>'
    named = "" if model else f' id="q-{turn.id}"'
    return f'{chips}<div class="foot"{named}>{seen}{_copy(turn, answer, here)}{_judge(turn, model)}</div>'


def _pinned(turn: Turn, answer: Answer) -> list[str]:
    """The second the question is about, and the one the answer is of where that is another."""
    if turn.at is None:
        return []
    known = answer.known_until
    other = known is not None and mmss(known) != mmss(min(turn.at, answer.seen_until))
    return [f"about {mmss(turn.at)}", *([f"answered as of {mmss(known)}"] if known is not None and other else [])]


def _basis(answer: Answer) -> list[str]:
    """Whether a published model was asked for what it was trained for, where it can do otherwise."""
    mode, words = answer.basis
    return [html.escape(f"{mode}: {words}")] if words else []


def _pace(answer: Answer) -> str:
    """How fast an answer came, in words."""
    first, pace = answer.first_token_s, answer.tokens_per_s
    parts = []
    if first is not None:
        parts.append(f"first word after {first:.1f} s" if first >= 1 else f"first word after {first * 1000:.0f} ms")
    if pace:
        parts.append(f"then {pace:.0f} tokens a second")
    return ", ".join(parts) or "nothing was written"


def _copy(turn: Turn, answer: Answer, here: bool) -> str:
    """Takes the answer along, or a link to its question, or to the moment it rests on most."""
    text = html.escape(f"{turn.question}\n{plain(answer.text)}")
    buttons = [f'<button type="button" data-copy="{text}">Copy</button>']
    buttons += [f'<button type="button" data-link="q={turn.id}" aria-label="Link to this question">Link</button>']
    if here and answer.evidence:
        at = mmss(max(answer.evidence, key=lambda one: one.weight).time)
        named = f'data-link="t={at}" aria-label="Link {at}: to this moment"'
        buttons.append(f'<button type="button" {named}>Link {at}</button>')
    return "".join(buttons)


def _judge(turn: Turn, model: int) -> str:
    """The visitor's own mark. Pressed once more it is taken back."""
    words = "Marked as wrong" if turn.wrong else "Wrong?"
    pressed = "true" if turn.wrong else "false"
    deed = f"{'right' if turn.wrong else 'wrong'} {turn.id} {model}"
    about = f'class="judge" data-deed="{deed}" aria-pressed="{pressed}" title="This answer is wrong"'
    return f'<button type="button" {about}>{words}</button>'
