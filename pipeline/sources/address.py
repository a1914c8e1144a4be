"""Addresses of live sources, as whoever starts the program names them: a camera's RTSP, HLS, a folder recorded into.

An address may hold a password, also in its path or behind a question mark. So nothing of it is ever shown: a source has
a name of its own, and `repr` and logs say its kind alone.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from pipeline.stream import UserError

Kind = Literal["rtsp", "hls", "folder"]
LONGEST = 40  # characters of a name
NAMED = re.compile(r"([^=:/?#\\]{1,200})=(.+)", re.S)  # a name has nothing of an address


@dataclass(frozen=True)
class Address:
    """Where live pictures come from. name: for everybody to see. where: a URL, or a folder's path; never shown."""

    kind: Kind
    name: str
    where: str = field(repr=False)


def addresses(texts: list[str]) -> tuple[Address, ...]:
    """Those of [NAME=]ADDRESS, whose names differ. Raises UserError."""
    found: list[Address] = []
    for number, text in enumerate(texts, start=1):
        one = address(text, f"Source {number}")
        if one.name in [other.name for other in found]:
            raise UserError(f"Two sources are called {one.name}, so nothing was started; give each its own NAME=.")
        found.append(one)
    return tuple(found)


def address(text: str, name: str) -> Address:
    """The one of [NAME=]ADDRESS. name: where it gives none. Raises UserError, without a word of the address."""
    match = NAMED.fullmatch(text.strip())
    if match:
        name, text = " ".join(match[1].split())[:LONGEST] or name, match[2]
    text = text.strip()
    return Address(_kind(text, name), name, text)


def _kind(where: str, name: str) -> Kind:
    try:
        parts = urlsplit(where)
        host, _ = parts.hostname, parts.port  # the port, too, may be nonsense
    except ValueError:
        raise UserError(
            f"The address of {name} cannot be read, so nothing was started; check its host and port."
        ) from None
    if parts.scheme in ("rtsp", "rtsps") and host:
        return "rtsp"
    if parts.scheme in ("http", "https") and host and parts.path.endswith(".m3u8"):
        return "hls"
    if "://" in where:
        raise UserError(
            f"The address of {name} is none that is watched, so nothing was started; give rtsp://..., "
            "http(s)://....m3u8 or a folder."
        )
    if not os.path.isdir(where):
        raise UserError(f"The folder of {name} is not there, so nothing was started; give one that is recorded into.")
    return "folder"
