"""From a name to a model: one that comes with the code, a local folder, or a model of the Hugging Face Hub.

Which system a checkpoint is, is told by its config's content (`SYSTEMS`). transformers' Auto classes are never asked:
Vamba calls itself `qwen2_vl`, and they would load a plain Qwen2-VL from it without a word.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError  # transformers checks its configs with it
from torch import nn

from pipeline.gpu import dispatch
from pipeline.layers.fp8 import Rounding
from pipeline.models import systems
from pipeline.models.embedded import EmbeddedModel
from pipeline.models.system import Checkpoint, Config, System
from pipeline.options import ModelOptions
from pipeline.senses.chosen import chosen, late_senses
from pipeline.stream import Model, UserError
from pipeline.towers.named import NamingEyes
from pipeline.weights import checkpoint, hub

EXAMPLE = "TIGER-Lab/Vamba-Qwen2-VL-7B"
EYES = "google/siglip2-base-patch16-224"


def load(
    name: str,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> Model[Any]:
    """The model of that name, ready to watch.

    name: "embedded", "embedded-twin", a folder with config.json and safetensors, or a Hub id such as
    "TIGER-Lab/Vamba-Qwen2-VL-7B". device: the GPU if there is one, by default. dtype: the checkpoint's own, by default.
    options: `ModelOptions` (pipeline/options.py), of systems that take them; with any `mode` and `senses`, and
    `kernels`, which is for the whole process; `eyes` with those that come with the code.
    Raises UserError for everything that can be wrong with a name, a folder or a connection.
    """
    choose_kernels(options.pop("kernels", None))
    senses = chosen(options.pop("senses", None))
    model = _loaded(name, device, dtype, senses, options)
    model.late_senses = late_senses(senses)
    return model


def _loaded(
    name: str,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    senses: Collection[str],
    options: dict[str, Any],
) -> Model[Any]:
    eyes = options.pop("eyes", None)
    mode = ModelOptions.checked({"mode": options.pop("mode", None)}).mode
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = checkpoint.DTYPES[dtype] if isinstance(dtype, str) else dtype
    if (own := _shipped().get(name)) and own.shipped:  # a folder of that name is not looked at
        seen_by = hub.folder_of(eyes, (), EYES) if eyes else None  # a misspelt one is told before anything is read
        model = own.shipped(device, dtype, senses, _checked(own, options))
        return _with_eyes(model, seen_by, device) if seen_by else model
    if eyes:
        raise UserError("Only the embedded model takes other eyes, so nothing was loaded; leave out --eyes.")
    folder = _folder(name)
    config = checkpoint.read_config(folder)
    system = system_of(config)
    given = _checked(system, options).model_copy(update={"mode": mode})
    if given.fp8:
        check_fp8(device)
    net = load_net(folder, config, device, dtype, for_use=True, rounding=given.rounding)
    assert system.wrap is not None  # its record was checked
    return system.wrap(net, Checkpoint(folder, config, hub.called(name), given))


def _with_eyes(model: Model[Any], folder: Path, device: torch.device) -> Model[Any]:
    """The embedded model, what it sees named by another one."""
    assert isinstance(model, EmbeddedModel)  # none else is shipped
    places = model.senses.places.words if model.senses.places else ("outdoors", "indoors")
    model.eyes = NamingEyes.load(folder, places, device)
    return model


def partner_of(name: str) -> str:
    """The name of the model that this one is naturally compared with; UserError where there is none."""
    if own := _shipped().get(name):
        system, config = own, {}
    else:
        config = checkpoint.read_config(_folder(name))
        system = system_of(config)
    partner = system.partner(config)
    if partner is None:
        raise UserError(f"A {system.name} has no partner, so nothing was compared; name the model to compare it with.")
    return partner


def beside(name: str, options: ModelOptions) -> ModelOptions:
    """What a model is told that is compared with one of these options: what goes for every model, and `endless` where
    it takes that, so that it says what it does then. UserError where there is no such model."""
    if options.endless is None:
        return options.shared()
    system = _shipped().get(name) or system_of(checkpoint.read_config(_folder(name)))
    return options.shared().model_copy(update={"endless": options.endless if "endless" in system.options else None})


def choose_kernels(kernels: str | None = None) -> None:
    """Who computes in this process from now on; UserError where it cannot. None: as before, or as the variable says."""
    if kernels is not None:
        ModelOptions.checked({"kernels": kernels})
    try:
        dispatch.choose(kernels)
    except dispatch.Refused as error:
        raise UserError(str(error)) from None


def check_fp8(device: torch.device) -> None:
    """UserError unless that device multiplies 8-bit floating point numbers."""
    try:
        dispatch.require_fp8(device)
    except dispatch.Refused as error:
        raise UserError(str(error)) from None


def check(name: str) -> None:
    """UserError unless that names a model that can be run; a model of the Hub is downloaded. Reads no weights."""
    if name not in _shipped():
        folder = _folder(name)
        config = checkpoint.read_config(folder)
        skeleton(_measured(system_of(config), folder, config))


def system_of(config: Config) -> System:
    """The system a config.json describes; UserError where none of them is meant."""
    for system in systems():
        if system.recognises and system.recognises(config):
            return system
    known = " or a ".join(system.name for system in systems() if system.recognises)
    raise UserError(
        f"A model of type {str(config.get('model_type'))[:40]!r} cannot be run here, so it was not loaded; "
        f"use a {known}."
    )


def skeleton(config: Config) -> nn.Module:
    """The network a config describes, of meta tensors: it costs no memory."""
    system = system_of(config)
    assert system.build is not None  # its record was checked
    with torch.device("meta"), _told():
        return system.build(config)


def load_net(
    folder: Path,
    config: Config,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    for_use: bool = False,
    rounding: Rounding | None = None,
) -> nn.Module:
    """The network of a folder with its weights. for_use: without what nothing reads."""
    system = system_of(config)
    config = _measured(system, folder, config)
    net = checkpoint.fill(
        skeleton(config),
        checkpoint.weight_files(folder, system.beside),
        device,
        dtype or checkpoint.own_dtype(config),
        our_key=system.our_key,
        unused=system.unused(config),
        for_use=for_use,
        rounding=rounding,
    )
    system.finish(net)
    return net


def _measured(system: System, folder: Path, config: Config) -> Config:
    """The config with what only the weights' shapes tell. Reads headers."""
    found = checkpoint.located(checkpoint.weight_files(folder, system.beside), system.our_key)
    with _told():
        return system.measured(config, dict(checkpoint.shapes(found)))


def _shipped() -> dict[str, System]:
    """Those that come with the code, by name. They stand first, so that no other is imported for their sake."""
    return {system.name: system for system in takewhile(lambda system: system.shipped, systems())}


def _folder(name: str) -> Path:
    return hub.folder_of(name, list(_shipped()), EXAMPLE)


def _checked(system: System, options: dict[str, Any]) -> ModelOptions:
    given = ModelOptions.checked(options)
    if refused := [name for name in options if name not in system.options and name in given.given()]:
        takers = " or a ".join(other.name for other in systems() if set(refused) <= set(other.options))
        raise UserError(
            f"Only a {takers} checkpoint takes {', '.join(refused)}, so this model was not loaded; leave that out."
        )
    return given


@contextmanager
def _told() -> Iterator[None]:
    """What a config lacks or garbles, in a sentence."""
    try:
        yield
    except (KeyError, TypeError, ValueError, ZeroDivisionError, RuntimeError, StrictDataclassError) as error:
        said = (str(error).splitlines() or [""])[0].rstrip(":")
        raise UserError(
            f"The model's config lacks or garbles a field ({said}), so the model was not loaded; download it again."
        ) from error
