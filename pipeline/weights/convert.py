"""`python -m pipeline convert FILE FOLDER`: weights from a pickle into safetensors, once; nothing in it runs.

torch's weights-only reader makes tensors and containers and refuses all else. `load` itself never opens a pickle. For
ML-Mamba, whose parts lie in four places, FILE may be its Hub id: all of them are brought into one folder.
"""

from __future__ import annotations

import argparse
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.stream import UserError
from pipeline.weights.hub import snapshot

ML_MAMBA = "huangwenjun1994/ML-Mamba"
TOWERS = {  # published file of each image tower
    "dino_featurizer": "timm/vit_large_patch14_reg4_dinov2.lvd142m",
    "siglip_featurizer": "timm/ViT-SO400M-14-SigLIP-384",
}
NEOX = "EleutherAI/gpt-neox-20b"
BESIDE = ("*.json", "*.txt", "tokenizer.model")  # config and tokenizer, taken along


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help=f"a file of pickled tensors (.pt, .pth, .bin), or {ML_MAMBA}")
    parser.add_argument("folder", help="where the safetensors go; made if it is not there")


def run(args: argparse.Namespace) -> int:
    """Prints the files written."""
    for file in convert(args.file, Path(args.folder)):
        print(file)
    return 0


def convert(source: str, folder: Path) -> list[Path]:
    """The files written. source: a pickle of tensors (.pt, .pth, .bin), or ML-Mamba's Hub id."""
    folder.mkdir(parents=True, exist_ok=True)
    if not Path(source).exists() and source.rstrip("/") == ML_MAMBA:
        return [*_ml_mamba(folder)]
    return _pickle(Path(source), folder, "model" if Path(source).name.startswith("latest") else Path(source).stem)


def _pickle(file: Path, folder: Path, name: str) -> list[Path]:
    tensors = dict(_tensors(_read(file)))
    if not tensors:
        raise UserError(f"{file.name} holds no tensors, so nothing was converted; name a file of weights.")
    written = folder / f"{name}.safetensors"
    save_file(_unshared(tensors), written)
    return [written, *_beside(file.parent, folder)]


def _read(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"There is no file {str(file)[:80]!r}, so nothing was converted; check its name.") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file.name} holds more than tensors and could run code, so it was not opened; "
            "use a file saved as weights only."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{file.name} cannot be read, so nothing was converted; download it again.") from error


def _tensors(held: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of nested dictionaries, keys joined by dots; an outermost "model" or "module" is no name."""
    if isinstance(held, torch.Tensor):
        yield name, held
    elif isinstance(held, Mapping):
        for key, inner in held.items():
            wraps = not name and key in ("model", "module", "state_dict") and isinstance(inner, Mapping)
            yield from _tensors(inner, name if wraps else f"{name}.{key}".lstrip("."))


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each with memory of its own: the format keeps no ties."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if place in seen or not tensor.is_contiguous() else tensor
        seen.add(place)
    return out


def _beside(source: Path, folder: Path) -> Iterator[Path]:
    if source.resolve() == folder.resolve():
        return
    for pattern in BESIDE:
        for file in sorted(source.glob(pattern)):
            yield Path(shutil.copyfile(file, folder / file.name))


def _ml_mamba(folder: Path) -> Iterator[Path]:
    own = snapshot(ML_MAMBA, ["*.pt", "*.json"])
    checkpoints = sorted(own.rglob("latest-checkpoint.pt")) or sorted(own.rglob("*.pt"))
    if not checkpoints:
        raise UserError(f"{ML_MAMBA} holds no checkpoint, so nothing was converted; look at its files on the Hub.")
    yield from _pickle(checkpoints[0], folder, "model")
    if not (folder / "config.json").is_file():
        configs = sorted(own.rglob("config.json"))
        if configs:
            yield Path(shutil.copyfile(configs[0], folder / "config.json"))
    for tower, name in TOWERS.items():
        file = snapshot(name, ["model.safetensors"]) / "model.safetensors"
        yield _renamed(file, folder / f"{tower}.safetensors", tower)
    yield from _beside(snapshot(NEOX, ["tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"]), folder)


def _renamed(file: Path, to: Path, tower: str) -> Path:
    """A tower's file under the names of the whole: timm's know nothing of each other."""
    with safe_open(file, "pt") as held:
        save_file({f"{tower}.{key}": held.get_tensor(key) for key in held.keys()}, to)  # noqa: SIM118
    return to
