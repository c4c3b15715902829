"""Engines: each returns the outputs of the network in their structure, or is refused with a reason."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import onebyone
from onebyone.errors import BadInput
from onebyone.tuning.accuracy import AccuracyChecker
from onebyone.tuning.call_signature import CallSignature
from onebyone.tuning.engines import EngineSettings, engine_named, engines_named
from onebyone.tuning.engines.torch_compile import unshared_function
from onebyone.tuning.time_budget import Budget
from onebyone.tuning.tuned_model import TunedModel
from tests.tuning import networks

CPU = EngineSettings(torch.device("cpu"), 1)
OUTSIDE = ("onnxruntime", "openvino")


def model(
    name: str, network: nn.Module, example: Any, setting: EngineSettings = CPU
) -> tuple[TunedModel, CallSignature]:
    calling = CallSignature.of(network.eval(), example, setting.dynamic_batch)
    engine = engine_named(name)
    reason = engine.why_unavailable(setting)
    if reason:
        pytest.skip(reason)
    return TunedModel(network, engine.build(network, calling, setting), calling, engine.fixed_shapes), calling


def agree(name: str, network: nn.Module, example: Any, setting: EngineSettings = CPU) -> TunedModel:
    built, calling = model(name, network, example, setting)
    check = AccuracyChecker(network, calling).check(built)
    assert check.problem == ""
    assert check.rounding_ratio is not None
    assert check.rounding_ratio < 20
    return built


@cache
def image_model(name: str) -> TunedModel:
    """A network of images on an engine, built and checked once for all tests."""
    return agree(name, networks.images(), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("name", OUTSIDE)
def test_images(name: str) -> None:
    built = image_model(name)
    with pytest.raises(BadInput, match="3×3×8×8 where the example has a float32 tensor of 2×3×8×8"):
        built(torch.randn(3, 3, 8, 8))
    with pytest.raises(BadInput, match="float64 tensor"):
        built(torch.randn(2, 3, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("name", OUTSIDE)
def test_nested_outputs_and_named_inputs(name: str) -> None:
    network, x, scale = networks.TwoInputs(), torch.randn(3, 6), torch.rand(4)
    built = agree(name, network, {"scale": scale, "x": x})
    out = built(x, scale=scale)
    assert isinstance(out, tuple)
    assert set(out[1]) == {"product", "scaled"}
    torch.testing.assert_close(built(scale=scale + 1, x=x + 1), network(x + 1, scale=scale + 1))
    with pytest.raises(BadInput, match=r"structure|where the example has"):
        built(x)


@pytest.mark.parametrize("name", OUTSIDE)
def test_token_ids_and_a_named_tuple(name: str) -> None:
    built = agree(name, networks.Named(), torch.randint(11, (2, 5)))
    assert isinstance(built(torch.zeros(2, 5, dtype=torch.int64)), networks.Answer)


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("batch", [1, 2])
def test_any_batch(name: str, batch: int) -> None:
    setting = EngineSettings(torch.device("cpu"), 1, dynamic_batch=True)
    network = networks.images()
    built = agree(name, network, torch.randn(batch, 3, 8, 8), setting)
    for n in (1, 4):
        x = torch.randn(n, 3, 8, 8)
        torch.testing.assert_close(built(x), network(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match="takes any batch"):
        built(torch.randn(1, 3, 9, 8))


@pytest.mark.parametrize("name", OUTSIDE)
def test_results_do_not_change_with_the_next_call(name: str) -> None:
    built, _ = model(name, networks.tokens(), torch.randn(1, 4, 8))
    first = built(torch.randn(1, 4, 8))
    kept = first.clone()
    built(torch.randn(1, 4, 8))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("name", OUTSIDE)
def test_inputs_in_other_layouts(name: str) -> None:
    built = image_model(name)
    x = torch.randn(2, 3, 8, 8)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(built(last), built(x), rtol=0, atol=0)
    torch.testing.assert_close(built(last.requires_grad_()), built(x), rtol=0, atol=0)


def test_what_cannot_be_exported_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "allows", lambda self, kind: True)

    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    t = onebyone.tune(Branches(), torch.ones(1, 3), engines=OUTSIDE, budget=0.3)
    reasons = {c["engine"]: c["refused"] for c in t.plan.candidates if c["form"] == "original"}
    for name in OUTSIDE:
        assert reasons[name]
        assert "\n" not in reasons[name]
    assert t.plan.choice["engine"] == "eager"


@pytest.mark.parametrize("name", OUTSIDE)
def test_outputs_that_are_not_tensors_are_refused(name: str) -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            return x + 1, x.shape[0]

    with pytest.raises(Exception, match="its output contains a int; expected tensors only"):
        model(name, Counts(), torch.ones(1, 3))


def test_the_names_of_engines() -> None:
    assert [e.name for e in engines_named("torch")] == [
        "eager",
        "compile",
        "compile+freeze",
        "aot-inductor",
        "onednn-graph",
        "onebyone",
    ]
    assert [e.name for e in engines_named(None)] == [e.name for e in engines_named("all")]
    assert [e.name for e in engines_named(["openvino", "eager"])] == ["openvino", "eager"]


def test_libraries_are_imported_only_when_used() -> None:
    import subprocess

    code = (
        "import sys, onebyone.tuning; "
        "print([m for m in ('onnxruntime', 'openvino', 'onnx', 'torch._inductor') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_library_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from onebyone.tuning.engines import base

    monkeypatch.setattr(base, "find_spec", lambda name: None)
    for name in OUTSIDE:
        reason = engine_named(name).why_unavailable(CPU)
        assert reason is not None
        assert "is not installed: pip install 'onebyone[engines]'" in reason


def test_candidates_of_torch_compile_share_no_code_object() -> None:
    network = networks.tokens()
    one, two = unshared_function(network), unshared_function(network)
    assert one.__code__ is not two.__code__  # type: ignore[attr-defined]
    assert one.__code__ != two.__code__  # type: ignore[attr-defined]
    x = torch.randn(1, 4, 8)
    assert torch.equal(one(x), network(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compile", "compile+freeze"])
def test_compiled(name: str) -> None:
    import torch._dynamo.config
    import torch._inductor.config

    before = torch._inductor.config.freezing, torch._dynamo.config.recompile_limit
    built = agree(name, networks.tokens(), torch.randn(2, 4, 8))
    assert (torch._inductor.config.freezing, torch._dynamo.config.recompile_limit) == before
    network = built.network
    x = torch.randn(3, 4, 8)
    torch.testing.assert_close(built(x), network(x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_compiled_ahead_of_time() -> None:
    agree("aot-inductor", networks.tokens(), torch.randn(2, 4, 8))


def test_the_graph_of_onednn() -> None:
    """Fusion is on while it is built, and as it was afterwards."""
    before = torch.jit.onednn_fusion_enabled()
    agree("onednn-graph", networks.tokens(), torch.randn(2, 4, 8))
    agree("onednn-graph", networks.images(), torch.randn(2, 3, 8, 8))
    assert torch.jit.onednn_fusion_enabled() == before


def test_what_onednn_graph_does_not_support() -> None:
    with pytest.raises(Exception, match="it fuses float32 only"):
        model("onednn-graph", networks.tokens().double(), torch.randn(2, 4, 8).double())
    engine = engine_named("onednn-graph")
    assert engine.why_unavailable(EngineSettings(torch.device("cuda"), 1)) == "it does not run on cuda"
    assert "valid only for the shapes that it was made on" in str(
        engine.why_unavailable(EngineSettings(torch.device("cpu"), 1, True))
    )


@pytest.mark.slow
def test_many_forms_of_one_network_compile_side_by_side() -> None:
    """More than TorchDynamo keeps for one code object: none may fall back to eager mode."""
    from torch._dynamo.testing import CompileCounter

    x = torch.randn(1, 4, 8)
    network = networks.tokens(1).eval()
    counter = CompileCounter()
    for _ in range(10):
        compiled = torch.compile(unshared_function(network), backend=counter)
        with torch.inference_mode():
            compiled(x)
    assert counter.frame_count == 10


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["eager", "compile", "onnxruntime"])
def test_cuda(name: str) -> None:
    place = torch.device("cuda", 0)
    network = networks.images().to(place)
    agree(name, network, torch.randn(2, 3, 8, 8, device=place), EngineSettings(place, 1))


@pytest.mark.gpu
def test_tuning_on_cuda_leaves_the_network_where_it_is() -> None:
    network, x = networks.images(), torch.randn(2, 3, 8, 8)
    t = onebyone.tune(network, x, device="cuda", engines="eager", budget=2.0)
    assert all(p.device.type == "cpu" for p in network.parameters())
    assert t.model(x.cuda()).device.type == "cuda"
    assert t.plan.machine["gpu"]
    torch.testing.assert_close(t.model(x.cuda()).cpu(), network.eval()(x), rtol=1e-3, atol=1e-3)
