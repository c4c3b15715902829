"""A model of more than 2 GB, with external data: converted and written one tensor at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parents[2]
#: Five weights of 512 MiB: 2.5 GiB in all.
ROWS, COLUMNS, LAYERS = 8192, 16384, 5
LARGEST = ROWS * COLUMNS * 4
ALLOWED = 1.2 * LARGEST + 500e6

#: Converts and saves a file, and prints by how much its peak of resident memory grew, mapped files included.
PROGRAM = """
import json, sys
from bench.zoo import memory
import onebyone
from onebyone.onnx import convert, model_file
before = memory.forget_peak()
conversion = onebyone.convert(sys.argv[1], to=sys.argv[3])
conversion.save(sys.argv[2])
print(json.dumps({"peak": memory.peak() - before, "changes": len(conversion.changes),
                  "bytes": list(conversion.weight_bytes)}))
"""


def _write(path: Path) -> None:
    """A chain of products; the data file is sparse, with a few numbers at known places of each weight."""
    nodes, tensors = [], []
    with path.with_suffix(".data").open("wb") as data:
        for layer in range(LAYERS):
            shape = (ROWS, COLUMNS) if layer % 2 == 0 else (COLUMNS, ROWS)
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "big.data"), ("offset", layer * LARGEST), ("length", LARGEST)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            data.seek(layer * LARGEST)
            data.write(np.arange(1, 5, dtype=np.float32).tobytes())  # the first four of the first row
            nodes.append(helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"x{layer + 1}"]))
        data.truncate(LAYERS * LARGEST)
    graph = helper.make_graph(
        nodes,
        "big",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["N", ROWS])],
        [helper.make_tensor_value_info(f"x{LAYERS}", TensorProto.FLOAT, ["N", COLUMNS])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path.write_bytes(model.SerializeToString())


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    path, target = tmp_path / "big.onnx", tmp_path / "out" / "conv.onnx"
    target.parent.mkdir()
    _write(path)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-c", PROGRAM, str(path), str(target), "conv"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    print(f"peak of extra memory: {result['peak']:,} bytes, allowed {ALLOWED:,.0f}")
    assert result["changes"] == LAYERS
    assert result["bytes"][0] >= LAYERS * LARGEST > 2**31
    assert result["bytes"][1] <= result["bytes"][0] + 1024
    assert result["peak"] < ALLOWED
    converted = onnx.load(target, load_external_data=False)
    kernels = [t for t in converted.graph.initializer if len(t.dims) == 4]
    assert [list(t.dims[:2]) for t in kernels] == [[COLUMNS, ROWS], [ROWS, COLUMNS]] * 2 + [[COLUMNS, ROWS]]
    data = np.memmap(target.with_name("conv.onnx.data"), dtype=np.float32, mode="r")
    for tensor in kernels:
        offset = next(int(e.value) for e in tensor.external_data if e.key == "offset") // 4
        kernel = data[offset : offset + ROWS * COLUMNS].reshape(tensor.dims[:2])
        np.testing.assert_array_equal(kernel[:5, 0], [1, 2, 3, 4, 0])  # a row became the first column
        assert not kernel[:5, 1].any()
    del data, kernel
    for file in (*tmp_path.rglob("*.data"), path):  # pytest keeps the folder
        file.unlink()
