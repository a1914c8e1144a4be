"""Better eyes (`--eyes NAME`): a SigLIP-class model of transformers names things and places in every picture.

Any model of pictures and texts that transformers' AutoModel knows by `get_image_features` and `get_text_features`
(SigLIP, arXiv 2303.15343; SigLIP 2; CLIP). Zero-shot as published: the cosine of a picture with "a photo of a dog." is
scaled by the model's own temperature; a softmax over all names makes shares of it. What it names stands where the
classifier's and the places' head's words stood, so whatever reads the index reads it. The state is not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.stream import UserError
from pipeline.towers.frame_tower import TOP, FrameFeatures, labels

THING, PLACE = "a photo of a {}.", "a photo taken: {}."
AT_ONCE = 64  # texts, or pictures, of one run


class NamingEyes(nn.Module):
    """net: of pictures and texts; prepare: pictures -> its pixels; read: texts -> its tokens."""

    def __init__(self, net: Any, prepare: Any, read: Any, places: Sequence[str]) -> None:
        super().__init__()
        self.net, self._prepare, self._read = net.requires_grad_(False).eval(), prepare, read
        self.things = self._texts([THING.format(word) for word in labels()["imagenet"]])
        self.places = self._texts([PLACE.format(word) for word in places])

    @classmethod
    def load(cls, folder: Path, places: Sequence[str], device: torch.device | str = "cpu") -> NamingEyes:
        """From a folder with config.json, safetensors, tokenizer and image processor. UserError where it is none."""
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        try:
            net = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device)
            prepare, read = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
            if not hasattr(net, "get_text_features"):
                raise ValueError("no model of pictures and texts")
            return cls(net, prepare, read, places)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise UserError(
                "The eyes could not be loaded, so nothing was; name a model of pictures and texts, such as "
                "google/siglip2-base-patch16-224."
            ) from error

    @torch.no_grad()
    def seen(self, frames: Sequence[np.ndarray], features: FrameFeatures) -> tuple[FrameFeatures, Tensor]:
        """The features with its names of things; logits of the places (F, places), the share's odds, on the CPU."""
        pictures = torch.cat([self._pictures(frames[i : i + AT_ONCE]) for i in range(0, len(frames), AT_ONCE)])
        things, places = (self._shares(pictures, texts) for texts in (self.things, self.places))
        probs, classes = things.topk(TOP)
        named = features._replace(classes=classes.to(features.classes), class_probs=probs.to(features.class_probs))
        return named, torch.logit(places, 1e-4).cpu()

    def _shares(self, pictures: Tensor, texts: Tensor) -> Tensor:
        return (self.net.logit_scale.exp() * pictures @ texts.T).softmax(-1)

    def _pictures(self, frames: Sequence[np.ndarray]) -> Tensor:
        pixels = self._prepare(images=list(frames), return_tensors="pt")["pixel_values"]
        return _unit(self.net.get_image_features(pixel_values=pixels.to(self.net.device)))

    @torch.no_grad()
    def _texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D), padded to the longest the model reads, as SigLIP was trained."""
        found = []
        for i in range(0, len(texts), AT_ONCE):
            longest = self.net.config.text_config.max_position_embeddings
            some = {"padding": "max_length", "truncation": True, "max_length": longest, "return_tensors": "pt"}
            ids = self._read(list(texts[i : i + AT_ONCE]), **some)
            known = {name: ids[name].to(self.net.device) for name in ("input_ids", "attention_mask") if name in ids}
            if self.net.config.model_type.startswith("siglip"):
                known.pop("attention_mask", None)  # it was trained to read its padding
            found.append(_unit(self.net.get_text_features(**known)))
        return torch.cat(found)


def _unit(found: Any) -> Tensor:
    """Rows of length 1; transformers gives features alone or with what lies before them."""
    features = found if isinstance(found, Tensor) else found.pooler_output
    return nn.functional.normalize(features.float(), dim=-1)
