"""Speech: the words of a subtitle track, which are exact; without one, what Whisper makes of where somebody speaks.

The voice gate (voice.py) lets only stretches with a voice through: of music and noise Whisper would make words.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cache

from pipeline.assets import ASSETS
from pipeline.senses.transcriber import Transcriber, load_transcriber
from pipeline.senses.voice import Stretch, Stretches, load_voice_net
from pipeline.sources.sound import Cue, Sound, SoundFile, no_sound, open_sound
from pipeline.stream import Event, Gleaned

TOLD_S = 10.0  # seconds of sound after which it is said how far it has come


class Speech:
    """See the room's docstring for what a late sense is. model: another Whisper, by name; "": the one that ships."""

    name, doing, cost_s = "speech", "Listening", 500.0
    kinds: tuple[str, ...] = ("speech",)

    def __init__(self, model: str = "") -> None:
        self._model = model

    def glean(self, path: str, stop: threading.Event) -> Iterator[Gleaned]:
        """An event for each subtitle or sentence."""
        written = False
        with open_sound(path) as sound:
            if sound.subtitles:
                for cue in subtitles(sound, stop):
                    written = True
                    yield cue
            if not written and not sound.sound:
                yield Gleaned(0.0, lacks=no_sound(sound))
        if not written and sound.sound:
            with open_sound(path) as sound:
                yield from self._spoken(sound, stop)

    def _spoken(self, sound: SoundFile, stop: threading.Event) -> Iterator[Gleaned]:
        """What is said, sentence by sentence, with how sure Whisper was as weight."""
        cutter, told, until = Stretches(load_voice_net(ASSETS / "voice.safetensors")), 0.0, 0.0
        for block in sound:
            if stop.is_set():
                return
            if not isinstance(block, Sound):
                continue
            until = block.until
            for stretch in cutter.add(block.time, block.samples):
                yield Gleaned(stretch.time, self._said(stretch))
            if until - told >= TOLD_S and not cutter.waits:
                yield Gleaned(until)
                told = until
        for stretch in cutter.finish():
            yield Gleaned(until, self._said(stretch))
        yield Gleaned(until)

    def _said(self, stretch: Stretch) -> tuple[Event, ...]:
        said = _transcriber(self._model).sentences(stretch.samples, stretch.voiced)
        at = stretch.time
        return tuple(Event(at + one.time, "speech", one.text, one.sure, at + one.until) for one in said)


def subtitles(sound: SoundFile, stop: threading.Event) -> Iterator[Gleaned]:
    for heard in sound:
        if stop.is_set():
            return
        if isinstance(heard, Cue):
            yield Gleaned(heard.until, (Event(heard.time, "speech", heard.text, 1.0, heard.until),))


@cache
def _transcriber(model: str) -> Transcriber:
    """Shared by all streams: the gleaner lets one at a time go through a file."""
    return load_transcriber(ASSETS, model)
