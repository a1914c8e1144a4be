"""From a name to a model: the embedded ones, a local folder, or a model of the Hugging Face Hub.

Only config.json, safetensors and tokenizer files are read: never code (an `auto_map` means nothing here) and never
pickles. Which class a checkpoint needs is told by its config's content. transformers' Auto classes are never asked:
Vamba calls itself `qwen2_vl`, and they would load a plain Qwen2-VL from it without a word.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pipeline.layers.int8 import Int8Linear, to_int8
from pipeline.stream import UserError, VideoModel

if TYPE_CHECKING:
    from pipeline.towers.qwen import QwenVision

EMBEDDED = {"embedded": False, "embedded-twin": True}  # name: whether it is the transformer twin
DOWNLOADED = ["*.safetensors", "*.json", "*.txt"]
INDEX = "model.safetensors.index.json"
READERS = 8  # files read side by side
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name: str,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> VideoModel:
    """The model of that name, ready to watch.

    name: "embedded", "embedded-twin", a folder with config.json and safetensors, or a Hub id such as
    "TIGER-Lab/Vamba-Qwen2-VL-7B". device: the GPU if there is one, by default. dtype: the checkpoint's own, by default.
    options: of a Vamba checkpoint only: `int8` keeps the weights of its linear layers in 8 bits (int8.py); `eight_bit`,
    `policy`, `retrieve` and `gpu_memory`: models/vamba.py, `VambaModel`.
    Raises UserError for everything that can be wrong with a name, a folder or a connection.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
    if name in EMBEDDED:
        _check_options(options, False)
        from pipeline.weights.shipped import load_embedded

        return load_embedded(twin=EMBEDDED[name], device=device, dtype=dtype)
    folder = _folder(name)
    config = read_config(folder)
    _check_options(options, "vision_mamba_mixer_config" in config)
    net = load_net(folder, config, device, dtype, for_use=True, int8=options.pop("int8", False))
    called = Path(name).resolve().name if Path(name).is_dir() else name.split("/")[-1]
    return _model(net, config, folder, called, options)


def check(name: str) -> None:
    """UserError unless that names a model that can be run; a model of the Hub is downloaded. Reads no weights."""
    if name not in EMBEDDED:
        folder = _folder(name)
        with torch.device("meta"):
            _skeleton(read_config(folder))
        _files(folder)


def _folder(name: str) -> Path:
    return Path(name) if Path(name).is_dir() else _download(name)


def _check_options(options: dict[str, Any], is_vamba: bool) -> None:
    if options and not is_vamba:
        raise UserError(
            f"Only a Vamba checkpoint takes {', '.join(options)}, so this model was not loaded; leave that out."
        )
    check_amounts(options)


def check_amounts(options: dict[str, Any]) -> None:
    """UserError where one of them cannot be."""
    given = [options[name] for name in ("retrieve", "gpu_memory") if options.get(name) is not None]
    if not all(0 < amount < math.inf for amount in given):
        raise UserError(
            "Frames to retrieve and GB of GPU memory must be more than 0, so nothing was loaded; choose larger ones."
        )


def load_net(
    folder: Path, config: dict[str, Any], device: torch.device, dtype: torch.dtype | None, *,
    for_use: bool = False, int8: bool = False,
) -> nn.Module:  # fmt: skip
    """The network of a folder, its weights read straight to the device, one tensor at a time.

    for_use: leave out Vamba's last mixer, whose output nothing reads (157 MB of the published checkpoint). int8: each
    linear layer's weight is rounded as soon as it is read, so that the unrounded network never exists.
    """
    files = _files(folder)
    with torch.device("meta"):
        net = _skeleton(config)
    is_vamba = "vision_mamba_mixer_config" in config
    dead = f"model.layers.{config['num_hidden_layers'] - 1}.vision_mixer." if is_vamba else None
    found = _found(files)
    if dead and (for_use or not any(key.startswith(dead) for key in found)):
        net.get_submodule(dead.rsplit(".", 2)[0]).vision_mixer = None
        found = {key: where for key, where in found.items() if not key.startswith(dead)}
    _check(net, found)
    if int8:
        to_int8(net)
    try:
        _fill(net, found, device, dtype or _own_dtype(config))
    except torch.OutOfMemoryError as error:
        raise UserError(
            "The model does not fit into this GPU's memory, so it was not loaded; use a larger GPU or a smaller model."
        ) from error
    if hasattr(net, "finish"):
        net.finish()
    return net.eval()


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
    if not isinstance(config, dict) or not isinstance(config.get("vision_config"), dict):
        raise UserError(
            "This checkpoint's config describes no model that watches video, so it was not loaded; "
            "use a Vamba or a Qwen2-VL."
        )
    return config


def _download(name: str) -> Path:
    """A snapshot of a Hub model: weights, configuration and tokenizer, nothing that runs."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise UserError(
            f"There is no model called {name[:80]!r} here, so nothing was loaded; "
            f"use {', '.join(EMBEDDED)}, a folder, or a Hub id like TIGER-Lab/Vamba-Qwen2-VL-7B."
        )
    try:
        return Path(snapshot_download(name, allow_patterns=DOWNLOADED))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"The Hub shows no model {name[:80]!r}, so nothing was loaded; check its spelling or log in to the Hub."
        ) from error
    except Exception as error:  # requests, sockets, disks: the library raises what lies beneath
        raise UserError(
            f"The model {name[:80]!r} is not on this machine and could not be downloaded, so it was not loaded; "
            "connect to the internet once or give a local folder."
        ) from error


def _files(folder: Path) -> list[Path]:
    """A checkpoint's safetensors files: those its index names, else model.safetensors, else all there are."""
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
        raise UserError(f"The model's folder {cause}, so it was not loaded; use a checkpoint saved as safetensors.")
    return files


def _skeleton(config: dict[str, Any]) -> nn.Module:
    """The network a config describes. Call it on the meta device: then it costs no memory."""
    from huggingface_hub.errors import StrictDataclassError  # transformers checks its configs with it

    from pipeline.towers.qwen import build_tower

    try:
        if "vision_mamba_mixer_config" in config:
            from pipeline.layers.vamba import Vamba, VambaConfig

            return Vamba(VambaConfig.from_dict(config), build_tower(config["vision_config"]))
        if config.get("model_type") == "qwen2_vl":
            from pipeline.models.transformer import Qwen2VL

            return Qwen2VL(config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, RuntimeError, StrictDataclassError) as error:
        raise UserError(
            f"The model's config lacks or garbles a field ({str(error).splitlines()[0].rstrip(':')}), "
            "so the model was not loaded; download it again."
        ) from error
    raise UserError(
        f"A model of type {str(config.get('model_type'))[:40]!r} cannot be run here, so it was not loaded; "
        "use a Vamba or a Qwen2-VL."
    )


def _found(files: list[Path]) -> dict[str, tuple[Path, str]]:
    """Where every tensor lies: our key -> (file, key in the file). Headers only; nothing is read into memory."""
    found = {}
    for file in files:
        with _opened(file) as tensors:
            found |= {_our_key(key): (file, key) for key in tensors.keys() if not key.endswith("rotary_emb.inv_freq")}  # noqa: SIM118
    return found


def _our_key(key: str) -> str:
    """Qwen2-VL as transformers 5 saves it, under the names it was published with."""
    return re.sub(r"^model\.(visual\.|language_model\.)", lambda m: "visual." if "visual" in m[1] else "model.", key)


def _opened(file: Path, device: str = "cpu"):
    try:
        return safe_open(file, "pt", device=device)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"The weight file {file.name} is damaged, so the model was not loaded; download it again."
        ) from error


def _check(net: nn.Module, found: dict[str, tuple[Path, str]]) -> None:
    """UserError with the first few names, unless the checkpoint's tensors are exactly the network's."""
    wanted = dict(net.named_parameters(remove_duplicate=False))
    tied = {name for group in _tied(net) if any(name in found for name in group) for name in group}
    missing = [name for name in wanted if name not in found and name not in tied]
    unexpected = [name for name in found if name not in wanted]
    misshapen = [name for name, shape in _shapes(found) if name in wanted and tuple(wanted[name].shape) != shape]
    faults = {"missing": missing, "not known": unexpected, "of another shape": misshapen}
    if told := [f"{len(names)} {fault} ({', '.join(names[:3])})" for fault, names in faults.items() if names]:
        raise UserError(
            f"The weights do not fit what config.json describes: {'; '.join(told)}; "
            "so the model was not loaded; use weights and config of the same checkpoint."
        )


def _shapes(found: dict[str, tuple[Path, str]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for file, names in _by_file(found).items():
        with _opened(file) as tensors:
            for name, key in names:
                yield name, tuple(tensors.get_slice(key).get_shape())


def _by_file(found: dict[str, tuple[Path, str]]) -> dict[Path, list[tuple[str, str]]]:
    files = defaultdict(list)
    for name, (file, key) in found.items():
        files[file].append((name, key))
    return files


def _tied(net: nn.Module) -> list[list[str]]:
    """Names that share one parameter (an output layer tied to the embedding)."""
    groups = defaultdict(list)
    for name, parameter in net.named_parameters(remove_duplicate=False):
        groups[id(parameter)].append(name)
    return [names for names in groups.values() if len(names) > 1]


def _fill(net: nn.Module, found: dict[str, tuple[Path, str]], device: torch.device, dtype: torch.dtype | None) -> None:
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
    if isinstance(module, Int8Linear) and leaf == "weight":
        module.take(tensor)
    else:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))


def _own_dtype(config: dict[str, Any]) -> torch.dtype | None:
    """The type the checkpoint names (None: as stored)."""
    return DTYPES.get(config.get("torch_dtype") or config.get("dtype"))


def _model(net: nn.Module, config: dict[str, Any], folder: Path, name: str, options: dict[str, Any]) -> VideoModel:
    vision, tokenizer = _vision(net, folder), _tokenizer(folder)
    if "vision_mamba_mixer_config" in config:
        from pipeline.models.vamba import VambaModel

        return VambaModel(net, vision, tokenizer, name=name, **options)
    from pipeline.models.transformer import TransformerModel

    return TransformerModel(net, vision, tokenizer, name)


def _vision(net: nn.Module, folder: Path) -> QwenVision:
    """The tower with the checkpoint's own pixel budget, where preprocessor_config.json gives one."""
    from pipeline.towers.qwen import Patching, QwenVision

    sizes = {"patch": net.visual.config.patch_size, "merge": net.visual.spatial_merge_size}
    try:
        given = json.loads((folder / "preprocessor_config.json").read_text())
        sizes |= {key: int(given[key]) for key in ("min_pixels", "max_pixels") if given.get(key)}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        pass  # the published defaults hold
    return QwenVision(net.visual, Patching(**sizes))


def _tokenizer(folder: Path) -> Any | None:
    """The folder's tokenizer, or None where it has none (such a model can watch, but not be asked)."""
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the library raises whatever its parsers raise
        raise UserError(
            "The model's tokenizer files cannot be read, so it could not be asked; download them again."
        ) from error
