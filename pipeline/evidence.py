"""Evidence: from where the tokens of an answer looked to the few moments it rests on."""

from __future__ import annotations

import numpy as np

from pipeline.stream import Evidence


class Gaze:
    """Where the tokens of one answer looked, summed by time.

    Every token looks at the same times: they are placed once, and a token costs a pass over them instead of a sort.
    """

    def __init__(self) -> None:
        self._slots = self._mass = np.zeros(0)
        self._times: np.ndarray | None = None
        self._gap = 0.0
        self.moments: tuple[Evidence, ...] = ()

    def add(self, looked: tuple[np.ndarray, np.ndarray] | None) -> None:
        if looked is None:
            return
        times, weights = looked
        if self._times is None or (times is not self._times and not np.array_equal(times, self._times)):
            self._place(times)
        self._mass = self._mass + np.bincount(self._places, _masses(np.reshape(weights, -1)), len(self._slots))
        self.moments = _moments(self._slots, self._mass, self._gap)

    def _place(self, times: np.ndarray) -> None:
        slots = np.unique(np.concatenate([self._slots, np.reshape(times, -1)]))
        mass = np.zeros(len(slots))
        mass[np.searchsorted(slots, self._slots)] = self._mass
        self._times, self._slots, self._mass = times, slots, mass
        self._places, self._gap = np.searchsorted(slots, np.reshape(times, -1)), _usual_gap(slots)


def moments(
    times: np.ndarray, weights: np.ndarray, gap: float | None = None, share: float = 0.05, at_most: int = 6
) -> tuple[Evidence, ...]:
    """The moments that carry most of the weight, heaviest first; their weights are shares of the whole, so sum <= 1.

    times: seconds of the memory slots, in any order, repeated as often as a time has slots; weights: as many, >= 0.
    gap: seconds over which neighbours merge; None is two sampling periods (two median steps between slots).
    share: moments lighter than this share of the whole are left out.

    Attention gives every slot a little. Slots under the mean, or under a fiftieth of the peak, are background:
    without that, all slots would touch and every answer would rest on "the whole video".
    """
    slots, mass = _by_time(np.asarray(times, np.float64).reshape(-1), np.asarray(weights, np.float64).reshape(-1))
    return _moments(slots, mass, _usual_gap(slots) if gap is None else gap, share, at_most)


def _usual_gap(slots: np.ndarray) -> float:
    return 2 * float(np.median(np.diff(slots))) if len(slots) > 1 else 0.0


def _moments(
    slots: np.ndarray, mass: np.ndarray, gap: float, share: float = 0.05, at_most: int = 6
) -> tuple[Evidence, ...]:
    """`moments` of distinct times in order. Of hundreds of runs a few are heavy, so only these are looked at singly: at
    each of eight answers' words all of them took longer than the words."""
    total = mass.sum()
    if not total > 0:
        return ()
    mass = mass / total
    raised = np.flatnonzero(mass >= max(mass.mean() * (1 - 1e-9), mass.max() / 50))
    breaks = np.flatnonzero(np.diff(slots[raised]) > gap * (1 + 1e-9))
    starts, ends = raised[np.append(0, breaks + 1)], raised[np.append(breaks, len(raised) - 1)] + 1
    sums = np.append(0.0, mass.cumsum())
    heavy = np.flatnonzero(sums[ends] - sums[starts] >= share - 1e-6)
    found = [_moment(slots[starts[n] : ends[n]], mass[starts[n] : ends[n]]) for n in heavy]
    return tuple(sorted((m for m in found if m.weight >= share), key=lambda m: (-m.weight, m.time))[:at_most])


def _masses(weights: np.ndarray) -> np.ndarray:
    """What is not finite or negative weighs nothing."""
    return np.where((weights > 0) & (weights < np.inf), weights, 0.0)


def _by_time(times: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct times in order and the weight on each; what is not finite or negative weighs nothing."""
    known = np.isfinite(times)
    times, weights = times[known], _masses(weights[known])
    order = np.lexsort((weights, times))  # by weight too, so that the sums do not depend on the order of slots
    times, first = np.unique(times[order], return_index=True)
    return times, np.add.reduceat(weights[order], first) if len(first) else weights


def _moment(slots: np.ndarray, mass: np.ndarray) -> Evidence:
    peak = float(slots[mass.argmax()])
    return Evidence(time=peak, weight=min(1.0, float(mass.sum())), start=float(slots[0]), end=float(slots[-1]))
