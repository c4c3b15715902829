"""The counts of the zoo of ONNX files, and a sample of its files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.onnx_zoo import exports, report, totals
from bench.onnx_zoo.eligible import constant_bytes, eligible_layers, layout_operators
from bench.onnx_zoo.files import File, files
from bench.onnx_zoo.steps import FileRun
from bench.zoo.steps import Step

QUICK = [f for f in files() if f.group in ("block", "recurrent") and f.exporter == "torchscript"]
SAMPLE = random.Random(0).sample(QUICK, 5)


def _steps(file: File, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    monkeypatch.setattr(exports, "EXPORTS", folder)
    steps: list[Step] = []
    FileRun(file, steps.append).all()
    return steps


@pytest.mark.parametrize("file", SAMPLE, ids=lambda file: file.key)
def test_files_are_converted_verified_and_complete(
    file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = _steps(file, tmp_path, monkeypatch)
    assert [(s.name, s.outcome, s.reason) for s in steps] == [
        (name, "converted", "") for name in ("export", "conv", "linear")
    ]
    assert not any(s.figures["silent"] or s.figures.get("grew") for s in steps[1:])


def test_scikit_learns_classifier_returns_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = next(f for f in files() if f.source == "sklearn:mlp-classifier")
    steps = _steps(file, tmp_path, monkeypatch)
    assert (steps[1].outcome, steps[1].figures["converted"]) == ("converted", 3)
    kinds = [
        value.type.WhichOneof("value")
        for value in onnx.load(tmp_path.rglob("*.onnx").__next__()).graph.output
    ]
    assert kinds == ["tensor_type", "sequence_type"]


def test_a_fault_in_one_weight_is_not_equivalent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onebyone.onnx import weight_rewriting

    right = weight_rewriting.apply_steps

    def wrong(array: Any, steps: Any) -> Any:
        made = np.array(right(array, steps))
        made.reshape(-1)[0] += 0.01
        return made

    monkeypatch.setattr(weight_rewriting, "apply_steps", wrong)
    file = next(f for f in files() if f.key == "block:mlp (torchscript, free batch)")
    assert _steps(file, tmp_path, monkeypatch)[1].outcome == "not equivalent"


def _model() -> onnx.ModelProto:
    w = numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
    kernel = numpy_helper.from_array(np.ones((2, 4, 1, 1), np.float32), "k")
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["p"], name="inside")],
        "then",
        [],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], name="constant"),
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("MatMul", ["a", "wt"], ["b"]),
        helper.make_node("MatMul", ["a", "a"], ["none"], name="of two values"),
        helper.make_node("Reshape", ["b", "shape"], ["m"], name="layout"),
        helper.make_node("Conv", ["m", "k"], ["c"], name="pointwise"),
        helper.make_node("If", ["flag"], ["d"], name="if", then_branch=inner, else_branch=inner),
    ]
    shape = numpy_helper.from_array(np.array([1, 4, 1, 1]), "shape")
    inputs = [helper.make_tensor_value_info("x", 1, ["N", 3]), helper.make_tensor_value_info("flag", 9, [])]
    outputs = [helper.make_tensor_value_info("c", 1, None)]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [w, kernel, shape]))


def test_eligible_layers_are_found_in_subgraphs_and_behind_expressions() -> None:
    found = [layer.path for layer in eligible_layers(_model(), "conv")]
    assert found == ["product", "b", "if/else_branch/inside", "if/then_branch/inside"]
    assert [layer.path for layer in eligible_layers(_model(), "linear")] == ["pointwise"]
    assert layout_operators(_model()) == 1
    assert constant_bytes(_model()) == 4 * (12 + 8) + 8 * 4


def _result(**figures: Any) -> dict[str, Any]:
    step = {"name": "conv", "outcome": "converted", "reason": "", "seconds": 1.0, "figures": figures}
    return {"key": "a", "seconds": 2.0, "steps": [step]}


def test_totals_hide_nothing_and_the_page_names_every_exception() -> None:
    missed = [
        {"path": "p", "kind": "MatMul", "reason": "its size is 3"},
        {"path": "q", "kind": "Gemm", "reason": ""},
    ]
    results = [
        _result(eligible=5, converted=3, missed=missed, silent=1, grew=True, layout_before=2, layout_after=9)
    ]
    total = totals.totals(results)
    assert (total["layers_eligible"], total["layers_converted"], total["silent"], total["grew"]) == (
        5,
        3,
        1,
        1,
    )
    assert total["layers_refused"] == {"its size is N": 1}
    assert totals.faults(total) == 2
    results[0]["steps"][0] |= {"outcome": "crashed", "reason": "KeyError: x"}
    page = report.page(
        {
            "machine": totals.machine(),
            "totals": totals.totals(results),
            "exceptions": list(totals.exceptions(results)),
            "models": results,
        }
    )
    for said in ("`p`", "its size is 3", "not reported", "KeyError: x", "3 of 5"):
        assert said in page
