"""The inputs on which candidates are checked."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from onebyone.tuning import accuracy_inputs
from onebyone.tuning.call_signature import CallSignature


def signature(*tensors: Tensor, dynamic_batch: bool = False) -> CallSignature:
    def forward(*args: Any) -> Any: ...

    return CallSignature(tensors, {}, inspect.signature(forward), dynamic_batch)


def only(s: CallSignature | None) -> Tensor:
    assert s is not None
    (tensor,) = s.tensors
    return tensor


def with_outliers(x: Tensor) -> list[list[Tensor]]:
    return [[only(s) for s in choices] for choices in accuracy_inputs.with_outliers(signature(x), 0)]


def test_shuffled_inputs_have_the_same_values_in_another_order() -> None:
    x = torch.arange(60.0).view(3, 4, 5)
    shuffled = only(accuracy_inputs.shuffled(signature(x), 0))
    assert shuffled.shape == x.shape
    assert not torch.equal(shuffled, x)
    assert torch.equal(shuffled.flatten().sort().values, x.flatten())
    assert torch.equal(only(accuracy_inputs.shuffled(signature(x), 0)), shuffled)
    assert accuracy_inputs.shuffled(signature(torch.arange(3)), 0) is None


@pytest.mark.parametrize(("batch", "other"), [(1, 3), (2, 5), (3, 8)])
def test_another_batch_size(batch: int, other: int) -> None:
    x = torch.randn(batch, 2)
    assert accuracy_inputs.other_batch(signature(x)) is None
    longer = only(accuracy_inputs.other_batch(signature(x, dynamic_batch=True)))
    assert torch.equal(longer, x.repeat(3, 1)[:other])


def test_perturbed_inputs_are_moved_by_two_units_of_roundoff() -> None:
    x, u = torch.randn(1000, dtype=torch.float64), 2.0**-20
    moved = only(accuracy_inputs.perturbed(signature(x), u, 0))
    relative = moved / x - 1
    torch.testing.assert_close(relative.abs(), torch.full_like(x, 2 * u), rtol=1e-9, atol=1e-15)
    assert 400 < int((relative > 0).sum()) < 600


@pytest.mark.parametrize("shape", [(3, 12, 4), (3, 4, 3, 4), (2, 5, 2, 3, 2)])
def test_large_rows_of_the_first_sample_and_a_large_last_sample(shape: tuple[int, ...]) -> None:
    """Tokens (N, T, C), maps (N, C, H, W) and volumes, whose rows are the channels of a position: twelve of them."""
    factors = with_outliers(torch.ones(shape))[0][0]
    by_row = factors.movedim(1, -1) if len(shape) > 3 else factors
    rows = by_row.flatten(1, -2).amax(-1)
    assert torch.equal(by_row.flatten(1, -2).amin(-1), rows)  # whole rows are scaled
    assert [(i, float(v)) for i, v in enumerate(rows[0]) if v != 1] == [(4, 1e4), (8, 1e6)]
    assert bool((rows[-1] == 255).all())
    if len(rows) > 2:
        assert bool((rows[1] == 1).all())


def test_large_rows_of_vectors_are_samples() -> None:
    first, second = with_outliers(torch.ones(3, 4))[0]
    assert first.amax(1).tolist() == [1e6, 1, 255]
    assert second.amax(1).tolist() == [1e4, 1, 255]  # if 10⁶ is too much for the network


def test_half_of_the_channels_are_large() -> None:
    assert with_outliers(torch.ones(2, 5))[1][0][0].tolist() == [1e4, 1e4, 1e4, 1, 1]
    channels = with_outliers(torch.ones(1, 4, 2, 2))[1][0][0]
    assert channels[:, 0, 0].tolist() == [1e4, 1e4, 1, 1]


def test_uneven_rows_span_six_decades() -> None:
    uneven = with_outliers(torch.ones(2, 500, 3))[2][0]
    powers = uneven.log10()
    assert torch.equal(powers.amin(-1), powers.amax(-1))
    assert -3 <= float(powers.min()) < -2.9
    assert 2.9 < float(powers.max()) <= 3


def test_inputs_without_rows_have_no_outliers() -> None:
    assert with_outliers(torch.ones(4)) == []
    assert list(accuracy_inputs.with_outliers(signature(torch.ones(2, 3, dtype=torch.int64)), 0)) == []


def test_the_example_is_not_changed() -> None:
    x = torch.ones(2, 6, 4)
    with_outliers(x)
    accuracy_inputs.perturbed(signature(x), 0.1, 0)
    assert torch.equal(x, torch.ones(2, 6, 4))
