"""Small parts of the verifier: names of gradients, programs that are kept as they are, and verdicts."""

from __future__ import annotations

import copy
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone import verification
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.records import LEAST_AGREEMENT
from onebyone.verification import any_size_checks, verifier, verify
from onebyone.verification.any_size_checks import _gradient_map
from onebyone.verification.channel_axis import WithoutChannels
from onebyone.verification.end_to_end import compare_networks
from onebyone.verification.network_run import Runner, observe
from onebyone.verification.onnx_any_size import verify_onnx_any_size
from onebyone.verification.onnx_models import verify_onnx
from onebyone.verification.result import LayerCheck, Verification, _layer_row
from onebyone.verification.running_error import RunningError
from tests.verification.standins import swap


def test_gradients_have_the_names_of_the_original() -> None:
    """A network that is called without a channel axis is one level deeper; a class map's is one level higher."""
    bare: Any = SimpleNamespace(classifier=WithoutChannels(nn.Linear(3, 2)), class_map=None)
    plain: Any = SimpleNamespace(classifier=nn.Linear(3, 2), class_map=None)
    with_map: Any = SimpleNamespace(classifier=nn.Linear(3, 2), class_map=object())
    gradient = torch.ones(1)
    rename = _gradient_map(bare, nonlinear=False)
    assert rename is not None
    assert rename({"fc.weight": gradient}) == {"network.fc.weight": gradient}
    assert _gradient_map(plain, nonlinear=False) is None
    assert _gradient_map(with_map, nonlinear=True) is None
    rename = _gradient_map(with_map, nonlinear=False)
    assert rename is not None
    assert rename({"map.fc.weight": gradient}) == {"fc.weight": gradient}


def test_a_program_whose_operators_all_have_rules_is_analysed_as_it_is() -> None:
    """Decomposing a linear layer into a transpose and addmm would only add steps."""
    analysis = RunningError(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.ones(1, 3))
    targets = [node.target for node in analysis.program.graph.nodes if node.op == "call_function"]
    assert targets == [torch.ops.aten.linear.default, torch.ops.aten.relu.default]


def test_a_layer_that_failed_does_not_look_like_one_that_passed() -> None:
    rows = [
        _layer_row(LayerCheck("fc", "Linear", ok=ok, why=why)) for ok, why in ((True, ""), (False, "reason"))
    ]
    verdicts = [row[-1] for row in rows]
    assert verdicts[0] == "ok"
    assert verdicts[1].startswith("FAILS")
    assert verdicts[1].endswith("reason")


def test_the_table_of_layers_names_each_column() -> None:
    page = Verification(True, "a target", layers=(LayerCheck("fc", "Linear"),))._repr_html_()
    headers = ["layer", "kind", "integers", "|Δ|", "bound", "smallest injected fault", "verdict"]
    assert all(f">{header}<" in page for header in headers)
    assert len(headers) == len(_layer_row(LayerCheck("fc", "Linear")))


def test_gradients_are_compared_unless_told() -> None:
    runner = Runner(nn.Linear(2, 2), torch.ones(1, 2), 0)
    compared = compare_networks(runner, runner)
    assert compared.gradients is not None
    assert compared.gradients.compared == 3
    assert compare_networks(runner, runner, gradients=False).gradients is None


def test_all_verifiers_have_the_same_defaults() -> None:
    expected = {
        "seed": 0,
        "max_windows": 4096,
        "min_agreement": LEAST_AGREEMENT,
        "progress": None,
        "gradients": True,
    }
    for function in (verify, verify_onnx, verify_onnx_any_size):
        parameters = inspect.signature(function).parameters
        defaults = {name: parameters[name].default for name in expected if name in parameters}
        assert defaults == {name: expected[name] for name in defaults}
        assert {"seed", "progress"} <= defaults.keys()
    assert all(hasattr(verification, name) for name in verification.__all__)


def test_each_layer_is_probed_with_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that two equal layers are not probed with equal numbers; progress is reported after each."""
    seeds: list[int] = []
    steps: list[tuple[int, int]] = []

    def layer(functions: Any, x: Any, seed: int) -> LayerCheck:
        seeds.append(seed)
        return LayerCheck(functions.path, "Linear", bitwise=True)

    def window(pair: Any, seed: int) -> LayerCheck:
        seeds.append(seed)
        return LayerCheck(pair.path, "Linear", bitwise=True)

    monkeypatch.setattr(verifier, "check_layer", layer)
    monkeypatch.setattr(any_size_checks, "check_window_pair", window)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    for converted, more in ((swap(net), {}), (convolutionalize(net, window=(4, 4)), {"gradients": False})):
        for seed in (0, 5):
            seeds.clear()
            steps.clear()
            v = verify(net, converted, seed=seed, progress=lambda *step: steps.append(step), **more)
            assert v.equivalent, str(v)
            assert seeds == [seed + 1, seed + 2]
            assert steps[:2] == [(1, 2), (2, 2)]


def test_a_run_has_no_gradients_unless_told() -> None:
    plain = observe(Runner(nn.Linear(2, 2), torch.ones(1, 2), 0))
    assert (plain.gradients, plain.no_gradients, plain.error) == ({}, "", "")
    assert plain.outputs[0][1].requires_grad is False


def test_both_networks_run_in_eval_mode_and_keep_their_own() -> None:
    """Dropout in a converted network that is in training mode drops nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval()
    x = torch.randn(3, 4)
    for other in (copy.deepcopy(net).train(), swap(net)):
        after = other if isinstance(other, nn.Module) else other.model
        after.train()
        assert verify(net, other, x).equivalent
        assert (net.training, after.training, after[1].training) == (False, True, True)


def test_every_measurement_is_passed_on() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 3)).eval()
    for converted, x in (
        (swap(net), torch.randn(2, 1, 4, 4)),
        (convolutionalize(net, window=(4, 4)), torch.randn(1, 1, 6, 7)),
        (copy.deepcopy(net), torch.randn(2, 1, 4, 4)),
    ):
        v = verify(net, converted, x)
        assert v.equivalent
        assert v.float64_error is not None
        assert v.float64_limit is not None
        assert v.float64_error < v.float64_limit < 1e-6
        assert v.max_error is not None
        assert v.max_error < 1e-4
        assert v.rounding_ratio is not None
        assert v.rounding_ratio < 90
        assert v.gradients is not None
        assert v.gradients.ok
        assert (v.dense is not None) == v.target.startswith("dense")
        assert bool(v.layers) == (v.weights is not None)


def test_a_layer_that_fails_is_a_result_with_the_error() -> None:
    net = nn.Sequential(nn.Linear(3, 2)).eval()

    class Failing(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.weight, self.bias = linear.weight, linear.bias

        def forward(self, x: Any) -> Any:
            raise TypeError("no such kernel")

    v = verify(net, swap(net, Failing))
    assert not v.equivalent
    (layer,) = v.layers
    assert (layer.path, layer.kind, layer.ok, layer.why) == (
        "0",
        "Linear",
        False,
        "TypeError: no such kernel",
    )
    assert v.first_difference == "0"


def test_a_converted_module_that_rounds_inside_is_no_excuse() -> None:
    """Only of a function, which need not accept float64, is the comparison in float64 left out."""

    class Rounds(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x).to(torch.float32).to(x.dtype)

    torch.manual_seed(0)
    original, x = nn.Linear(30, 20), torch.randn(5, 30)
    rounds = Rounds(original)
    check = compare_networks(Runner(original, x, 0), Runner(rounds, x, 0)).check
    (problem,) = check.problems
    assert problem.startswith("the output differs by ")
    assert " in float64, limit " in problem
    of_function = compare_networks(Runner(original, x, 0), Runner(lambda x: rounds(x), x, 0)).check
    assert of_function.problems == []
    (note,) = of_function.unverified
    assert note.startswith("gradients, rounding_ratio: no float64 reference (RuntimeError: ")


def test_a_network_that_cannot_be_copied_is_compared_in_its_own_type_with_the_reason() -> None:
    class Unique(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is only one\nof it")

    network, x = Unique(3, 2), torch.ones(1, 3)
    outcome = compare_networks(Runner(network, x, 0), Runner(network, x, 0))
    assert outcome.runs is None
    assert outcome.check.problems == []
    assert outcome.check.unverified == [
        "gradients, rounding_ratio: no float64 reference (TypeError: there is only one); "
        "outputs compared in their own dtype"
    ]


def test_a_tied_weight_that_a_converted_layer_stores_in_another_shape_is_compared_and_noted() -> None:
    """Without a map between state dicts: the paths of the converted layers tell which weights have other shapes."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    after = nn.Sequential(model[0], nn.Conv2d(3, 3, 1, bias=False))
    with torch.no_grad():
        after[1].weight.copy_(model[1].weight[..., None, None])
    pair = SimpleNamespace(path="1", original=model[1], converted=after[1])
    conversion = SimpleNamespace(pairs=[pair], state_dict_to_original=None, state_dict_from_original=None)
    findings = verifier._check_structure(model, after, conversion)  # type: ignore[arg-type]
    assert findings.problems == []
    assert findings.unverified == ["the weight tied under 0.weight, 1.weight is no longer one parameter"]
    assert findings.weights is not None
    assert findings.weights.ok
    with torch.no_grad():
        after[1].weight[0, 0] += 1
    assert not verifier._check_structure(model, after, conversion).weights.ok  # type: ignore[arg-type, union-attr]
