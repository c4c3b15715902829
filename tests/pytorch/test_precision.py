"""The warning of TF32, with a GPU that the test makes up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import onebyone
from onebyone.pytorch import precision


def on_gpu(dtype: torch.dtype = torch.float32, device: str = "cuda:0") -> Any:
    parameter = SimpleNamespace(device=torch.device(device), dtype=dtype)
    return SimpleNamespace(parameters=lambda: [parameter])


@pytest.fixture(autouse=True)
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


def flags(monkeypatch: pytest.MonkeyPatch, convolutions: str, products: str) -> None:
    backends: Any = torch.backends
    conv, matmul = SimpleNamespace(fp32_precision=convolutions), SimpleNamespace(fp32_precision=products)
    fake = SimpleNamespace(cudnn=SimpleNamespace(conv=conv), cuda=SimpleNamespace(matmul=matmul))
    monkeypatch.setattr(torch, "backends", fake)
    assert backends is not fake


def test_pytorchs_defaults_treat_the_two_layers_differently() -> None:
    warning = precision.tf32_warning(on_gpu())
    assert warning is not None
    assert "convolutions on this GPU round their inputs to TF32 (10 bits) and linear layers do not" in warning


def test_the_other_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, "ieee", "tf32")
    assert "linear layers on this GPU round" in (precision.tf32_warning(on_gpu()) or "")


@pytest.mark.parametrize("both", ["ieee", "tf32", "none"])
def test_layers_that_are_treated_alike(both: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, both, both)
    assert precision.tf32_warning(on_gpu()) is None


def test_where_no_tf32_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision.tf32_warning(on_gpu(torch.float64)) is None
    assert precision.tf32_warning(on_gpu(device="cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert precision.tf32_warning(on_gpu()) is None


def test_functions_are_verified_without_it() -> None:
    layer = torch.nn.Linear(4, 3)
    assert onebyone.verify(lambda x: layer(x), layer, torch.randn(2, 4)).equivalent  # type: ignore[arg-type]


def test_verifications_tell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 3))
    c = onebyone.convert(network)
    assert not onebyone.verify(network, c, torch.randn(2, 4)).warnings
    monkeypatch.setattr(precision, "tf32_warning", lambda network: "the forms round differently")
    proof = onebyone.verify(network, c, torch.randn(2, 4))
    assert proof.equivalent
    assert proof.warnings == ("the forms round differently",)
    assert "warning: the forms round differently" in str(proof)
    convolutions = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3))
    unchanged = onebyone.convolutionalize(convolutions, window=3)
    assert not unchanged.changes
    assert not onebyone.verify(convolutions, unchanged).warnings
    assert not onebyone.verify(network, network, torch.randn(2, 4)).warnings
