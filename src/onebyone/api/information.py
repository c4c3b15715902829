"""The public function `info`: what a network consists of, what converts, and what it costs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onebyone.loading import example_of, onnx_model, preprocessing_of, require_network, window_of_source

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from onebyone.overview import NetworkOverview


def info(
    model: nn.Module | ExportedProgram | str | os.PathLike[str],
    example: Any = None,
    *,
    window: int | Sequence[int] | None = None,
    channels: int | None = None,
    name: str | None = None,
) -> NetworkOverview:
    """Describe a network: layers, kernels and cost, what converts and what is refused, and images of any size.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, an ONNX model, or the name of a source.
        example: an example input: a tensor, a tuple of positional or a dict of keyword arguments. Without one, the
            network runs on zeros of the window's size.
        window: the classifier's input size in pixels; None takes that of `torchvision:` and `timm:` sources, and the
            size of an image in `example`.
        channels: the number of image channels; None infers it from the first layer.
        name: how the network is called in the result, which may be the source that it comes from (for its class names
            and preprocessing); None takes the name of the source or of the class.

    Returns:
        A `NetworkOverview`: `.layers`, `.macs`, `.to_conv`, `.to_linear`, `.refused`, `.any_size`; `print(o)` shows
        tables.

    Raises:
        BadInput: `model` is not a network or cannot be read.

    >>> import torch, onebyone
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.Flatten(), torch.nn.Linear(8 * 16, 5))
    >>> [(layer.path, layer.converts_to) for layer in onebyone.info(network, window=4).layers]
    [('0', 'linear'), ('2', 'conv')]
    """
    title = name or (os.fspath(model) if isinstance(model, str | os.PathLike) else type(model).__name__)
    onnx = onnx_model(model)
    if onnx is not None:
        from onebyone.overview import overview_of_onnx

        return overview_of_onnx(onnx, title)
    from onebyone.overview import overview_of_network

    network = require_network(model)
    example = example_of(network) if example is None else example
    if window is None:
        window = window_of_source(title, network) or _image_size(example)
    labels = preprocessing_of(title, network)
    return overview_of_network(
        network, title, window=window, channels=channels, example=example, labels=labels
    )


def _image_size(example: Any) -> tuple[int, ...] | None:
    """The size of a batch of images (N, C, H, W), alone or the only positional argument; None for other inputs."""
    if isinstance(example, tuple) and len(example) == 1:
        example = example[0]
    shape = getattr(example, "shape", ())
    return tuple(int(n) for n in shape[2:]) if len(shape) == 4 else None
