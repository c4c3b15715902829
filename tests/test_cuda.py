"""The public functions on a GPU: the results are those of the processor, exactly where sums of integers are exact."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from typer.testing import CliRunner

import onebyone
from onebyone.cli.main import app
from onebyone.dense import scan_windows
from onebyone.errors import BadInput, InexactWarning, Refused
from onebyone.laws.bounds import unit_roundoff
from onebyone.records import Labels
from tests.cli.networks import plain
from tests.dense import networks as scanned
from tests.pytorch.anysize import every_window, image_for, randomise
from tests.pytorch.exact_networks import EXACT
from tests.pytorch.graph_networks import blocks
from tests.pytorch.integer_networks import exact, integer
from tests.pytorch.test_devices import MAKE_CONSTANTS_ON_THE_PROCESSOR
from tests.tuning import networks as tuned

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
DEVICE = "cuda"
BLOCKS = blocks()
ROUNDING = 1e-11
"""Rounding in float64 of a few hundred terms of size about one."""


@pytest.fixture(autouse=True)
def flags_of_pytorch() -> Iterator[None]:
    """PyTorch's own defaults, with TF32 allowed in convolutions; no test leaves other flags behind."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.enabled, cudnn.deterministic
    yield
    assert before == (
        *(cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.enabled, cudnn.deterministic),
    )


@contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions in IEEE float32, as linear layers are by default."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def to_gpu(value: Any) -> Any:
    """Tensors of a structure on the GPU."""
    return tree_map(lambda t: t.to(DEVICE) if isinstance(t, torch.Tensor) else t, value)


def on_gpu(model: nn.Module) -> nn.Module:
    """A copy on the GPU, in evaluation mode."""
    return copy.deepcopy(model).to(DEVICE).eval()


# ---------------------------------------------------------------- conversions and their proofs


@pytest.mark.parametrize("level", ["layers", "native", "graph"])
@pytest.mark.parametrize(
    ("name", "to"),
    [(n, "linear" if "convolutions" in n else "conv") for n in BLOCKS] + [("bottleneck", "linear")],
)
def test_conversions_are_verified_on_the_gpu(name: str, to: str, level: str) -> None:
    network, inputs = on_gpu(BLOCKS[name][0]), to_gpu(BLOCKS[name][1])
    c = onebyone.convert(network, to=to, level=level, example=inputs)
    proof = onebyone.verify(network, c, inputs)
    assert proof.equivalent, proof.problems
    assert proof.integer_probe in (True, None)
    model = c.model.module() if hasattr(c.model, "module") else c.model
    with torch.no_grad():
        outputs = tree_leaves(model(*inputs))
    assert all(t.device.type == DEVICE for t in outputs if isinstance(t, torch.Tensor))


def test_integers_are_exact_and_the_weights_are_shared() -> None:
    network = integer(tuned.images()).to(DEVICE).eval()
    x = exact(2, 3, 8, 8).to(DEVICE)
    pointers = {p.data_ptr() for p in network.parameters()}
    c = onebyone.convert(network, to="conv")
    assert {p.data_ptr() for p in c.model.parameters()} <= pointers
    with torch.no_grad(), without_tf32():
        linear = nn.Sequential(*list(network)[:-2]), nn.Sequential(*list(c.model)[:-2])  # before the GELU
        assert torch.equal(linear[0](x), linear[1](x))


def test_a_fault_of_one_unit_in_the_last_place_is_caught_on_the_gpu() -> None:
    network = on_gpu(tuned.tokens())
    x = to_gpu(torch.randn(2, 4, 8))
    c = onebyone.convert(network, to="conv", copy=True)
    with torch.no_grad():
        weight = next(p for p in c.model.parameters() if p.dim() > 1)
        flat = weight.view(-1)
        flat[0] = torch.nextafter(flat[0], torch.full_like(flat[0], 9.0))
    assert not onebyone.verify(network, c, x).equivalent


def test_proofs_are_computed_without_tf32() -> None:
    """With PyTorch's defaults a convolution rounds its inputs to TF32 and a linear layer does not."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(512, 512)).to(DEVICE), torch.randn(512, 512).to(DEVICE)
    c = onebyone.convert(network, to="conv", copy=True)
    with torch.no_grad():
        correct = copy.deepcopy(network).double()(x.double())
        linear, conv = (
            (m(x).double() - correct).abs().max() / correct.abs().max() for m in (network, c.model)
        )
    print(f"error relative to the largest output: linear {float(linear):.1e}, convolution {float(conv):.1e}")
    assert float(conv) > 50 * float(linear)
    proof = onebyone.verify(network, c, x)
    assert proof.equivalent
    assert any("convolutions on this GPU round their inputs to TF32" in w for w in proof.warnings)
    with without_tf32():
        assert not onebyone.verify(network, c, x).warnings
    assert proof.max_error is not None
    assert proof.max_error / float(correct.abs().max()) < 100 * unit_roundoff("float32")


# ---------------------------------------------------------------- any size


@pytest.mark.parametrize("name", EXACT)
def test_any_size_equals_every_window_on_the_gpu(name: str) -> None:
    build, window, channels = EXACT[name]
    if name in MAKE_CONSTANTS_ON_THE_PROCESSOR - {"channels by a list"}:
        pytest.skip("the network makes constants on the processor, and does not run there itself")
    model = on_gpu(randomise(build()).double())
    d = onebyone.convolutionalize(model, window=window, channels=channels)
    assert d.geometry.exact
    image = image_for(d).to(DEVICE)
    with torch.no_grad():
        dense, crops = d.model(image), every_window(model, d, image)
    assert dense.device.type == DEVICE
    assert float((dense - crops).abs().max()) < ROUNDING


@pytest.mark.parametrize("name", ["lenet with batch norms", "dilation and stride", "channel shuffle"])
def test_any_size_is_verified_on_the_gpu(name: str) -> None:
    build, window, channels = EXACT[name]
    model = on_gpu(randomise(build()))
    d = onebyone.convolutionalize(model, window=window, channels=channels)
    proof = onebyone.verify(model, d)
    assert proof.equivalent, proof.problems
    other = randomise(copy.deepcopy(model).cpu(), seed=1).to(DEVICE)
    assert not onebyone.verify(other, d).equivalent


# ---------------------------------------------------------------- scans


@pytest.mark.parametrize(
    "options", [{}, {"batch": 3, "tile": 4}, {"stride": 2}, {"tile": (3, 5), "channels_last": True}]
)
def test_scans_give_the_processors_numbers(options: dict[str, Any]) -> None:
    net, image = scanned.exact_net(), scanned.integer_image(90, 70)
    here, gpu = onebyone.scan(net, image, **options), onebyone.scan(net, image, device=DEVICE, **options)
    np.testing.assert_array_equal(gpu.scores, here.scores)
    assert gpu.device.startswith(DEVICE)
    assert next(net.model.parameters()).device.type == "cpu"


def test_scans_to_a_file(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    net, image = scanned.exact_net(), scanned.integer_image(90, 70)
    stored = onebyone.scan(net, image, device=DEVICE, out=tmp_path / "scores.zarr", tile=8)
    np.testing.assert_array_equal(np.asarray(stored.scores), onebyone.scan(net, image).scores)


def test_every_window_gives_the_same_numbers() -> None:
    net, image = scanned.exact_net(), scanned.integer_image(60, 50)
    crops = scan_windows(net.model, image, net.geometry, labels=net.labels, device=DEVICE)
    np.testing.assert_array_equal(crops.scores, onebyone.scan(net, image, device=DEVICE).scores)


def test_pixels_are_normalised_as_on_the_processor() -> None:
    """A window of one pixel: the scores are the normalised pixels themselves."""
    net = scanned.corner_net(1, 1)
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 2), dtype=np.uint8)
    labels = Labels(scale=1 / 255, mean=(0.485, 0.456), std=(0.229, 0.224))
    with without_tf32():
        here, gpu = (onebyone.scan(net, image, labels=labels, device=d).scores for d in ("cpu", DEVICE))
    np.testing.assert_array_equal(gpu, here)


@pytest.mark.parametrize("where", ["cpu", DEVICE])
def test_a_scan_in_a_tuned_form(where: str) -> None:
    net, image = scanned.exact_net(), scanned.integer_image(90, 70)
    expected = onebyone.scan(net, image).scores
    net.model.to(where)
    scores = onebyone.scan(net, image, device=DEVICE, tune=True, tile=4)
    np.testing.assert_allclose(scores.scores, expected)
    assert next(net.model.parameters()).device.type == where


def test_a_network_on_the_gpu_is_scanned_on_the_gpu() -> None:
    net, image = scanned.exact_net(), scanned.integer_image(60, 50)
    expected = onebyone.scan(net, image).scores
    net.model.to(DEVICE)
    np.testing.assert_array_equal(onebyone.scan(net, image, device=DEVICE).scores, expected)
    np.testing.assert_array_equal(onebyone.scan(net, image, device="cpu").scores, expected)


def test_boxes_and_pictures_in_one_step() -> None:
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    labels = Labels(scale=1 / 255)
    options: dict[str, Any] = {"window": 16, "labels": labels, "threshold": 0.21}
    model = plain().eval()
    with without_tf32():
        here, gpu = (onebyone.predict(model, image, device=d, **options) for d in ("cpu", DEVICE))
    assert [len(p.detections) for p in here] == [len(p.detections) for p in gpu]
    assert len(here[0].detections) > 0


# ---------------------------------------------------------------- tuning and evidence


def test_tuned_on_the_gpu_and_the_plan_applied_again(tmp_path: Path) -> None:
    network, x = on_gpu(tuned.images()), torch.randn(2, 3, 8, 8).to(DEVICE)
    t = onebyone.tune(network, x, engines=["eager", "compile"], budget=10.0, dtypes="bfloat16")
    assert t.plan.device.startswith(DEVICE)
    assert {c["engine"] for c in t.plan.candidates if c["refused"] is None} >= {"eager"}
    assert not any(c["engine"] == "onebyone" for c in t.plan.candidates if c["refused"] is None)
    t.save(tmp_path / "plan.json")
    again = onebyone.tune(network, x, plan=tmp_path / "plan.json")
    with torch.no_grad():
        torch.testing.assert_close(again.model(x).float(), t.model(x).float(), rtol=1e-2, atol=1e-2)
    with pytest.raises((Refused, BadInput)):
        onebyone.tune(copy.deepcopy(network).cpu(), x.cpu(), plan=tmp_path / "plan.json")


def test_every_engine_gives_a_result_or_a_reason() -> None:
    network, x = on_gpu(tuned.tokens()), torch.randn(2, 4, 8).to(DEVICE)
    t = onebyone.tune(network, x, budget=5.0)
    by_engine = {c["engine"]: c["refused"] for c in t.plan.candidates if c["form"] == "original"}
    print(json.dumps(by_engine, indent=1))
    assert by_engine["eager"] is None
    for name in ("onednn-graph", "onebyone", "openvino"):
        assert by_engine.get(name, "not run") is not None
    assert str(t)


def test_evidence_from_a_network_on_the_gpu() -> None:
    network, x = tuned.images().eval(), torch.randn(2, 3, 8, 8)
    here = onebyone.compare(network, x, budget=5.0)
    gpu = onebyone.compare(on_gpu(network), x.to(DEVICE), budget=5.0)
    missing = {row.id: row.because for row in gpu.rows if "not available" in row.verdict}
    print(json.dumps(missing, indent=1))
    assert [r.id for r in gpu.rows] == [r.id for r in here.rows]
    assert missing.keys() <= {row.id for row in here.rows if "not available" in row.verdict}
    decided = ("E1", "E2", "D1", "D2", "D4")
    verdicts = {r.id: r.verdict for r in here.rows}
    assert {r.id: r.verdict for r in gpu.rows if r.id in decided} == {
        k: v for k, v in verdicts.items() if k in decided
    }


def test_drawings_of_a_network_on_the_gpu() -> None:
    network = on_gpu(tuned.images())
    assert onebyone.draw(network, torch.randn(1, 3, 8, 8).to(DEVICE), figures=["F1"])


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)).save(
        tmp_path / "i.png"
    )
    arguments = ["predict", "tests.cli.networks:plain", str(tmp_path / "i.png"), "--window", "16"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InexactWarning)
        result = CliRunner().invoke(app, [*arguments, "--device", DEVICE, "--json"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, [*arguments, "--device", f"{DEVICE}:99"])
    assert result.exit_code in (2, 3)
    assert "cannot be used here" in " ".join(result.output.split())
