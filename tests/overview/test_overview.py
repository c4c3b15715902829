"""`info`: layers, MACs, conversions, refusals and the any-size form, compared with independent counts."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import onebyone
from onebyone.cli.main import app
from onebyone.errors import BadInput
from tests.onnx.corrupted import bases


class Mixed(nn.Module):
    """Strided, grouped, transposed, shared and unused layers, and tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.tokens = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)
        self.unused = nn.Linear(7, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.up(self.grouped(self.grouped(self.stem(x)))))
        y = self.tokens(y.flatten(2).transpose(1, 2))
        return self.head(y.mean(1))


def test_macs_are_those_of_torch_s_own_counter() -> None:
    network, x = Mixed().eval(), torch.zeros(1, 3, 12, 10)
    overview = onebyone.info(network, x)
    with FlopCounterMode(display=False) as counter:
        network(x)
    assert overview.macs == counter.get_total_flops() / 2
    by_path = {layer.path: layer for layer in overview.layers}
    assert by_path["grouped"].macs == 2 * (8 * 4) * 6 * 5  # both calls
    assert by_path["up"].macs == 8 * 4 * 2 * 2 * 6 * 5
    assert by_path["norm"].macs == 0
    assert "unused" not in by_path
    assert overview.parameters == sum(p.numel() for p in network.parameters())


def test_what_converts_is_what_convert_changes() -> None:
    overview = onebyone.info(Mixed().eval(), torch.zeros(1, 3, 12, 10))
    converts = {layer.path: layer.converts_to for layer in overview.layers if layer.converts_to}
    assert converts == {"grouped": "linear", "tokens": "conv", "head": "conv"}
    assert {change.path for change in overview.to_conv} == {"tokens", "head", "unused"}
    assert dict(overview.kernels) == {
        "Linear": 2,
        "Conv2d 3×3": 1,
        "Conv2d 1×1": 1,
        "ConvTranspose2d 2×2": 1,
        "BatchNorm2d": 1,
    }


def test_the_geometry_is_that_of_convolutionalize_and_refusals_are_listed() -> None:
    exact = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Flatten(), nn.Linear(2 * 9, 4)).eval()
    overview = onebyone.info(exact, window=8)
    assert overview.any_size is not None
    assert overview.any_size.geometry == onebyone.convolutionalize(exact, 8).geometry
    assert "exact: equals cropping every window" in str(overview)
    mixed = onebyone.info(nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)).eval(), window=8)
    assert mixed.any_size is not None
    assert mixed.any_size.geometry is None
    assert mixed.refusals()
    assert "refused for 1 reason" in str(mixed)


def test_without_a_size_the_layers_are_listed_and_a_note_says_what_is_missing() -> None:
    overview = onebyone.info(Mixed().eval())
    assert {layer.path for layer in overview.layers} == {
        *("stem", "grouped", "up", "norm", "tokens", "head", "unused")
    }
    assert (overview.macs, overview.any_size) == (0, None)
    assert "shapes and MACs are not known" in overview.notes[0]


def test_an_input_of_another_shape_is_a_note() -> None:
    overview = onebyone.info(Mixed().eval(), torch.zeros(1, 2, 12, 10))
    assert "does not run on it" in overview.notes[0]
    with pytest.raises(BadInput, match="is not a network"):
        onebyone.info(3)  # type: ignore[arg-type]


def _onnx_file(folder: Path) -> Path:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 3, 1, 1], [1.0] * 12)
    matrix = helper.make_tensor("m", TensorProto.FLOAT, [8, 5], [1.0] * 40)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], "first"),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("MatMul", ["z", "m"], ["out"], "second"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 6, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 4, 6, 5])],
        [weight, matrix],
    )
    path = folder / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_weights_in_a_function_count() -> None:
    overview = onebyone.info(bases()["function"])
    assert (overview.parameters, overview.weight_bytes, overview.dtypes) == (6, 24, ("float32",))
    assert [(layer.path, layer.parameters, layer.converts_to) for layer in overview.layers] == [
        ("layer/y", 6, "conv")
    ]


def test_an_onnx_file(tmp_path: Path) -> None:
    overview = onebyone.info(str(_onnx_file(tmp_path)))
    assert overview.inputs == (("x", "batch×3×6×8 float32"),)
    assert overview.operators == (("Conv", 1), ("Relu", 1), ("MatMul", 1))
    assert [(layer.path, layer.parameters, layer.converts_to) for layer in overview.layers] == [
        ("first", 12, "linear"),
        ("second", 40, "conv"),
    ]
    assert (overview.parameters, overview.weight_bytes) == (52, 208)


def test_the_command_prints_tables_and_json(tmp_path: Path) -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["info", "torch.nn:Identity"])
    assert shown.exit_code == 0
    assert "torch.nn:Identity (Identity)" in shown.stdout
    data = json.loads(runner.invoke(app, ["info", str(_onnx_file(tmp_path)), "--json"]).stdout)
    assert [layer["path"] for layer in data["layers"]] == ["first", "second"]
    missing = runner.invoke(app, ["info", "missing.onnx"])
    assert missing.exit_code == 2


def test_notebooks_show_tables() -> None:
    html = onebyone.info(Mixed().eval(), torch.zeros(1, 3, 12, 10))._repr_html_()
    assert html.count("<table>") == 2
    assert "ConvTranspose2d" in html


def test_a_window_of_one_number_is_of_every_axis_where_the_form_for_any_size_fails() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    overview = onebyone.info(network, window=9)
    assert overview.any_size is not None
    assert overview.any_size.window == (9, 9)
    assert "example of shape 1×3×9×9" in overview.notes[0]
