"""`python -m pipeline stress ADDRESS FILE`: visitors of a running page who watch, ask and leave as people do.

Each has a plan drawn from its number: some send a file, some a camera's pictures, one a second. They look how far it
is, wait a moment, ask, read, ask again; one in four leaves in the middle of an answer. They speak to the page as any
program may (app/README.md), on this machine alone, and no longer than they are told to.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import random
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from pipeline.commands.ask import check_file
from pipeline.sources.camera import thumbnail
from pipeline.sources.file import open_video
from pipeline.stream import UserError

MOST_VISITORS, MOST_SECONDS = 512, 3_600.0
PICTURES, WIDTH = 60, 640  # that a camera shows, again and again, and how wide they are
LIVE_S = 1.0  # between two of a camera's pictures
LEAVES = 0.25  # of the answers are left in their middle
THINKS_S = (0.5, 4.0)  # before a question
PATIENCE_S = 120.0  # an answer that takes longer is an error
QUESTIONS = (
    "What do you see right now?",
    "What happened so far?",
    "Is there a person?",
    "When did the scene change?",
    "How many things are there?",
    "What colour is it?",
    "Describe the last minute.",
)
GONE = "no session with this key"
FULL = "places are taken"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", help="of a running page on this machine, as http://127.0.0.1:7860")
    parser.add_argument("video", help="a file that visitors watch, and whose pictures cameras show")
    parser.add_argument("--visitors", type=int, default=8, metavar="N", help="at once (default: 8)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long they come (default: 60)")
    parser.add_argument(
        "--live", type=float, default=0.5, metavar="SHARE", help="of them that have a camera (default: .5)"
    )
    parser.add_argument(
        "--metrics",
        metavar="ADDRESS",
        help="of the server's metrics, one more --metrics for each",
        action="append",
        default=[],
    )
    parser.add_argument("--seed", type=int, default=0, help="of their plans")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")


def run(args: argparse.Namespace) -> int:
    """Exit code 1 where a stream was lost or an error came that is no refusal."""
    if not 1 <= args.visitors <= MOST_VISITORS or not 0 < args.seconds <= MOST_SECONDS or not 0 <= args.live <= 1:
        raise UserError(
            f"That many visitors cannot come; say 1 to {MOST_VISITORS} --visitors, up to {MOST_SECONDS:.0f} --seconds "
            "and a share of 0 to 1 for --live."
        )
    for address in (args.address, *args.metrics):
        check_loopback(address)
    check_file(args.video, 1.0)
    found = asyncio.run(_stressed(args))
    print(json.dumps(found, ensure_ascii=False) if args.json else table(found))
    return 1 if found["streams_lost"] or found["errors"] else 0


def check_loopback(address: str) -> None:
    """UserError unless that leads to this machine: nobody else's server is put under load."""
    parts = urlsplit(address)
    try:
        found = (
            {info[4][0] for info in socket.getaddrinfo(parts.hostname, parts.port or 80)} if parts.hostname else set()
        )
    except (OSError, ValueError):
        found = set()
    if parts.scheme != "http" or not found or not all(ipaddress.ip_address(one).is_loopback for one in found):
        raise UserError(
            f"{address!r} is no page on this machine, and no other is put under load, so nobody came; say "
            "http://127.0.0.1:7860."
        )


@dataclass
class Tally:
    """What all visitors met. waits: seconds by what was waited for."""

    waits: dict[str, list[float]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    refused: int = 0  # no place was free, or the source was over
    streams: int = 0
    lost: int = 0
    answers: int = 0
    left: int = 0
    words: int = 0
    pictures: int = 0

    def waited(self, what: str, seconds: float) -> None:
        self.waits.setdefault(what, []).append(seconds)


class Refused(Exception):
    """What the page says instead of doing it, in a sentence."""


class Page:
    """The page's endpoints, by Gradio's protocol: a call gives the name of an event, whose outcomes are streamed."""

    def __init__(self, client: httpx.AsyncClient, address: str) -> None:
        self._client, self._address = client, address.rstrip("/")

    async def sent(self, path: Path) -> dict[str, Any]:
        """A file, as endpoints take it."""
        with path.open("rb") as file:
            answer = await self._client.post(f"{self._address}/gradio_api/upload", files={"files": (path.name, file)})
        answer.raise_for_status()
        return {"path": answer.json()[0], "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}

    async def call(self, name: str, *values: Any) -> Any:
        """The last outcome of an endpoint. Raises Refused."""
        return [outcome async for outcome in self.outcomes(name, *values)][-1]

    async def outcomes(self, name: str, *values: Any) -> AsyncIterator[Any]:
        """Those of an endpoint that gives more than one, as they come. Raises Refused."""
        address = f"{self._address}/gradio_api/call{name}"
        called = await self._client.post(address, json={"data": values})
        called.raise_for_status()
        async with self._client.stream("GET", f"{address}/{called.json()['event_id']}") as answer:
            kind = ""
            async for line in answer.aiter_lines():
                word, _, rest = line.partition(": ")
                if word == "event":
                    kind = rest
                elif word == "data" and kind == "error":
                    raise Refused(_sentence(rest))
                elif word == "data" and kind in ("generating", "complete") and (given := json.loads(rest)):
                    yield given[0]

    async def picture(self, key: str, jpeg: bytes) -> str:
        """Shows a camera's picture; what becomes of the next one."""
        told = await self._client.post(f"{self._address}/live/picture", content=jpeg, headers={"x-vamba-key": key})
        return told.text


def _sentence(data: str) -> str:
    told = json.loads(data)
    return str(told.get("error", told) if isinstance(told, dict) else told or "an error without a sentence")


class Visitor:
    """One person. They come again until the time is over."""

    def __init__(self, page: Page, number: int, live: bool, video: Path, jpegs: list[bytes], tally: Tally, seed: int):
        self._page, self._live, self._video, self._jpegs, self._tally = page, live, video, jpegs, tally
        self._random = random.Random(seed * MOST_VISITORS + number)
        self._frames, self._key = 0, ""

    async def come(self, until: float) -> None:
        await asyncio.sleep(self._random.uniform(0, 2.0))  # not all at the same moment
        while time.monotonic() < until:
            try:
                await self._visit(until)
            except Refused as error:
                self._met(str(error))
                await asyncio.sleep(1.0)
            except (httpx.HTTPError, TimeoutError, OSError) as error:
                self._tally.errors[type(error).__name__] += 1
                await asyncio.sleep(1.0)

    def _met(self, sentence: str) -> None:
        if FULL in sentence:
            self._tally.refused += 1
        elif GONE in sentence:
            self._tally.lost += 1
        else:
            self._tally.errors[sentence] += 1

    async def _visit(self, until: float) -> None:
        self._frames = 0
        self._key = await self._timed("open", self._opened)
        self._tally.streams += 1
        showing = asyncio.create_task(self._show(until)) if self._live else None
        try:
            await self._look(until)
            for _ in range(self._random.randint(1, 3)):
                await asyncio.sleep(min(self._random.uniform(*THINKS_S), max(0.0, until - time.monotonic())))
                if time.monotonic() >= until or await asyncio.wait_for(self._ask(), PATIENCE_S):
                    break
            await self._status()
        finally:
            if showing:
                showing.cancel()
            self._tally.pictures += self._frames
            await self._page.call("/close", self._key)

    async def _opened(self) -> str:
        if self._live:
            return await self._page.call("/camera")
        return await self._page.call("/watch", await self._page.sent(self._video))

    async def _show(self, until: float) -> None:
        """A camera: a picture a second, whatever else its visitor does."""
        began = time.monotonic()
        for number in range(int(MOST_SECONDS)):
            await asyncio.sleep(max(0.0, began + number * LIVE_S - time.monotonic()))
            if time.monotonic() >= until:
                return
            told = await self._timed("picture", self._page.picture, self._key, self._jpegs[number % len(self._jpegs)])
            if told not in ("watching", "paused"):
                self._tally.errors[f"a picture was answered by {told!r}"] += 1
                return

    async def _look(self, until: float) -> None:
        """Until there is something to ask about."""
        while time.monotonic() < until and not await self._status():
            await asyncio.sleep(0.5)

    async def _status(self) -> int:
        """Frames seen. They never grow fewer: then the stream was lost, and began anew."""
        status = await self._timed("status", self._page.call, "/status", self._key)
        if status["frames"] < self._frames:
            self._tally.lost += 1
        self._frames = status["frames"]
        return self._frames

    async def _ask(self) -> bool:
        """Whether they left in the middle of the answer."""
        leaves, words, newest = self._random.random() < LEAVES, 0, time.monotonic()
        stops_after = self._random.randint(1, 8)
        async for answer in self._page.outcomes("/ask", self._key, self._random.choice(QUESTIONS), -1):
            if answer.get("done"):
                break
            now = time.monotonic()
            self._tally.waited("word" if words else "first_word", now - newest)
            words, newest = words + 1, now
            if leaves and words == stops_after:
                self._tally.left += 1
                break
        self._tally.words += words
        self._tally.answers += 1
        return leaves and words == stops_after

    async def _timed(self, what: str, deed: Callable[..., Awaitable[Any]], *values: Any) -> Any:
        began = time.monotonic()
        try:
            return await deed(*values)
        finally:
            self._tally.waited(what, time.monotonic() - began)


async def _stressed(args: argparse.Namespace) -> dict[str, Any]:
    video, jpegs, tally = Path(args.video), _jpegs(args.video), Tally()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=args.visitors * 2)
    async with httpx.AsyncClient(timeout=PATIENCE_S, limits=limits, trust_env=False) as client:
        await _check_page(client, args.address)
        before = [await _metrics(client, address) for address in args.metrics]
        page, began = Page(client, args.address), time.monotonic()
        live = [round((n + 1) * args.live) > round(n * args.live) for n in range(args.visitors)]
        visitors = [Visitor(page, n, live[n], video, jpegs, tally, args.seed) for n in range(args.visitors)]
        print(f"{args.visitors} visitors, {sum(live)} with a camera", file=sys.stderr, flush=True)
        await asyncio.gather(*(visitor.come(began + args.seconds) for visitor in visitors))
        took = time.monotonic() - began
        after = [await _metrics(client, address) for address in args.metrics]
    return shown(tally, took, args.visitors, sum(live)) | {"servers": _grown(before, after, took)}


async def _check_page(client: httpx.AsyncClient, address: str) -> None:
    """UserError unless a page of ours answers there."""
    try:
        told = (await client.get(f"{address.rstrip('/')}/gradio_api/info")).json()
    except (httpx.HTTPError, ValueError):
        told = {}
    if "/camera" not in told.get("named_endpoints", {}):
        raise UserError(f"No page of Vamba Live answers at {address}, so nobody came; start one with python app.py.")


def _jpegs(video: str) -> list[bytes]:
    with open_video(video, fps=1.0, long_side=WIDTH) as frames:
        return [thumbnail(frame, WIDTH) for frame, _ in zip(frames, range(PICTURES))]


async def _metrics(client: httpx.AsyncClient, address: str) -> dict[str, float]:
    """Values by name, those of all labels together."""
    answer = await client.get(f"{address.rstrip('/')}/metrics")
    answer.raise_for_status()
    found: dict[str, float] = {}
    for line in answer.text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            plain = name.partition("{")[0]
            found[plain] = found.get(plain, 0.0) + float(value)
    return found


def _grown(before: list[dict[str, float]], after: list[dict[str, float]], took: float) -> list[dict[str, float]]:
    """Of each server: pictures and words a second of all its models, pictures dropped, bytes it holds."""
    return [
        {
            "pictures_per_s": (new["vamba_pictures_total"] - old.get("vamba_pictures_total", 0)) / took,
            "words_per_s": (new["vamba_words_total"] - old.get("vamba_words_total", 0)) / took,
            "dropped": new["vamba_dropped_total"] - old.get("vamba_dropped_total", 0),
            "resident_bytes": new["process_resident_memory_bytes"],
            "memory_bytes": new["vamba_memory_bytes"],
        }
        for old, new in zip(before, after)
    ]


def shown(tally: Tally, seconds: float, visitors: int, live: int) -> dict[str, Any]:
    """The document. Waits in seconds: median, 95th percentile, worst, and of how many."""
    return {
        "visitors": visitors,
        "cameras": live,
        "seconds": seconds,
        "streams": tally.streams,
        "streams_lost": tally.lost,
        "refused": tally.refused,
        "errors": dict(tally.errors),
        "answers": tally.answers,
        "left_in_the_middle": tally.left,
        "words_per_s": tally.words / seconds,
        "pictures_per_s": tally.pictures / seconds,
        "waits_s": {what: _spread(found) for what, found in sorted(tally.waits.items())},
    }


def _spread(found: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(found, n=20, method="inclusive") if len(found) > 1 else found * 19
    return {"median": statistics.median(found), "p95": cuts[-1], "worst": max(found), "of": len(found)}


def table(found: dict[str, Any]) -> str:
    """The document for people."""
    lines = [
        f"{found['visitors']} visitors ({found['cameras']} with a camera), {found['seconds']:.0f} s: "
        f"{found['streams']} streams, {found['streams_lost']} lost; {found['answers']} answers, "
        f"{found['left_in_the_middle']} left in the middle; {found['refused']} refused for want of a place",
        f"{found['pictures_per_s']:.1f} pictures/s and {found['words_per_s']:.1f} words/s reached their visitors",
        f"{'waited for':<12}{'median':>10}{'95 %':>10}{'worst':>10}{'of':>8}",
    ]
    lines += [
        f"{what:<12}{wait['median']:>9.3f}s{wait['p95']:>9.3f}s{wait['worst']:>9.3f}s{wait['of']:>8}"
        for what, wait in found["waits_s"].items()
    ]
    lines += [
        f"server {number}: {one['pictures_per_s']:.1f} pictures/s, {one['words_per_s']:.1f} words/s, "
        f"{one['dropped']:.0f} pictures dropped, {one['resident_bytes'] / 1e9:.2f} GB resident"
        for number, one in enumerate(found["servers"], 1)
    ]
    lines += [f"{count} times: {sentence}" for sentence, count in found["errors"].items()]
    return "\n".join(lines)
