"""Windows of an image through an ONNX model: the same as its dense scan, for an exact network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import onebyone


@pytest.mark.filterwarnings(
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning"
)
def test_windows_of_an_onnx_classifier(tmp_path: Path) -> None:
    """Small integers in weights and pixels, so that every sum is exact in float32."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 5)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randint(-3, 4, parameter.shape))
    torch.onnx.export(
        network, (torch.zeros(1, 3, 8, 8),), tmp_path / "m.onnx", dynamo=False, opset_version=17
    )
    image = np.random.default_rng(0).integers(0, 256, (21, 30, 3)).astype(np.uint8)
    dense = onebyone.convolutionalize(str(tmp_path / "m.onnx"), labels=onebyone.Labels(std=(1.0,)))
    by_windows = onebyone.scan(dense, image, mode="windows")
    crops = torch.from_numpy(image.transpose(2, 0, 1)).float().unfold(1, 8, 2).unfold(2, 8, 2)
    with torch.no_grad():
        expected = network(crops.permute(1, 2, 0, 3, 4).reshape(-1, 3, 8, 8)).T.reshape(5, 7, 12)
    assert np.array_equal(by_windows.scores, expected.numpy())
