"""The backbones and heads of torchvision's detection models, which contain all of their weights.

The proposals, non-maximum suppression and region pooling between them have no weights and data-dependent shapes, and
need compiled operators, which are missing if torchvision was not built for the installed torch. The heads of the second
stage run on the features of the backbone instead, pooled to the size that region pooling would give.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class TrunkAndHeads(nn.Module):
    """`forward(image)` returns the outputs of every head as a flat tuple. Parameters keep the detector's names."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        for name in ("rpn", "roi_heads", "head"):
            if hasattr(detector, name):
                setattr(self, name, getattr(detector, name))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map an image (N, 3, H, W) to the outputs of the heads."""
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
