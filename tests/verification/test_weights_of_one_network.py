"""Tensors that only one network has, weights without values, and weights on another device."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from onebyone.verification.weights import _difference, compare_weights
from tests.verification.test_weight_parts import linear


def test_a_tensor_that_the_conversions_map_loses_is_a_problem_in_a_converted_layer_too() -> None:
    """With a map, nothing of a converted layer is left out of the comparison."""
    both, one = linear(), linear(bias=False)
    for before, after, where in ((both, one, "original"), (one, both, "converted network")):
        check = compare_weights(before, after, dict, layers=[""])
        assert (check.problems, check.unverified) == ((f"bias is in the {where} only",), ())


def test_only_tensors_of_converted_layers_may_be_in_one_network() -> None:
    def network(*biases: bool) -> nn.Module:
        return nn.ModuleDict({name: linear(bias=b) for name, b in zip(("fc", "fc2"), biases, strict=True)})

    note = "fc.bias: only in the original, and the conversion has no map to compare it by"
    check = compare_weights(network(True, True), network(False, False), layers=["fc"])
    assert check.problems == ("fc2.bias is in the original only",)
    assert check.unverified == (note,)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_without_values_may_differ_in_their_scale() -> None:
    a, b = (torch.quantize_per_tensor(torch.zeros(0), scale, 0, torch.qint8) for scale in (0.5, 0.25))
    difference = _difference("n", a, b)
    assert difference is not None
    assert (difference.values, difference.largest) == (0, 0.0)


def test_weights_that_differ_are_subtracted_on_the_originals_device() -> None:
    """Stands for a tensor on another device, from which nothing could be subtracted before it was moved."""

    class OnAnotherDevice(Tensor):
        moved: ClassVar[list[torch.device]] = []

        def to(self, target: Any) -> Tensor:  # type: ignore[override]
            if isinstance(target, torch.dtype):
                return super().to(target)
            self.moved.append(target)
            return self.as_subclass(Tensor)

    a = torch.tensor([1.0, 2.0])
    difference = _difference("n", a, (a + 1).as_subclass(OnAnotherDevice))
    assert difference is not None
    assert difference.largest == 1.0
    assert OnAnotherDevice.moved == [torch.device("cpu")] * 2, "for the bits, and for the numbers"
