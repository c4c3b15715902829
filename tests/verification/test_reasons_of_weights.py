"""Every sentence in which the comparison of weights says what differs or was not compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from onebyone.verification.weights import compare_weights


def test_weights_without_a_map() -> None:
    before, after = nn.Linear(3, 2), nn.Conv1d(3, 2, 1)
    after.load_state_dict({"weight": before.weight[..., None], "bias": before.bias})
    # within a converted layer, axes of size one may be added
    check = compare_weights(before, after, layers=[""])
    assert (check.ok, check.compared, check.unverified) == (True, 2, ())
    assert compare_weights(before, after).problems == (
        "weight is (2, 3, 1) in float32, the original's is (2, 3) in float32",
    )
    with torch.no_grad():
        after.weight[0, 0, 0] += 1
    assert not compare_weights(before, after, layers=[""]).ok


def test_tensors_that_cannot_be_compared_are_listed() -> None:
    before = nn.Linear(3, 2)
    other_shape = nn.Linear(2, 3)
    check = compare_weights(before, other_shape, layers=[""])
    assert "weight: its shape changed, and the conversion has no map to compare it by" in check.unverified
    assert (check.compared, check.values) == (0, 0), "what could not be compared does not count"
    missing = compare_weights(before, nn.Linear(3, 2, bias=False), layers=[""])
    assert "bias: only in the original, and the conversion has no map to compare it by" in missing.unverified
    surplus = compare_weights(nn.Linear(3, 2, bias=False), before, layers=[""])
    assert (
        "bias: only in the converted network, and the conversion has no map to compare it by"
        in surplus.unverified
    )
    # outside the converted layers a missing tensor is a problem
    assert "bias is in the original only" in compare_weights(before, nn.Linear(3, 2, bias=False)).problems
    assert (
        "bias is in the converted network only"
        in compare_weights(nn.Linear(3, 2, bias=False), before).problems
    )
    meta = nn.Linear(3, 2, device="meta")
    nothing = compare_weights(meta, meta)
    assert nothing.unverified == (
        "weight: it has no values to compare",
        "bias: it has no values to compare",
    )
    assert (nothing.compared, nothing.values) == (0, 0)
    half = compare_weights(nn.Linear(3, 2), nn.Linear(2, 2), layers=[""])
    assert (half.compared, half.values) == (1, 2), "the bias alone"
    assert "weight is on the meta device in one network only" in compare_weights(before, meta).problems


class WithState(nn.Module):
    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


def test_other_state_is_compared_where_it_is_plain() -> None:
    same, other = (
        WithState({"scale": 2.0, "nan": float("nan")}),
        WithState({"scale": 3.0, "nan": float("nan")}),
    )
    assert compare_weights(same, WithState(dict(same.state))).ok
    (problem,) = compare_weights(same, other).problems
    assert problem == "_extra_state.scale is 3.0, the original's is 2.0"
    assert compare_weights(WithState((1, 2)), WithState((1, 3))).problems == (
        "_extra_state.1 is 3, the original's is 2",
    )
    odd = compare_weights(WithState(object()), WithState(object()))
    assert odd.ok
    assert odd.compared == 0
    assert odd.unverified == (
        "_extra_state: a object that cannot be compared (only tensors and plain values are compared)",
    )


def test_maps_that_fail_are_problems() -> None:
    before, after = nn.Linear(3, 2), nn.Linear(3, 2)
    after.load_state_dict(before.state_dict())

    def failing(state: Any) -> dict[str, Any]:
        raise KeyError("weight")

    check = compare_weights(before, after, to_original=failing)
    assert check.problems == ("state_dict_to_original() fails on the converted network's weights: 'weight'",)
    check = compare_weights(before, after, to_original=dict, from_original=failing)
    assert check.problems == ("state_dict_from_original() fails on the original's weights: 'weight'",)
    check = compare_weights(before, after, dict, lambda state: {n: t + 1 for n, t in state.items()})
    assert check.problems == tuple(
        f"{name}: state_dict_from_original() gives other values than the converted network holds"
        for name in ("bias", "weight")
    )
    assert (check.differing, check.compared) == ((), 2)


def test_a_dense_form_may_hold_more_or_fewer_tensors() -> None:
    before, after = nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2))
    check = compare_weights(before, after, subset=True)
    assert check.ok
    assert check.unverified == ("weight, bias: not held by the converted network under the original's names",)
    many = nn.Sequential(*(nn.Linear(1, 1) for _ in range(3)))
    (note,) = compare_weights(many, nn.ReLU(), subset=True).unverified
    assert note.startswith("0.weight, 0.bias, 1.weight and 3 more: not held")


class WithNumbers(nn.Module):
    """Plain tensors that are no parameters, at the top and in a layer."""

    def __init__(self, top: float, inner: float) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.scale = torch.tensor([top])
        self.layer.shift = torch.tensor([inner, 1.0])


def test_plain_tensors_have_the_path_of_their_module() -> None:
    """They may be missing in a converted network, which drops what nothing reads, but must not differ."""
    check = compare_weights(WithNumbers(1.0, 2.0), WithNumbers(1.5, 3.0))
    assert [d.name for d in check.differing] == ["scale", "layer.shift"]
    assert check.problems[0] == "scale differs from the original's in 1 of 1 values, by up to 0.5"
    assert check.problems[1] == "layer.shift differs from the original's in 1 of 2 values, by up to 1"
    assert [(d.differing, d.values, d.largest) for d in check.differing] == [(1, 1, 0.5), (1, 2, 1.0)]
    fewer = WithNumbers(1.0, 2.0)
    del fewer.scale, fewer.layer.shift
    for pair in ((WithNumbers(1.0, 2.0), fewer), (fewer, WithNumbers(1.0, 2.0))):
        assert (compare_weights(*pair).ok, compare_weights(*pair).unverified) == (True, ())
