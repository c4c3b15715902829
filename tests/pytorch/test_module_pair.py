"""Pairs of modules as functions of weights that a check chooses, and every reason why a pair has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from onebyone.pytorch.modules import module_pair
from onebyone.pytorch.modules.module_pair import ModulePair, bare_copy
from onebyone.results import UnverifiableError


def pointwise(linear: nn.Linear) -> nn.Conv1d:
    conv = nn.Conv1d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
    conv.load_state_dict({n: t[..., None] if t.dim() == 2 else t for n, t in linear.state_dict().items()})
    return conv


class Tokens(nn.Module):
    """A pointwise convolution of tokens (..., C)."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv1d(x.reshape(-1, x.shape[-1], 1), self.weight, self.bias)
        return y.reshape(*x.shape[:-1], -1)


def test_both_functions_take_the_originals_parameters() -> None:
    linear = nn.Linear(3, 2)
    functions = ModulePair("fc", linear, Tokens(pointwise(linear))).functions()
    assert (functions.path, functions.kind, functions.terms) == ("fc", "Linear", 3)
    assert functions.params["weight"].data_ptr() == linear.weight.data_ptr()  # shared, not copied
    params = {"weight": torch.tensor([[1.0, 2, 3], [4, 5, 6]]), "bias": torch.tensor([10.0, 20])}
    for function in (functions.original, functions.converted):
        assert function(torch.tensor([1.0, 0, 1]), params).tolist() == [14.0, 30.0]
    assert not torch.equal(linear.weight, params["weight"])


@pytest.mark.parametrize(
    ("layer", "shapes", "terms"),
    [
        (nn.Linear(6, 4), ((2, 3, 5, 6), (3, 5, 6), (2, 6), (6,)), 6),
        (nn.Conv2d(4, 6, 1), ((2, 4, 3, 4), (4, 3, 4)), 4),
        # windows at a stride, and a remainder of stride − 1 in the second shape
        (nn.Conv2d(4, 6, 1, stride=(2, 3)), ((2, 4, 5, 10), (4, 6, 12)), 4),
        (nn.Conv1d(4, 6, 3, dilation=2), ((2, 4, 7), (4, 7)), 12),
        (nn.Conv3d(4, 8, 2, stride=2, groups=2), ((2, 4, 6, 8, 10), (4, 7, 9, 11)), 16),
    ],
    ids=str,
)
def test_the_shapes_that_are_probed(layer: nn.Module, shapes: Any, terms: int) -> None:
    functions = ModulePair("p", layer, layer).functions()
    assert functions.shapes == shapes
    assert functions.terms == terms
    for shape in shapes:
        functions.original(torch.zeros(shape), functions.params)


def test_large_layers_are_probed_on_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_pair, "ONE_SHAPE_FROM", 24)
    assert len(ModulePair("p", nn.Linear(6, 4), nn.Linear(6, 4)).functions().shapes) == 4
    assert ModulePair("p", nn.Linear(5, 5), nn.Linear(5, 5)).functions().shapes == ((2, 3, 5),)


def test_parameters_go_through_the_state_map_under_the_networks_names() -> None:
    linear = nn.Linear(3, 3)
    names: list[str] = []

    def transposed(state: Any, /) -> dict[str, Any]:
        names.extend(state)
        return {n.replace("fc.", "fc.inner."): t.t() if t.dim() == 2 else t for n, t in state.items()}

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.inner.weight + self.inner.bias

    functions = ModulePair("fc", linear, Inner()).functions(transposed)
    x = torch.randn(2, 3)
    assert torch.allclose(functions.converted(x, functions.params), linear(x))
    assert set(names) == {"fc.weight", "fc.bias"}
    other = ModulePair("fc", linear, linear, {"weight": "shared.matrix"})
    seen: list[str] = []
    other.functions(lambda state, /: (seen.extend(state), dict(state))[1])  # type: ignore[arg-type]
    assert seen == ["shared.matrix", "fc.bias"]


class Two(nn.Module):
    """Two weights, like an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


def failing(state: Any, /) -> dict[str, Any]:
    raise KeyError("weight")


@pytest.mark.parametrize(
    ("pair", "from_original", "why"),
    [
        (ModulePair("p", Two(), Two()), None, "a Two does not consist of one weight and a bias"),
        (ModulePair("p", nn.ReLU(), nn.ReLU()), None, "a ReLU does not consist of one weight and a bias"),
        (
            ModulePair("p", nn.Linear(2, 2, device="meta"), nn.Linear(2, 2)),
            None,
            "its weights are on the meta device and have no values",
        ),
        (
            ModulePair("p", nn.Linear(2, 3), nn.Linear(3, 2)),
            None,
            r"its parameters \['bias', 'weight'\] cannot be derived from the original's \['bias', 'weight'\]",
        ),
        (
            ModulePair("p", nn.Linear(2, 3), nn.Linear(2, 3, bias=False)),
            None,
            r"its parameters \['weight'\] cannot be derived",
        ),
        (ModulePair("p", nn.Linear(2, 3), nn.Linear(3, 2)), dict, "cannot be derived"),
        (ModulePair("p", nn.Linear(2, 2), nn.Linear(2, 2)), failing, "its parameters cannot be carried over: 'weight'"),
    ],
)  # fmt: skip
def test_why_a_pair_has_no_functions(pair: ModulePair, from_original: Any, why: str) -> None:
    with pytest.raises(UnverifiableError, match=why):
        pair.functions(from_original)


def test_a_layer_that_returns_no_tensor_is_named() -> None:
    functions = ModulePair("p", Pair(2, 2), nn.Linear(2, 2)).functions()
    with pytest.raises(UnverifiableError, match="it returns a tuple, not a tensor"):
        functions.original(torch.zeros(2), functions.params)


def test_bare_copies_have_no_hooks_and_plain_weights() -> None:
    layer = parametrizations.weight_norm(nn.Linear(3, 2))
    calls: list[int] = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    weight = layer.weight.detach().clone()
    bare = bare_copy(layer)
    assert torch.equal(bare.weight, weight)
    assert isinstance(bare.weight, nn.Parameter)
    assert not bare.training
    bare(torch.zeros(3))
    assert not calls
    assert torch.nn.utils.parametrize.is_parametrized(layer)  # the user's layer is unchanged
    assert layer.training
    layer(torch.zeros(3))
    assert calls


def test_old_weight_normalisation_is_made_plain_too() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = nn.utils.weight_norm(nn.Linear(3, 2))
    bare = bare_copy(layer)
    assert dict(bare.named_parameters()).keys() == {"weight", "bias"}
    assert torch.equal(bare.weight, layer.weight)
