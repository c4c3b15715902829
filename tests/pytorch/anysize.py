"""What the tests of the any-size form share: an oracle that crops every window, and networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Distinct random weights and running statistics, so that no fault hides behind ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    for module in model.modules():
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if isinstance(mean, torch.Tensor) and isinstance(var, torch.Tensor):
            mean.copy_(torch.randn(mean.shape, generator=generator) * 0.3)
            var.copy_(torch.rand(var.shape, generator=generator) + 0.5)
    return model


def image_for(d: ConvolutionalizedModule, size: Sequence[int] | None = None, batch: int = 2) -> torch.Tensor:
    """A random image a few windows larger than one, by different amounts per axis."""
    size = size or [
        w + (2 + a) * s + 1 for a, (w, s) in enumerate(zip(d.nominal, d.geometry.stride, strict=True))
    ]
    return torch.randn(
        batch, d.channels, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


def every_window(model: nn.Module, d: ConvolutionalizedModule, image: torch.Tensor) -> torch.Tensor:
    """The network run on each crop, laid out as the dense result is: `(N, classes, *positions)`."""
    stride, window = d.geometry.stride, d.nominal
    counts = [(n - w) // s + 1 for n, w, s in zip(image.shape[2:], window, stride, strict=True)]
    out = []
    for place in torch.cartesian_prod(*[torch.arange(c) for c in counts]).reshape(-1, len(counts)).tolist():
        where = [slice(i * s, i * s + w) for i, s, w in zip(place, stride, window, strict=True)]
        out.append(model(image[(slice(None), slice(None), *where)]).flatten(1))
    return torch.stack(out, -1).unflatten(-1, counts)


def deviation(
    model: nn.Module,
    window: int | Sequence[int],
    channels: int | None = None,
    size: Sequence[int] | None = None,
    **kw: str,
) -> tuple[ConvolutionalizedModule, float]:
    """Convolutionalise in float64 with random weights; the largest difference from cropping every window."""
    model = randomise(model).double().eval()
    d = convolutionalize(model, window, channels, **kw)  # type: ignore[arg-type]
    image = image_for(d, size)
    with torch.no_grad():
        dense, crops = d.model(image), every_window(model, d, image)
    assert dense.shape == crops.shape, f"{tuple(dense.shape)} places, {tuple(crops.shape)} windows"
    return d, float((dense - crops).abs().max())


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Residual(nn.Module):
    """x cropped + body(x), for bodies without padding."""

    def __init__(self, body: nn.Module, crop: int) -> None:
        super().__init__()
        self.body, self.crop = body, crop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        c = self.crop
        return x[:, :, c : x.shape[2] - c, c : x.shape[3] - c] + self.body(x) if c else x + self.body(x)


def lenet(norm: bool = False) -> nn.Sequential:
    """LeNet-like, without padding: window 32, stride 4."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), *([nn.BatchNorm2d(6)] if norm else []), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten(),
        *([nn.BatchNorm1d(400)] if norm else []), nn.Linear(400, 30), *([nn.BatchNorm1d(30)] if norm else []),
        nn.ReLU(), nn.Dropout(), nn.Linear(30, 12), nn.Tanh(), nn.Linear(12, 10), nn.LogSoftmax(1),
    )  # fmt: skip
