"""Pictures as the published systems' transforms make them: squashed to a square, scaled, normalised.

No side keeps its proportion to the other. PIL's bicubic filter and torch's differ by up to 24 levels on hard edges, so
each system gets the one it was trained with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipeline.gpu.device import pictures_sent, sent

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


def squashed(rgb: np.ndarray, side: int) -> np.ndarray:
    """uint8 (side, side, 3) by PIL's bicubic filter, as torchvision resizes a PIL picture (mmMamba, ML-Mamba)."""
    if rgb.shape[:2] == (side, side):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((side, side), Image.Resampling.BICUBIC))


def squashed_as_tensor(rgb: np.ndarray, side: int) -> np.ndarray:
    """uint8 (side, side, 3) by torch's antialiased bicubic filter, as torchvision resizes a uint8 tensor (Gemamba)."""
    if rgb.shape[:2] == (side, side):
        return rgb
    planes = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].float()
    planes = F.interpolate(planes, (side, side), mode="bicubic", antialias=True)
    return planes.clamp(0, 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()


def normalised(pictures: Sequence[np.ndarray], mean: Sequence[float], std: Sequence[float], like: Tensor) -> Tensor:
    """uint8 pictures (H, W, 3) as (N, 3, H, W) in the type and on the device of `like`: / 255, - mean, / std."""
    wide = torch.promote_types(like.dtype, torch.float32)
    shift, scale = (sent(torch.tensor(v, dtype=wide)[:, None, None], like.device) for v in (mean, std))
    pixels = pictures_sent(pictures, like.device).permute(0, 3, 1, 2).to(wide)
    return pixels.div_(255).sub_(shift).div_(scale).to(like.dtype)
