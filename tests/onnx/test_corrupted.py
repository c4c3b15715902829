"""A sample of the corrupted files of `tests.onnx.corrupted`; `python -m tests.onnx.corrupted` runs them all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from onebyone.errors import BadInput
from onebyone.onnx.convert import convert_model
from onebyone.onnx.model_file import open_model
from tests.onnx.corrupted import bases, corrupted, outcome_of

ROOT = Path(__file__).resolve().parents[2]


def _counts(*arguments: str) -> dict[str, int]:
    """The counts that the command prints; it starts processes, which must not happen beside the threads of pytest."""
    command = [sys.executable, "-m", "tests.onnx.corrupted", *arguments]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr
    return {name: int(count) for count, name in re.findall(r"^ *(\d+)  (.+)$", done.stdout, re.MULTILINE)}


@pytest.mark.parametrize("count", [15, pytest.param(60, marks=pytest.mark.slow)])
def test_a_sample_of_corrupted_files(count: int) -> None:
    counts = _counts("--first", "1000", "--count", str(count))
    assert sum(counts.values()) == count
    assert counts["error"] > count // 3
    assert counts["converted"] > count // 12


@pytest.mark.slow
def test_five_hundred_corrupted_files() -> None:
    counts = _counts("--count", "500")
    assert sum(counts.values()) == 500
    assert not counts.get("WRONG")


def test_every_base_is_converted_where_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    for name, proto in bases().items():
        (tmp_path / f"{name}.onnx").write_bytes(proto.SerializeToString())
        outcome = outcome_of(tmp_path / f"{name}.onnx", target)
        assert outcome == "converted", name


def test_a_text_that_is_not_utf8_is_named_when_the_model_is_written(tmp_path: Path) -> None:
    """It is read first when the model is written; seed 26 overwrites one in a function."""
    _, path = corrupted(26, tmp_path)
    conversion = convert_model(open_model(path), "conv")
    with pytest.raises(BadInput, match="model: cannot be written as an ONNX file: 'utf-8' codec"):
        conversion.save(tmp_path / "converted.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_external_data_of_a_constant_node_stays_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(24))
    (tmp_path / "in").mkdir()
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="../secret.bin")
    nodes = [
        helper.make_node("Constant", [], ["w"], value=tensor),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    path = tmp_path / "in" / "model.onnx"
    path.write_bytes(helper.make_model(helper.make_graph(nodes, "g", inputs, outputs)).SerializeToString())
    with pytest.raises(BadInput, match="outside the model's folder"):
        open_model(path)


def test_a_value_that_is_computed_twice_is_named() -> None:
    proto = bases()["classifier"]
    proto.graph.node[1].output[0] = "c"
    with pytest.raises(
        BadInput, match="the node 'Relu' computes 'c', which an input, an initializer or another node"
    ):
        open_model(proto)


@pytest.mark.parametrize(("key", "value"), [("offset", "-1"), ("length", "many"), ("location", "a\0b")])
def test_external_data_with_entries_that_say_nothing(key: str, value: str) -> None:
    proto = bases()["classifier"]
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": "data", key: value}
    for name, text in entries.items():
        tensor.external_data.add(key=name, value=text)
    with pytest.raises(BadInput, match="external data"):
        open_model(proto)


def test_numbers_in_typed_fields_are_counted() -> None:
    proto = bases()["classifier"]
    for size, wrong in ((4, False), (3, True)):
        tensor = next(t for t in proto.graph.initializer if t.name == "kb")
        tensor.CopyFrom(
            TensorProto(name="kb", data_type=TensorProto.FLOAT, dims=[4], float_data=[1.0] * size)
        )
        if wrong:
            with pytest.raises(BadInput, match="needs 4 values and holds 3"):
                open_model(proto)
        else:
            assert isinstance(open_model(proto), object)
            onnx.checker.check_model(proto)
