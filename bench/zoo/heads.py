"""torchvision's detection models by trunk and heads, which are all that has weights.

Between them lie proposals, suppression and region pooling: no weights, random shapes, and compiled operators that are
missing where torchvision's build does not belong to the torch installed. The heads of the second stage are run on the
trunk's own features, pooled to the size that region pooling would give.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class TrunkAndHeads(nn.Module):
    """`forward(image)` gives the outputs of every head as a flat tuple. The parameters' names are the
    detector's own."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        for name in ("rpn", "roi_heads", "head"):
            if hasattr(detector, name):
                setattr(self, name, getattr(detector, name))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) → the heads' outputs."""
        features = self.backbone(image)
        maps = list(features.values()) if isinstance(features, dict) else [features]
        outputs: list[Any] = []
        if hasattr(self, "head"):
            outputs.append(self.head(maps))
        if hasattr(self, "rpn"):
            outputs.append(self.rpn.head(maps))
        if hasattr(self, "roi_heads"):
            outputs += self._second_stage(maps[0])
        return tuple(_flat(outputs))

    def _second_stage(self, features: Tensor) -> list[Any]:
        heads: Any = self.roi_heads
        outputs = [heads.box_predictor(heads.box_head(F.adaptive_avg_pool2d(features, 7)))]
        for name in ("mask", "keypoint"):
            if getattr(heads, f"{name}_head", None) is not None:
                inner = getattr(heads, f"{name}_head")(F.adaptive_avg_pool2d(features, 14))
                outputs.append(getattr(heads, f"{name}_predictor")(inner))
        return outputs


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [tensor for item in items for tensor in _flat(item)]
