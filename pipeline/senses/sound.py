"""Sound: whether there is any, and whether it is music, told without a network from what its spectrum does.

Music holds tones (McAulay and Quatieri's peaks that go on from frame to frame, 1986), several of the twelve pitch
classes of them, and changes between them. Noise holds none, a hum or a whistle does not change, and speech glides. What
sounds and is neither music nor a voice is a sound and no more: nothing here says what makes it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from pipeline.assets import ASSETS
from pipeline.senses.voice import RATE, VoiceGate, load_voice_net
from pipeline.sources.sound import Sound as Samples
from pipeline.sources.sound import no_sound, open_sound
from pipeline.stream import Event, Gleaned

STEP_S = 4.0  # seconds that are judged at a time
SILENCE_DB = -60.0  # full scale; what is less loud is silence
FRAME, HOP = 2048, 512  # samples of a spectrum, and from one to the next
LOWEST, HIGHEST = 80.0, 4000.0  # Hz between which tones count
PROMINENT, AROUND = 10.0, 20  # a peak's power over the median so many bins around it
LASTING = 6  # frames in which a tone goes on, 0.2 s
TONAL, PITCHES, SHIFTS = 0.7, 5, 0.03  # of music: share of frames with tones, their pitch classes, change of these
VOICED = 0.05  # share of a step with a voice, from which what sounds may be that
MUSIC, OTHER = "music", "sound"


class Sounds:
    """See the room's docstring for what a late sense is."""

    name, doing, cost_s = "sound", "Hearing sounds", 60.0
    kinds: tuple[str, ...] = ("sound",)

    def glean(self, path: str, stop: threading.Event) -> Iterator[Gleaned]:
        """An event for each stretch of music, and of what is neither music nor a voice."""
        with open_sound(path) as sound:
            if not sound.sound:
                yield Gleaned(0.0, lacks=no_sound(sound))
                return
            gate, going, until = VoiceGate(load_voice_net(ASSETS / "voice.safetensors")), None, 0.0
            for start, samples in steps(sound):
                if stop.is_set():
                    return
                until, what = start + len(samples) / RATE, heard(samples, gate)
                if going and what == going.text and start <= (going.until or 0.0) + 0.1:
                    going = replace(going, until=until)
                    yield Gleaned(until)
                else:
                    yield Gleaned(until, (going,) if going else ())
                    going = Event(start, "sound", what, 1.0, until) if what else None
            yield Gleaned(until, (going,) if going else ())


def steps(sound: Iterator[object]) -> Iterator[tuple[float, np.ndarray]]:
    """Seconds and samples of STEP_S each, or less where a step ends in a gap or with the sound."""
    parts, start, count = list[np.ndarray](), 0.0, 0
    for block in sound:
        if not isinstance(block, Samples):
            continue
        if parts and (count >= STEP_S * RATE or abs(block.time - start - count / RATE) > 0.1):
            yield start, np.concatenate(parts)
            parts, count = [], 0
        start = start if parts else block.time
        parts.append(block.samples)
        count += len(block.samples)
    if parts:
        yield start, np.concatenate(parts)


def heard(samples: np.ndarray, gate: VoiceGate) -> str:
    """MUSIC, OTHER, or "" for silence and for speech."""
    voiced = gate.hear(samples)
    if not len(samples) or 10 * np.log10(np.mean(samples.astype(float) ** 2) + 1e-12) < SILENCE_DB:
        return ""
    if is_music(samples):
        return MUSIC
    return "" if len(voiced) and (voiced >= 0.5).mean() >= VOICED else OTHER


def is_music(samples: np.ndarray) -> bool:
    """Of a step of sound, float32, one channel, RATE a second."""
    if len(samples) < RATE:
        return False
    power, hertz = spectra(samples)
    tones = lasting(peaks(power))
    loud = 10 * np.log10(power.sum(1) / FRAME**2 + 1e-12) > SILENCE_DB
    if loud.sum() * HOP < RATE or tones.max(1)[loud].mean() < TONAL:
        return False
    pitch = np.round(12 * np.log2(hertz / 440)).astype(int) % 12
    often = np.bincount(pitch[np.nonzero(tones)[1]], minlength=12) >= LASTING // 2
    return bool(often.sum() >= PITCHES and shifts(power * beside(tones), pitch) >= SHIFTS)


def spectra(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Power (frames, bins) between LOWEST and HIGHEST, and the bins' Hz."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP] * np.hanning(FRAME).astype(np.float32)
    hertz = np.fft.rfftfreq(FRAME, 1 / RATE)
    low, high = np.searchsorted(hertz, [LOWEST, HIGHEST])
    return np.abs(np.fft.rfft(frames)[:, low:high]) ** 2, hertz[low:high]


def peaks(power: np.ndarray) -> np.ndarray:
    """Where a bin stands out of those around it, and is the highest of five."""
    padded = np.pad(power, ((0, 0), (AROUND, AROUND)), mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND + 1, axis=1)
    near = np.lib.stride_tricks.sliding_window_view(np.pad(power, ((0, 0), (2, 2))), 5, axis=1)
    return (power >= near.max(-1)) & (power > PROMINENT * np.median(around, axis=-1)) & (power > 0)


def lasting(found: np.ndarray) -> np.ndarray:
    """Peaks that were there in each of the LASTING frames up to now, a bin aside at most from one to the next."""
    wide, kept = beside(found), found.copy()
    for back in range(1, LASTING):
        kept[back:] &= wide[:-back]
    kept[: LASTING - 1] = False
    return kept


def beside(found: np.ndarray) -> np.ndarray:
    """The same, and a bin to each side."""
    wide = found.copy()
    wide[:, 1:] |= found[:, :-1]
    wide[:, :-1] |= found[:, 1:]
    return wide


def shifts(tones: np.ndarray, pitch: np.ndarray) -> float:
    """How much the share of each pitch class changes from half a second to the next: 1 less their cosine, mean."""
    half, chroma = RATE // HOP // 2, []
    for first in range(0, len(tones) - half + 1, half):
        classes = np.bincount(pitch, weights=tones[first : first + half].sum(0), minlength=12)
        if classes.any():
            chroma.append(classes / np.linalg.norm(classes))
    return float(np.mean([1 - a @ b for a, b in pairwise(chroma)])) if len(chroma) > 1 else 0.0
