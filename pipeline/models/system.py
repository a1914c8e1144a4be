"""What a system is: one record a system, from which loading, `verify`, the flags and the README's table are made.

A new published system is one file in models/ (its model, and at the end its record), its tower in towers/, and one line
in models/__init__.py, `SYSTEMS`. Nothing else asks which system a checkpoint is. A record says:

    name, rows      what people call it, and its rows of the README's table
    recognises      whether a config.json is this system's (the first of SYSTEMS that says so has it)
    measured        (config, shapes of the files' tensors by our names) -> the config with what only shapes tell
    beside          names of further weight files of a folder, read where they are there
    build           config -> the network, made of meta tensors; parameter names are the checkpoint's, after `our_key`
    our_key         a key of the files -> the network's name for it, or None: not read
    unused          config -> names of submodules whose output nothing reads. They are left out where a model is to be
                    used, and may be missing from a checkpoint; `verify` computes them where they are there
    finish          what is left to do once the weights are in: tables that no checkpoint holds
    wrap            (network with its weights, Checkpoint) -> the Model that watches and answers
    options         names of the options it takes, besides those for every model
    partner         config -> the name of the model that it is naturally compared with, or None
    golden          (network, tensors of expected.safetensors) -> a Golden, which `verify` compares, or None

A system that comes with the code has `shipped` instead: (device, dtype, names of the wanted senses, options) -> its
Model, found by `name`.

Errors: `build` may raise KeyError, TypeError or ValueError for what a config lacks or garbles; the loader says so in a
sentence. What else can be wrong with a checkpoint is told by whoever finds it, as a UserError. `golden` raises KeyError
where a tensor that it needs is missing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pipeline.options import ModelOptions
from pipeline.stream import Model

Config = dict[str, Any]  # a parsed config.json


@dataclass(frozen=True)
class Checkpoint:
    """A model besides its weights. name: shown to visitors. options: checked; defaults if none given."""

    folder: Path
    config: Config
    name: str
    options: ModelOptions = field(default_factory=ModelOptions)


class Row(NamedTuple):
    """One row of the README's table of models, in its own words. Pictures of 640x360, one a second."""

    model: str
    runs_on: str
    weights: str
    state: str
    minute: str  # memory after a minute of video
    hour: str


class Sizes(Protocol):
    """Draws a cut: random positive sizes that sum to `total`, none above `most` (None: any)."""

    def __call__(self, total: int, most: int | None = None) -> list[int]: ...


class Golden(ABC):
    """A golden folder recomputed by this system's own code, batch 1.

    expected: the tensors to compare with, by name. kinds: the ways its video can be cut ("frames", "tokens", ...).
    """

    expected: Mapping[str, Tensor]
    kinds: tuple[str, ...] = ()

    @abstractmethod
    def whole(self) -> dict[str, Tensor]:
        """Tensors after one pass over the whole video: those named in `expected` are compared with it, and all are what
        cuts are compared with."""

    @abstractmethod
    def cut(self, kind: str, sizes: Sizes) -> dict[str, Tensor]:
        """The same (some of it) with the video in pieces, state carried between; `sizes` draws how long they are."""


@contextmanager
def outputs_of(modules: Sequence[nn.Module | None]) -> Iterator[dict[int, Tensor]]:
    """While it lasts: the first output of each of these modules that ran, by its number."""
    found: dict[int, Tensor] = {}

    def keep(number: int, out: tuple[Tensor, ...]) -> None:
        found[number] = out[0]

    hooks = [
        module.register_forward_hook(lambda _, __, out, number=number: keep(number, out))
        for number, module in enumerate(modules)
        if module is not None
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _same(key: str) -> str | None:
    return key


def _none(config: Config) -> tuple[str, ...]:
    return ()


def _as_it_is(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Config:
    return config


def _nobody(config: Config) -> str | None:
    return None


def _nothing(net: nn.Module) -> None: ...


@dataclass(frozen=True, kw_only=True)
class System:
    """One published system, or one that comes with the code; see the top of this file."""

    name: str
    rows: tuple[Row, ...] = ()
    recognises: Callable[[Config], bool] | None = None
    build: Callable[[Config], nn.Module] | None = None
    our_key: Callable[[str], str | None] = _same
    measured: Callable[[Config, Mapping[str, tuple[int, ...]]], Config] = _as_it_is
    beside: tuple[str, ...] = ()
    unused: Callable[[Config], tuple[str, ...]] = _none
    finish: Callable[[Any], None] = _nothing
    wrap: Callable[[Any, Checkpoint], Model[Any]] | None = None
    options: tuple[str, ...] = ()
    partner: Callable[[Config], str | None] = _nobody
    golden: Callable[[Any, Mapping[str, Tensor]], Golden] | None = None
    shipped: Callable[[torch.device, torch.dtype | None, Collection[str], ModelOptions], Model[Any]] | None = None

    def __post_init__(self) -> None:
        if self.shipped is None and not (self.recognises and self.build and self.wrap):
            raise ValueError(f"the record of {self.name} must say how it is recognised, built and wrapped")


def readme_table(systems: Iterable[System]) -> Iterator[str]:
    """The lines of the README's table of models."""
    yield "| model | runs on | weights | state | memory of a minute | of an hour |"
    yield "|---|---|---|---|---|---|"
    for system in systems:
        for row in system.rows:
            yield f"| {' | '.join(row)} |"
