"""`tune` end to end in eager mode: its result, what it must not change, and its errors."""

from __future__ import annotations

import copy
import inspect
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import onebyone
from onebyone.errors import BadInput
from onebyone.tuning import Tuned
from onebyone.tuning.layer_forms import layer_forms
from tests.tuning import networks
from tests.tuning.conftest import BUDGET, close, tuned


def test_the_model_computes_the_network(made: tuple[nn.Module, Tensor, Tuned]) -> None:
    network, x, t = made
    close(t.model(x), copy.deepcopy(network).eval()(x))
    y = torch.randn(2, 3, 8, 8)
    close(t.model(y), copy.deepcopy(network).eval()(y))


def test_the_plan_is_complete(made: tuple[nn.Module, Tensor, Tuned]) -> None:
    network, _, t = made
    data = json.loads(t.plan.to_json())
    keys = "format machine versions network inputs threads candidates choice why layers peak_gflops disturbed seconds"
    assert set(keys.split()) <= set(data)
    names = [c["name"] for c in data["candidates"]]
    assert "eager:original" in names
    assert "eager:linear+channels_last" in names
    for c in data["candidates"]:
        assert {
            "name",
            "engine",
            "form",
            "median_ms",
            "spread_ms",
            "runs",
            "rounding_ratio",
            "refused",
        } <= set(c)
        assert (c["median_ms"] is None) == (c["refused"] is not None)
    assert [layer["paths"] for layer in data["layers"]] == [["0"], ["2"], ["4"], ["7"], ["9"]]
    for layer in data["layers"]:
        assert layer["chosen"] in [f.name for f in layer_forms(layer["kind"])]
        assert all(f["median_ms"] > 0 and f["predicted_rank"] >= 1 for f in layer["forms"])
    assert data["network"]["parameters"] == sum(p.numel() for p in network.parameters())
    assert data["inputs"] == [{"path": "input", "shape": [2, 3, 8, 8], "dtype": "float32"}]
    assert data["peak_gflops"] > 0


def test_the_choice_is_not_slower_than_the_original(made: tuple[nn.Module, Tensor, Tuned]) -> None:
    plan = made[2].plan
    chosen = [c for c in plan.candidates if c["name"] == plan.choice["name"]]
    base = next(c for c in plan.candidates if c["name"] == "eager:original")
    assert len(chosen) == 1
    assert chosen[0]["median_ms"] <= base["median_ms"]
    assert chosen[0]["refused"] is None


def test_it_prints(made: tuple[nn.Module, Tensor, Tuned]) -> None:
    text, page = str(made[2]), made[2]._repr_html_()
    assert text.startswith(made[2].plan.why)
    assert "eager:original" in text
    assert "GFLOP/s" in text
    assert page.startswith("<div>")
    assert "<table>" in page


def test_the_network_input_and_random_state_are_not_changed() -> None:
    network, x = networks.images().train(), torch.randn(1, 3, 8, 8)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    layouts = [p.stride() for p in network.parameters()]
    random, threads, kept = torch.random.get_rng_state(), torch.get_num_threads(), x.clone()
    tuned(network, x, threads=threads + 1)
    assert all(m.training for m in network.modules())
    assert [p.stride() for p in network.parameters()] == layouts
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert torch.equal(x, kept)
    assert not any(m._forward_hooks for m in network.modules())


def test_results_are_ordinary_tensors(made: tuple[nn.Module, Tensor, Tuned]) -> None:
    _, x, t = made
    y = t.model(x)
    assert not y.is_inference()
    assert not y.requires_grad
    y.add_(1)  # not so with a tensor of inference mode
    assert torch.equal(y - 1, t.model(x)) or torch.allclose(y - 1, t.model(x))


def test_the_model_is_called_like_the_original() -> None:
    network = networks.TwoInputs()
    x, scale = torch.randn(3, 6), torch.rand(4)
    t = tuned(network, {"x": x, "scale": scale})
    assert inspect.signature(t.model) == inspect.signature(network.forward)
    close(t.model(x, scale=scale), network(x, scale=scale))
    close(t.model(scale=scale, x=x), network(x, scale=scale))


def test_without_the_optional_input() -> None:
    network, x = networks.TwoInputs(), torch.randn(3, 6)
    t = tuned(network, x)
    close(t.model(x), network(x))
    assert isinstance(t.model(x), tuple)


def test_named_tuples_and_token_ids() -> None:
    network, ids = networks.Named(), torch.randint(11, (2, 5))
    t = tuned(network, ids)
    assert isinstance(t.model(ids), networks.Answer)
    close(t.model(ids), network(ids))


def test_a_network_without_any_layer() -> None:
    t = tuned(nn.Sequential(nn.ReLU(), nn.Flatten()), torch.randn(2, 3, 4))
    assert t.plan.layers == ()
    assert t.plan.choice["form"] == "original"


@pytest.mark.usefixtures("ample")
def test_an_exported_program() -> None:
    network, x = networks.tokens().eval(), torch.randn(2, 4, 8)
    t = onebyone.tune(torch.export.export(network, (x,)), engines="eager", budget=BUDGET)
    close(t.model(x), network(x))
    refused = {c["form"]: c["refused"] for c in t.plan.candidates}
    assert refused["conv"] == "an exported program has no modules that could be replaced"
    assert refused["graph-conv"] is None
    with pytest.raises(BadInput, match="1×4×8"):
        t.model(x[:1])


def test_the_model_stays_in_eval_mode_on_its_device(made: tuple[nn.Module, Tensor, Tuned]) -> None:
    t = made[2]
    assert t.model.eval() is t.model
    assert not any(m.training for m in t.model.modules())
    with pytest.raises(BadInput, match="for inference only"):
        t.model.train()
    with pytest.raises(BadInput, match="keeps the device"):
        t.model.double()


@pytest.mark.usefixtures("ample")
def test_wrong_candidates_are_never_chosen_even_if_they_are_the_fastest() -> None:
    network, x = networks.tokens(8), torch.randn(4, 16, 8)
    with networks.registered(
        networks.engine("constant", networks.constant), networks.engine("off", networks.slightly_off)
    ):
        t = tuned(network, x, engines=["constant", "off", "eager"])
    assert t.plan.choice["engine"] == "eager"
    for name in ("constant:original", "off:original"):
        (found,) = [c for c in t.plan.candidates if c["name"] == name]
        assert found["refused"].startswith("not equivalent: the output has ")
        assert found["rounding_ratio"] > 90
        assert found["median_ms"] is None


def test_forms_that_differ_in_float64_are_detected_by_verification() -> None:
    """The error is within the rounding of float32, so that a comparison of float32 outputs would not detect it."""
    from onebyone.tuning import network_forms

    class Biased(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.network(x)
            return y * (1 + 2.0**-22)  # within the rounding of float32, far beyond that of float64

    def build(target: Any, _: Any) -> network_forms.FormedNetwork:
        return network_forms.FormedNetwork(Biased(target.network).eval())

    from onebyone.tuning.target import target_of
    from onebyone.tuning.tune import verify_form

    target = target_of(networks.tokens(), torch.randn(2, 4, 8))
    proof = verify_form(target, build(target, {}), 0)
    assert not proof.equivalent
    assert verify_form(target, network_forms.network_form("conv").build(target, {}), 0).equivalent


@pytest.mark.usefixtures("ample")
def test_an_engine_that_cannot_serve_is_refused_with_its_reason() -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no such operator: sparkle\nTraceback …")

    with networks.registered(
        networks.engine("broken", fail),
        networks.engine("absent", fail, why_unavailable=lambda s: "not installed"),
    ):
        t = tuned(networks.tokens(), torch.randn(1, 4, 8), engines=["broken", "absent"])
    reasons = {c["name"]: c["refused"] for c in t.plan.candidates}
    assert reasons["broken:original"] == "RuntimeError: no such operator: sparkle"
    assert reasons["absent:original"] == "not installed"
    assert t.plan.choice["engine"] == "eager"


@pytest.mark.usefixtures("ample")
def test_bfloat16_is_tried_only_if_requested_and_its_error_recorded() -> None:
    network, x = networks.images(), torch.randn(2, 3, 8, 8)
    assert all(c["dtype"] is None for c in tuned(network, x).plan.candidates)
    t = tuned(network, x, dtypes="bfloat16")
    short = [c for c in t.plan.candidates if c["dtype"] == "bfloat16" and c["refused"] is None]
    assert short
    assert all(c["max_error"] > 1e-5 for c in short)
    assert t.model(x).dtype == torch.float32


@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch(batch: int) -> None:
    network = networks.tokens().eval()
    t = tuned(network, torch.randn(batch, 4, 8), dynamic_batch=True)
    for n in (1, 2, 5):
        x = torch.randn(n, 4, 8)
        close(t.model(x), network(x))
    assert t.plan.dynamic_batch


def test_output_maps_have_the_original_s_memory_format() -> None:
    """Code that takes views of the outputs must keep working."""
    from onebyone.tuning.network_forms import network_form
    from onebyone.tuning.target import target_of

    network, x = networks.images()[:3].eval(), torch.randn(2, 3, 8, 8)  # type: ignore[index]
    formed = network_form("original+channels_last").build(target_of(network, x), {})
    y = formed.network(x)
    assert y.stride() == network(x).stride()
    close(y, network(x))


def test_nondeterministic_networks_are_an_error() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(BadInput, match="model: is nondeterministic"):
        tuned(Noisy(), torch.randn(2, 3))


def test_progress_is_reported() -> None:
    progress: list[tuple[int, int]] = []
    t = tuned(networks.tokens(), torch.randn(1, 4, 8), progress=lambda done, of: progress.append((done, of)))
    assert progress
    assert all(1 <= done <= of for done, of in progress)
    assert t.plan.seconds > 0


# invalid arguments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 0}, "budget=0: expected a positive number of seconds"),
        ({"budget": float("nan")}, "budget=nan"),
        ({"budget": "long"}, "budget='long'"),
        ({"engines": "warp"}, "engines='warp': expected some of eager, compile, compile\\+freeze"),
        ({"engines": []}, "engines="),
        ({"dtypes": "float16"}, "dtypes='float16': expected 'bfloat16'"),
        ({"threads": 0}, "threads=0: expected a positive integer"),
        ({"threads": 1.5}, "threads=1.5"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"device": "meta"}, "device='meta': expected 'cpu'"),
        ({"plan": "nowhere.json"}, "cannot read nowhere.json"),
    ],
)
def test_bad_input(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        tuned(networks.tokens(), torch.randn(1, 4, 8), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda() -> None:
    with pytest.raises(BadInput, match="PyTorch finds no CUDA device"):
        tuned(networks.tokens(), torch.randn(1, 4, 8), device="cuda")


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (None, "example: is missing"),
        (torch.randn(1, 4, 9), "the network does not run on it: Given normalized_shape"),
        ((torch.randn(1, 4, 8),) * 2, "does not fit the network's forward"),
        ((), "does not fit the network's forward"),
        (3, "expected at least one tensor, got int"),
    ],
)
def test_bad_examples(example: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        tuned(networks.tokens(), example)


def test_no_common_batch() -> None:
    network = networks.TwoInputs()
    with pytest.raises(BadInput, match="expected inputs with a common first axis"):
        tuned(network, {"x": torch.randn(3, 6), "scale": torch.rand(4)}, dynamic_batch=True)


def test_weights_without_values() -> None:
    with pytest.raises(BadInput, match="meta device"):
        tuned(nn.Linear(3, 2, device="meta"), torch.randn(1, 3))


@pytest.mark.filterwarnings("ignore:.*sparse:UserWarning")
@pytest.mark.parametrize("kind", ["sparse", "sparse_csr", "meta", "lazy"])
def test_weights_that_are_not_dense(kind: str) -> None:
    """One such parameter or buffer is enough."""
    network = networks.tokens()
    if kind == "lazy":
        network.add_module("more", nn.LazyLinear(3))
    else:
        odd = torch.eye(3, device="meta") if kind == "meta" else torch.eye(3).to_sparse()
        network.register_buffer("table", odd.to_sparse_csr() if kind == "sparse_csr" else odd)
    words = {"lazy": "has no shape yet", "meta": "table is on the meta device"}
    with pytest.raises(BadInput, match=words.get(kind, f"table is {kind}(_coo)?; expected dense weights")):
        tuned(network, torch.randn(2, 5, 8))
