"""Operator sources: streams of cameras that whoever runs the server named. Each is watched once, for all visitors.

A visitor has a seat at such a stream: a conversation and rules of their own. Nobody can pause, end, keep or fork it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from weakref import WeakSet

import numpy as np

from app.live.keep import Keep
from app.live.legs import Leg
from app.live.noticing import Noticing
from app.live.recent import Recent
from app.live.thumbnails import Thumbnails
from app.live.uploads import Source
from app.live.view import View
from app.live.viewing import Viewing
from app.live.watching import CAMERA_QUEUE, FPS, Watch
from pipeline import Address, Engine, Frame, Receiver, UserError


class Shared(Watch):
    """The one Watch of an operator source. Its receiver begins with it and ends with it."""

    def __init__(self, address: Address, engine: Engine) -> None:
        super().__init__(Source(address.name, address.name), engine)
        assert self.camera is not None  # a source without a file
        self.name, queue = address.name, self.camera
        self.audience: WeakSet[Noticing] = WeakSet()  # whose rules are judged after every chunk
        self._receiver = Receiver(
            address,
            self._receive,
            self.noticing.add,
            queue.close,
            lambda: queue.waiting < CAMERA_QUEUE // 2,
            fps=FPS,
            long_side=self._long_side(),
        )

    def _receive(self, rgb: np.ndarray, second: float) -> None:
        assert self.camera is not None
        self._offered_at = time.monotonic()
        self.camera.offer(rgb, second)

    def view(self, about: View) -> View:
        """silent: none has come for a while, or the source cannot be reached."""
        view, trouble = super().view(about), self._receiver.trouble
        return replace(
            view, shared=True, newest=self.recent.newest, silent=view.silent or bool(trouble), trouble=trouble
        )

    def close(self) -> None:
        super().close()
        self._receiver.close()

    def join(self, timeout: float) -> None:
        self._receiver.join(timeout)
        super().join(timeout)

    def _show(self, chunk: list[Frame], began: float) -> None:
        super()._show(chunk, began)
        for noticing in list(self.audience):
            noticing.judge(self.viewings[0].settled)


class Seat:
    """One visitor's seat, with the face of a Watch: what would change the stream for others does nothing."""

    camera = None

    def __init__(self, shared: Shared, rival: Engine | None) -> None:
        self.shared, self.noticing = shared, Noticing(shared.viewings[0].engine)
        self.noticing.go_on((), (), shared.viewings[0].settled)
        shared.audience.add(self.noticing)
        self._comparing = False
        self.compare(rival)

    @property
    def source(self) -> Source:
        return self.shared.source

    @property
    def legs(self) -> Sequence[Leg]:
        return self.shared.legs

    @property
    def thumbnails(self) -> Thumbnails:
        return self.shared.thumbnails

    @property
    def recent(self) -> Recent:
        return self.shared.recent

    @property
    def came_to_nothing(self) -> bool:
        """Nothing would be lost with a seat."""
        return True

    def view(self, about: View) -> View:
        """The stream, with this visitor's own rules and alerts."""
        view = self.shared.view(about)
        events = (*view.events, *(event for event in self.noticing.events if event.kind == "alert"))
        models = view.models if self._comparing else view.models[:1]
        alerted = self.shared.thumbnails.of_alerts(events)
        return replace(view, models=models, events=events, rules=self.noticing.rules, alerted=alerted)

    def viewing(self, model: int) -> Viewing | None:
        return self.shared.viewing(model)

    def opening(self, model: int) -> bool:
        return self.shared.opening(model)

    def compare(self, rival: Engine | None) -> None:
        """Once somebody compared, the second model watches on: who sits beside may be asking it."""
        self._comparing = rival is not None
        if rival:
            self.shared.compare(rival)

    def clip(self, at: float, out: str | Path) -> None:
        self.shared.clip(at, out)

    def offer(self, rgb: object, jpeg: bytes = b"") -> None:
        """Pictures come from the source alone."""

    def pause(self) -> None:
        """Others watch on."""

    def resume(self) -> None:
        """It was never paused."""

    def keep(self, keep: Keep | None) -> None:
        if keep:
            raise UserError(OURS.format("kept"))

    def close(self) -> None:
        """The visitor leaves; the stream goes on."""
        self.shared.audience.discard(self.noticing)
        self.noticing.close()

    def join(self, timeout: float) -> None:
        self.noticing.join(timeout)


Watched = Watch | Seat  # what a visitor has before them
OURS = "This stream is watched for everybody, so it was not {}; ask about it, or start a video of your own."
