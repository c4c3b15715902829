"""Damaged and hostile files are one clear sentence; models with external data travel with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

import onebyone
from onebyone.errors import BadInput
from onebyone.onnx.convert import convert_model
from onebyone.onnx.layout.convert import convert_with_layout
from onebyone.onnx.model_file import open_model, save_model
from onebyone.onnx_file import write_model
from tests.onnx.models import graph, integers, model, operators, run

TEXT = "g (int64[N] i) => (float[N,32] y) { x = Gather(table, i) y = MatMul(x, w) }"


@pytest.fixture
def small() -> ir.Model:
    return model(TEXT, {"w": integers(64, 32), "table": integers(100, 64)})


@pytest.fixture
def external(tmp_path: Path, small: ir.Model) -> Path:
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    ir.save(small, path, external_data="model.data", size_threshold_bytes=16)
    return path


def test_a_converted_model_takes_its_external_data_along(external: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    i = np.array([3, 99, 0])
    expected = integers(100, 64)[i] @ integers(64, 32)
    converted = convert_model(open_model(external)).model
    save_model(converted, target / "new.onnx")
    for file in external.parent.iterdir():
        file.unlink()
    assert sorted(p.name for p in target.iterdir()) == ["new.onnx", "new.onnx.data"]
    again = open_model(target / "new.onnx")
    ir.external_data.load_to_model(again)
    np.testing.assert_array_equal(run(again, {"i": i})[0], expected)


def test_a_model_without_external_data_is_one_file(tmp_path: Path, small: ir.Model) -> None:
    save_model(convert_model(small).model, tmp_path / "new.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["new.onnx"]
    onnx.checker.check_model(str(tmp_path / "new.onnx"), full_check=True)


def test_saving_where_nothing_can_be_written_leaves_nothing(external: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="missing"):
        save_model(convert_model(open_model(external)).model, tmp_path / "missing" / "new.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 0.99])
def test_truncated(share: float, tmp_path: Path, small: ir.Model) -> None:
    data = ir.serde.serialize_model(small).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(BadInput, match=r"model\.onnx"):
        open_model(path)


@pytest.mark.parametrize(
    "content", [b"hello, world", b"PK\x03\x04rest", b"\x89PNG\r\n\x1a\n" + bytes(64), bytes(1000)]
)
def test_not_onnx(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="not an ONNX model"):
        open_model(path)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin", "folder/../../secret.bin"])
def test_external_data_outside_the_folder(location: str, external: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64 * 32 * 4))
    os.symlink(tmp_path / "secret.bin", external.parent / "link.bin")
    with pytest.raises(BadInput, match="outside the model's folder"):
        open_model(_with_location(external, location))


def test_external_data_that_is_missing_or_short(external: Path) -> None:
    data = external.parent / "model.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(BadInput, match="truncated"):
        open_model(external)
    data.unlink()
    with pytest.raises(BadInput, match="is missing"):
        open_model(external)


def test_absurd_sizes(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.dims[:] = [2**40, 2**20]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 4])],
        [helper.make_tensor_value_info("y", 1, None)],
        [tensor],
    )
    with pytest.raises(BadInput, match=r"needs .* bytes and holds 16"):
        open_model(helper.make_model(graph))
    tensor.dims[:] = [-1, 4]
    graph.initializer[0].CopyFrom(tensor)
    with pytest.raises(BadInput, match="negative size"):
        open_model(helper.make_model(graph))


def test_cycles_dangling_values_and_no_input() -> None:
    inputs = [helper.make_tensor_value_info("x", 1, [2])]
    outputs = [helper.make_tensor_value_info("y", 1, [2])]
    cycle = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    with pytest.raises(BadInput, match="reads 'b', which nothing computes before it"):
        open_model(helper.make_model(helper.make_graph(cycle, "g", inputs, outputs)))
    dangling = [helper.make_node("Add", ["x", "nowhere"], ["y"])]
    with pytest.raises(BadInput, match="nowhere"):
        open_model(helper.make_model(helper.make_graph(dangling, "g", inputs, outputs)))
    constant = [helper.make_node("Constant", [], ["y"], value_floats=[1.0, 2.0])]
    with pytest.raises(BadInput, match="has no input"):
        open_model(helper.make_model(helper.make_graph(constant, "g", [], outputs)))


def _with_location(path: Path, location: str) -> Path:
    proto = onnx.load(path, load_external_data=False)
    (entry,) = [e for e in proto.graph.initializer[0].external_data if e.key == "location"]
    entry.value = location
    path.write_bytes(proto.SerializeToString())
    return path


def _with_data(folder: Path, value: float) -> tuple[ir.Model, Path]:
    """A model whose weight, of equal numbers, is in `net.onnx.data`."""
    weight = np.full((32, 32), value, np.float32)
    m = model("g (float[N,32] x) => (float[N,32] y) { y = MatMul(x, w) }", {"w": weight})
    ir.save(m, folder / "net.onnx", external_data="net.onnx.data", size_threshold_bytes=16)
    return open_model(folder / "net.onnx"), folder / "net.onnx"


@pytest.mark.parametrize("failing", ["finish", "move"])
def test_a_failed_save_leaves_the_earlier_model_and_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    (tmp_path / "new").mkdir()
    new, _ = _with_data(tmp_path / "new", 2.0)
    (tmp_path / "old").mkdir()
    _, path = _with_data(tmp_path / "old", 1.0)
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    replace = os.replace

    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    def fail_at_the_model(source: Any, target: Any) -> None:
        (fail if Path(target) == path else replace)(source, target)

    if failing == "move":
        monkeypatch.setattr(os, "replace", fail_at_the_model)
    with pytest.raises(RuntimeError, match="planted"):
        write_model(new, path, finish=fail if failing == "finish" else None)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


def test_a_model_saved_over_its_own_data_keeps_its_numbers(tmp_path: Path) -> None:
    m, path = _with_data(tmp_path, 3.0)
    extra = ir.tensor(np.full(1024, 7.0, np.float32), name="first")
    m.graph.initializers.add(ir.Value(name="first", const_value=extra))
    write_model(m, path)
    weight = m.graph.initializers["w"].const_value
    assert weight is not None
    assert (weight.numpy() == 3.0).all()
    again = open_model(path).graph.initializers
    assert {name: float(v.const_value.numpy().max()) for name, v in again.items() if v.const_value} == {
        "w": 3.0,
        "first": 7.0,
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]


def test_the_default_domain_has_two_names() -> None:
    """ONNX and ONNX Runtime know it as "" and as "ai.onnx"; Softmax, among others, depends on the version."""
    text = graph("2,3,4", "2,3,5", "a = Softmax(x) y = MatMul(a, w)")
    m = model(text, {"w": integers(4, 5)}, opset=17)
    alias = m.clone()
    alias.opset_imports["ai.onnx"] = alias.opset_imports.pop("")
    proto = ir.serde.serialize_model(alias)
    x = integers(2, 3, 4, seed=1)
    expected = convert_with_layout(m, forced=True)
    for source in (alias, proto):
        opened = open_model(source)
        assert opened.opset_imports == m.opset_imports
        c = convert_with_layout(opened, forced=True)
        assert operators(c.model) == operators(expected.model)
        np.testing.assert_array_equal(run(c.model, {"x": x})[0], run(expected.model, {"x": x})[0])
    assert "" not in alias.opset_imports
    assert onebyone.verify(proto, onebyone.convert(proto), x).equivalent
    proto.opset_import.add(domain="", version=13)
    with pytest.raises(
        BadInput, match=r"model: imports the default domain in two versions, 13 and, as 'ai\.onnx', 17"
    ):
        open_model(proto)


def test_a_model_whose_function_has_the_other_name_is_not_changed() -> None:
    body = '<domain: "local", opset_import: ["" : 17]> f (a) => (r) { r = Relu(a) }'
    m = model(graph("2", "2", "y = local.f(x)"), {}, opset=17, more=body)
    (function,) = m.functions.values()
    function.opset_imports["ai.onnx"] = function.opset_imports.pop("")
    (opened,) = open_model(m).functions.values()
    assert (opened.opset_imports[""], "" in function.opset_imports) == (17, False)
