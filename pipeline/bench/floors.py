"""What the published shapes must cost at least: operations and bytes, counted from the modules, for the bench's floors.

Matrix products only. The scan, norms, activations and whatever a kernel reads twice are left out, so that all of these
are lower bounds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

    from pipeline.layers.vamba import Vamba
    from pipeline.models.transformer import Qwen2VL
    from pipeline.stream import StreamState


def bytes_of(module: nn.Module) -> int:
    return sum(p.nbytes for p in {id(p): p for p in module.parameters()}.values())


def _column(net: Vamba) -> Iterator[Tensor]:
    """The matrices every video token passes: keys and values of each cross-attention, projections of live mixers."""
    for i in net.cfg.cross_layers:
        layer = net.layers[i]
        assert layer.cross_attn is not None  # of a cross layer
        yield from (layer.cross_attn.k_proj.weight, layer.cross_attn.v_proj.weight)
        if i != net.cfg.cross_layers[-1] and layer.vision_mixer is not None:
            yield from (layer.vision_mixer.mixer.in_proj.weight, layer.vision_mixer.mixer.out_proj.weight)


def column_flops(net: Vamba) -> int:
    """Of one video token: the matrix products alone. The scan's own are some 4 % more, so this is a lower bound."""
    return sum(2 * weight.numel() for weight in _column(net))


def column_bytes(net: Vamba) -> int:
    return sum(weight.nbytes for weight in _column(net))


def _text(net: Vamba) -> Iterator[Tensor]:
    """The matrices an answer's token passes."""
    for name, weight in net.named_parameters():
        video = re.search(r"vision_mixer|visual|embed_tokens|cross_attn\.[kv]_proj", name)
        if weight.dim() == 2 and not video:
            yield weight


def text_bytes(net: Vamba) -> int:
    return sum(weight.nbytes for weight in _text(net))


def answer_flops(net: Vamba, tokens: int, state: StreamState) -> int:
    """Of `tokens` text tokens over the memory: every matrix, and both products of cross-attention."""
    attention = 4 * net.cfg.d_model * len(state.inner.memory) * len(net.cfg.cross_layers)
    return tokens * (attention + sum(2 * weight.numel() for weight in _text(net)))


def tower_flops(tower: Qwen2VisionTransformerPretrainedModel, pair_tokens: int) -> int:
    """Of one pair of frames."""
    merge = tower.spatial_merge_size**2
    patches, width = pair_tokens * merge, tower.config.embed_dim
    matrices = {False: 0, True: 0}
    for name, weight in tower.named_parameters():
        matrices[name.startswith("merger")] += weight.numel() if weight.dim() > 1 else 0
    attention = 4 * patches * patches * width * tower.config.depth
    return 2 * patches * matrices[False] + 2 * patches // merge * matrices[True] + attention


def baseline_flops(net: Qwen2VL, tokens: int) -> int:
    """Of watching so many video tokens: every matrix of every layer, and causal attention (half of the square)."""
    weights = sum(p.numel() for p in net.model.layers.parameters() if p.dim() > 1)
    config = net.model.config
    return 2 * weights * tokens + 2 * tokens**2 * config.hidden_size * config.num_hidden_layers


def products(*modules: nn.Module) -> int:
    """Weights of the linear layers and patch embeddings in them: a token that passes costs twice as many operations."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    parts = [part for module in modules for part in module.modules() if isinstance(part, kinds)]
    return sum(part.weight.numel() for part in parts)
