"""What every response forbids the browser: fetching pictures or media from elsewhere, and guessing types."""

from __future__ import annotations

HEADERS = {
    b"content-security-policy": b"img-src 'self' data: blob:; media-src 'self' data: blob:; object-src 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}


class Headers:
    """ASGI middleware that adds them. Not Starlette's BaseHTTPMiddleware, which buffers event streams."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        async def add(message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                extra = [(name, value) for name, value in HEADERS.items() if name not in there]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self.app(scope, receive, add if scope["type"] == "http" else send)
