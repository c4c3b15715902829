"""Networks and any-size networks written as ONNX models: the same numbers at every size, and the note inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import onebyone
from onebyone.errors import BadInput
from onebyone.onnx.convert import convert_model
from onebyone.onnx.model_file import open_model
from onebyone.results.note import NOTE, read_dense_note
from tests.cli.conftest import run_command
from tests.onnx.exported import Classifier, exported

LABELS = onebyone.Labels(classes=tuple("abcdefg"), mean=(0.5,), std=(0.25,), background=("a",))


def run(path: Path, x: torch.Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def assert_close(found: np.ndarray[Any, Any], expected: torch.Tensor, terms: int) -> None:
    """Equal up to 2·γ of the longest sum in float32, times the largest value (the layers' gains are about one)."""
    bound = 4 * terms * 2.0**-24 * float(expected.abs().max())
    assert found.shape == tuple(expected.shape)
    assert float(np.abs(found - expected.numpy()).max(initial=0)) <= bound


def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier().eval()


def test_a_dense_network_has_free_batch_height_and_width(tmp_path: Path) -> None:
    d = onebyone.convolutionalize(classifier(), (10, 12), labels=LABELS, score_kind="logits:exclusive")
    d.save(tmp_path / "dense.onnx")
    onnx.checker.check_model(str(tmp_path / "dense.onnx"), full_check=True)
    proto = onnx.load(tmp_path / "dense.onnx")
    sizes = [s.dim_param or s.dim_value for s in proto.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, "height", "width"]
    for shape in [(1, 3, 10, 12), (2, 3, 11, 30), (3, 3, 25, 12)]:
        x = torch.randn(shape)
        with torch.no_grad():
            assert_close(run(tmp_path / "dense.onnx", x), d.model(x), 120)
    note = read_dense_note({p.key: p.value for p in proto.metadata_props}[NOTE], "dense.onnx")
    assert note.geometry == d.geometry
    assert note.labels == LABELS
    assert str(note.score_kind) == "logits:exclusive"
    assert note.fields() == {name: getattr(d, name) for name in note.fields()}


@pytest.mark.parametrize("level", ["layers", "native", "graph"])
def test_a_converted_network_with_a_free_batch(level: str, tmp_path: Path) -> None:
    m, path = classifier(), tmp_path / "c.onnx"
    c = onebyone.convert(m, level=level, example=torch.randn(1, 3, 10, 12), dynamic_axes=(0,))
    c.save(path, torch.randn(1, 3, 10, 12))
    onnx.checker.check_model(str(path), full_check=True)
    assert not {node.op_type for node in onnx.load(path).graph.node} & {"Gemm", "MatMul"}
    for batch in (1, 5):
        x = torch.randn(batch, 3, 10, 12)
        with torch.no_grad():
            assert_close(run(path, x), m(x), 120)


def test_without_the_option_the_sizes_are_those_of_the_example(tmp_path: Path) -> None:
    onebyone.convert(classifier()).save(tmp_path / "c.onnx", torch.randn(2, 3, 10, 12))
    shape = onnx.load(tmp_path / "c.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_value for size in shape] == [2, 3, 10, 12]


def kinds(path: Path) -> list[str]:
    return sorted(n.op_type for n in onnx.load(path).graph.node if n.op_type in ("Conv", "Gemm", "MatMul"))


@pytest.mark.parametrize("name", ["Classifier", "ChannelsLast", "Bottleneck"])
def test_converting_before_and_after_the_export_is_the_same(name: str, tmp_path: Path) -> None:
    """PyTorch → convert → ONNX equals PyTorch → ONNX → convert: the same kinds of products and the same numbers."""
    from tests.onnx.exported import NETWORKS

    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    _, x = exported(name, "torchscript")
    before = onebyone.convert(network, level="graph", example=x)
    before.save(tmp_path / "before.onnx")
    with torch.no_grad():
        y = network(x)
    assert_close(run(tmp_path / "before.onnx", x), y, 128)
    for exporter in ("dynamo", "torchscript"):
        path = tmp_path / f"{exporter}.onnx"
        after, same = exported(name, exporter)
        assert torch.equal(same, x)
        converted = convert_model(after)
        converted.save(path)
        assert len(converted.changes) == len(before.changes), exporter
        assert kinds(path) == kinds(tmp_path / "before.onnx"), exporter
        assert_close(run(path, x), y, 128)


def test_the_note_of_a_conversion_is_not_that_of_a_dense_network(tmp_path: Path) -> None:
    onebyone.convert(nn.Linear(3, 2)).save(tmp_path / "c.onnx", torch.ones(1, 3))
    note = open_model(tmp_path / "c.onnx").metadata_props[NOTE]
    with pytest.raises(BadInput, match=r"c\.onnx: is a converted network"):
        read_dense_note(note, "c.onnx")


class Sorted(nn.Module):
    """An operator that PyTorch's exporter does not know."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.geqrf(x)[0]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    x = torch.randn(3, 3)
    path = tmp_path / "x.onnx"
    with pytest.raises(BadInput, match="needs an example input"):
        onebyone.convert(nn.Linear(3, 3)).save(path)
    with pytest.raises(BadInput, match="exporter cannot write it as ONNX"):
        onebyone.convert(nn.Sequential(nn.Linear(3, 3), Sorted())).save(path, x)
    with pytest.raises(BadInput, match=r"dynamic_axes=\(4,\): no input has an axis 4"):
        onebyone.convert(nn.Linear(3, 3), dynamic_axes=(4,)).save(path, x)
    with pytest.raises(BadInput, match=r"dynamic_axes=\(1,\): with free sizes there, .*violated"):
        onebyone.convert(nn.Linear(3, 3), dynamic_axes=(1,)).save(path, x)
    assert not list(tmp_path.iterdir())


def test_the_command_line(tmp_path: Path) -> None:
    dense, path = tmp_path / "dense.onnx", tmp_path / "c.onnx"
    source = "tests.onnx.exported:Classifier"
    made = run_command("convolutionalize", source, "--window", "10,12", "-o", dense, "--json")
    assert made.code == 0, made.err
    converted = run_command(
        "convert", source, "--shape", "1,3,10,12", "--dynamic-axes", "0", "-o", path, "--json"
    )
    assert converted.code == 0, converted.err
    assert run(path, torch.randn(4, 3, 10, 12)).shape == (4, 7)
    assert run(dense, torch.randn(1, 3, 14, 12)).shape == (1, 7, 3, 1)
    assert "--shape is required" in run_command("convert", source, "-o", path).err
    onnx.checker.check_model(str(path), full_check=True)
