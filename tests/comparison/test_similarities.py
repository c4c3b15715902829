"""S1 to S4: verdicts for the two layers, and for other layers for which the claims are false."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onebyone.comparison import similarities as s
from onebyone.comparison.claim_result import HOLDS, NOT_AS_SAID
from onebyone.pytorch.modules.convert import convert_module
from tests.comparison.conftest import connected, kernel, max_pool, pointwise, random

# S1


def test_both_are_weighted_sums() -> None:
    figures = s.measure_weighted_sum([connected(), pointwise()])
    assert s.weighted_sum_verdict(figures).text == HOLDS
    assert all(0 < f["superposition_ratio"] <= 1 for f in figures.values())


def test_the_bias_must_be_taken_off() -> None:
    with_bias, without = (
        s.measure_weighted_sum([connected(bias=b)])["fully connected"] for b in (random(7), None)
    )
    assert with_bias["with_bias_ratio"] > 1e6
    assert without["with_bias_ratio"] <= 1


@pytest.mark.parametrize(
    "form",
    [
        max_pool,
        lambda x, w, b: F.conv2d(x, w, b).relu(),
        lambda x, w, b: F.conv2d(x, w, b) ** 2,
        lambda x, w, b: F.conv2d(x, w.roll(1, 1), b),  # linear, but not the sum of its weights
    ],
)
def test_what_is_no_weighted_sum_is_found_out(form: object) -> None:
    figures = s.measure_weighted_sum(
        [connected(), pointwise(form=form, weight=random(3, 3, 1, 1), bias=None)]
    )
    assert s.weighted_sum_verdict(figures).text == NOT_AS_SAID


def test_superposition_and_the_sum_are_both_required() -> None:
    figures = s.measure_weighted_sum([connected()])
    for name in ("superposition_ratio", "explicit_sum_ratio"):
        planted = {"fully connected": figures["fully connected"] | {name: 1.5}}
        assert s.weighted_sum_verdict(planted).text == NOT_AS_SAID
    bent = s.measure_weighted_sum([connected(form=lambda x, w, b: F.linear(x.flatten(1), w, b).relu())])
    assert bent["fully connected"]["superposition_ratio"] > 1e6


# S2


def layer() -> nn.Linear:
    made = nn.Linear(9, 5, dtype=torch.float64)
    with torch.no_grad():
        made.weight.copy_(s.integer_corner(random(5, 9)))
        made.bias.copy_(torch.arange(5) - 2)
    return made


def test_both_learn_alike_bit_for_bit() -> None:
    one = layer()
    start = one.weight.detach().clone()
    figures = s.measure_learning(one, convert_module(copy.deepcopy(one), to="conv").model)
    assert s.learning_verdict(figures).text == HOLDS
    assert figures["arithmetic_exact"]
    assert figures["parameters"] == {"linear": 50, "convolution": 50}
    assert figures["losses"][-1] < figures["losses"][0]
    assert not torch.equal(one.weight, start)


def test_other_initial_weights_do_not_agree() -> None:
    other = layer()
    with torch.no_grad():
        other.weight[2, 3] += 1
    figures = s.measure_learning(layer(), other)
    assert s.learning_verdict(figures).text == NOT_AS_SAID
    assert not figures["gradients_equal"]


def test_another_rate_of_learning_does_not_agree() -> None:
    class Scaled(nn.Module):
        """The same outputs from weights of twice the size: different gradients."""

        def __init__(self) -> None:
            super().__init__()
            one = layer()
            self.weight, self.bias = nn.Parameter(2 * one.weight.detach()), one.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.weight / 2, self.bias)

    figures = s.measure_learning(layer(), Scaled())
    assert not figures["weights_equal"]
    assert s.learning_verdict(figures).text == NOT_AS_SAID


def test_another_number_of_parameters_is_told() -> None:
    bare = nn.Linear(9, 5, bias=False, dtype=torch.float64)
    verdict = s.learning_verdict(s.measure_learning(layer(), bare))
    assert verdict.text == NOT_AS_SAID
    assert "one form has 50 parameters and the other 45" in verdict.because


def test_arithmetic_that_rounds_is_noticed() -> None:
    one = layer()
    with torch.no_grad():
        one.weight.mul_(2.0**50)
    figures = s.measure_learning(one, copy.deepcopy(one))
    assert not figures["arithmetic_exact"]


def test_real_numbers_stay_close() -> None:
    one = nn.Linear(12, 5)
    own = s.measure_real_learning(one, convert_module(copy.deepcopy(one), to="conv").model)
    assert own["moved"] > 1e-4
    assert own["apart"] < own["moved"]


# S3


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh, F.gelu])
def test_layers_collapse_without_an_activation(activation: object) -> None:
    figures = s.measure_activation(random(5, 9), random(6, 5, seed=1), activation, "it")  # type: ignore[arg-type]
    assert s.activation_verdict(figures).text == HOLDS
    assert figures["rank"] == {"first": 5, "second": 5, "collapsed": 5}
    assert figures["jacobian_change"] > 1e-3


@pytest.mark.parametrize("activation", [nn.Identity(), lambda x: 1.0 * x])
def test_an_identity_adds_nothing(activation: object) -> None:
    figures = s.measure_activation(random(5, 9), random(6, 5, seed=1), activation, "identity")  # type: ignore[arg-type]
    verdict = s.activation_verdict(figures)
    assert verdict.text == NOT_AS_SAID
    assert figures["jacobian_change"] == 0
    assert "changes nothing" in verdict.because


def test_layers_that_do_not_collapse_are_told() -> None:
    figures = s.measure_activation(random(5, 9), random(6, 5, seed=1), torch.relu, "ReLU")
    figures["collapse_ratio"]["pointwise"] = 3.0
    assert s.activation_verdict(figures).text == NOT_AS_SAID
    assert (
        s.activation_verdict(figures | {"collapse_ratio": {"a": 0.5}, "forms_agree_ratio": 2.0}).text
        == NOT_AS_SAID
    )


# S4


def test_both_mix_all_channels() -> None:
    figures = s.measure_mixing([connected(), pointwise(), kernel()])
    assert s.mixing_verdict(figures).text == HOLDS


def grouped(groups: int) -> object:
    return lambda x, w, b: F.conv2d(x, w, b, groups=groups)


def test_a_depthwise_convolution_mixes_nothing() -> None:
    op = pointwise(form=grouped(3), weight=random(6, 1, 1, 1), groups=3)
    assert s.mixing_verdict(s.measure_mixing([connected(), op])).text == NOT_AS_SAID


def test_groups_and_zero_weights_are_conditions() -> None:
    op = pointwise(form=grouped(2), weight=random(6, 2, 1, 1), groups=2)
    op = type(op)(**(vars(op) | {"map_shape": (4, 5, 4)}))
    assert (
        s.mixing_verdict(s.measure_mixing([op])).text
        == "holds when only channels of the same group are meant"
    )
    weight = random(6, 3, 1, 1)
    weight[0, 0] = 0
    pruned = s.measure_mixing([pointwise(weight=weight)])
    assert s.mixing_verdict(pruned).text == "holds when no weight is zero"
    assert pruned["pointwise"]["share_of_all"] == 17 / 18
    weight[1:] = 0
    assert s.mixing_verdict(s.measure_mixing([pointwise(weight=weight)])).text == NOT_AS_SAID
