"""Batch norms on maps, on chosen channels and on flattened maps, and the linear layer that absorbs the last kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onebyone.lifting.grid import Integers
from onebyone.lifting.operators import BatchNorm, Linear
from onebyone.lifting.rules.normalisation import batch_norm
from onebyone.lifting.rules.product import linear
from onebyone.lifting.values import Cannot, Const, Lifted
from tests.lifting.numpy_front_end import EPSILON, Array, Op
from tests.lifting.test_forms import a_call, a_const, a_lifter, a_map
from tests.lifting.test_numpy_rules import CONV, assert_equals_crops, normal, with_head


def by_channel(x: Array) -> Array:
    """A scale and a shift of each channel, which tell the channels apart."""
    numbers = np.arange(1.0, x.shape[1] + 1)[:, None, None]
    return x * numbers - numbers


def norm(value: Lifted, channels: int, **more: Any) -> BatchNorm:
    """A batch norm that `by_channel` stands for."""
    given = {"mean": a_const(channels), "variance": a_const(channels), "weight": None, "bias": None} | more
    return BatchNorm(value, epsilon=EPSILON, apply=by_channel, **given)


def at(value: Lifted, index: Integers) -> Lifted:
    return value.with_index(np.ascontiguousarray(index))


def test_a_batch_norm_of_a_map_runs_as_it_is() -> None:
    value = replace(a_map(3, 4, 5), pooled=frozenset({"earlier"}))
    result = batch_norm(a_lifter(4, 5), a_call(3, 4, 5), norm(value, 3))
    np.testing.assert_array_equal(result.handle, by_channel(value.handle))
    assert (result.grid, result.index, result.pooled) == (value.grid, None, {"earlier"})


def test_chosen_channels_are_gathered_before_a_batch_norm() -> None:
    """The third, first and fourth channel are the first, second and third of the norm."""
    value = a_map(4, 3, 2)
    chosen = at(value, value.indices()[[2, 0, 3]])
    result = batch_norm(a_lifter(3, 2), a_call(3, 3, 2), norm(chosen, 3))
    np.testing.assert_array_equal(result.handle, by_channel(value.handle[:, [2, 0, 3]]))
    assert (result.index, result.shape) == (None, (3, 3, 2))


@pytest.mark.parametrize("positions", [(2, 1), (1, 2), (3, 2)])
def test_a_batch_norm_of_a_flattened_map_is_left_to_the_next_linear_layer(positions: tuple[int, int]) -> None:
    """The map stays as it is, with a scale and a shift for each of its elements."""
    value = a_map(2, *positions)
    features = 2 * positions[0] * positions[1]
    mean, variance = normal(features), normal(features) ** 2
    constants = {"mean": Const(mean, mean.shape), "variance": Const(variance, mean.shape)}
    flat = at(value, value.indices().reshape(features))
    result = batch_norm(a_lifter(*positions), a_call(features), norm(flat, features, **constants))
    assert result.affine is not None
    scale, shift = result.affine
    np.testing.assert_array_equal(result.handle, value.handle)
    np.testing.assert_allclose(scale, 1 / np.sqrt(variance + EPSILON), rtol=1e-14)
    np.testing.assert_allclose(shift, -mean / np.sqrt(variance + EPSILON), rtol=1e-14)


def test_channels_that_are_not_those_of_the_map_are_refused() -> None:
    """Rows as channels, and channels that are elements of two positions."""
    value = a_map(2, 2, 3)
    for index in (value.indices().swapaxes(0, 1), value.indices().reshape(4, 1, 3)):
        operator = norm(at(value, index), len(index))
        with pytest.raises(Cannot, match="a batch norm whose channels are not those of the map"):
            batch_norm(a_lifter(2, 3), a_call(*index.shape), operator)


@pytest.mark.parametrize("statistic", ["mean", "variance"])
def test_one_statistic_of_the_batch_is_enough_for_a_refusal(statistic: str) -> None:
    for other in (None, a_map(3, 1, 1)):
        operator = norm(a_map(3, 2, 2), 3, **{statistic: other})
        with pytest.raises(Cannot, match="a batch norm that takes its statistics from the batch"):
            batch_norm(a_lifter(2, 2), a_call(3, 2, 2), operator)


def test_a_linear_layer_without_a_bias_absorbs_a_batch_norm() -> None:
    """Also where the vector is named again in between, which moves nothing."""
    network = [
        CONV,
        Op("flat", "reshape", ("conv",), {"shape": (48,)}),
        Op("norm", "batch_norm", ("flat", "centre", "variance")),
        Op("same", "slice", ("norm",), {"window": (slice(None), slice(0, 48))}),
        Op("last", "linear_in", ("same", "square")),
    ]
    values = with_head(48, centre=normal(48), variance=normal(48) ** 2 + 1, square=normal(48, 3))
    assert_equals_crops(network, values)


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_linear_layer_records_its_operands_for_the_verifier(with_bias: bool) -> None:
    value = replace(a_map(3, 1, 2), pooled=frozenset({"earlier"}))
    weight = Const(normal(4, 6), (4, 6), "head.weight")
    bias = Const(normal(4), (4,), "head.bias") if with_bias else None
    lifter, call = a_lifter(1, 2), a_call(4)
    flat = at(value, value.indices().reshape(6))
    result = linear(lifter, call, Linear(flat, weight, bias))
    (layer,) = lifter.linear_layers
    assert (layer.call, layer.source, layer.weight, layer.bias) == (call, flat, weight, bias)
    assert result.pooled == {"earlier"}
