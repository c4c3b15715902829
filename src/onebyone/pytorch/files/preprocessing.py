"""The preprocessing that the networks of torchvision and timm were trained with. Nothing is downloaded.

torchvision stores it as the transform of a set of weights, timm as the network's `pretrained_cfg`. Both scale pixel
values from 0 to 255 by 1/255, subtract each channel's mean, and divide by its standard deviation.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from onebyone.pytorch.files.sources import import_torchvision
from onebyone.records import Labels

_SCALE = 1 / 255


def zoo_preprocessing(spec: str, network: Any) -> Labels | None:
    """Labels with the preprocessing of a `timm:NAME` or `torchvision:NAME` source; None for any other source.

    For torchvision it is the preprocessing of the default weights.
    """
    zoo, colon, name = spec.partition(":")
    if not colon or not isinstance(network, nn.Module):
        return None
    if zoo == "timm":
        config = getattr(network, "pretrained_cfg", None) or {}
        return _labels(config.get("mean"), config.get("std")) if "mean" in config else None
    return _of_torchvision(name, network) if zoo == "torchvision" else None


def _of_torchvision(name: str, network: nn.Module) -> Labels | None:
    models = import_torchvision().models
    weights = models.get_model_weights(name)
    default = getattr(weights, "DEFAULT", None) or next(iter(weights), None)
    if default is None:
        return None
    if getattr(network, "transform_input", None) is False:
        # GoogLeNet and Inception with pretrained weights convert from this to ImageNet's constants themselves
        return _labels((0.5,) * 3, (0.5,) * 3)
    transform = default.transforms
    defaults = inspect.signature(getattr(transform, "func", transform)).parameters
    keywords = getattr(transform, "keywords", {})
    mean, std = (keywords.get(k, defaults[k].default if k in defaults else None) for k in ("mean", "std"))
    return _labels(mean, std)


def _labels(mean: Any, std: Any) -> Labels:
    return Labels(scale=_SCALE, mean=tuple(mean or ()), std=tuple(std or ()))
