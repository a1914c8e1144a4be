"""What the page's script talks to beside Gradio's events: changes of a stream are pushed, pictures of a camera or a
screen come in, and the streams of one browser are looked up and closed.

The key of a stream travels in a header or a body and never in an address, which ends up in logs and histories.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import tempfile
from collections.abc import AsyncIterator, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.live.conversation import number
from app.live.face import Session, Table
from app.live.line import InLine
from app.live.view import Phase, View
from pipeline import UserError, decode_jpeg, mmss, vtt

LOOK_S = 0.25  # a stream is looked at so often while a page listens
BREATH_S = 3.0  # a line without words, so that a page notices a connection that died without a sign
LARGEST = 1_000_000  # bytes of a camera's picture
CUTTERS = 2  # clips that are cut at once, for everybody
STREAMS = 20  # of one browser
KEY = "x-vamba-key"
QUIET = {"cache-control": "no-store", "x-accel-buffering": "no"}  # no proxy may wait for more


class Closing(StreamingResponse):
    """Pieces that end with whoever reads them, also in the middle: what they hold is let go of then, not some day."""

    def __init__(self, first: bytes, pieces: Generator[bytes, None, None], headers: dict[str, str]) -> None:
        super().__init__(itertools.chain([first], pieces), media_type="application/x-tar", headers=headers)
        self.pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.pieces.close()


class Channel:
    """Its addresses, below /live. Whoever has a stream's key may do what the page may do."""

    def __init__(self, sessions: Table) -> None:
        self.sessions = sessions
        self._cutting: set[str] = set()  # keys of those whose clip is being cut
        self._cutters: CapacityLimiter | None = None

    def routes(self) -> list[Route]:
        handlers = (
            self.changes,
            self.picture,
            self.streams,
            self.newest,
            self.clip,
            self.captions,
            self.take,
            self.close,
        )
        return [Route(f"/live/{handler.__name__}", handler, methods=["POST"]) for handler in handlers]

    async def changes(self, request: Request) -> Response:
        """A line of JSON at once and whenever the stream changes, for as long as the page listens."""
        lines = self._changes(request.headers.get(KEY, ""), request.app.stop_event)
        return StreamingResponse(lines, media_type="text/event-stream", headers=QUIET)

    async def _changes(self, key: str, server_ends: asyncio.Event) -> AsyncIterator[str]:
        before: tuple | None = None
        told_at = 0.0
        loop = asyncio.get_running_loop()
        while not server_ends.is_set():
            found = await run_in_threadpool(self._look, key)
            if found is None:
                yield json.dumps({"known": False}) + "\n"
                return
            view, spot = found
            if (view, spot) != before:
                before, told_at = (view, spot), loop.time()
                yield json.dumps({"known": True, "waits": spot is not None, **in_short(view)}) + "\n"
            elif loop.time() - told_at > BREATH_S:
                told_at = loop.time()
                yield "\n"
            await asyncio.sleep(LOOK_S)

    def _look(self, key: str) -> tuple[View, InLine | None] | None:
        """A stream, or where it stands in line that has none yet; None for a key that is not known. Brings back what is
        kept, where it can go on; `Events.restore` says why where it cannot."""
        session = self.sessions.get(key)
        if session is None:
            with contextlib.suppress(UserError):
                session = self.sessions.bring_back(key)
        if session:
            return session.view(), None
        return (View(), self.sessions.in_line(key)) if self.sessions.awaits(key) else None

    async def picture(self, request: Request) -> Response:
        """Takes one JPEG; tells what becomes of the next: "watching", "paused", or "none": no camera is watched."""
        session, view = await run_in_threadpool(seen, self.sessions, request.headers.get(KEY, ""))
        if session is None or not view.live or view.shared or view.phase in (Phase.ENDED, Phase.CLOSED):
            return PlainTextResponse("none")
        if view.phase is not Phase.WATCHING:
            return PlainTextResponse("paused")
        try:
            jpeg = await body(request, LARGEST)
            await run_in_threadpool(lambda: session.offer(decode_jpeg(jpeg), jpeg))
        except UserError as error:
            return PlainTextResponse(str(error), 400)
        return PlainTextResponse("watching")

    async def streams(self, request: Request) -> Response:
        """What became of the streams whose keys are sent, in their order; null for what is kept no longer."""
        try:
            keys = json.loads(await body(request, 10_000))
        except (ValueError, UserError):
            keys = []
        keys = keys[:STREAMS] if isinstance(keys, list) else []
        found = await run_in_threadpool(lambda: [self.sessions.peek(key) for key in keys])
        return JSONResponse([in_short(view) if view else None for view in found])

    async def newest(self, request: Request) -> Response:
        """The newest picture of an operator's source, as a JPEG."""
        _, view = await run_in_threadpool(seen, self.sessions, request.headers.get(KEY, ""))
        picture = view.newest
        if picture is None:
            return PlainTextResponse("none", 404)
        told = {"cache-control": "no-store", "x-vamba-second": f"{picture.time:.3f}"}
        return Response(picture.jpeg, media_type="image/jpeg", headers=told)

    async def clip(self, request: Request) -> Response:
        """An MP4 of the seconds around a moment; what cannot be cut is a sentence. One at a time for each stream."""
        key = request.headers.get(KEY, "")
        session = await run_in_threadpool(self.sessions.get, key)
        if session is None:
            return PlainTextResponse("This stream is over, so there is nothing to cut; start it again.", 404)
        if key in self._cutting:
            return PlainTextResponse("Another clip is being cut, so this one was not; wait for that one.", 429)
        self._cutting.add(key)
        try:
            at = moment(await body(request, 1_000))
            self._cutters = self._cutters or CapacityLimiter(CUTTERS)
            return Response(await run_sync(cut_clip, session, at, limiter=self._cutters), media_type="video/mp4")
        except UserError as error:
            return PlainTextResponse(str(error), 400)
        finally:
            self._cutting.discard(key)

    async def take(self, request: Request) -> Response:
        """What is kept of a stream, as one file. A form sends the key, so that a browser can write it as it comes."""
        key = parse_qs((await body(request, 1_000)).decode(errors="replace")).get("key", [""])[0]
        session = await run_in_threadpool(self.sessions.get, key)
        if session is None:
            return PlainTextResponse("This stream is over, so nothing was taken along; open it again.", 404)
        try:
            pieces = session.take_along()
            first = await run_in_threadpool(next, pieces)
        except UserError as error:
            return PlainTextResponse(str(error), 400)
        named = {"content-disposition": 'attachment; filename="stream.tar"', "cache-control": "no-store"}
        return Closing(first, pieces, named)

    async def captions(self, request: Request) -> Response:
        """What was seen so far of the file that plays as WebVTT, on the player's clock."""
        session, view = await run_in_threadpool(seen, self.sessions, request.headers.get(KEY, ""))
        text = subtitles(view) if session else ""
        return PlainTextResponse(text, 200 if session else 404, media_type="text/vtt")

    async def close(self, request: Request) -> Response:
        """Ends a stream and deletes its file, and what is kept of it."""
        await run_in_threadpool(self.sessions.delete, request.headers.get(KEY, ""))
        return PlainTextResponse("closed")


def seen(sessions: Table, key: str) -> tuple[Session | None, View]:
    """A session and its stream at this moment. May wait for another process, so no event loop calls it."""
    session = sessions.get(key)
    return session, session.view() if session else View()


def in_short(view: View) -> dict[str, Any]:
    """A stream in a few words: enough to find it again, and to say what was lost with it."""
    return {
        "idle": view.phase is Phase.IDLE,
        "name": view.file_name or view.source,
        "state": view.told().word,
        "seen": mmss(view.seen_until),
        "questions": len(view.conversations[0]),
    }


def subtitles(view: View) -> str:
    """WebVTT whose second 0 is the first picture of the file that plays, also where another was watched before it."""
    later = [event for event in view.events if event.time >= view.begins]
    moved = [
        replace(one, time=one.time - view.begins, until=None if one.until is None else one.until - view.begins)
        for one in later
    ]
    return vtt(moved, view.seen_until - view.begins)


def moment(words: bytes) -> float:
    """The second that a page asks for. Raises UserError for what is none."""
    with contextlib.suppress(ValueError, AttributeError):
        if (at := number(json.loads(words).get("at"))) is not None:
            return at
    raise UserError("The browser named no moment, so nothing was cut; reload the page.")


def cut_clip(session: Session, at: float) -> bytes:
    """The clip; the file it was is gone by then. Raises UserError."""
    with tempfile.TemporaryDirectory(prefix="vamba-live-clip-") as folder:
        out = Path(folder) / "clip.mp4"
        session.clip(at, str(out))
        return out.read_bytes()


async def body(request: Request, limit: int) -> bytes:
    """Raises UserError for more than `limit` bytes, before they are read."""
    if not 0 < (number(request.headers.get("content-length")) or 0) <= limit:
        raise UserError("The browser sent something too large or empty, so it was left out; reload the page.")
    return await request.body()
