"""The page for programs: watch a file or sit down at a shared camera, look how far it is, ask, be told, close. A
session is its secret key.

from gradio_client import Client, handle_file
client = Client("http://127.0.0.1:7860")
key = client.predict(handle_file("holiday.mp4"), api_name="/watch")
client.predict(key, api_name="/status")
client.predict(key, "What is happening now?", -1, api_name="/ask")
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from app.live.conversation import number
from app.live.face import Session, Table
from app.live.view import UPLOAD, Phase, Turn, View
from pipeline import UserError

OPENING_S = 20.0  # a video whose first picture takes longer is watched all the same

WEEK_S = 7 * 86_400.0  # no video is longer, where its length is not known yet


def add_api(sessions: Table) -> None:
    """Adds the endpoints to the Blocks being built."""

    def found(key: str) -> Session:
        try:
            session = sessions.bring_back(key)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        if session is None:
            raise refused("There is no session with this key, so nothing was done; call /watch first.")
        return session

    def watch(video: str) -> str:
        if not video:
            raise refused("No file arrived, so nothing was watched; send one.")
        key = None
        try:
            key, session = sessions.ensure(None, program=True)
            session.open_file(video, UPLOAD, Path(video).name)
            opened(session)
        except UserError as error:
            sessions.close(key)
            raise refused(str(error)) from None
        return key

    def sources() -> list[str]:
        """Names of the cameras that this server watches for everybody."""
        return list(sessions.shared)

    def open_source(name: str) -> str:
        """Takes a seat at one of /sources; gives its key. Its name alone opens one: addresses are the operator's."""
        key = None
        try:
            if name not in sessions.shared:
                raise UserError("There is no source of this name, so none was opened; /sources tells those there are.")
            key, session = sessions.ensure(None, program=True)
            session.open_shared(sessions.shared[name])
        except UserError as error:
            sessions.close(key)
            raise refused(str(error)) from None
        return key

    def camera() -> str:
        """Opens a stream of pictures that the program sends; gives its key. Pictures are JPEGs of up to 1 MB, posted to
        /live/picture with the key in the header x-vamba-key; their seconds are those at which they come."""
        key = None
        try:
            key, session = sessions.ensure(None, program=True)
            session.open_camera()
        except UserError as error:
            sessions.close(key)
            raise refused(str(error)) from None
        return key

    def status(key: str) -> dict[str, Any]:
        """How far a session is: state word, seconds and frames seen, bytes held, and an error sentence if any."""
        return standing(found(key).view())

    def ask(key: str, question: str, at: float = -1) -> Iterator[dict[str, Any]]:
        """The growing answer with its evidence. at: second of the video the question is about; below 0 means now."""
        session = found(key)
        try:
            asked = session.ask(question, second(at, session.view()))
            for _ in session.answer(asked):
                yield answered(session.view().turn(asked))
        except UserError as error:
            raise refused(str(error)) from None
        turn = session.view().turn(asked)
        if turn and turn.error:
            raise refused(turn.error)

    def alerts(key: str, rule: str = "", cool_down: float = 10) -> dict[str, Any]:
        """Takes one more rule, where one is given; all rules of a session and the alerts they have sent."""
        session = found(key)
        try:
            if rule:
                session.add_rule(rule, number(cool_down))
        except UserError as error:
            raise refused(str(error)) from None
        return told(session.view())

    def recall(key: str) -> dict[str, Any]:
        """What is still remembered of 1, 5, 15 and 60 minutes ago; waits until all was asked, which takes a while."""
        session = found(key)
        try:
            session.probe()
            while (probe := session.view().recalled) and not probe.over:
                time.sleep(0.2)
            if probe and probe.error:
                raise UserError(probe.error)
        except UserError as error:
            raise refused(str(error)) from None
        return remembered(session.view())

    def close(key: str) -> bool:
        """Ends a session and deletes its file."""
        sessions.close(key)
        return True

    video, key = gr.File(visible=False, label="video"), gr.Textbox(visible=False, label="key")
    gr.Button(visible=False).click(
        watch, video, key, api_name="watch", api_description="Watches a file; gives its key."
    )
    gr.api(sources, api_name="sources")
    gr.api(open_source, api_name="open")
    gr.api(camera, api_name="camera")
    gr.api(status, api_name="status", concurrency_limit=None)
    gr.api(ask, api_name="ask", concurrency_limit=None)
    gr.api(alerts, api_name="alerts", concurrency_limit=None)
    gr.api(recall, api_name="recall", concurrency_limit=None)
    gr.api(close, api_name="close")


def refused(sentence: str) -> gr.Error:
    """What a program gets; the log has better things to keep."""
    return gr.Error(sentence, print_exception=False)


def opened(session: Session) -> None:
    """Waits for the first picture, and not for ever. Raises UserError where there is none to come: it is no video."""
    end = time.monotonic() + OPENING_S
    view = session.view()
    while not view.frames and time.monotonic() < end:
        if view.phase is Phase.ENDED:
            raise UserError(view.error or "There is no picture in this file, so nothing was watched; send a video.")
        time.sleep(0.05)
        view = session.view()


def second(at: object, view: View) -> float | None:
    """The second of the video that a program means; None for now. Raises UserError for what is none."""
    try:
        value = float(at)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if value < 0:
        return None
    unknown = view.duration is None and not view.live and view.phase is not Phase.ENDED
    last = WEEK_S if unknown else max(view.duration or 0.0, view.seen_until)
    if not value <= last + 1:
        raise UserError(
            f"The question is pinned to a second that this video does not have, so it was not asked; send one of 0 to "
            f"{last:.0f}, or -1 for now."
        )
    return value


def told(view: View) -> dict[str, Any]:
    """Rules and their alerts as programs get them; times in seconds. until: when it was sure."""
    return {
        "rules": [
            {"number": rule.number, "rule": rule.text, "says": rule.says, "cool_down": rule.cool_down}
            for rule in view.rules
        ],
        "alerts": [
            {"time": one.time, "until": one.until, "says": one.text, "weight": one.weight}
            for one in view.events
            if one.kind == "alert"
        ],
    }


def remembered(view: View) -> dict[str, Any]:
    """A probe as programs get it; ages in seconds. share and interval: null where nothing was there to be named."""
    probe = view.recalled
    if probe is None:  # another stream began meanwhile
        return {"as_of": 0.0, "models": []}
    models = [{"model": name, "ages": [aged.document for aged in one]} for name, one in zip(view.names, probe.found)]
    return {"as_of": probe.at, "models": models}


def standing(view: View) -> dict[str, Any]:
    """A stream as programs get it; times in seconds."""
    told = view.told()
    own = view.models[0] if view.models else None
    return {
        "state": told.kind,
        "detail": told.detail,
        "frames": view.frames,
        "seen_until": view.seen_until,
        "duration": view.duration,
        "state_bytes": own.state_bytes if own else 0,
        "memory_bytes": own.memory_bytes if own else 0,
    }


def answered(turn: Turn | None) -> dict[str, Any]:
    """A turn as programs get it, None where it was forgotten; times in seconds."""
    answer = turn.answer if turn else None
    if answer is None:
        return {"text": "", "done": False}
    return {
        "text": answer.text,
        "done": answer.done,
        "stopped": answer.stopped,
        "seen_until": answer.seen_until,
        "known_until": answer.known_until,
        "mode": answer.basis.mode,
        "basis": answer.basis.words,
        "evidence": [
            {"time": one.time, "start": one.start, "end": one.end, "weight": one.weight} for one in answer.evidence
        ],
        "first_token_s": answer.first_token_s,
        "tokens_per_s": answer.tokens_per_s,
    }
