"""What torchvision and timm know of their networks: preprocessing, class names and input size. Nothing is downloaded.

torchvision stores it with a set of weights, timm in the network's `pretrained_cfg`. Both scale pixel values from 0 to
255 by 1/255, subtract each channel's mean, and divide by its standard deviation.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from onebyone.pytorch.files.sources import import_timm, import_torchvision
from onebyone.records import Labels

_SCALE = 1 / 255


def zoo_labels(spec: str, network: Any) -> Labels | None:
    """Preprocessing and class names of a `timm:NAME` or `torchvision:NAME` source; None for any other source.

    For torchvision they are those of the default weights. There are class names only if the network's last layer has as
    many outputs. A name that several classes have gets the number of the class.
    """
    zoo, colon, name = spec.partition(":")
    if not colon or not isinstance(network, nn.Module):
        return None
    if zoo == "timm":
        config = getattr(network, "pretrained_cfg", None) or {}
        return (
            _labels(config.get("mean"), config.get("std"), _timm_classes(network))
            if "mean" in config
            else None
        )
    return _of_torchvision(name, network) if zoo == "torchvision" else None


def zoo_window(spec: str, network: Any) -> tuple[int, ...] | None:
    """The input size (height, width) in pixels of a `timm:NAME` or `torchvision:NAME` source; None if unknown."""
    zoo, colon, name = spec.partition(":")
    if not colon or not isinstance(network, nn.Module):
        return None
    if zoo == "timm":
        size = (getattr(network, "pretrained_cfg", None) or {}).get("input_size")
        return tuple(int(n) for n in size[1:]) if size else None
    if zoo != "torchvision":
        return None
    transform = getattr(_default_weights(name), "transforms", None)
    crop = getattr(transform, "keywords", {}).get("crop_size")
    return (int(crop),) * 2 if isinstance(crop, int) else None


def _default_weights(name: str) -> Any:
    weights = import_torchvision().models.get_model_weights(name)
    return getattr(weights, "DEFAULT", None) or next(iter(weights), None)


def _of_torchvision(name: str, network: nn.Module) -> Labels | None:
    default = _default_weights(name)
    if default is None:
        return None
    classes = _fitting(default.meta.get("categories") or (), network)
    if getattr(network, "transform_input", None) is False:
        # GoogLeNet and Inception with pretrained weights convert from this to ImageNet's constants themselves
        return _labels((0.5,) * 3, (0.5,) * 3, classes)
    transform = default.transforms
    defaults = inspect.signature(getattr(transform, "func", transform)).parameters
    keywords = getattr(transform, "keywords", {})
    mean, std = (keywords.get(k, defaults[k].default if k in defaults else None) for k in ("mean", "std"))
    return _labels(mean, std, classes)


def _timm_classes(network: nn.Module) -> tuple[str, ...]:
    data = import_timm().data
    subset = data.infer_imagenet_subset(network)
    if not subset:
        return ()
    info = data.ImageNetInfo(subset)
    return _fitting([info.index_to_description(k) for k in range(info.num_classes())], network)


def _fitting(names: Sequence[str], network: nn.Module) -> tuple[str, ...]:
    """The names, each once, if the last linear layer or convolution has as many outputs; otherwise none."""
    outputs = [
        module.out_features if isinstance(module, nn.Linear) else module.out_channels
        for module in network.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    if not outputs or outputs[-1] != len(names):
        return ()
    count = Counter(names)
    return tuple(f"{name} ({k})" if count[name] > 1 else name for k, name in enumerate(names))


def _labels(mean: Any, std: Any, classes: tuple[str, ...]) -> Labels:
    return Labels(classes=classes, scale=_SCALE, mean=tuple(mean or ()), std=tuple(std or ()))
