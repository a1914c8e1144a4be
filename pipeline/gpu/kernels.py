"""All Triton kernels by name: tensors in, tensors out. `dispatch.py` says when they run.

Forward only: training runs the torch code. Every kernel has plain torch code beside it that is always right:

    mixer, causal_conv, ssd       layers/mamba2.py: Mamba2Mixer.forward, causal_conv, ssd
    gated_norm, rms_norm          layers/mamba2.py: GatedRMSNorm; layers/norms.py: RMSNorm
    scaled_rows                   the second half of GatedRMSNorm, after the out-projection
    attend, scan, slot_weights    memory/attention.py: plain_attend, plain_scan, plain_weights
    attend_ragged                 the same for words of several answers, each over its own memory
    attend_text                   layers/reading.py: TextCache.attend
    attend_words, attend_run      layers/streamed.py: Answering, Watching
    rotate, blend                 layers/vamba.py: rotate, Layer.blend; towers/qwen.py: _rotate
    patches                       towers/qwen.py: Patching.patches
    add_layer_norm, quick_gelu    towers/qwen.py: _add_norm, _mlp
    gated_heads, swiglu           models/mmmamba.py: DistilledMixer, FeedForward
    selective_scan                layers/mamba1.py: selective_scan
    int8_linear                   layers/int8.py: Int8Linear.forward
    fp8_linear, fp8_gelu          layers/fp8.py: Fp8Linear.forward, through_gelu
    …_rounded, rounded_rows       the same norms, then layers/fp8.py: rows_of

Why own kernels: the published ones (mamba-ssm, causal-conv1d) need a compiler at install time, and none of them joins
what belongs together here: the scan with the gate and the norm, and one query's attention over a memory that lies in
many blocks. Where they are installed they can run the mixers instead (`published.py`).
"""

from pipeline.gpu.attention import attend, slot_weights
from pipeline.gpu.attention_beside import attend_run, attend_words, runs
from pipeline.gpu.attention_scan import merge, scan, tile_shape
from pipeline.gpu.convolution import causal_conv
from pipeline.gpu.fp8 import fp8_gelu, fp8_linear
from pipeline.gpu.int8 import int8_linear
from pipeline.gpu.mixer import mixer, ssd
from pipeline.gpu.patches import patches
from pipeline.gpu.pointwise import (
    add_layer_norm,
    add_layer_norm_rounded,
    blend,
    gated_heads,
    gated_norm,
    quick_gelu,
    rms_norm,
    rms_norm_rounded,
    rotate,
    rounded_rows,
    scaled_rows,
    swiglu,
)
from pipeline.gpu.ragged import Ragged, attend_ragged
from pipeline.gpu.selective import selective_scan, selective_scan_from
from pipeline.gpu.text_attention import attend_text

__all__ = [
    "Ragged",
    "add_layer_norm",
    "add_layer_norm_rounded",
    "attend",
    "attend_ragged",
    "attend_run",
    "attend_text",
    "attend_words",
    "blend",
    "causal_conv",
    "fp8_gelu",
    "fp8_linear",
    "gated_heads",
    "gated_norm",
    "int8_linear",
    "merge",
    "mixer",
    "patches",
    "quick_gelu",
    "rms_norm",
    "rms_norm_rounded",
    "rotate",
    "rounded_rows",
    "runs",
    "scaled_rows",
    "scan",
    "selective_scan",
    "selective_scan_from",
    "slot_weights",
    "ssd",
    "swiglu",
    "tile_shape",
]
