"""Classifiers that people have: a trained LeNet, a Keras-shaped model, and networks of torchvision as ONNX files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import onebyone
from bench.onnx_dense import MODELS, digits_lenet
from onebyone.cli.main import app


@pytest.mark.parametrize("name", ["LeNet on digits", "Keras-shaped NHWC"])
def test_exact_models_equal_their_crops_within_the_bound(name: str, tmp_path: Path) -> None:
    image = MODELS[name](tmp_path / "model.onnx")
    d = onebyone.convolutionalize(tmp_path / "model.onnx")
    assert d.geometry.exact
    v = onebyone.verify(tmp_path / "model.onnx", d, image, max_windows=100)
    assert v.equivalent, v
    assert v.dense is not None
    assert v.dense.class_agreement == 1
    assert v.dense.float64_difference <= v.dense.float64_limit < v.dense.planted_shift


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet-18", "VGG-11"])
def test_padded_models_are_measured_and_equal_on_one_window(name: str, tmp_path: Path) -> None:
    image = MODELS[name](tmp_path / "model.onnx")
    d = onebyone.convolutionalize(tmp_path / "model.onnx")
    assert not d.geometry.exact
    assert d.geometry.stride == (32, 32)
    v = onebyone.verify(tmp_path / "model.onnx", d, image, min_agreement=0)
    assert v.equivalent, v
    assert v.dense is not None
    assert v.dense.found == (2, 3)
    # on one window both compute one function: the limit in float64 is derived from the model's own rounding error
    assert v.float64_error <= v.float64_limit
    # elsewhere they differ by more than rounding, which is why it is said
    assert v.dense.max_abs_difference > 10 * v.max_error


def test_the_command_line(tmp_path: Path) -> None:
    page = digits_lenet(tmp_path / "digits.onnx")
    np.save(tmp_path / "page.npy", page[0, 0])
    run = CliRunner()
    dense = tmp_path / "dense.onnx"
    made = run.invoke(
        app, ["convolutionalize", str(tmp_path / "digits.onnx"), "-o", str(dense), "--verify", "--json"]
    )
    assert made.exit_code == 0, made.output
    data = json.loads(made.stdout)
    assert data["geometry"]["window"] == [8, 8]
    assert data["outputs"] == [{"name": "scores", "channels": 10, "scores": "probabilities:exclusive"}]
    assert data["verification"]["equivalent"]
    scanned = run.invoke(app, ["scan", str(dense), str(tmp_path / "page.npy"), "--scale", "1", "--json"])
    assert scanned.exit_code == 0, scanned.output
    wrong = run.invoke(app, ["convolutionalize", str(tmp_path / "digits.onnx"), "--window", "9"])
    assert wrong.exit_code == 2
    assert "window" in wrong.output
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert run.invoke(app, ["convolutionalize", str(tmp_path / "broken.onnx")]).exit_code == 2
