"""What do you still remember? Recall by age of both models, as two drawings and a table. A `View` in, HTML out.

Every number stands with how many things it is of and with its interval; where a stream is younger than an age, or
nothing was there that could be named, that is said instead.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import gradio as gr

from app.live.face import Table
from app.live.view import Recalled, View
from app.page.panels import NOTHING, brief, said
from app.page.plots import ABOVE, BELOW, HEIGHT, LEFT, RIGHT, WIDTH
from pipeline import Aged, Score, UserError, mmss

WHAT = (
    "The model is asked what it saw at moments 1, 5, 15 and 60 minutes ago. What was there is told by the stream's "
    "index, and by the kept pictures, seen again as if for the first time."
)
READ = (
    "Share of the things there that an answer named, and in brackets the interval that holds the true share in 19 of "
    "20 cases if the moments were independent."
)
ALONE = " Switch on Compare before the stream begins, and the other model is asked too."
TOLD_BY = {"index": "By the stream's index", "pictures": "By the kept pictures"}
SIDES = ("own", "rival")
APART = 9  # pixels from one model's mark to the other's


def add(ui: SimpleNamespace) -> None:
    """The layout; the clock draws what was found."""
    with gr.Column(elem_id="recall"):
        with gr.Row():
            gr.HTML(f"<h2>What do you still remember?</h2><p>{WHAT}</p>", elem_classes="head")
            ui.probe = gr.Button("Ask what it remembers", size="sm", elem_id="probe", scale=0, min_width=180)
        ui.recalled = gr.HTML(recalled(NOTHING), elem_id="recalled")


def wire(ui: SimpleNamespace, sessions: Table, at_once: dict[str, Any]) -> None:
    """What the button does."""

    def probe(key: str | None) -> str:
        session = sessions.get(key)
        try:
            if session is None:
                raise UserError("Nothing was seen yet, so there is nothing to remember; start a video first.")
            session.probe()
        except UserError as error:
            return said(str(error))
        return recalled(session.view())

    ui.probe.click(probe, ui.key, ui.recalled, **at_once)


def recalled(view: View) -> str:
    """What is known of the newest probe."""
    probe = view.recalled
    if probe is None:
        return ""
    if probe.error:
        return said(probe.error)
    names = [brief(name) for name in view.names[: len(probe.found)]]
    if not probe.over:
        asking = f'<p role="status">Asking: moment {probe.done + 1} of {probe.of}.</p>'
        return asking + _table(probe, names) if probe.done else asking
    if not probe.of:
        return f"<p>{_young(probe)}</p>"
    drawn = "".join(_figure(told, probe, names) for told in TOLD_BY)
    more = "" if len(names) > 1 or len(view.names) == 1 else ALONE
    return f'<div class="plots">{drawn}</div>{_table(probe, names)}<p>{READ}{more}</p>'


def _young(probe: Recalled) -> str:
    return f"The stream is {mmss(probe.at)} old, younger than a minute, so there is nothing to ask yet."


# The table


def _table(probe: Recalled, names: Sequence[str]) -> str:
    heads = "".join(
        f'<th scope="col">{html.escape(name)}<br>{words.lower()}</th>' for name in names for words in TOLD_BY.values()
    )
    rows = "".join(_row(place, probe, len(names)) for place in range(len(probe.found[0])))
    caption = f"Recall by age, as of {mmss(probe.at)}"
    return (
        f'<div class="scrolls" tabindex="0" role="region" aria-label="{caption}"><table><caption>{caption}</caption>'
        f'<thead><tr><th scope="col">Age</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _row(place: int, probe: Recalled, models: int) -> str:
    aged = [found[place] for found in probe.found]
    age = f'<th scope="row">{minutes(aged[0])} min</th>'
    if aged[0].young:
        return f'<tr>{age}<td colspan="{2 * models}">The stream is younger: {mmss(probe.at)}.</td></tr>'
    return f"<tr>{age}{''.join(f'<td>{share(score_of(one, told))}</td>' for one in aged for told in TOLD_BY)}</tr>"


def minutes(aged: Aged) -> str:
    return f"{aged.age / 60:.0f}"


def score_of(aged: Aged, told: str) -> Score:
    return aged.index if told == "index" else aged.pictures


def share(score: Score) -> str:
    """ "78 % of 9 (45 to 94 %)"."""
    if not score.of:
        return "nothing there to name"
    low, high = (100 * end for end in score.interval)
    return f"{100 * score.share:.0f} % of {score.of} ({low:.0f} to {high:.0f} %)"


# The drawings


def _figure(told: str, probe: Recalled, names: Sequence[str]) -> str:
    """Shares with their intervals, by age in minutes."""
    key = "".join(f'<span class="{side}">{html.escape(name)}</span>' for name, side in zip(names, SIDES))
    marks = "".join(_marks(found, told, number) for number, found in enumerate(probe.found))
    ages = "".join(
        f'<text class="second" x="{_across(place):.1f}" y="{HEIGHT - BELOW + 17}">{minutes(aged)} min</text>'
        for place, aged in enumerate(probe.found[0])
    )
    return (
        f"<figure><figcaption>{TOLD_BY[told]}, % recalled{key}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_words(told, probe, names)}">'
        f"{''.join(_grid())}{ages}{marks}</svg></figure>"
    )


def _words(told: str, probe: Recalled, names: Sequence[str]) -> str:
    """The same for those who do not see it; the table has it all."""
    each = [
        f"{name}: " + ", ".join(f"{minutes(one)} min {share(score_of(one, told))}" for one in found if not one.young)
        for name, found in zip(names, probe.found)
    ]
    return html.escape(f"{TOLD_BY[told]}, recalled after: {'; '.join(each)}")


def _grid() -> Iterator[str]:
    for percent in (0, 25, 50, 75, 100):
        y = _up(percent / 100)
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/><text x="{LEFT - 6}" y="{y + 4:.1f}">{percent}</text>'


def _marks(found: Sequence[Aged], told: str, number: int) -> str:
    drawn = []
    for place, aged in enumerate(found):
        score = score_of(aged, told)
        if not score.of:
            continue
        x = _across(place) + APART * (number - 0.5)
        low, high = map(_up, score.interval)
        drawn.append(f'<polyline class="{SIDES[number]}" points="{x:.1f},{low:.1f} {x:.1f},{high:.1f}"/>')
        drawn.append(f'<circle class="{SIDES[number]}" cx="{x:.1f}" cy="{_up(score.share):.1f}" r="4.5"/>')
    return "".join(drawn)


def _across(place: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (place + 0.5) / 4


def _up(share: float) -> float:
    return HEIGHT - BELOW - (HEIGHT - ABOVE - BELOW) * share
