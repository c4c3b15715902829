"""Any-size networks as files: free sizes, the geometry in the file, and files that onebyone did not write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from onebyone.demo.data import WINDOW
from onebyone.demo.network import build, folded
from onebyone.errors import BadInput
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule, export_dense, load_dense
from onebyone.records import Labels
from tests.pytorch.anysize import Residual, lenet, randomise
from tests.pytorch.exact_networks import EXACT


@pytest.fixture(scope="module")
def dense() -> ConvolutionalizedModule:
    labels = Labels(classes=tuple("0123456789"), mean=(0.5,), std=(0.25,), colour_order="L")
    return convolutionalize(randomise(lenet(norm=True)), 32, labels=labels)


def test_round_trip(dense: ConvolutionalizedModule, tmp_path: Path) -> None:
    dense.save(tmp_path / "d.pt2")
    back = load_dense(tmp_path / "d.pt2")
    assert back.geometry == dense.geometry
    assert back.labels == dense.labels
    assert back.changes == dense.changes
    assert (back.channels, back.nominal) == (1, (32, 32))
    for shape in ((1, 1, 32, 32), (3, 1, 32, 61), (1, 1, 47, 33)):
        image = torch.randn(shape)
        assert torch.equal(back.model(image), dense.model(image))
    assert [p.name for p in tmp_path.iterdir()] == ["d.pt2"]


@pytest.mark.parametrize("head", ["window", "cam"])
def test_padded_networks_with_strides_save_too(head: str, tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, padding=1), Residual(nn.Conv2d(8, 8, 3, padding=1), 0), nn.MaxPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    d = convolutionalize(randomise(model), 16, head=head)
    d.save(tmp_path / "d.pt2")
    back = load_dense(tmp_path / "d.pt2")
    for size in ((16, 16), (16, 40), (33, 18)):
        image = torch.randn(2, 3, *size)
        assert torch.equal(back.model(image), d.model(image))
        assert tuple(back.model(image).shape[2:]) == back.geometry.positions(size)


@pytest.mark.parametrize("pool", [nn.MaxPool1d(2), nn.MaxPool1d(30), nn.AvgPool1d(30)])
def test_networks_of_signals_save_too(pool: nn.Module, tmp_path: Path) -> None:
    body = nn.Sequential(nn.Conv1d(2, 3, 3), pool, nn.Flatten())
    model = nn.Sequential(*body, nn.Linear(body(torch.zeros(1, 2, 32)).shape[1], 4))
    d = convolutionalize(randomise(model), (32,))
    d.save(tmp_path / "d.pt2")
    back = load_dense(tmp_path / "d.pt2")
    for size in (32, 33, 75):
        signal = torch.randn(2, 2, size)
        assert torch.equal(back.model(signal), d.model(signal))


FREE = (
    "channels last",
    "whole ceil_mode places",
    "adaptive pool, uneven bins",
    "heads of two strides",
    "patch merging",
)


@pytest.mark.parametrize("name", FREE)
def test_sizes_stay_free(name: str) -> None:
    build, window, channels = EXACT[name]
    d = convolutionalize(randomise(build()), window, channels)
    program = export_dense(d).module()
    for extra in (0, 3):  # from a single place up, and a batch of one
        image = torch.randn(1, d.channels, *(n + extra for n in d.nominal))
        assert torch.allclose(program(image), d.model(image), atol=1e-5)


def test_an_interrupted_write_leaves_nothing(
    dense: ConvolutionalizedModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_program: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.export, "save", half)
    with pytest.raises(KeyboardInterrupt):
        dense.save(tmp_path / "d.pt2")
    assert not list(tmp_path.iterdir())


def test_other_names_and_other_files(dense: ConvolutionalizedModule, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"expected a name that ends in .pt2 or .onnx"):
        dense.save(tmp_path / "d.bin")
    program = torch.export.export(nn.Sequential(nn.Linear(3, 2)), (torch.zeros(1, 3),), strict=False)
    torch.export.save(program, tmp_path / "plain.pt2")
    with pytest.raises(BadInput, match=r"without onebyone\.json"):
        load_dense(tmp_path / "plain.pt2")
    torch.export.save(program, tmp_path / "odd.pt2", extra_files={"onebyone.json": "[]"})
    with pytest.raises(BadInput, match="another version"):
        load_dense(tmp_path / "odd.pt2")


def test_weights_stored_channels_last_are_saved_for_every_size(tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).eval()
    network = network.to(memory_format=torch.channels_last)
    before = [p.stride() for p in network.parameters()]
    dense = convolutionalize(network, 21)
    dense.save(tmp_path / "d.pt2")
    saved = load_dense(tmp_path / "d.pt2")
    assert [p.stride() for p in network.parameters()] == before
    for size in ((21, 21), (23, 21), (40, 61)):
        image = torch.randn(1, 1, *size)
        with torch.no_grad():
            assert torch.allclose(saved.model(image), dense.model(image), rtol=1e-4, atol=1e-5)


def test_a_channels_last_weight_of_one_input_channel_does_not_fix_the_size(tmp_path: Path) -> None:
    network = folded(build())
    weight = network[0].weight
    assert isinstance(weight, nn.Parameter)
    assert weight.is_contiguous()  # although its strides are those of channels-last
    assert weight.stride() != torch.empty(weight.shape).stride()
    dense = convolutionalize(network, WINDOW)
    dense.save(tmp_path / "d.pt2")
    saved = load_dense(tmp_path / "d.pt2")
    for size in ((WINDOW, WINDOW), (WINDOW + 3, WINDOW + 9)):
        image = torch.randn(1, 1, *size)
        with torch.no_grad():
            assert torch.allclose(saved.model(image), dense.model(image), rtol=1e-4, atol=1e-5)
