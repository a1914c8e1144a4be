"""The page for programs: watch a file, look how far it is, ask, close. Four endpoints; a session is its secret key.

from gradio_client import Client, handle_file
client = Client("http://127.0.0.1:7860")
key = client.predict(handle_file("holiday.mp4"), api_name="/watch")
client.predict(key, api_name="/status")
client.predict(key, "What is happening now?", -1, api_name="/ask")
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from app.live.conversation import number
from app.live.session import LiveSession
from app.live.table import Sessions
from app.live.view import UPLOAD, Turn, View
from pipeline import UserError


def add_api(sessions: Sessions) -> None:
    """Adds the endpoints to the Blocks being built."""

    def found(key: str) -> LiveSession:
        session = sessions.get(key)
        if session is None:
            raise gr.Error("There is no session with this key, so nothing was done; call /watch first.")
        return session

    def watch(video: str) -> str:
        if not video:
            raise gr.Error("No file arrived, so nothing was watched; send one.")
        key = None
        try:
            key, session = sessions.ensure(None)
            session.open_file(video, UPLOAD, Path(video).name)
        except UserError as error:
            sessions.close(key)
            raise gr.Error(str(error), print_exception=False) from None
        return key

    def status(key: str) -> dict[str, Any]:
        """How far a session is: state word, seconds and frames seen, bytes held, and an error sentence if any."""
        return standing(found(key).view())

    def ask(key: str, question: str, at: float = -1) -> Iterator[dict[str, Any]]:
        """The growing answer with its evidence. at: second of the video the question is about; below 0 means now."""
        session = found(key)
        try:
            asked = session.ask(question, number(at))
            for _ in session.answer(asked):
                yield answered(session.view().turn(asked))
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        turn = session.view().turn(asked)
        if turn and turn.error:
            raise gr.Error(turn.error, print_exception=False)

    def close(key: str) -> bool:
        """Ends a session and deletes its file."""
        sessions.close(key)
        return True

    video, key = gr.File(visible=False, label="video"), gr.Textbox(visible=False, label="key")
    gr.Button(visible=False).click(
        watch, video, key, api_name="watch", api_description="Watches a file; gives its key."
    )
    gr.api(status, api_name="status", concurrency_limit=None)
    gr.api(ask, api_name="ask", concurrency_limit=None)
    gr.api(close, api_name="close")


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
        "evidence": [
            {"time": one.time, "start": one.start, "end": one.end, "weight": one.weight} for one in answer.evidence
        ],
        "first_token_s": answer.first_token_s,
        "tokens_per_s": answer.tokens_per_s,
    }
