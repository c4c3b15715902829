"""The preprocessing that the networks of torchvision and timm were trained with; nothing is downloaded.

Both zoos keep it beside their weights: torchvision as the transform of a set of weights, timm as the network's
`pretrained_cfg`. Either scales pixels of 0 to 255 by 1/255, then subtracts the mean and divides by the
standard deviation of each channel.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from onebyone.pytorch.files.sources import import_torchvision
from onebyone.records import Labels

_SCALE = 1 / 255


def zoo_preprocessing(spec: str, network: Any) -> Labels | None:
    """Labels with the preprocessing of the network that the source `spec` named; None for other sources.

    For `timm:NAME` and `torchvision:NAME`; torchvision's are those of the default weights.
    """
    zoo, colon, name = spec.partition(":")
    if not colon or not isinstance(network, nn.Module):
        return None
    if zoo == "timm":
        told = getattr(network, "pretrained_cfg", None) or {}
        return _labels(told.get("mean"), told.get("std")) if "mean" in told else None
    return _of_torchvision(name, network) if zoo == "torchvision" else None


def _of_torchvision(name: str, network: nn.Module) -> Labels | None:
    models = import_torchvision().models
    weights = models.get_model_weights(name)
    held = getattr(weights, "DEFAULT", None) or next(iter(weights), None)
    if held is None:
        return None
    if getattr(network, "transform_input", None) is False:
        # GoogLeNet and Inception with pretrained weights turn ImageNet's constants into these inside
        return _labels((0.5,) * 3, (0.5,) * 3)
    transform = held.transforms
    defaults = inspect.signature(getattr(transform, "func", transform)).parameters
    given = getattr(transform, "keywords", {})
    mean, std = (given.get(k, defaults[k].default if k in defaults else None) for k in ("mean", "std"))
    return _labels(mean, std)


def _labels(mean: Any, std: Any) -> Labels:
    return Labels(scale=_SCALE, mean=tuple(mean or ()), std=tuple(std or ()))
