"""Events of a stream for programs as they come: server-sent events, which every browser and many a library read.

    POST /live/ticket, the stream's key in the header x-vamba-key    {"ticket": ...}
    GET  /live/events?ticket=...                                     id, event (its kind), data (JSON) of each

An `EventSource` can send no header, and the key of a stream must not stand in an address, which ends up in logs: so the
address names a ticket, which reads the events of one stream, does nothing else, and ends with it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import asdict
from zlib import crc32

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from app.live.face import Table
from app.live.view import Phase, View
from app.page.channel import BREATH_S, KEY, LOOK_S, QUIET, seen
from pipeline import Event

TICKETS = 1_000  # the oldest are forgotten
AGAIN_MS = 2_000  # a client that was cut off waits so long, and says the last id it has
GONE = "There is no such stream any more, so there are no events of it; get a ticket with the key of one that is open."


class Feed:
    """Its two addresses. A client that comes again gets what came after the id it names, so nothing is missed."""

    def __init__(self, sessions: Table) -> None:
        self._sessions = sessions
        self._keys: OrderedDict[str, str] = OrderedDict()  # by ticket

    def routes(self) -> list[Route]:
        return [Route("/live/ticket", self.ticket, methods=["POST"]), Route("/live/events", self.events)]

    async def ticket(self, request: Request) -> Response:
        """A new one for the stream whose key is sent."""
        key = request.headers.get(KEY, "")
        if await run_in_threadpool(self._sessions.get, key) is None:
            return PlainTextResponse(GONE, 404)
        ticket = secrets.token_urlsafe(16)
        self._keys[ticket] = key
        if len(self._keys) > TICKETS:
            self._keys.popitem(last=False)
        return JSONResponse({"ticket": ticket})

    async def events(self, request: Request) -> Response:
        """Those so far and those to come, each when it has ended, until the stream is closed."""
        key = self._keys.get(request.query_params.get("ticket", ""), "")
        if await run_in_threadpool(self._sessions.get, key) is None:
            return PlainTextResponse(GONE, 404)
        lines = self._lines(key, request.headers.get("last-event-id", ""), request.app.stop_event)
        return StreamingResponse(lines, media_type="text/event-stream", headers=QUIET)

    async def _lines(self, key: str, last: str, server_ends: asyncio.Event) -> AsyncIterator[str]:
        yield f"retry: {AGAIN_MS}\n\n"
        loop = asyncio.get_running_loop()
        told_at = loop.time()
        sent: set[str] | None = (
            None  # names of what the client has: not a place in a list, which may grow in its middle
        )
        while not server_ends.is_set():
            session, view = await run_in_threadpool(seen, self._sessions, key)
            if session is None:
                break
            ended = ended_of(view)
            new = after(view, last) if sent is None else [one for one in ended if name_of(one) not in sent]
            sent = {name_of(event) for event in ended}
            for event in new:
                told_at = loop.time()
                yield f"id: {name_of(event)}\nevent: {event.kind}\ndata: {json.dumps(asdict(event))}\n\n"
            if view.phase is Phase.CLOSED:
                break
            if loop.time() - told_at > BREATH_S:
                told_at = loop.time()
                yield ": still here\n\n"
            await asyncio.sleep(LOOK_S)
        yield "event: closed\ndata: {}\n\n"


def after(view: View, last: str) -> list[Event]:
    """The ended events that came after the one of this name; all, where it is not known (any more)."""
    ended = ended_of(view)
    names = [name_of(event) for event in ended]
    return ended[names.index(last) + 1 :] if last in names else ended


def ended_of(view: View) -> list[Event]:
    return [event for event in view.events if event.until is not None]


def name_of(event: Event) -> str:
    """The same for the same event in every process."""
    return f"{event.kind}-{event.time:.3f}-{crc32(event.text.encode()):08x}"
