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

import gradio as gr

from app.live.session import LiveSession, Sessions, Turn
from app.page.handlers import UPLOAD, number
from app.page.panels import state
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

    def status(key: str) -> dict:
        """How far a session is: state word, seconds and frames seen, bytes held, and an error sentence if any."""
        watch = found(key).watch
        kind, _, detail = state(watch)
        seen = watch.columns[0].state if watch else None
        return {
            "state": kind,
            "detail": detail,
            "frames": watch.columns[0].shown if watch else 0,
            "seen_until": watch.seen_until if watch else 0.0,
            "duration": watch.duration if watch else None,
            "state_bytes": seen.state_bytes if seen else 0,
            "memory_bytes": seen.memory_bytes if seen else 0,
        }

    def ask(key: str, question: str, at: float = -1) -> Iterator[dict]:
        """The growing answer with its evidence. at: second of the video the question is about; below 0 means now."""
        session = found(key)
        try:
            for _ in session.ask(question, number(at)):
                yield answered(session.chats[0][-1])
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        turn = session.chats[0][-1] if session.chats[0] else None
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


def answered(turn: Turn) -> dict:
    """A turn as programs get it; times in seconds."""
    answer = turn.answer
    if answer is None:
        return {"text": "", "done": False}
    return {
        "text": answer.text,
        "done": answer.done,
        "stopped": answer.stopped,
        "seen_until": answer.seen_until,
        "evidence": [
            {"time": one.time, "start": one.start, "end": one.end, "weight": one.weight} for one in answer.evidence
        ],
        "first_token_s": answer.first_token_s,
        "tokens_per_s": answer.tokens_per_s,
    }
