"""ONNX models in ONNX Runtime and OpenVINO: the same scores where sums are exact, and faults that must be caught."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import onebyone
from onebyone.cli.main import app
from onebyone.dense import scan, tuned_runner
from onebyone.errors import BadInput, MissingExtra, NotEquivalent, Refused
from onebyone.loading import onnx_model
from onebyone.tuning import TuningPlan, onnx_engines, onnx_tuning
from onebyone.tuning.onnx_engines import LoadedOnnx
from tests.dense.networks import exact_net, integer_image, integers

TILE = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense network of small integers as `dense.onnx`, of window 8 and stride 2, and a picture `page.npy`."""
    path = tmp_path_factory.mktemp("onnx")
    network = integers(
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 5))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the exporter's own
        torch.onnx.export(
            network.eval(), (torch.zeros(1, 3, 8, 8),), path / "m.onnx", dynamo=False, opset_version=17
        )
    labels = onebyone.Labels(std=(1.0,))
    onebyone.convolutionalize(str(path / "m.onnx"), labels=labels).save(path / "dense.onnx")
    np.save(path / "page.npy", np.random.default_rng(0).integers(0, 4, (70, 60, 3)).astype(np.uint8))
    return path


@pytest.fixture
def wrong_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO, whose outputs are off by a part in a thousand at one position."""
    load = onnx_engines._open_vino

    def wrong(*args: Any) -> Any:
        run = load(*args)

        def call(values: np.ndarray, outputs: Any) -> list[np.ndarray]:
            (result,) = run(values, outputs)
            result[..., -1, -1] *= 1.001
            return [result]

        return call

    monkeypatch.setattr(onnx_engines, "_open_vino", wrong)


def run(*words: str | Path) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in words] + ["--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_openvino_gives_the_scores_of_onnx_runtime(folder: Path, tmp_path: Path) -> None:
    page = folder / "page.npy"
    expected = onebyone.scan(folder / "dense.onnx", page).scores
    image = torch.from_numpy(np.load(page).transpose(2, 0, 1)).float()
    crops = image.unfold(1, 8, 2).unfold(2, 8, 2)
    assert expected.shape == (5, *crops.shape[1:3])
    run("scan", folder / "dense.onnx", page, "--engine", "openvino", "--tile", 8, "-o", tmp_path / "a.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)
    assert json.loads((tmp_path / "a.npy.json").read_text())["key"]["settings"]["engine"] == "openvino"
    by_windows = onebyone.scan(folder / "dense.onnx", page, mode="windows", engine="openvino").scores
    np.testing.assert_array_equal(by_windows, expected)


def test_an_engine_that_computes_something_else_is_refused(
    folder: Path, wrong_openvino: None, tmp_path: Path
) -> None:
    with pytest.raises(NotEquivalent, match="engine='openvino': beside ONNX Runtime, the output has"):
        onebyone.scan(folder / "dense.onnx", folder / "page.npy", engine="openvino", out=tmp_path / "a.npy")
    assert not list(tmp_path.iterdir())
    tuned = onebyone.tune(folder / "dense.onnx", torch.randn(1, 3, 22, 22), budget=0.2)
    assert tuned.plan.choice["engine"] == "onnxruntime"
    (refused,) = [c["refused"] for c in tuned.plan.candidates if c["engine"] == "openvino"]
    assert refused.startswith("not equivalent: the output has")
    assert "openvino:original" in str(tuned)


def test_the_choice_of_a_scan_is_kept_and_applied_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned_runner, "_LEAST_SECONDS", 0.2)
    monkeypatch.setattr(onnx_tuning, "_fastest", lambda names, timings: names[1])
    page, out = folder / "page.npy", tmp_path / "a.npy"
    expected = onebyone.scan(folder / "dense.onnx", page).scores
    scores = onebyone.scan(folder / "dense.onnx", page, tile=TILE, tune=True, out=out).scores
    np.testing.assert_array_equal(np.asarray(scores), expected)
    assert TuningPlan.load(tmp_path / "a.npy.tuning.json").choice["engine"] == "openvino"
    assert json.loads((tmp_path / "a.npy.json").read_text())["key"]["tuned"]["engine"] == "openvino"
    monkeypatch.setattr(onnx_tuning, "_fastest", lambda names, timings: names[0])
    again = onebyone.scan(folder / "dense.onnx", page, tile=TILE, tune=True, out=out)
    np.testing.assert_array_equal(np.asarray(again.scores), expected)


def test_a_plan_of_the_command_line(folder: Path, tmp_path: Path) -> None:
    plan, page = tmp_path / "plan.json", folder / "page.npy"
    data = run("tune", folder / "dense.onnx", "--tile", page, "--budget", "0.2", "-o", plan)
    assert [c["engine"] for c in data["candidates"]] == ["onnxruntime", "openvino"]
    assert all(c["median_ms"] > 0 and c["rounding_ratio"] is not None for c in data["candidates"])
    run("scan", folder / "dense.onnx", page, "--plan", plan, "-o", tmp_path / "a.npy")
    np.testing.assert_array_equal(
        np.load(tmp_path / "a.npy"), onebyone.scan(folder / "dense.onnx", page).scores
    )
    with pytest.raises(Refused, match="it was made for float32"):
        onebyone.tune(folder / "dense.onnx", torch.randn(1, 3, 20, 20), plan=plan)


def test_bad_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, model = folder / "page.npy", folder / "dense.onnx"
    for engine, tune, message in (
        ("tensorrt", False, r"engine='tensorrt': expected 'onnxruntime' or 'openvino'"),
        ("openvino", True, r"engine='openvino' and tune were both given"),
    ):
        with pytest.raises(BadInput, match=message):
            onebyone.scan(model, page, engine=engine, tune=tune)
    with pytest.raises(BadInput, match="expected an ONNX model; tune=True"):
        scan(exact_net(), integer_image(40, 40), engine="openvino")
    with pytest.raises(BadInput, match="engines='eager': expected some of onnxruntime, openvino"):
        onebyone.tune(model, torch.zeros(1, 3, 8, 8), engines="eager")
    with pytest.raises(BadInput, match="an ONNX model is measured as it is"):
        onebyone.tune(model, torch.zeros(1, 3, 8, 8), dynamic_batch=True)
    loaded = LoadedOnnx(onnx_model(model), "openvino")
    with pytest.raises(BadInput, match="OpenVINO cannot run the model"):
        loaded(np.zeros((1, 2, 8, 8)))
    loaded._process = -1
    with pytest.raises(BadInput, match="before a fork"):
        loaded(np.zeros((1, 3, 8, 8)))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"onebyone\[engines\]"):
        onebyone.scan(model, page, engine="openvino")
