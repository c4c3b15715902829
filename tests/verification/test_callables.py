"""Bare callables, and the shapes that inputs and outputs come in."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onebyone.errors import BadInput
from onebyone.verification import Verification, verify
from tests.verification.standins import swap

Pair = namedtuple("Pair", ["logits", "features"])


@dataclass
class Answer:
    logits: Tensor
    extra: dict[str, Tensor]


class Many(nn.Module):
    """Several inputs, several outputs of very different size, in the nest that `form` names."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.big, self.small = form, nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor, ids: Tensor | None = None, *, scale: Tensor | None = None) -> object:
        if ids is not None:
            x = x + F.one_hot(ids, 4).to(x.dtype)
        if scale is not None:
            x = x * scale
        a, b = self.big(x) * 1e6, self.small(x) * 1e-6
        forms: dict[str, object] = {
            "tuple": (a, b), "list": [a, [b]], "dict": {"a": a, "b": b, "best": a.argmax(-1)},
            "named": Pair(a, b), "dataclass": Answer(a, {"b": b}), "none": (a, None, b),
        }  # fmt: skip
        return forms[self.form]


@pytest.mark.parametrize("form", ["tuple", "list", "dict", "named", "dataclass", "none"])
def test_every_nest_of_outputs_is_compared_output_by_output(form: str) -> None:
    torch.manual_seed(0)
    model, x = Many(form), torch.randn(5, 4)
    c = swap(model)
    assert verify(model, c, x).equivalent

    class Off(nn.Module):
        """A fault in the small output alone, far below the rounding of the large one."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = c.model

        def forward(self, x: Tensor) -> object:
            inner = self.inner
            bias = inner.small.bias
            with torch.no_grad():
                bias += 1e-3
            try:
                return inner(x)
            finally:
                with torch.no_grad():
                    bias -= 1e-3

    v = verify(model, Off(), x, gradients=False)
    assert not v.equivalent, str(v)


def test_positional_and_keyword_inputs_and_token_ids() -> None:
    torch.manual_seed(0)
    model, x, ids = Many("tuple"), torch.randn(5, 4), torch.tensor([0, 3, 1, 2, 2])
    for example in ((x, ids), {"x": x, "ids": ids, "scale": torch.tensor(2.0)}):
        v = verify(model, swap(model), example)
        assert v.equivalent, str(v)
        assert v.unverified == ()
    with pytest.raises(BadInput, match="model fails on x"):
        verify(model, swap(model), {"unknown": x})


def test_bare_callables_compare_outputs_only() -> None:
    layer = nn.Linear(6, 4)

    def right(x: Tensor) -> Tensor:
        return F.conv1d(x[..., None], layer.weight[..., None], layer.bias)[..., 0]

    x = torch.randn(3, 6)
    v = verify(layer, right, x)
    assert v.equivalent
    assert v.integer_probe is None
    assert v.layers == ()
    assert v.max_error is not None
    assert v.max_error < 1e-5
    for wrong in (lambda x: right(x) + 1e-3, lambda x: right(x)[:2], lambda x: right(x) * float("nan")):
        assert not verify(layer, wrong, x).equivalent


def test_two_modules_compare_gradients_too_and_name_the_layer() -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    two = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    two.load_state_dict(one.state_dict())
    x = torch.randn(7, 4)
    v = verify(one, two, x)
    assert v.equivalent
    assert v.gradients is not None
    assert v.gradients.compared == 5
    with torch.no_grad():
        two[2].bias[1] += 1e-5
    v = verify(one, two, x)
    assert not v.equivalent
    assert v.first_difference == "2"


def test_nothing_to_compare_is_bad_input() -> None:
    with pytest.raises(BadInput, match="x: is missing"):
        verify(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(BadInput, match="converted is a int"):
        verify(nn.Linear(2, 2), 3, torch.ones(1, 2))


def test_a_network_random_in_eval_mode_is_compared_under_one_seed_and_said() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x + torch.rand_like(x))

    model, x = Noisy(), torch.randn(5, 4)
    v = verify(model, swap(model), x)
    assert v.equivalent, str(v)
    assert any("random" in note for note in v.unverified)
    c = swap(model)
    c.model.layer.weight = nn.Parameter(c.model.layer.weight.detach() * 1.001)
    assert not verify(model, c, x).equivalent


def test_a_network_that_casts_down_is_compared_in_its_own_dtype() -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 30), nn.Linear(30, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(y.float().softmax(-1).to(y.dtype))

    model, x = Casts(), torch.randn(5, 4)
    v = verify(model, swap(model), x)
    assert v.equivalent, str(v)
    assert v.rounding_ratio is None
    assert any("casts to a shorter type" in note for note in v.unverified)
    off = swap(model)
    off.model.second.forward = lambda y: F.linear(y, model.second.weight, model.second.bias) * (1 + 1e-4)
    assert not verify(model, off, x).equivalent


def test_an_all_zero_output_has_a_defined_ratio() -> None:
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    v: Verification = verify(model, swap(model), torch.randn(2, 4))
    assert v.equivalent
    assert v.rounding_ratio == 1
    assert any("all zeros" in note for note in v.unverified)


def test_an_exported_program_is_a_callable_too() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    x = torch.randn(2, 4)
    program = torch.export.export(model, (x,), strict=False)
    assert verify(program, model, x, gradients=False).equivalent
    assert verify(model, program, x, gradients=False).equivalent


class Magnified(torch.nn.Module):
    """Casts inside, so that there is no float64 reference; magnifies the rounding of a sum, formed in either order."""

    def __init__(self, backwards: bool) -> None:
        super().__init__()
        self.layer, self.backwards = torch.nn.Linear(512, 512), backwards

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x.float())
        total = sum(reversed(y.unbind(-1))) if self.backwards else sum(y.unbind(-1))
        return 1e4 * (total - total.detach().round())


def test_without_a_float64_reference_the_own_rounding_is_measured() -> None:
    torch.manual_seed(0)
    one, other = Magnified(False), Magnified(True)
    other.load_state_dict(one.state_dict())
    x = torch.randn(64, 512)
    y, z = one(x), other(x)
    assert (y - z).abs().max() > 2.0**-16 * y.abs().max(), (
        "more than a network in good condition may differ by"
    )
    v = verify(one, other, x, gradients=False)
    assert v.equivalent, str(v)
    with torch.no_grad():
        other.layer.bias[3] += 0.1  # the planted fault
    assert not verify(one, other, x, gradients=False).equivalent
