"""The example call: its description, the canonical order of arguments, and the check of later calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.tuning.call_signature import CallSignature
from tests.tuning import networks


class Three(nn.Module):
    """Two tensors and an option."""

    def forward(self, x: Tensor, y: Tensor, mode: str = "sum") -> Tensor:
        return x + y if mode == "sum" else x * y


X, Y = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.float64)


def of(example: Any, dynamic_batch: bool = False) -> CallSignature:
    return CallSignature.of(Three(), example, dynamic_batch)


def test_arguments_by_name_and_by_position_are_one_call() -> None:
    signature = of({"y": Y, "x": X})
    assert signature.args[0] is X
    assert signature.args[1] is Y
    assert signature.kwargs == {}
    assert signature.canonical((X,), {"y": Y, "mode": "product"}) == ((X, Y, "product"), {})
    with pytest.raises(TypeError, match="missing a required argument: 'y'"):
        signature.canonical((X,), {})
    with pytest.raises(TypeError, match="too many positional arguments"):
        signature.canonical((X, Y, "sum", 3), {})


def test_keyword_only_arguments_stay_by_name() -> None:
    signature = CallSignature.of(networks.TwoInputs(), {"x": X, "scale": Y})
    assert (len(signature.args), list(signature.kwargs)) == (1, ["scale"])
    assert list(signature.example) == ["x", "scale"]


def test_descriptions() -> None:
    assert of((X, Y, "product")).described() == [
        {"path": "x", "shape": [2, 3], "dtype": "float32"},
        {"path": "y", "shape": [2, 3], "dtype": "float64"},
        {"path": "mode", "value": "'product'"},
    ]


def test_mapping_keeps_everything_but_the_tensors() -> None:
    signature = of((X, Y, "product"), dynamic_batch=True)
    doubled = signature.mapped(lambda t: 2 * t)
    assert [float(t.sum()) for t in doubled.tensors] == [12, 12]
    assert (doubled.args[2], doubled.dynamic_batch) == ("product", True)


def test_calls_like_the_example_are_accepted() -> None:
    of((X, Y)).check((X + 1, Y), {})
    free = of((X, Y), dynamic_batch=True)
    free.check((torch.ones(5, 3), torch.ones(5, 3, dtype=torch.float64)), {})
    CallSignature.of(nn.Linear(3, 2), X).check((X + 1,), {})


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((X,), "1 values in another structure than the example's 2"),
        ((X, Y.float()), "a float32 tensor of 2×3 where the example has a float64 tensor of 2×3"),
        ((torch.ones(2, 4), Y), "a float32 tensor of 2×4 where the example has a float32 tensor of 2×3"),
        ((torch.ones(3), Y), "a float32 tensor of 3 where the example has"),
        ((X.to("meta"), Y), "a float32 tensor of 2×3 on meta where"),
        ((3, Y), "3 where the example has a float32 tensor"),
    ],
)
def test_other_calls_are_refused(args: tuple[Any, ...], words: str, free: bool) -> None:
    with pytest.raises(BadInput, match=words):
        of((X, Y), free).check(args, {})


def test_other_values_and_batches_are_refused() -> None:
    with pytest.raises(BadInput, match="'sum' where the example has 'product'"):
        of((X, Y, "product")).check((X, Y, "sum"), {})
    with pytest.raises(BadInput, match=r"a float32 tensor of 5×3 where .* with dynamic_batch=True"):
        of((X, Y)).check((torch.ones(5, 3), Y), {})
    with pytest.raises(BadInput, match="expected the same batch size for every input"):
        of((X, Y), dynamic_batch=True).check((torch.ones(5, 3), Y), {})


def test_the_only_input_of_a_network_is_checked_too() -> None:
    signature = CallSignature.of(nn.Linear(3, 2), X)
    for other in (X[:1], X.double(), X.to("meta"), torch.ones(2, 3, 1)):
        with pytest.raises(BadInput, match="where the example has a float32 tensor of 2×3"):
            signature.check((other,), {})


@pytest.mark.parametrize(
    ("example", "dynamic_batch", "words"),
    [
        ((1, 2), False, "expected at least one tensor, got tuple"),
        ((X,), False, "does not fit the network's forward"),
        ((X, torch.ones(3, 3)), True, r"common first axis \(the batch\), got shapes 2×3, 3×3"),
        ((X, torch.tensor(1.0)), True, "got shapes 2×3, a number"),
    ],
)
def test_examples_that_do_not_fit(example: Any, dynamic_batch: bool, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        of(example, dynamic_batch)
