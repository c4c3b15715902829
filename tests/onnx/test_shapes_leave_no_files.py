"""Shape inference leaves nothing in the current folder, also where ONNX Runtime's own gives up."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from onebyone.onnx.shapes import infer_shapes

UNKNOWN = """<ir_version: 8, opset_import: ["" : 17, "other" : 1]>
net (float[N,4] x) => (float y) {
    a = other.Thing(x)
    y = Relu(a) }"""


def test_an_unknown_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    infer_shapes(ir.from_onnx_text(UNKNOWN))
    assert list(tmp_path.iterdir()) == []
