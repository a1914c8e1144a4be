"""A golden folder of pictures alone: what each published transform makes of them, before mean and deviation.

There is no network in it. Each picture must come out equal to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.models.system import Golden, Sizes
from pipeline.towers.pixels import squashed, squashed_as_tensor

TRANSFORMS = {"mmmamba": squashed, "mlmamba": squashed, "gemamba": squashed_as_tensor}


class PicturesGolden(Golden):
    """expected: `N.rgb` and, for each system, `N.<system>`. A picture cannot be cut, so there are no kinds."""

    def __init__(self, config: Mapping[str, Any], expected: Mapping[str, Tensor]):
        self.config, self.expected = config, expected

    @staticmethod
    def recognises(config: Mapping[str, Any]) -> bool:
        """Whether a config.json names the transforms and nothing that runs."""
        return all(isinstance(config.get(name), dict) and "size" in config[name] for name in TRANSFORMS)

    def whole(self) -> dict[str, Tensor]:
        out = {}
        for name in [name for name in self.expected if name.endswith(".rgb")]:
            rgb, number = self.expected[name].numpy(), name.removesuffix(".rgb")
            for system, squash in TRANSFORMS.items():
                picture = squash(rgb, self.config[system]["size"])
                out[f"{number}.{system}"] = torch.from_numpy(picture.copy())
        return out

    def cut(self, kind: str, sizes: Sizes) -> dict[str, Tensor]:
        raise KeyError(kind)
