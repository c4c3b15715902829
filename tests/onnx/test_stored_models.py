"""The models that the onnx package carries: converted both ways, and run beside the originals.

The tests of operators have every operand as an input. Here all but one of them become initializers with the stored
numbers, in each way that leaves one, so that they are weights; the results must be the stored outputs.
`pytest -s tests/onnx/test_stored_models.py` prints the counts.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import onnx_ir as ir
import pytest

from onebyone.errors import BadInput
from onebyone.onnx.convert import convert_model
from onebyone.onnx.evaluators import NotRunnable, proto_of, run_onnx_runtime, run_reference
from onebyone.onnx.model_file import open_model

DATA = Path(onnx.backend.test.__file__).parent / "data"
LIGHT = sorted((DATA / "light").glob("*.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("path", LIGHT, ids=[path.stem for path in LIGHT])
def test_light_models(path: Path) -> None:
    """Old files, whose weights are inputs of the graph and come from ConstantOfShape."""
    model = open_model(path)
    eligible = Counter(node.op_type for node in model.graph if node.op_type in ("Gemm", "MatMul"))
    refused = convert_model(model)
    assert not refused.changes
    assert len(refused.refused) == eligible.total()
    rng = np.random.default_rng(0)
    feeds = {
        str(value.name): rng.normal(size=[int(size) for size in value.shape or ()]).astype(np.float32)
        for value in model.graph.inputs
        if value.const_value is None
    }
    expected = run_onnx_runtime(ir.serde.serialize_model(model), feeds)
    for to in ("conv", "linear"):
        result = convert_model(model, to, freeze_initialisers=True)
        assert all("Slice with steps" in refusal.reason for refusal in result.refused)
        if to == "conv":
            assert len(result.changes) == eligible.total()
        found = run_onnx_runtime(ir.serde.serialize_model(result.model), feeds)
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-7)


#: Operators whose stored tests are used, as the names of these tests contain them.
STORED = ("matmul", "gemm", "einsum", "conv", "linear", "vgg", "qlinear")
#: The relative and absolute tolerance of onnx's own backend tests for these data.
RTOL, ATOL = 1e-3, 1e-6


def _stored_cases() -> list[Path]:
    folders = (DATA / name for name in ("node", "simple", "pytorch-converted", "pytorch-operator"))
    return sorted(
        path.parent
        for folder in folders
        for path in folder.glob("*/model.onnx")
        if any(word in path.parent.name.lower() for word in STORED)
    )


def _tensors(folder: Path, kind: str) -> list[np.ndarray]:
    files = sorted(folder.glob(f"test_data_set_0/{kind}_*.pb"), key=lambda p: int(p.stem.rpartition("_")[2]))
    return [onnx.numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes())) for file in files]


def _with_weights(proto: onnx.ModelProto, arrays: list[np.ndarray], data: int) -> onnx.ModelProto:
    """The model with every input as an initializer, except the one at the index `data`."""
    frozen = onnx.ModelProto.FromString(proto.SerializeToString())
    inputs = [
        value for value in frozen.graph.input if value.name not in {t.name for t in frozen.graph.initializer}
    ]
    for index, (value, array) in enumerate(zip(inputs, arrays, strict=True)):
        if index != data:
            frozen.graph.initializer.append(
                onnx.numpy_helper.from_array(np.ascontiguousarray(array), value.name)
            )
    kept = inputs[data]
    del frozen.graph.input[:]
    frozen.graph.input.append(kept)
    return frozen


def test_stored_data_of_operators(capsys: pytest.CaptureFixture[str]) -> None:
    counts: Counter[str] = Counter()
    for folder in _stored_cases():
        proto = onnx.load(folder / "model.onnx")
        arrays, outputs = _tensors(folder, "input"), _tensors(folder, "output")
        for data in range(min(2, len(arrays))):
            frozen = _with_weights(proto, arrays, data)
            feeds = {frozen.graph.input[0].name: arrays[data]}
            for to in ("conv", "linear"):
                counts += _converted_and_run(frozen, to, feeds, outputs, folder.name)
    with capsys.disabled():
        print("\n" + "\n".join(f"{count:6d}  {what}" for what, count in sorted(counts.items())))
    assert counts["conv: right"] > 30
    assert counts["linear: right"] > 5


def _converted_and_run(
    frozen: onnx.ModelProto, to: str, feeds: dict[str, np.ndarray], outputs: list[np.ndarray], name: str
) -> Counter[str]:
    try:
        model = open_model(frozen)
        result = convert_model(model, to, freeze_initialisers=True)
    except BadInput:
        return Counter({f"{to}: an opset before 7": 1})
    counts = Counter({f"{to}: refused": len(result.refused)})
    if not result.changes:
        return counts + Counter({f"{to}: nothing converted": 1})
    onnx.checker.check_model(proto_of(result.model))
    try:
        found = run_onnx_runtime(proto_of(result.model), feeds)
    except NotRunnable:
        found = run_reference(proto_of(result.model), feeds)  # float64, which ONNX Runtime's Conv lacks
    for expected, value in zip(outputs, found, strict=True):
        np.testing.assert_allclose(value, expected, rtol=RTOL, atol=ATOL, err_msg=f"{name} to {to}")
    return counts + Counter({f"{to}: right": 1})
