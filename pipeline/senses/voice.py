"""The voice gate: where in a sound somebody speaks. Silero VAD's network (MIT), our own code around its weights.

Every 32 ms it says how likely a voice is (github.com/snakers4/silero-vad). It is fed a stretch of any length and goes
on where the last one ended, so how a sound is cut changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

RATE = 16_000  # samples a second
WINDOW = 512  # samples that are judged at a time
BEFORE, AFTER = 64, 64  # samples heard again from before a window; mirrored at its end
STEP_S = WINDOW / RATE
GAP_S = 0.1  # a larger step from where the samples before end is a gap


class VoiceNet(nn.Module):
    """Windows (W, BEFORE + WINDOW) -> probability of a voice (W,), and what the recurrent layer carries on."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, windows: Tensor, carried: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        parts = self.stft_conv(F.pad(windows[:, None], (0, AFTER), mode="reflect"))
        h = (parts[:, :129].square() + parts[:, 129:].square()).sqrt()  # magnitudes of 129 frequencies
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            h = conv(h).relu()
        h, carried = self.lstm(h[:, :, 0], carried)
        return self.final_conv(h.relu()[..., None])[:, 0, 0].sigmoid(), carried


class VoiceGate:
    """One sound's way through the network."""

    def __init__(self, net: VoiceNet) -> None:
        self._net, self._rest = net, np.zeros(0, np.float32)
        self.restart()

    def restart(self) -> None:
        """The sound goes on elsewhere: nothing before it is heard."""
        self._before, self._rest = np.zeros(BEFORE, np.float32), np.zeros(0, np.float32)
        self._carried = torch.zeros(1, 128), torch.zeros(1, 128)

    @torch.no_grad()
    def hear(self, samples: np.ndarray) -> np.ndarray:
        """(W,) probabilities of the windows that are whole with these samples."""
        samples = np.concatenate([self._rest, samples])
        count = len(samples) // WINDOW
        self._rest = samples[count * WINDOW :]
        if not count:
            return np.zeros(0, np.float32)
        heard = np.concatenate([self._before, samples[: count * WINDOW]])
        self._before = heard[-BEFORE:]
        windows = torch.from_numpy(heard).unfold(0, BEFORE + WINDOW, WINDOW)
        likely, self._carried = self._net(windows, self._carried)
        return likely.numpy()


def load_voice_net(path: Path) -> VoiceNet:
    """From `assets/voice.safetensors`."""
    net = VoiceNet()
    tensors = load_file(path)
    cell = {name: tensors.pop(name) for name in list(tensors) if name.startswith("lstm_cell.")}
    net.load_state_dict(tensors | {f"lstm.{name.removeprefix('lstm_cell.')}_l0": cell[name] for name in cell})
    return net.requires_grad_(False).eval()


SPEECH, QUIET = 0.5, 0.35  # probability from which a voice begins, and below which it ends
SHORTEST_S, BRIDGED_S = 0.25, 0.3  # a shorter voice is none; a shorter pause within one is not counted
LEAD_S = 0.2  # of sound before a voice, which is heard with it
LONGEST_S = 28.0  # of a stretch; what is longer is cut in a pause
ENOUGH_S, PAUSE_S, SILENCE_S = 12.0, 0.5, 3.0  # a stretch ends in a pause once it has enough, and in a long silence


class Stretch(NamedTuple):
    """Sound in which somebody speaks. time: second of its first sample. voiced: from and to, in seconds from there."""

    time: float
    samples: np.ndarray
    voiced: tuple[tuple[float, float], ...]


def voiced(likely: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Where a voice is, from probabilities every STEP_S: seconds from and to."""
    parts, begun = list[list[float]](), None
    for i, chance in enumerate([*likely.tolist(), 0.0]):
        if begun is None and chance >= SPEECH:
            begun = i
        elif begun is not None and chance < QUIET:
            if parts and begun * STEP_S - parts[-1][1] < BRIDGED_S:
                parts[-1][1] = i * STEP_S
            else:
                parts.append([begun * STEP_S, i * STEP_S])
            begun = None
    return tuple((start, end) for start, end in parts if end - start >= SHORTEST_S)


class Stretches:
    """Cuts a sound into stretches with speech, at most LONGEST_S each; what is without a voice is let go."""

    def __init__(self, net: VoiceNet) -> None:
        self._gate, self._start = VoiceGate(net), 0.0
        self._samples, self._likely = np.zeros(0, np.float32), np.zeros(0, np.float32)

    def add(self, time: float, samples: np.ndarray) -> Iterator[Stretch]:
        """The stretches that have ended. time: of the first sample; after a gap the sound begins anew."""
        if abs(time - self._start - len(self._samples) / RATE) > GAP_S:
            yield from self.finish()
            self._start = time
        self._samples = np.concatenate([self._samples, samples])
        self._likely = np.concatenate([self._likely, self._gate.hear(samples)])
        while (end := self._end()) is not None:
            yield from self._given(end)
        self._let_go()

    @property
    def waits(self) -> bool:
        """Whether a stretch has begun that is not given yet."""
        return bool((self._likely >= SPEECH).any())

    def finish(self) -> Iterator[Stretch]:
        """What is left, where the sound ends."""
        yield from self._given(len(self._likely))
        self._samples, self._likely = np.zeros(0, np.float32), np.zeros(0, np.float32)
        self._gate.restart()

    def _end(self) -> int | None:
        """The window with which a stretch ends that began with the first; None where it goes on."""
        spoken = np.flatnonzero(self._likely >= SPEECH)
        count = len(self._likely)
        if not len(spoken):
            return None
        quiet = (count - 1 - spoken[-1]) * STEP_S
        if quiet >= SILENCE_S or (count * STEP_S >= ENOUGH_S and quiet >= PAUSE_S):
            return count
        if count * STEP_S < LONGEST_S:
            return None
        pauses = [end for _, end in voiced(self._likely)[:-1] if end >= ENOUGH_S]
        return int((pauses[-1] + BRIDGED_S / 2) / STEP_S) if pauses else count

    def _given(self, end: int) -> Iterator[Stretch]:
        """The stretch up to that window, which is let go."""
        samples, parts = self._samples[: end * WINDOW], voiced(self._likely[:end])
        if parts:
            yield Stretch(self._start, samples, parts)
        self._drop(end)

    def _let_go(self) -> None:
        """What came before a voice, but for its lead."""
        spoken = np.flatnonzero(self._likely >= SPEECH)
        first = int(spoken[0]) if len(spoken) else len(self._likely)
        self._drop(max(0, first - int(LEAD_S / STEP_S)))

    def _drop(self, windows: int) -> None:
        self._samples, self._likely = self._samples[windows * WINDOW :], self._likely[windows:]
        self._start += windows * STEP_S
