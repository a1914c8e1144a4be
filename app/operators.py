"""For operators: metrics as Prometheus reads them, health and readiness, at an address of their own.

    GET /metrics    text; bytes and seconds
    GET /health     200, or 503 and why: restart the process
    GET /ready      200, or 503 and why: send no visitors yet, or no more

It answers from before the models are loaded, which takes minutes for a published checkpoint, until the process ends.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from app.live.census import Census
from pipeline import UserError

LOADING = "The models are being loaded, so nobody is served yet; wait."
OPENING = "The page does not answer yet, so nobody is served; wait."
ENDING = "The server is ending, so nobody new is served; go to another one."
HELLO_S = 5.0  # the address must answer after so long

# Of all streams: name, what it is, and how it is read off a census
GAUGES: tuple[tuple[str, str, Callable[[Census], float]], ...] = (
    ("streams_asleep", "Of the streams those that lie on the disk alone.", lambda one: one.asleep),
    ("asleep_bytes", "What they take there.", lambda one: one.asleep_bytes),
    ("places", "Places for streams in memory that this server has.", lambda one: one.places),
    ("places_free", "Streams that may come.", lambda one: one.free),
    ("visitors_in_line", "Visitors who wait for a place.", lambda one: one.in_line),
    ("sources", "Cameras of the operator.", lambda one: one.sources),
    ("state_bytes", "Recurrent states of all streams.", lambda one: one.state_bytes),
    ("memory_bytes", "Memories of all streams.", lambda one: one.memory_bytes),
    ("kept_bytes", "On the disk, of streams that are open and kept.", lambda one: one.kept_bytes),
)
# Of each model: what is counted since it was loaded
COUNTERS = (
    ("pictures", "Pictures watched."),
    ("words", "Words of answers, as tokens."),
    ("answers", "Answers that ended, the stopped ones included."),
    ("dropped", "Pictures of cameras that gave way to newer ones unseen."),
)


class Operators:
    """The three addresses. Numbers of all visitors together; no name, key, picture or word of anybody's."""

    def __init__(self, host: str, port: int) -> None:
        """Answers from now on. Raises UserError where the address is taken. Port 0: any that is free."""
        self.refusal = LOADING  # "" between `open` and `end`
        self._census: Callable[[], Census] | None = None
        self._page = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        door = _opened(host, port)
        self.host, self.port = door.getsockname()[:2]
        routes = [Route(f"/{one.__name__}", one) for one in (self.metrics, self.health, self.ready)]
        told = uvicorn.Config(Starlette(routes=routes), log_level="warning", lifespan="off")
        self._server = uvicorn.Server(told)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [door]}, name="operators", daemon=True
        )
        self._thread.start()

    def open(self, census: Callable[[], Census], page: int) -> None:
        """The models are there, and visitors may come once the page answers. page: its port."""
        self._census, self._page, self.refusal = census, page, ""

    def end(self) -> None:
        """No more visitors; the addresses go on answering."""
        self.refusal = ENDING

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(HELLO_S)

    def metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def health(self, _: Request) -> Response:
        return _said(self._census().hangs if self._census else "")

    def ready(self, _: Request) -> Response:
        return _said(self._why_not())

    def _why_not(self) -> str:
        """Why no visitor is to be sent."""
        if self.refusal:
            return self.refusal
        try:
            socket.create_connection(("127.0.0.1", self._page), 1.0).close()
        except OSError:
            return OPENING
        return ""

    def collect(self) -> Iterator[Metric]:
        """What Prometheus's registry asks for."""
        yield GaugeMetricFamily("vamba_ready", "Whether visitors may come.", float(not self._why_not()))
        if self._census is None:
            return
        now = self._census()
        streams = GaugeMetricFamily("vamba_streams", "Streams of visitors by where they stand.", labels=["phase"])
        for phase, count in now.streams.items():
            streams.add_metric([phase], count)
        yield streams
        for name, what, read in GAUGES:
            yield GaugeMetricFamily(f"vamba_{name}", what, read(now))
        yield CounterMetricFamily(
            "vamba_streams_came_back", "Kept streams that went on after a restart.", now.came_back
        )
        waiting = GaugeMetricFamily("vamba_waiting", "Chunks and words that somebody waits for.", labels=["model"])
        turn = GaugeMetricFamily("vamba_turn_seconds", "How long the turn at work has taken.", labels=["model"])
        for model in now.models:
            waiting.add_metric([model.name], model.waiting)
            turn.add_metric([model.name], model.turn_s)
        yield from (waiting, turn)
        for name, what in COUNTERS:
            family = CounterMetricFamily(f"vamba_{name}", what, labels=["model"])
            for model in now.models:
                family.add_metric([model.name], model.counts[name])
            yield family


def _said(refusal: str) -> Response:
    return PlainTextResponse(f"{refusal or 'ok'}\n", 503 if refusal else 200)


def _opened(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=64)
    except OSError as error:
        raise UserError(
            f"Metrics cannot be served at {host}:{port} ({error.strerror}), so nothing was started; choose another "
            "address with --metrics."
        ) from None
