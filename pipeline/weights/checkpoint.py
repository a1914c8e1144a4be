"""A checkpoint's folder: its config, its tokenizer, and its tensors into a network. Knows no system.

Only config.json, safetensors and tokenizer files are read: never code (an `auto_map` means nothing here) and never
pickles.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pipeline.layers.fp8 import Rounding, to_8_bits
from pipeline.layers.int8 import RoundedLinear
from pipeline.stream import UserError
from pipeline.weights.pieces import MODEL, PieceTokenizer

INDEX = "model.safetensors.index.json"
READERS = 8  # files read side by side
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
Found = dict[str, tuple[Path, str]]  # a network's name of a tensor -> (file, key in the file)


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json, or a UserError."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise UserError(
            "The model's folder has no config.json, so nothing says what it is; give the folder of a whole checkpoint."
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(
            "The model's config.json cannot be read, so the model was not loaded; download it again."
        ) from error
    if not isinstance(config, dict):
        raise UserError(
            "This checkpoint's config describes no model that watches video, so it was not loaded; use another one."
        )
    return config


def own_dtype(config: dict[str, Any]) -> torch.dtype | None:
    """The type the checkpoint names (None: as stored)."""
    named = config.get("torch_dtype") or config.get("dtype")
    return DTYPES.get(named) if named else None


def fill(
    net: nn.Module,
    files: Sequence[Path],
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    our_key: Callable[[str], str | None],
    unused: Sequence[str] = (),
    for_use: bool = False,
    rounding: Rounding | None = None,
) -> nn.Module:
    """A network of meta tensors gets its weights, read straight to the device, one tensor at a time.

    dtype: None is as stored. our_key, unused: of models/system.py. for_use: leave out what is unused. rounding: linear
    layers' weights are rounded as soon as they are read, so that the unrounded network never exists.
    """
    found = located(files, our_key)
    for part in unused:
        if for_use or not any(name.startswith(part + ".") for name in found):
            parent, _, leaf = part.rpartition(".")
            setattr(net.get_submodule(parent), leaf, None)
            found = {name: where for name, where in found.items() if not name.startswith(part + ".")}
    _check(net, found)
    to_8_bits(net, rounding)
    try:
        _fill(net, found, device, dtype)
    except torch.OutOfMemoryError as error:
        raise UserError(
            "The model does not fit into this GPU's memory, so it was not loaded; use a larger GPU or a smaller model."
        ) from error
    return net.eval()


def located(files: Sequence[Path], our_key: Callable[[str], str | None]) -> Found:
    """Where every tensor lies. Headers only; nothing is read into memory."""
    found: Found = {}
    for file in files:
        with _opened(file) as tensors:
            for key in tensors.keys():  # noqa: SIM118
                name = None if key.endswith("rotary_emb.inv_freq") else our_key(key)  # tables are computed
                if name is not None:
                    found[name] = file, key
    return found


def weight_files(folder: Path, beside: Sequence[str] = ()) -> list[Path]:
    """A checkpoint's safetensors files: those its index names, else model.safetensors, else all there are.

    beside: names of further files, taken where they are there.
    """
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError("The model's index cannot be read, so it was not loaded; download it again.") from error
        files = [folder / Path(str(name)).name for name in names]  # names only: an index must not point elsewhere
        if missing := [file.name for file in files if not file.is_file()]:
            raise UserError(
                f"{len(missing)} of the model's {len(files)} weight files are missing (first {missing[0]}), "
                "so it was not loaded; download it again."
            )
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth"))
        cause = "keeps its weights as pickles, which can run code" if pickled else "holds no safetensors weights"
        raise UserError(
            f"The model's folder {cause}, so it was not loaded; use a checkpoint saved as safetensors, "
            "or convert pickles once with `python -m pipeline convert FILE FOLDER`."
        )
    return [*files, *(folder / name for name in beside if (folder / name).is_file() and folder / name not in files)]


def _opened(file: Path, device: str = "cpu") -> AbstractContextManager[Any]:
    try:
        return safe_open(file, "pt", device=device)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"The weight file {file.name} is damaged, so the model was not loaded; download it again."
        ) from error


def _check(net: nn.Module, found: Found) -> None:
    """UserError with the first few names, unless the checkpoint's tensors are exactly the network's."""
    wanted = dict(net.named_parameters(remove_duplicate=False))
    tied = {name for group in _tied(net) if any(name in found for name in group) for name in group}
    missing = [name for name in wanted if name not in found and name not in tied]
    unexpected = [name for name in found if name not in wanted]
    misshapen = [name for name, shape in shapes(found) if name in wanted and tuple(wanted[name].shape) != shape]
    faults = {"missing": missing, "not known": unexpected, "of another shape": misshapen}
    if told := [f"{len(names)} {fault} ({', '.join(names[:3])})" for fault, names in faults.items() if names]:
        raise UserError(
            f"The weights do not fit what config.json describes: {'; '.join(told)}; "
            "so the model was not loaded; use weights and config of the same checkpoint."
        )


def shapes(found: Found) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Our names and shapes of all tensors. Headers only."""
    for file, names in _by_file(found).items():
        with _opened(file) as tensors:
            for name, key in names:
                yield name, tuple(tensors.get_slice(key).get_shape())


def _by_file(found: Found) -> dict[Path, list[tuple[str, str]]]:
    files: dict[Path, list[tuple[str, str]]] = defaultdict(list)
    for name, (file, key) in found.items():
        files[file].append((name, key))
    return files


def _tied(net: nn.Module) -> list[list[str]]:
    """Names that share one parameter (an output layer tied to the embedding)."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, parameter in net.named_parameters(remove_duplicate=False):
        groups[id(parameter)].append(name)
    return [names for names in groups.values() if len(names) > 1]


def _fill(net: nn.Module, found: Found, device: torch.device, dtype: torch.dtype | None) -> None:
    """Puts the tensors in place of the skeleton's, each on the device in its type before its file's next is read."""

    def fill(file: Path, names: list[tuple[str, str]]) -> None:
        with _opened(file, str(device)) as tensors:
            for name, key in names:
                tensor = tensors.get_tensor(key)
                _put(net, name, tensor.to(dtype or tensor.dtype))

    ties, files = _tied(net), _by_file(found)
    with ThreadPoolExecutor(READERS) as readers:
        list(readers.map(fill, files, files.values()))
    for group in ties:
        held = next(net.get_parameter(name) for name in group if name in found)
        for name in group:
            parent, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(parent), leaf, held)


def _put(net: nn.Module, name: str, tensor: torch.Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module = net.get_submodule(parent)
    if isinstance(module, RoundedLinear) and leaf == "weight":
        module.take(tensor)
    else:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))


def read_tokenizer(folder: Path) -> Any | None:
    """The folder's tokenizer, or None where it has none (such a model can watch, but not be asked)."""
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        return PieceTokenizer.from_folder(folder) if (folder / MODEL).is_file() else None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the library raises whatever its parsers raise
        raise UserError(
            "The model's tokenizer files cannot be read, so it could not be asked; download them again."
        ) from error
