"""The models that the onnx package carries: converted both ways, and run beside the originals.

The tests of operators have every operand as an input. Here all but one of them become initializers with the stored
numbers, in each way that leaves one, so that they are weights; the results must be the stored outputs.
`pytest -s tests/onnx/test_stored_models.py` prints the counts.
"""

from __future__ import annotations

import importlib
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import onnx_ir as ir
import pytest
from onnx.backend.test.case import node as node_cases

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


#: The operators that are products or convolutions.
OPERATORS = (
    "MatMul", "Gemm", "Einsum", "Conv", "QLinearMatMul", "MatMulInteger", "QLinearConv", "ConvInteger",
)  # fmt: skip
#: The first opset whose arithmetic broadcasts; older files are brought to it by ONNX's own converter of versions.
OPSET = 13

Case = tuple[str, onnx.ModelProto, list[np.ndarray], list[np.ndarray], float, float]


def _stored_cases() -> Iterator[Case]:
    """Name, model, inputs, outputs, and the tolerances of onnx's own backend tests."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        # each module makes its operator's cases when it is imported; those of all operators take seconds
        for operator in (*OPERATORS, "FlexAttention"):
            importlib.import_module(f"{node_cases.__name__}.{operator.lower()}")
        for case in node_cases._NodeTestCases:
            if case.model is not None and not case.name.endswith("_expanded") and _has_product(case.model):
                yield case.name, case.model, *map(list, case.data_sets[0]), case.rtol, case.atol
    for folder in sorted((DATA / "pytorch-converted").iterdir()) + sorted(
        (DATA / "pytorch-operator").iterdir()
    ):
        proto = onnx.load(folder / "model.onnx")
        if _has_product(proto):
            proto = onnx.version_converter.convert_version(proto, OPSET)
            yield folder.name, proto, _tensors(folder, "input"), _tensors(folder, "output"), 1e-3, 1e-6


def _has_product(proto: onnx.ModelProto) -> bool:
    return any(node.op_type in OPERATORS for node in proto.graph.node)


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
    for name, proto, arrays, outputs, rtol, atol in _stored_cases():
        counts["cases"] += 1
        for data in range(min(4, len(arrays))):
            if arrays[data].dtype.kind not in "fiu" or not arrays[data].shape:
                continue
            frozen = _with_weights(proto, arrays, data)
            feeds = {frozen.graph.input[0].name: arrays[data]}
            for to in ("conv", "linear"):
                found, outcome = _converted_and_run(frozen, to, feeds)
                counts[outcome] += 1
                for expected, value in zip(outputs, found, strict=bool(found)):
                    np.testing.assert_allclose(value, expected, rtol, atol, err_msg=f"{name} to {to}")
    with capsys.disabled():
        print("\n" + "\n".join(f"{count:6d}  {what}" for what, count in sorted(counts.items())))
    assert counts["cases"] > 80
    assert counts["conv: converted, and the stored outputs"] > 60


def _converted_and_run(
    frozen: onnx.ModelProto, to: str, feeds: dict[str, np.ndarray]
) -> tuple[list[np.ndarray], str]:
    """The outputs of the converted model, and what happened; no outputs where nothing was converted."""
    result = convert_model(open_model(frozen), to, freeze_initialisers=True)
    if not result.changes:
        return [], f"{to}: " + (
            f"refused, {result.refused[0].reason[:70]}" if result.refused else "no such layer"
        )
    converted = proto_of(result.model)
    onnx.checker.check_model(converted)
    try:
        found = run_onnx_runtime(converted, feeds)
    except NotRunnable:  # float64, which ONNX Runtime's Conv lacks
        found = run_reference(converted, feeds)
    return found, f"{to}: converted, and the stored outputs"
