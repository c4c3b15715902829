"""The network of the explainer, with the weights that the page uses.

On the command line it is `docs/explainer/digits.py:network`.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

FILE = Path(__file__).with_name("data.js")
"""A script that assigns one JSON object, because pages that are opened from a folder cannot read JSON files."""


def read_data() -> dict[str, Any]:
    """The content of data.js: window, classes, layers (weights in float16, base64), and the page of digits."""
    _, _, text = FILE.read_text("utf-8").partition("= ")
    return dict(json.loads(text.rstrip().removesuffix(";")))


def array(text: str, kind: str = "<f2") -> np.ndarray[Any, Any]:
    """The numbers of a base64 text; `kind` is "<f2" for weights and "u1" for pixels.

    >>> array("ADwAwA==").tolist()
    [1.0, -2.0]
    """
    return np.frombuffer(base64.b64decode(text), kind)


def network() -> nn.Sequential:
    """The classifier from (N, 1, 40, 40) to (N, 11), in eval mode; its parameters are float32 with float16 values."""
    layers: list[nn.Module] = []
    for description in read_data()["layers"]:
        kind = description["kind"]
        if kind == "relu":
            layers.append(nn.ReLU())
        elif kind == "maxpool":
            layers.append(nn.MaxPool2d(description["size"]))
        elif kind == "flatten":
            layers.append(nn.Flatten())
        else:
            layers.append(_with_weights(description))
    return nn.Sequential(*layers).eval()


def _with_weights(description: dict[str, Any]) -> nn.Module:
    shape = description["shape"]
    layer: nn.Conv2d | nn.Linear
    if description["kind"] == "linear":
        layer = nn.Linear(shape[1], shape[0])
    else:
        layer = nn.Conv2d(shape[1], shape[0], (shape[2], shape[3]), stride=description["stride"])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(array(description["weight"]).astype(np.float32)).reshape(shape))
        layer.bias.copy_(torch.tensor(array(description["bias"]).astype(np.float32)))  # type: ignore[union-attr]
    return layer


def pixels() -> torch.Tensor:
    """The page of digits as the network's input, (1, 1, 280, 420) float32 in [-1, 1]."""
    page = read_data()["page"]
    image = array(page["pixels"], "u1").reshape(page["height"], page["width"])
    return torch.tensor((image / 127.5 - 1).astype(np.float32))[None, None]
