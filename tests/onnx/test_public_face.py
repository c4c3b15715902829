"""`onebyone.convert` and `onebyone.verify`, and the same verbs on the command line, on ONNX models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import onebyone
from tests.cli.conftest import run_command
from tests.onnx.exported import exported
from tests.onnx.models import graph, integers, model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    m, _ = exported("Classifier", "torchscript")
    ir.save(m, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_a_path_a_proto_and_a_model_are_taken(path: Path) -> None:
    for source in (path, str(path), onnx.load(path), ir.load(path)):
        conversion = onebyone.convert(source)
        assert isinstance(conversion.model, ir.Model)
        assert len(conversion.changes) == 2
        assert "2 converted, 0 refused" in str(conversion)


def test_convert_verify_save_and_compare_files(path: Path) -> None:
    x = torch.randn(2, 3, 10, 12)
    conversion = onebyone.convert(path)
    assert onebyone.verify(path, conversion, x).check().integer_probe is True
    assert onebyone.verify(path, conversion).integer_probe is True
    saved = conversion.save(path.with_name("conv.onnx"))
    assert onebyone.verify(path, saved, x).equivalent
    v = onebyone.verify(path, str(saved), x)
    assert v.equivalent
    assert v.integer_probe is None
    other = model(graph("N,3,10,12", "N,7", "f = Flatten(x) y = MatMul(f, w)"), {"w": integers(360, 7)})
    other.graph.inputs[0].name = str(ir.load(path).graph.inputs[0].name)
    assert not onebyone.verify(path, other, x).equivalent


def test_only_some_layers(path: Path) -> None:
    every = [change.path for change in onebyone.convert(path).changes]
    assert [c.path for c in onebyone.convert(path, only=every[1]).changes] == every[1:]
    assert [c.path for c in onebyone.convert(path, only=lambda p: p == every[0]).changes] == every[:1]


def test_what_does_not_fit(path: Path) -> None:
    with pytest.raises(onebyone.errors.BadInput, match="an ONNX model has no modules"):
        onebyone.convert(path, level="native")
    with pytest.raises(onebyone.errors.BadInput, match="expected 'conv' or 'linear'"):
        onebyone.convert(path, to="dense")
    with pytest.raises(onebyone.errors.BadInput, match="Got invalid dimensions for input: x"):
        onebyone.tune(path, torch.zeros(1, 3, 10, 12))
    with pytest.raises(onebyone.errors.BadInput, match="does not end in"):
        onebyone.convert(path).save(path.with_suffix(".pt2"))
    with pytest.raises(onebyone.errors.BadInput, match="x: is missing"):
        onebyone.verify(path, ir.load(path))
    with pytest.raises(onebyone.errors.BadInput, match="expected a conversion or an ONNX model"):
        onebyone.verify(path, torch.nn.ReLU(), torch.zeros(1))
    with pytest.raises(onebyone.errors.BadInput, match="gradients: does not apply"):
        onebyone.verify(path, onebyone.convert(path), gradients=True)
    with pytest.raises(onebyone.errors.BadInput, match="optimizer: an ONNX model"):
        onebyone.convert(path, optimizer=torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0))
    with pytest.raises(onebyone.errors.BadInput, match="applies to ONNX models only"):
        onebyone.convert(torch.nn.Linear(2, 2), freeze_initialisers=True)
    with pytest.raises(onebyone.errors.BadInput, match="holds 2 values"):
        onebyone.verify(path, onebyone.convert(path), (np.zeros(1), np.zeros(1)))


def test_the_command_line(path: Path) -> None:
    target = path.with_name("conv.onnx")
    converted = run_command("convert", path, "-o", target, "--json")
    assert converted.code == 0, converted.err
    assert len(converted.json["changes"]) == 2
    assert converted.json["weight_bytes_after"] <= converted.json["weight_bytes_before"] + 100
    onnx.checker.check_model(str(target), full_check=True)
    verified = run_command("verify", path, "--shape", "2,3,10,12", "--json")
    assert verified.code == 0, verified.err
    assert verified.json["equivalent"] is True
    assert verified.json["integer_probe"] is True
    assert "weights" in run_command("convert", path).out


def test_damaged_files_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"not a model")
    for words in (["convert"], ["verify"], ["tune", "--shape", "1,3,8,8"]):
        failed = run_command(words[0], tmp_path / "net.onnx", *words[1:])
        assert failed.code == 2
        assert "not an ONNX model" in " ".join(failed.err.split())


@pytest.mark.parametrize("options", [{}, {"level": "graph"}, {"target": "conv-only"}, {"to": "linear"}])
def test_the_callers_model_is_not_changed(options: dict[str, Any]) -> None:
    """Nothing is renamed in it, whatever the conversion runs on its constants to read the order of a flattened map."""
    text = "t = Transpose<perm=[0,2,3,1]>(x) f = Reshape(t, s) y = MatMul(f, w)"
    weights = {"s": np.asarray([-1, 360], np.int64), "w": integers(360, 7)}
    proto = ir.to_proto(model(graph("N,3,10,12", "N,7", text), weights))
    before = proto.SerializeToString(deterministic=True)
    onebyone.convert(proto, **options)
    assert proto.SerializeToString(deterministic=True) == before
