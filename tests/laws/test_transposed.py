"""A weight stored as (C, O), for every small size, compared with explicit sums."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from onebyone.errors import BadInput
from onebyone.laws import transposed
from tests.laws.oracles import integers


def test_every_small_size():
    for inputs, outputs in product(range(1, 5), repeat=2):
        stored, x = integers(inputs, outputs), integers(3, inputs, seed=2)
        weight = transposed.to_linear(stored)
        assert np.shares_memory(weight, stored)
        sums = [
            [sum(x[n, c] * stored[c, o] for c in range(inputs)) for o in range(outputs)] for n in range(3)
        ]
        np.testing.assert_array_equal(np.einsum("oc,nc->no", weight, x), sums)
        np.testing.assert_array_equal(transposed.to_linear(weight), stored)


def test_a_square_weight_left_as_it_is_is_caught():
    stored, x = integers(3, 3), integers(2, 3, seed=2)
    assert not np.array_equal(np.einsum("oc,nc->no", stored, x), x @ stored)


def test_other_shapes_are_refused():
    with pytest.raises(BadInput, match=r"has shape \(C, O\), not \(2, 3, 1\)"):
        transposed.to_linear(integers(2, 3, 1))
