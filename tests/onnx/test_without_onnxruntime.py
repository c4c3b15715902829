"""Without ONNX Runtime everything but its own runs works, and what was not done is said."""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir
import pytest
import torch

import onebyone
from tests.onnx.exported import NETWORKS, exported


@pytest.fixture(autouse=True)
def no_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


def test_a_conversion_is_verified_by_the_reference_implementation() -> None:
    model, x = exported("Classifier", "torchscript")
    conversion = onebyone.convert(model)
    v = onebyone.verify(model, conversion, x)
    assert v.equivalent, str(v)
    assert v.integer_probe is True
    assert v.max_error is not None
    assert any("ONNX Runtime, which is not installed" in note for note in v.unverified)
    assert all("the ONNX reference implementation" in evaluator for evaluator in v.evaluators)
    assert len(v.evaluators) == 3


def test_a_wrong_model_is_still_found() -> None:
    model, x = exported("Classifier", "torchscript")
    wrong = model.clone()
    value = wrong.graph.initializers["head.3.bias"]
    array = np.array(value.const_value.numpy()) + np.float32(0.01)  # type: ignore[union-attr]
    value.const_value = ir.tensor(array, name="head.3.bias")
    v = onebyone.verify(model, wrong, x)
    assert not v.equivalent
    assert v.first_difference is not None


def test_a_network_against_its_export() -> None:
    torch.manual_seed(0)
    net = NETWORKS["Classifier"]().eval()
    model, x = exported("Classifier", "torchscript")
    v = onebyone.verify(net, model, x)
    assert v.equivalent, str(v)
    assert "onnxruntime is not installed" in v.evaluators[0]
