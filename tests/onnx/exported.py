"""Networks of PyTorch as ONNX models, by both of its exporters."""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """Convolutions, a flatten in the order (C, H, W), and two fully connected layers."""

    example = (2, 3, 10, 12)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 4 * 5, 16), nn.ReLU(), nn.Linear(16, 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))  # type: ignore[no-any-return]


class ChannelsLast(nn.Module):
    """A flatten in the order (H, W, C), as TensorFlow has it."""

    example = (2, 3, 6, 8)

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 4 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).relu().permute(0, 2, 3, 1).flatten(1))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """A transformer's layer, and a head whose weight is that of the embedding."""

    example = (2, 9, 12)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 24, bias=False)
        self.layer = nn.TransformerEncoderLayer(24, 3, 48, batch_first=True, norm_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.layer(self.embed(x))
        return tokens @ self.embed.weight  # type: ignore[no-any-return]


class Mixer(nn.Module):
    """Products over tokens and over channels, with transposes between."""

    example = (2, 6, 8)

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6))
        self.channels = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.channels(x)  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """An LSTM with a head."""

    example = (2, 7, 5)

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1×1 convolutions with a stride, groups and a residual connection, and a pooled head."""

    example = (2, 8, 9, 7)

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(8, 16, 1, stride=2)
        self.body = nn.Sequential(
            nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 16, 1, groups=2)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = (self.down(x) + self.body(x)).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))  # type: ignore[no-any-return]


NETWORKS: dict[str, Any] = {
    n.__name__: n for n in (Classifier, ChannelsLast, Encoder, Mixer, Recurrent, Bottleneck)
}


def exported(name: str, exporter: str, free_batch: bool = False) -> tuple[ir.Model, Tensor]:
    """The network as ONNX with seeded weights, and an input; both are the caller's own."""
    content, x = _exported(name, exporter, free_batch)
    return ir.serde.deserialize_model(onnx.load_from_string(content)), x.clone()


@cache
def _exported(name: str, exporter: str, free_batch: bool) -> tuple[bytes, Tensor]:
    """The bytes of the model, exported once for all tests, and the input."""
    torch.manual_seed(0)
    kind = NETWORKS[name]
    network, x = kind().eval(), torch.randn(*kind.example)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            shapes = ({0: torch.export.Dim.DYNAMIC},) if free_batch else None
            program = torch.onnx.export(
                network, (x,), dynamo=True, opset_version=18, dynamic_shapes=shapes, verbose=False
            )
            assert program is not None
            return program.model_proto.SerializeToString(), x
        axes = {"x": {0: "batch"}} if free_batch else None
        torch.onnx.export(
            network, (x,), file, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes=axes
        )
    return file.getvalue(), x
