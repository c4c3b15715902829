"""The models that the onnx package carries: converted both ways, and run beside the originals."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import onnx_ir as ir
import pytest

from onebyone.onnx.convert import convert_model
from onebyone.onnx.evaluators import run_onnx_runtime
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
