"""What a question is put to: a model's run over the session's stream, once there is a first picture."""

from __future__ import annotations

import time
from collections.abc import Callable

from app.live.conversation import PUT_ASIDE, Answering, Subject
from app.live.shared import Watched
from app.live.viewing import Viewing
from pipeline import Engine, UserError

POLL_S = 0.05  # a question looks so often whether there is a first picture


def awaited(
    answering: Answering,
    model: int,
    engine: Engine,
    here: Callable[[], tuple[Watched | None, int]],
    rouse: Callable[[Callable[[], bool]], None],
) -> Subject:
    """here: the session's stream and its number; raises UserError where it is nobody's to ask here any more. rouse:
    wakes it. Raises UserError where the question's stream is over."""
    while True:
        watch, stream = here()
        opening = watch is not None and watch.opening(model)
        if answering.turn.stream != stream or (opening and answering.stopped.is_set()):
            raise UserError(PUT_ASIDE)
        if not opening:
            if watch is None:
                return Subject(Viewing(engine), lambda at: None)
            rouse(answering.stopped.is_set)
            viewing = watch.viewing(model) or Viewing(engine)
            return Subject(viewing, watch.thumbnails.near, watch.noticing.beside, here)
        time.sleep(POLL_S)
