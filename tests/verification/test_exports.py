"""A network against its own ONNX export, and ONNX models against others: the layer with an injected fault is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import onebyone
from onebyone.onnx.convert import convert_model
from tests.cli.conftest import run_command
from tests.onnx.exported import NETWORKS, exported

EXPORTERS = ("dynamo", "torchscript")


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = NETWORKS[name]().eval()
    return module


def weights_of(model: ir.Model) -> list[str]:
    """The initializers that hold weights, in the order in which the nodes read them."""
    read = [
        str(v.name)
        for node in model.graph
        for v in node.inputs
        if v is not None and v.const_value is not None
    ]
    tensors = {name: model.graph.initializers[name].const_value for name in dict.fromkeys(read)}
    return [n for n, t in tensors.items() if t is not None and t.dtype == ir.DataType.FLOAT and t.size > 3]


def with_fault(model: ir.Model, name: str) -> ir.Model:
    """A copy whose weight `name` is off by a tenth, at random."""
    copy = model.clone()
    value = copy.graph.initializers[name]
    array = np.asarray(value.const_value.numpy())  # type: ignore[union-attr]
    noise = 0.1 * np.random.default_rng(0).standard_normal(array.shape)
    value.const_value = ir.tensor((array + noise).astype(np.float32), name=name)
    return copy


def without_names(model: ir.Model) -> ir.Model:
    """A copy in which no name or metadata tells where a node comes from, as optimisers leave it."""
    copy = model.clone()
    for number, node in enumerate(copy.graph):
        node.name = f"n{number}"
        node.metadata_props.clear()
    for number, value in enumerate(list(copy.graph.initializers.values())):
        value.name = f"w{number}"
    return copy


FAST = [("Classifier", "dynamo", False), ("Bottleneck", "torchscript", True), ("Mixer", "torchscript", False)]
EVERY = [
    (n, e, k)
    for n in ("Classifier", "Mixer", "Bottleneck", "Recurrent")
    for e in EXPORTERS
    for k in (True, False)
]


@pytest.mark.parametrize(
    ("name", "exporter", "named"),
    [pytest.param(*case, marks=[] if case in FAST else [pytest.mark.slow]) for case in EVERY],
)
def test_the_layer_with_a_fault_is_named(name: str, exporter: str, named: bool) -> None:
    net = network(name)
    model, x = exported(name, exporter)
    v = onebyone.verify(net, model if named else without_names(model), x)
    assert v.equivalent, str(v)
    assert v.evaluators
    assert v.first_difference is None
    model = model if named else without_names(model)
    found = []
    for weight in weights_of(model):
        v = onebyone.verify(net, with_fault(model, weight), x)
        assert not v.equivalent
        found.append(v.first_difference)
    assert set(found) == {name.rpartition(".")[0] for name in _named(net)}


def _named(net: nn.Module) -> list[str]:
    """Parameters outside of batch norms, which the exporters fuse."""
    fused = {f"{n}." for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    return [n for n, _ in net.named_parameters() if not n.startswith(tuple(fused))]


@pytest.mark.parametrize("exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "torchscript"])
def test_inside_attention_the_attention_is_named(exporter: str) -> None:
    net = network("Encoder")
    model, x = exported("Encoder", exporter)
    assert onebyone.verify(net, model, x).equivalent
    bad = with_fault(model, "layer.self_attn.in_proj_bias")
    assert onebyone.verify(net, bad, x).first_difference == "layer.self_attn"


def test_a_converted_export_equals_the_network() -> None:
    net = network("Classifier")
    model, x = exported("Classifier", "dynamo")
    assert onebyone.verify(net, convert_model(model).model, x).equivalent


def test_programs_are_compared_by_their_layers() -> None:
    net = network("Bottleneck")
    model, x = exported("Bottleneck", "torchscript")
    program = torch.export.export(net, (x,), strict=False)
    assert onebyone.verify(program, model, x).equivalent
    v = onebyone.verify(program, with_fault(model, "body.2.weight"))
    assert v.first_difference == "body.2"


def test_two_onnx_models_of_different_structure() -> None:
    dynamo, x = exported("Bottleneck", "dynamo")
    script, _ = exported("Bottleneck", "torchscript")
    script.graph.inputs[0].name = str(dynamo.graph.inputs[0].name)
    assert onebyone.verify(dynamo, script, x).equivalent
    v = onebyone.verify(dynamo, with_fault(script, "body.2.weight"), x)
    assert not v.equivalent
    node = next(n for n in dynamo.graph if any(i is not None and i.name == "body.2.weight" for i in n.inputs))
    assert v.first_difference == node.outputs[0].name


def test_inputs_that_do_not_fit() -> None:
    net = network("Recurrent")
    model, x = exported("Recurrent", "torchscript")
    with pytest.raises(onebyone.errors.BadInput, match="example: is missing"):
        onebyone.verify(net, model)
    v = onebyone.verify(net.double(), model, x.double())
    assert not v.equivalent
    assert "the ONNX model takes float32" in v.problems[0]


def test_the_command_line(tmp_path: Path) -> None:
    model, _ = exported("Bottleneck", "torchscript")
    state = network("Bottleneck").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    ir.save(model, tmp_path / "export.onnx")
    ir.save(with_fault(model, "body.0.weight"), tmp_path / "bad.onnx")
    words = ("--weights", tmp_path / "weights.pth", "--input-shape", "2,8,9,7", "--json")
    source = "tests.onnx.exported:Bottleneck"
    right = run_command("verify", source, tmp_path / "export.onnx", *words)
    assert right.code == 0, right.err
    assert right.json["evaluators"][0].startswith("converted: ONNX Runtime")
    wrong = run_command("verify", source, tmp_path / "bad.onnx", *words)
    assert wrong.code == 1
    assert wrong.json["first_difference"] == "body.0"
    assert run_command("verify", source, tmp_path / "bad.onnx", "--level", "graph").code == 2
    onnx.checker.check_model(str(tmp_path / "export.onnx"))
