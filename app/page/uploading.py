"""Every upload passes here before Gradio takes it: room is reserved for all of it first, or it is refused in words."""

from __future__ import annotations

import json

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.live import uploads
from pipeline import UserError

NO_LENGTH = "The upload does not say how large it is, so it was not taken; send it with a Content-Length."


class Uploading:
    """ASGI middleware around Gradio's upload address: 507 where there is no room, 411 where no size is given."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].rstrip("/").endswith("/upload"):
            return await self.app(scope, receive, send)
        length = Headers(scope=scope).get("content-length", "")
        if not length.isascii() or not length.isdigit():
            return await PlainTextResponse(NO_LENGTH, 411)(scope, receive, send)
        try:
            uploads.room.reserve(int(length))
        except UserError as error:
            return await PlainTextResponse(str(error), 507)(scope, receive, send)
        return await self.taken(int(length), scope, receive, send)

    async def taken(self, length: int, scope: Scope, receive: Receive, send: Send) -> None:
        """Gives the room back when the upload is whole or over, and notes what became of it.

        Not as it arrives: what has come and is not on the disk yet would be counted nowhere, and of twelve uploads at
        once four took the room of three. Until then its pieces count twice: refused too early, and never too late.
        """
        status, body = 0, b""

        async def sending(message: Message) -> None:
            nonlocal status, body
            status, body = message.get("status", status), body + message.get("body", b"")
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            uploads.room.release(length)
        if status == 200:
            uploads.arrived(json.loads(body))
