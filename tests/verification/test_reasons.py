"""Every sentence in which the verifier says what it did not check, or could not see: each with a case that needs it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import onebyone
from onebyone.pytorch.modules.module_pair import ModulePair
from onebyone.records import Change, Refusal
from onebyone.verification import Verification, verify
from onebyone.verification.structure_checks import _equal, misplaced, not_finite, untied
from tests.verification.standins import ConvertedByHand, ConvInPlaceOfLinear, net, swap


def notes(v: Verification) -> str:
    return "\n".join(v.unverified)


def image() -> Tensor:
    return torch.randn(2, 3, 4, 3, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- conversions


def test_a_layer_without_a_pair_is_listed() -> None:
    model = net()
    right = swap(model)
    change = Change("first", "Linear", "", "", "")
    missing = replace(right, pairs=right.pairs[:1] + right.pairs[2:], changes=(change,))
    v = verify(model, missing, image())
    assert v.equivalent
    assert (
        "first: converted, but its weight or bias is not a parameter of its own, so it has no integer probe"
        in v.unverified
    )
    assert "first: converted" not in notes(verify(model, replace(right, changes=(change,)), image()))
    top = replace(right, changes=(Change("", "Linear", "", "", ""),))
    assert "(top level): converted, but" in notes(verify(model, top, image()))


def test_a_layer_that_is_never_called_is_listed_only_with_an_example() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Unused()
    sentence = "unused: never called on the example input, so no bound on real weights"
    with_example, without = verify(model, swap(model), torch.randn(2, 3)), verify(model, swap(model))
    assert sentence in with_example.unverified
    assert "used: never" not in notes(with_example).replace("unused: never", "")
    assert "never called" not in notes(without)
    assert (
        "without an example input: the whole network, its gradients, the layers on their own inputs"
        in without.unverified
    )
    assert "without an example" not in notes(with_example)


def test_a_layer_that_cannot_be_probed_is_listed() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.MultiheadAttention(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x, x, x, need_weights=False)[0]

    model = Attention()
    conversion = ConvertedByHand(model, (ModulePair("a", model.a, model.a),))
    v = verify(model, conversion, torch.randn(3, 1, 4))
    assert (
        "a: a MultiheadAttention does not consist of one weight and a bias, so it has no integer probe"
        in v.unverified
    )
    assert v.integer_probe is None
    # nothing else ran: without an example nothing is known
    alone = verify(model, conversion)
    assert alone.nothing_verified
    assert not alone.equivalent
    assert alone.problems == (
        "nothing was verified: no converted layer could be probed and there is no example input",
    )


def test_the_three_ways_to_verify_nothing() -> None:
    model = nn.Sequential(nn.ReLU())
    nothing = ConvertedByHand(model, ())
    refused = replace(nothing, refused=(Refusal("0", "Odd", "why"),) * 2)
    unpaired = replace(nothing, changes=(Change("0", "Linear", "", "", ""),))
    for conversion, why in (
        (nothing, "the network has no layer to convert"),
        (refused, "no layer was converted (2 refused)"),
        (unpaired, "no converted layer could be probed and there is no example input"),
    ):
        v = verify(model, conversion)
        assert (v.equivalent, v.nothing_verified) == (False, True)
        assert v.problems == (f"nothing was verified: {why}",)
    # a failure of another check is not "nothing verified"
    other = nn.Sequential(nn.ReLU())
    other.register_buffer("extra", torch.ones(1))
    v = verify(model, ConvertedByHand(other, ()))
    assert (v.equivalent, v.nothing_verified) == (False, False)


class Float32Only(nn.Module):
    """Does not run in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("only float32")
        return self.fc(x)


def test_a_network_without_a_float64_reference_says_so() -> None:
    model = Float32Only()
    v = verify(model, swap(model), torch.randn(4, 3))
    assert v.equivalent, str(v)
    assert (
        "gradients, rounding_ratio: no float64 reference (TypeError: only float32); outputs compared in their own dtype"
        in v.unverified
    )
    assert (v.rounding_ratio, v.gradients) == (None, None)


def test_a_network_without_gradients_says_so() -> None:
    class Ids(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).argmax(1)

    model = Ids()
    v = verify(model, swap(model), torch.randn(4, 3))
    assert v.equivalent, str(v)
    assert "gradients: no output depends differentiably on an input or a parameter" in v.unverified


def test_a_converted_network_that_loses_its_gradients_fails() -> None:
    class Detached(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    model, detached = nn.Linear(3, 2), Detached(3, 2)
    detached.load_state_dict(model.state_dict())
    v = verify(model, detached, torch.randn(4, 3))
    assert not v.equivalent
    assert v.problems == (
        "gradients the converted network has none: no output depends differentiably on an input or a parameter",
    )
    assert verify(model, detached, torch.randn(4, 3), gradients=False).equivalent


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), 0.5)  # also in eval mode


def test_random_networks_are_compared_under_one_seed_and_say_so() -> None:
    torch.manual_seed(0)
    model = Noise()
    v = verify(model, swap(model), torch.randn(64, 3))
    assert v.equivalent, str(v)
    assert "its forward draws random numbers in eval mode: compared under one seed only" in notes(v)
    assert "gradients: two dtypes draw different random numbers" in v.unverified
    # attention counts as a random operator, but draws nothing
    quiet = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert "random" not in notes(verify(quiet, onebyone.convert(quiet), torch.randn(2, 3, 8)))


def test_the_map_of_gradients_may_fail() -> None:
    class Lost(ConvertedByHand):
        @property
        def state_dict_to_original(self) -> Any:  # type: ignore[override]
            def lose(state: dict[str, Any]) -> dict[str, Any]:
                if any(t.requires_grad or n == "weight" for n, t in state.items()):
                    raise KeyError("weight")
                return state

            return lose

    class Reshaped(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.kernel = nn.Parameter(linear.weight.detach()[:, :, None].clone())

        def forward(self, x: Tensor) -> Tensor:
            return F.conv1d(x[..., None], self.kernel)[..., 0]

    model = nn.Linear(3, 2, bias=False)
    after = Reshaped(model)

    def lose(state: Any) -> dict[str, Any]:
        if any(t.dtype == torch.float64 for t in state.values()):
            raise KeyError("kernel")
        return {"weight": state["kernel"][:, :, 0]}

    conversion = replace(ConvertedByHand(after, ()), state_dict_to_original=lose)  # type: ignore[arg-type]
    v = verify(model, conversion, torch.randn(4, 3))
    assert v.problems == ("gradients cannot be mapped to the original's parameters: KeyError: 'kernel'",)


# ---------------------------------------------------------------- structure


def test_weights_that_are_not_finite_are_named_and_masks_are_not() -> None:
    model = nn.BatchNorm1d(2)
    assert not_finite(model, "original") == []
    model.running_mean[0] = float("inf")  # a mask may be infinite
    assert not_finite(model, "original") == []
    model.running_var[0] = float("nan")
    with torch.no_grad():
        model.weight[1] = float("-inf")
    assert not_finite(model, "x") == [
        "x: weight weight holds NaN or infinity",
        "x: buffer running_var holds NaN",
    ]
    assert not_finite(model, "x", except_ids=[id(model.weight)]) == ["x: buffer running_var holds NaN"]
    huge = nn.Linear(4, 1, bias=False)
    nn.init.constant_(huge.weight, 3e38)  # whose sum overflows
    assert not_finite(huge, "x") == []
    assert not_finite(nn.Linear(2, 2, device="meta"), "x") == []
    assert not_finite(nn.LazyLinear(2), "x") == []


class Tied(nn.Module):
    def __init__(self, first: nn.Parameter, second: nn.Parameter) -> None:
        super().__init__()
        self.a, self.b = first, second


def test_untied_weights_are_a_problem_and_copies_in_another_shape_a_note() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    copied, reshaped = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2, 1))
    before = Tied(weight, weight)
    sentence = "the weight tied under a, b is no longer one parameter"
    assert untied(before, Tied(weight, weight)) == ([], [])
    assert untied(before, Tied(reshaped, reshaped)) == ([], [])
    assert untied(before, Tied(weight, copied)) == ([sentence], [])
    assert untied(before, Tied(weight, reshaped)) == ([], [sentence])
    assert untied(Tied(weight, copied), Tied(weight, copied)) == ([], [])
    assert untied(before, nn.Linear(2, 2)) == (
        [],
        [],
    )  # other names: what the weights are is compared elsewhere


def test_layers_that_are_not_where_their_path_says() -> None:
    model, other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2)
    after = nn.Sequential(*(ConvInPlaceOfLinear(layer) for layer in model))
    assert (
        misplaced([ModulePair("0", model[0], after[0]), ModulePair("1", model[1], after[1])], model, after)
        == []
    )
    assert misplaced([ModulePair("0", model[0], after[1])], model, after) == [
        "0 in the converted network is not the layer recorded for it"
    ]
    assert misplaced([ModulePair("0", model[1], after[0])], model, after) == [
        "0 in the original is not the layer recorded for it"
    ]
    # a program has no module there: the layer must hold the network's own tensors
    stand_in = nn.Linear(2, 2)
    stand_in.weight, stand_in.bias = model[0].weight, model[0].bias
    assert misplaced([ModulePair("0", stand_in, after[0])], model, after) == []
    assert misplaced([ModulePair("0", other, after[0])], model, after) != []
    assert misplaced([ModulePair("missing", model[0], after[0])], model, after) != []


@pytest.mark.parametrize(
    ("recorded", "is_same"),
    [
        ([1.0, math.nan, 3.0], True), ([1.0, 2.0, 3.0], False), ([math.nan, 2.0, 3.0], False),
        ([math.nan] * 3, False), ([1.0, math.nan, 4.0], False),
    ],
)  # fmt: skip
def test_weights_with_nan_are_recognised_by_all_of_their_numbers(
    recorded: list[float], is_same: bool
) -> None:
    """A program has no modules, so the recorded layer is compared with the tensors of the network."""
    network = nn.Sequential(nn.Linear(3, 1, bias=False))
    layer = copy.deepcopy(network[0])
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, math.nan, 3.0]))
        layer.weight.copy_(torch.tensor(recorded))
    problems = misplaced([ModulePair("0", layer, network[0])], network, network)
    assert (problems == []) is is_same


def test_weights_are_compared_on_the_device_of_the_first() -> None:
    """Stands for a tensor on another device, with which no operator could compare before it was moved."""

    class OnAnotherDevice(Tensor):
        moved_to: ClassVar[list[torch.device | None]] = []

        def to(self, device: torch.device | None) -> Tensor:  # type: ignore[override]
            self.moved_to.append(device)
            return self.as_subclass(Tensor)

    a = torch.tensor([1.0, 2.0])
    assert _equal(a, a.clone().as_subclass(OnAnotherDevice))
    assert OnAnotherDevice.moved_to == [torch.device("cpu")]
