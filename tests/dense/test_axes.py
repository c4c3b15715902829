"""Scans of signals and volumes, over one and three axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from onebyone.dense.scan import scan
from onebyone.dense.sliding_window import scan_windows
from onebyone.errors import BadInput
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from onebyone.records import Labels

LABELS = Labels(mean=(0.5, 0.25), std=(2.0, 4.0))


def signals() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6, 3))


def volumes() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 3, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 2 * 2 * 3, 3))


CASES = {"signals": (signals, (15,), (60,)), "volumes": (volumes, (5, 6, 7), (11, 14, 15))}


def made(name: str, seed: int = 0) -> tuple[nn.Module, ConvolutionalizedModule, np.ndarray]:
    """The network, its any-size form and an array (*axes, C), of small integers: every sum is then exact."""
    build, window, size = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    model = build().eval()
    for parameter in model.parameters():
        parameter.data = torch.randint(-3, 4, parameter.shape, generator=generator).float()
    values = np.random.default_rng(seed).integers(-8, 9, (*size, 2)).astype(np.float32)
    return model, convolutionalize(model, window), values * 4 + 0.5


@pytest.mark.parametrize("name", CASES)
def test_dense_equals_every_window_and_tiled_equals_whole(name: str) -> None:
    model, d, values = made(name)
    whole = scan(d, values, labels=LABELS, tile=10**6)
    assert whole.scores.shape[1:] == d.geometry.positions(values.shape[:-1])
    crops = scan_windows(model, values, d.geometry, labels=LABELS, batch=7)
    assert np.array_equal(whole.scores, crops.scores)
    assert np.array_equal(scan(d, values, labels=LABELS, tile=3, batch=2).scores, whole.scores)
    finer = scan(d, values, labels=LABELS, shifts=2)
    assert np.array_equal(
        finer.scores[(slice(None), *(slice(None, None, 2),) * len(d.geometry.window))], whole.scores
    )


@pytest.mark.parametrize("name", CASES)
def test_tensors_and_arrays_are_one_input(name: str) -> None:
    _, d, values = made(name)
    tensor = torch.from_numpy(values).movedim(-1, 0)
    assert np.array_equal(scan(d, tensor, labels=LABELS).scores, scan(d, values, labels=LABELS).scores)
    assert np.array_equal(scan(d, tensor[None], labels=LABELS).scores, scan(d, values, labels=LABELS).scores)


def test_errors_name_the_axes() -> None:
    _, d, values = made("signals")
    with pytest.raises(BadInput, match=r"shape \(3, 4, 5\); expected \(T\) or \(T, C\)"):
        scan(d, np.zeros((3, 4, 5), np.float32))
    values[7, 1] = np.nan
    with pytest.raises(
        BadInput, match=r"1 value\(s\) that are not finite, the first nan at sample 7, channel 1"
    ):
        scan(d, values)
    _, d, values = made("volumes")
    values[1, 2, 3, 0] = np.inf
    with pytest.raises(BadInput, match="at slice 1, row 2, column 3, channel 0"):
        scan(d, values)


def test_boxes_are_for_images() -> None:
    from onebyone.detection import detect

    _, d, values = made("signals")
    with pytest.raises(BadInput, match="scores have 1 axes; boxes are found on two"):
        detect(scan(d, values))
