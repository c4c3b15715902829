"""Networks of several outputs: the any-size form nests them as the network does, in plain containers."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from onebyone.pytorch.lift.convolutionalize import convolutionalize
from tests.pytorch.anysize import randomise

Record = namedtuple("Record", "first second")  # PyTorch's containers know this kind


class Several(nn.Module):
    def __init__(self, nest: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.first, self.second, self.nest = (
            nn.Conv2d(3, 4, 3), nn.Linear(144, 2), nn.Linear(144, 5), nest,
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> Any:
        y = self.conv(x).flatten(1)
        return self.nest(self.first(y), self.second(y))


NESTS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "dictionary": (lambda a, b: {"z": a, "a": b}, lambda a, b: {"z": a, "a": b}),
    "ordered dictionary": (lambda a, b: OrderedDict(z=a, a=b), lambda a, b: {"z": a, "a": b}),
    "list": (lambda a, b: [a, b], lambda a, b: [a, b]),
    "record": (Record, lambda a, b: (a, b)),
    "nested": (lambda a, b: {"s": a, "more": [b, {"t": a}]}, lambda a, b: {"s": a, "more": [b, {"t": a}]}),
    "tuples": (lambda a, b: (a, (b, a)), lambda a, b: (a, (b, a))),
    "nothing beside": (lambda a, b: {"s": a, "n": None, "t": b}, lambda a, b: {"s": a, "n": None, "t": b}),
}


@pytest.mark.parametrize("name", NESTS)
def test_outputs_are_nested_as_the_network_nests_them(name: str) -> None:
    nest, plain = NESTS[name]
    model = randomise(Several(nest)).double().eval()
    d = convolutionalize(model, 8)
    image = torch.randn(1, 3, 9, 10, dtype=torch.float64)
    with torch.no_grad():
        dense, crop = d.model(image), model(image[:, :, 1:, 2:])
    expected = plain(0, 1)
    assert type(dense) is type(expected)
    assert pytree.tree_structure(dense) == pytree.tree_structure(
        pytree.tree_map(lambda v: v and torch.zeros(()), expected)
    )
    pairs = zip(pytree.tree_leaves(dense), pytree.tree_leaves(crop), strict=True)
    for there, here in pairs:
        assert (there is None) == (here is None)
        assert here is None or (there[:, :, 1, 2] - here).abs().max() < 1e-11


@pytest.mark.parametrize("name", ["hardswish", "relu", "sigmoid", "exp"])
def test_an_output_behind_an_operator_that_writes_in_place(name: str) -> None:
    """What an operator writes is not what it reads: the kind of the output is told without going round."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(48, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = getattr(torch, name + "_", getattr(nn.functional, name, None))
            scores = 2 * self.head(x.flatten(1)) + 1
            return y(scores, inplace=True) if name == "hardswish" else y(scores)

    (output,) = convolutionalize(InPlace(), 4, 3).outputs
    told = None if output.kind is None else output.kind.values
    assert told == ("probabilities" if name == "sigmoid" else None)
