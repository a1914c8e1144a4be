"""Captions: a line for what is seen, when it changes. Said once while it lasts, and nothing where nothing is sure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from pipeline.stream import Event

Words = Callable[[float, float], str]  # what is surely seen from one second to before another; "" where unsure


class Captions:
    """Fed the second of one picture after the other. A shot is told in pieces of some pictures; pieces that show the
    same are one caption. A piece never reaches over a cut and begins with its shot, however the video is chunked.

    pictures: of a piece, at most. going: the caption that may go on with the next piece.
    """

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures
        self.going: Event | None = None
        self._began = 0.0  # of the piece; the first one's pictures stand from 0 on
        self._count = 0  # pictures in it

    def go_on(self, at: float) -> None:
        """After that second, with a new piece."""
        self._began = at

    def add(self, time: float, cut: bool, words: Words) -> Iterator[Event]:
        """The caption that has ended, now that this picture comes. cut: a shot begins with it."""
        if self._count and (cut or self._count == self.pictures):
            yield from self._told(time, words)
        self._count += 1

    def end(self, at: float, words: Words) -> Iterator[Event]:
        """What is left where the stream ends at that second."""
        if self._count:
            yield from self._told(at, words)
        yield from self._ended(at)

    def _told(self, end: float, words: Words) -> Iterator[Event]:
        """Puts the piece that ends before that second into words."""
        said, began = words(self._began, end), self._began
        self._began, self._count = end, 0
        if self.going is None or said != self.going.text:
            yield from self._ended(began)
            self.going = Event(began, "caption", said) if said else None

    def _ended(self, at: float) -> Iterator[Event]:
        if self.going:
            yield replace(self.going, until=at)
        self.going = None
