"""What the example clip sounds like: plucked chords, the ticking of a clock, waves, and one spoken sentence.

Float32 samples of one channel, RATE a second. The sentence is spoken by eSpeak NG out of the package espeakng_loader.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import numpy as np

RATE = 32_000
BEAT_S = 0.5
# Four beats each: the notes of a chord, in semitones from the A of 110 Hz; the first one is the bass.
CHORDS = ((3, 10, 15, 19, 22), (0, 12, 15, 19, 24), (8, 15, 20, 24, 27), (10, 17, 22, 26, 29))
PATTERN = (1, 2, 3, 4, 3, 2, 4, 3)  # which of them are plucked, twice a beat
ROOM_S, WET = 1.6, 0.25  # of the echo

Array = np.ndarray


def seconds(count: float) -> Array:
    return np.arange(round(count * RATE), dtype=np.float64) / RATE


def note(semitones: float, loud: float, lasts: float) -> Array:
    """A plucked string: harmonics, of which the high ones die first."""
    t, hertz = seconds(lasts), 110 * 2 ** (semitones / 12)
    parts = [np.sin(2 * np.pi * hertz * k * t) * k**-1.4 * np.exp(-t * (1.1 + 0.9 * k)) for k in range(1, 8)]
    return loud * np.sum(parts, 0) * np.minimum(t / 0.004, 1)


def add(into: Array, at: float, samples: Array) -> None:
    """Mixes them in at that second, as far as there is room."""
    first = round(at * RATE)
    part = into[first : first + len(samples)]
    part += samples[: len(part)]


def music(lasts: float) -> Array:
    """Chords for so many seconds, in a room, faded at both ends."""
    out = np.zeros(round(lasts * RATE))
    for bar in range(int(np.ceil(lasts / (4 * BEAT_S)))):
        chord, start = CHORDS[bar % len(CHORDS)], bar * 4 * BEAT_S
        add(out, start, note(chord[0], 0.9, 2.5))
        add(out, start + 2 * BEAT_S, note(chord[0] + 7, 0.45, 2.0))
        for i, which in enumerate(PATTERN):
            add(out, start + i * BEAT_S / 2, note(chord[which], 0.5 if i % 2 else 0.62, 2.2))
    return faded(echoed(out), 0.05, 1.5)


def echoed(dry: Array) -> Array:
    t = seconds(ROOM_S)
    room = np.random.default_rng(3).standard_normal(len(t)) * np.exp(-t * 4.5)
    room /= np.sqrt((room**2).sum())
    size = len(dry) + len(room)
    wet = np.fft.irfft(np.fft.rfft(dry, size) * np.fft.rfft(room, size), size)[: len(dry)]
    return dry + WET * wet


def faded(samples: Array, rise: float, fall: float) -> Array:
    t = seconds(len(samples) / RATE)[: len(samples)]
    return samples * np.clip(t / rise, 0, 1) * np.clip((t[-1] - t) / fall, 0, 1)


def coloured(lasts: float, low: float, high: float, seed: int) -> Array:
    """Noise between two frequencies, of deviation 1."""
    noise = np.fft.rfft(np.random.default_rng(seed).standard_normal(round(lasts * RATE)))
    hertz = np.fft.rfftfreq(round(lasts * RATE), 1 / RATE)
    noise *= np.exp(-((low / np.maximum(hertz, 1)) ** 2)) / (1 + (hertz / high) ** 2)
    out = np.fft.irfft(noise, round(lasts * RATE))
    return out / out.std()


def waves(lasts: float) -> Array:
    """The sea: each wave swells, breaks and runs out."""
    t = seconds(lasts)
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * t / 5.5)
    hiss = np.clip(0.5 - 0.5 * np.cos(2 * np.pi * (t / 5.5 - 0.12)), 0, 1) ** 3
    deep = coloured(lasts, 60, 350, 5) * (0.35 + 0.65 * swell)
    return faded(deep * 0.6 + coloured(lasts, 500, 3000, 6) * hiss * 0.7, 0.8, 0.8)


def ticks(lasts: float) -> Array:
    """A clock, twice a second."""
    out, t = np.zeros(round(lasts * RATE)), seconds(0.05)
    for i in range(int(lasts * 2)):
        click = np.exp(-t * 190) * np.sin(2 * np.pi * (2300 if i % 2 else 1900) * t)
        add(out, 0.25 + i / 2, click)
    return out


def spoken(sentence: str) -> Array:
    """The sentence in an English voice. Raises ImportError without espeakng_loader."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    pieces: list[Array] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def take(samples, count, _):
        if samples and count:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float64) / 32768)
        return 0

    retrieval, rate, pitch, to_the_end = 1, 1, 3, 0x1000 | 1  # of espeak-ng/speak_lib.h
    hertz = library.espeak_Initialize(retrieval, 0, espeakng_loader.get_data_path().encode(), 0)
    library.espeak_SetSynthCallback(take)
    library.espeak_SetVoiceByName(b"en-gb")
    library.espeak_SetParameter(rate, 130, 0)
    library.espeak_SetParameter(pitch, 45, 0)
    text = sentence.encode() + b"\0"
    library.espeak_Synth(text, len(text), 0, 1, 0, to_the_end, None, None)
    library.espeak_Synchronize()
    library.espeak_Terminate()
    return resampled(np.concatenate(pieces), hertz)


def resampled(samples: Array, hertz: int) -> Array:
    """At RATE, by way of the spectrum."""
    count = round(len(samples) * RATE / hertz)
    return np.fft.irfft(np.fft.rfft(samples), count) * count / len(samples)


def mixed(parts: Iterable[tuple[float, float, Array]], lasts: float) -> Array:
    """(second, loudness, samples) put together."""
    out = np.zeros(round(lasts * RATE))
    for at, loud, samples in parts:
        add(out, at, loud * samples)
    return np.tanh(out).astype(np.float32)
