"""Layer groups, and the forms of single layers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from onebyone.errors import BadInput
from onebyone.laws import cost
from onebyone.laws.bounds import gamma
from onebyone.tuning.call_signature import CallSignature
from onebyone.tuning.clock import Timing
from onebyone.tuning.layer_forms import LayerForm, assigned, layer_forms, register_layer_form
from onebyone.tuning.layer_groups import group_layers
from onebyone.tuning.layer_times import (
    LayerTimes,
    layer_call,
    measure_group,
    measure_groups,
    peak_gflops,
    ranking_of,
    work_of,
)
from onebyone.verification import verify
from tests.tuning import networks
from tests.tuning.simulated_clock import Time, clock


def groups(network: nn.Module, *shape: int) -> dict[str, object]:
    x = torch.randn(*shape)
    return {g.pattern: g for g in group_layers(network.eval(), CallSignature.of(network, x))}


def test_identical_layers_form_one_group() -> None:
    found = group_layers(networks.tokens().eval(), CallSignature.of(networks.tokens(), torch.randn(2, 5, 8)))
    assert [(g.pattern, g.paths, g.calls) for g in found] == [
        ("*.fc1", ("0.fc1", "1.fc1", "2.fc1"), 3),
        ("*.fc2", ("0.fc2", "1.fc2", "2.fc2"), 3),
        ("*", ("3",), 1),
    ]
    assert all(g.kind == "linear" and g.convertible for g in found)
    assert tuple(found[0].sample.shape) == (2, 5, 8)


def test_costs_equal_those_of_the_cost_model() -> None:
    from onebyone.laws.geometry import Sliding

    found = list(
        group_layers(networks.images().eval(), CallSignature.of(networks.images(), torch.randn(2, 3, 9, 9)))
    )
    assert [g.kind for g in found] == ["kernel", "conv", "conv", "linear", "linear"]
    ops = [Sliding(3, pad_before=1, pad_after=1)] * 2
    assert found[0].cost == cost.convolution(2, 3, 8, ops, (9, 9))
    assert found[1].cost == cost.pointwise(2, 8, 16, (9, 9))
    assert found[3].cost == cost.linear(2, 32, 16)


def test_other_shapes_and_memory_formats_form_other_groups() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layers[0](x)
            x = self.layers[1](x.contiguous(memory_format=torch.channels_last))
            y: torch.Tensor = self.layers[2](x[:, :, ::2])
            return y

    found = group_layers(Net().eval(), CallSignature.of(Net(), torch.randn(1, 4, 6, 6)))
    assert [g.paths for g in found] == [("layers.0",), ("layers.1",), ("layers.2",)]
    assert [g.channels_last for g in found[:2]] == [False, True]


def test_a_layer_called_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.fc(self.fc(x))
            return y

    (group,) = group_layers(Twice().eval(), CallSignature.of(Twice(), torch.randn(3, 4)))
    assert (group.paths, group.calls, group.macs) == (("fc",), 2, 2 * 3 * 16)


CASES = [
    (nn.Linear(6, 5), (2, 3, 6)),
    (nn.Linear(6, 5, bias=False), (2, 3, 4, 6)),
    (nn.Linear(6, 5), (7, 6)),
    (nn.Conv2d(6, 5, 1), (2, 6, 4, 3)),
    (nn.Conv2d(6, 5, 1, stride=2, bias=False), (2, 6, 5, 3)),
    (nn.Conv2d(6, 4, 1, groups=2), (1, 6, 4, 3)),
    (nn.Conv2d(6, 5, 1, padding=1), (1, 6, 4, 3)),
    (nn.Conv1d(6, 5, 1), (2, 6, 4)),
    (nn.Conv2d(2, 5, (1, 3), stride=(1, 3)), (2, 2, 4, 7)),  # patches of six elements
    (nn.Conv3d(1, 5, (1, 2, 3), stride=(1, 2, 3)), (2, 1, 4, 5, 7)),
]


def test_convolutions_on_patches_may_be_linear() -> None:
    """Patch embeddings and strided stems have this form; kernels that overlap or pad do not."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4),
        nn.Conv2d(8, 8, 2, stride=2, groups=2),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
    ).eval()
    x = torch.randn(2, 3, 34, 33)
    found = group_layers(network, CallSignature.of(network, x))
    assert [(g.kind, g.convertible) for g in found] == [
        ("patches", True),
        ("kernel", False),
        ("kernel", False),
    ]
    assert [f.name for f in layer_forms("patches")] == ["conv", "conv-channels-last", "linear"]
    work = work_of(found[0], "linear")
    assert work is not None
    # 48 inputs and 8 outputs at 8 x 8 positions of two images; the map is copied once
    assert (work.path, work.macs, work.rows) == ("batched", 2 * 64 * 8 * 48, 2 * 64)
    assert work.copied == 2 * 4 * 2 * 3 * 34 * 33
    made = assigned(network, {"0": "linear"})
    assert type(made.model.get_submodule("0")).__name__ == "PatchLinear"
    verified = verify(network, made, x, gradients=False)
    assert verified.equivalent
    assert verified.layers[0].bitwise


@pytest.mark.parametrize(("layer", "shape"), CASES, ids=[f"{m} on {s}" for m, s in CASES])
@pytest.mark.parametrize("last", [False, True])
def test_every_form_computes_the_layer(layer: nn.Module, shape: tuple[int, ...], last: bool) -> None:
    """Compare with float64, within the error bound of a sum of products and a bias."""
    x = torch.randn(*shape)
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    network = nn.Sequential(layer).eval()
    (group,) = group_layers(network, CallSignature.of(network, x))
    with torch.no_grad():
        exact = nn.Sequential(layer).double()(x.double())
        layer.float()
        size = _absolute(layer, x)
        for form in layer_forms(group.kind):
            call = layer_call(group, form)
            if call is not None:
                error = (call().double() - exact).abs()
                assert bool((error <= gamma(8, 2.0**-24) * size).all()), form.name
                assert call().shape == exact.shape


def _absolute(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """|W||x| + |b|."""
    import copy

    positive = copy.deepcopy(layer).double()
    for p in positive.parameters():
        p.data = p.data.abs()
    out: torch.Tensor = positive(x.double().abs())
    return out + 1e-30


def test_assignments_are_verified_layer_by_layer() -> None:
    network, x = networks.images().eval(), torch.randn(2, 3, 8, 8)
    made = assigned(network, {"2": "linear", "4": "permute", "7": "conv", "9": "bmm"})
    names = [type(made.model.get_submodule(p)).__name__ for p in ("2", "4", "7", "9")]
    assert names == ["PointwiseLinear", "PermutedLinear", "PointwiseConvolution", "BatchedProduct"]
    assert made.model.get_submodule("7").weight is network[7].weight  # type: ignore[index]
    assert type(network[7]) is nn.Linear  # type: ignore[index]
    found = verify(network, made, x, gradients=False)
    assert found.equivalent
    assert {layer.path for layer in found.layers} == {"2", "4", "7", "9"}
    assert all(layer.bitwise for layer in found.layers)


def test_assignments_with_attention() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    made = assigned(layer, {"self_attn": "conv", "linear1": "bmm"})
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(made.model(x), layer(x))
    kinds = {g.kind for g in group_layers(layer, CallSignature.of(layer, x))}
    assert kinds <= {"linear", "attention"}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ({"no.such": "conv"}, "no layer 'no.such'"),
        ({"1": "conv"}, "1 is a ReLU, which has no other form"),
        ({"7": "permute"}, "expected a form of a layer of kind 'linear': linear, conv, bmm, conv-nchw"),
        ({"7": "linear"}, "changes no layer"),
    ],
)
def test_assignments_that_cannot_be_made(assignment: dict[str, str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        assigned(networks.images(), assignment)


def test_forms_are_timed_on_the_recorded_input() -> None:
    time = Time()
    ticking = itertools.count()
    one = clock(time)
    one.now = lambda: float(next(ticking))
    network = networks.images().eval()
    group = group_layers(network, CallSignature.of(network, torch.randn(1, 3, 8, 8)))[1]
    found = measure_group(group, one, 60.0)
    assert list(found.timings) == ["conv", "conv-channels-last", "linear", "permute"]
    assert set(found.ranking) == {f.name for f in layer_forms("conv")}
    assert found.fastest(["linear", "permute"]) in ("linear", "permute")


def test_a_shorter_dtype_is_timed_and_its_error_recorded() -> None:
    network = nn.Sequential(nn.Linear(64, 32)).eval()
    x = torch.randn(5, 64)
    one = clock(Time())
    ticking = itertools.count()
    one.now = lambda: float(next(ticking))
    (group,) = group_layers(network, CallSignature.of(network, x))
    found = measure_group(group, one, 60.0, "bfloat16")
    assert set(found.timings) == {"linear", "conv", "linear:bfloat16", "conv:bfloat16"}
    with torch.no_grad():
        exact = network.double()(x.double())
        short = network.bfloat16()(x.bfloat16())
    expected = float((short.double() - exact).abs().max() / exact.abs().max())
    assert found.errors["linear:bfloat16"] == pytest.approx(expected)
    assert 2**-12 < expected < 2**-5
    assert found.fastest(["linear", "conv"]) in ("linear", "conv")


def test_the_largest_groups_are_measured_first_and_the_others_predicted() -> None:
    network = networks.images().eval()
    groups = group_layers(network, CallSignature.of(network, torch.randn(1, 3, 8, 8)))
    ticking = itertools.count()
    one = clock(Time())
    one.now = lambda: float(next(ticking))
    found = measure_groups(groups, one, 30.0)
    assert [f.group for f in found] == list(groups)
    measured = [f.group.macs for f in found if f.timings]
    rest = [f for f in found if not f.timings]
    assert measured
    assert rest
    assert min(measured) >= max(f.group.macs for f in rest)
    for f in rest:
        own, other = (work_of(f.group, name) for name in ("linear", "conv"))
        assert own is not None
        assert other is not None
        saved = 1e3 * (cost.DEFAULT.seconds(own) - cost.DEFAULT.seconds(other))
        assert f.saved_ms("conv") == pytest.approx(saved if f.group.kind == "linear" else 0.0)


def test_savings_count_every_call_of_a_group() -> None:
    network = networks.tokens().eval()
    group = group_layers(network, CallSignature.of(network, torch.randn(1, 4, 8)))[0]
    times = LayerTimes(group, {"linear": Timing(2.0, 0.0, 5), "conv": Timing(1.5, 0.0, 5)}, ())
    assert (times.saved_ms("conv"), times.saved_ms("linear")) == (3 * 0.5, 0.0)
    assert times.fastest() == "conv"
    assert times.gflops("conv") == pytest.approx(2 * 4 * 8 * 16 / 1.5e-3 / 1e9)
    assert times.gflops("bmm") is None


def test_attention_costs_its_four_projections() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
            return y

    (group,) = group_layers(Attends().eval(), CallSignature.of(Attends(), torch.randn(2, 5, 8)))
    assert (group.kind, group.weight, group.macs) == ("attention", (32, 8), 4 * 2 * 5 * 8 * 8)
    assert ranking_of(group) == ()


def test_the_peak_rate() -> None:
    ticking = itertools.count()
    one = clock(Time())
    one.now = lambda: 0.5 * next(ticking)
    # every call takes half a second on this clock, so the largest product has the highest rate
    assert peak_gflops(one, torch.device("cpu"), 0.1) == pytest.approx(2e-9 * 512 * 1024 * 1024 / 0.5)


def test_the_cost_model_ranks_forms_without_running_them() -> None:
    network = networks.tokens().eval()
    group = group_layers(network, CallSignature.of(network, torch.randn(1, 4, 8)))[0]
    assert sorted(ranking_of(group)) == ["bmm", "conv", "conv-nchw", "linear"]


def test_registered_forms_can_be_assigned() -> None:
    from onebyone.pytorch.modules.dropins import PointwiseConvolution
    from onebyone.tuning import layer_forms as module

    class Own(PointwiseConvolution):
        pass

    before = dict(module._LAYER_FORMS)
    try:
        register_layer_form(LayerForm("own", "linear", Own))
        made = assigned(nn.Sequential(nn.Linear(3, 2)), {"0": "own"})
        assert type(made.model.get_submodule("0")) is Own
    finally:
        module._LAYER_FORMS.clear()
        module._LAYER_FORMS.update(before)
