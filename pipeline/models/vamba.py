"""The published Vamba (arXiv 2503.11579) as a system: how a checkpoint of it is recognised, built and checked.

The model is in vamba_model.py, its golden data in vamba_golden.py, its network in layers/vamba.py.
"""

from __future__ import annotations

from pipeline.layers.vamba import Vamba, VambaConfig
from pipeline.models.system import Checkpoint, Config, Row, System
from pipeline.models.vamba_golden import VambaGolden
from pipeline.models.vamba_model import VambaModel
from pipeline.options import ModelOptions
from pipeline.stream import UserError
from pipeline.towers.qwen import QwenVision, as_tower, build_tower, published_key
from pipeline.weights.checkpoint import read_tokenizer


def _recognises(config: Config) -> bool:
    return "vision_mamba_mixer_config" in config


def _build(config: Config) -> Vamba:
    return Vamba(VambaConfig.from_dict(config), build_tower(config["vision_config"]))


def _unused(config: Config) -> tuple[str, ...]:
    """The last mixer: 157 MB of the published checkpoint."""
    return (f"model.layers.{config['num_hidden_layers'] - 1}.vision_mixer",)


def _wrap(net: Vamba, of: Checkpoint) -> VambaModel:
    eyes = QwenVision.of_checkpoint(as_tower(net.visual), of.folder)
    if of.options.endless and of.options.gpu_memory:
        raise UserError(
            "endless and gpu_memory both say what stays on the GPU, so nothing was loaded; leave one of them out."
        )
    return VambaModel(net, eyes, read_tokenizer(of.folder), name=of.name, **of.options.saving())


VAMBA = System(
    name="Vamba",
    recognises=_recognises,
    build=_build,
    our_key=published_key,
    unused=_unused,
    wrap=_wrap,
    partner=lambda config: "Qwen/Qwen2-VL-7B-Instruct",
    options=tuple(ModelOptions.model_fields),
    golden=VambaGolden,
    rows=(
        Row(
            "`TIGER-Lab/Vamba-Qwen2-VL-7B`: 11.3 B, 28 layers",
            runs_on="GPU, bf16",
            weights="22.5 GB",
            state="100 MB",
            minute="515 MB",
            hour="30.9 GB (15.7 GB in 8 bits)",
        ),
        Row(
            "the same, `--gpu-memory 15.4`",
            runs_on="GPU and host memory",
            weights="22.5 GB",
            state="100 MB",
            minute="515 MB",
            hour="15.4 GB on the GPU, 15.5 GB on the host",
        ),
        Row(
            "`--endless 10 --eight-bit`",
            runs_on="and disk",
            weights="22.5 GB",
            state="100 MB",
            minute="262 MB",
            hour="3.4 GB after 8 h",
        ),
    ),
)
