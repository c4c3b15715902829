"""The tables of aten operators against the schemas of PyTorch, and the permutations against PyTorch itself."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.layout.normalisations import NormalisationRule
from onebyone.layout.reshape_rules import ExpandRule, ReshapeRule
from onebyone.layout.rules import (
    AxisRule,
    ChannelsSecondRule,
    ConcatenateRule,
    ElementRule,
    FixedRule,
    LayoutRule,
    PointwiseRule,
    RelabelRule,
)
from onebyone.pytorch.graph.aten_operators import (
    AXIS_ARGUMENTS,
    CHANNELS_SECOND,
    KEEPING_AXES,
    NORMALISATIONS,
    POINTWISE,
    RESHAPES,
    moved_axes,
)
from onebyone.pytorch.graph.decoder import Decoder
from onebyone.pytorch.graph.nodes import graph_values, holds_tensors


@pytest.mark.parametrize("name", sorted(AXIS_ARGUMENTS))
def test_axis_arguments_are_where_the_schemas_have_them(name: str) -> None:
    where = AXIS_ARGUMENTS[name]
    packet = getattr(torch.ops.aten, name)
    seen = 0
    for overload in packet.overloads():
        for position, argument in enumerate(getattr(packet, overload)._schema.arguments):
            if argument.name in ("dim", "dims") and "str" not in str(argument.type):
                assert (argument.name, position) == (where.name, where.position)
                assert ("List" in str(argument.type)) == where.is_list
                default = argument.default_value if argument.has_default_value() else None
                assert default in (where.default, None, [])
                seen += 1
    assert seen


def test_every_operator_of_the_tables_exists() -> None:
    names = POINTWISE | RESHAPES | NORMALISATIONS | CHANNELS_SECOND | KEEPING_AXES
    assert [name for name in sorted(names) if not hasattr(torch.ops.aten, name)] == []


def test_moved_axes_are_those_of_movedim() -> None:
    x = torch.empty(2, 3, 4, 5)
    for source, destination in product(range(-4, 4), repeat=2):
        assert x.permute(moved_axes(source, destination, 4)).shape == x.movedim(source, destination).shape
    for source, destination in product(permutations(range(4), 2), repeat=2):
        moved = x.permute(moved_axes(source, list(destination), 4))
        assert moved.shape == x.movedim(source, destination).shape


class Call(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.vector = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.vector)


CASES: dict[str, tuple[type[LayoutRule], Any]] = {
    "relu": (PointwiseRule, lambda x, v: x.relu()),
    "add": (PointwiseRule, lambda x, v: x + v),
    "dropout, inactive": (PointwiseRule, lambda x, v: torch.dropout(x, 0.5, False)),
    "a returned clone": (PointwiseRule, lambda x, v: x.clone()),
    "permute": (RelabelRule, lambda x, v: x.permute(2, 0, 1)),
    "transpose": (RelabelRule, lambda x, v: x.transpose(0, -1)),
    "mT": (RelabelRule, lambda x, v: x.mT),
    "movedim": (RelabelRule, lambda x, v: x.movedim((0, 1), (1, 2))),
    "squeeze and unsqueeze": (RelabelRule, lambda x, v: x.unsqueeze(1)),
    "contiguous": (RelabelRule, lambda x, v: x.transpose(1, 2).contiguous()),
    "a view that adds a unit axis": (RelabelRule, lambda x, v: x.view(2, 3, 1, 4)),
    "flatten": (ReshapeRule, lambda x, v: x.flatten(1)),
    "unflatten": (ReshapeRule, lambda x, v: x.unflatten(2, (2, 2))),
    "softmax": (AxisRule, lambda x, v: x.softmax(-1)),
    "mean": (AxisRule, lambda x, v: x.mean((1, 2))),
    "select": (AxisRule, lambda x, v: x[:, 1]),
    "slice": (AxisRule, lambda x, v: x[:, 1:]),
    "var_mean": (ElementRule, lambda x, v: torch.var_mean(x, 1)[0]),
    "split": (ElementRule, lambda x, v: x.split(2, 2)[1]),
    "unbind": (ElementRule, lambda x, v: x.unbind(1)[1]),
    "concatenate": (ConcatenateRule, lambda x, v: torch.cat([x, x], 1)),
    "expand": (ExpandRule, lambda x, v: x[:, :1].expand(-1, 5, -1)),
    "layer norm": (NormalisationRule, lambda x, v: torch.layer_norm(x, (4,), v, v)),
    "group norm": (ChannelsSecondRule, lambda x, v: torch.group_norm(x, 3)),
    "sort": (FixedRule, lambda x, v: x.sort(1)[0]),
    "mean of everything": (FixedRule, lambda x, v: x.mean()),
    "std of everything": (FixedRule, lambda x, v: torch.ops.aten.std.default(x, False)),
    "a view as another dtype": (FixedRule, lambda x, v: x.view(torch.int32)),
    "dropout, active": (FixedRule, lambda x, v: torch.dropout(x, 0.5, True)),
    "an empty slice": (FixedRule, lambda x, v: x[:, :0]),
    "softmax over a unit axis": (FixedRule, lambda x, v: x[:, :1].softmax(1)),
}


@pytest.mark.parametrize("name", CASES)
def test_operators_are_decoded_as_rules(name: str) -> None:
    """The rule of the returned value: of the kind expected, with the axes that the recorded value has."""
    kind, function = CASES[name]
    program = torch.export.export(Call(function).eval(), (torch.randn(2, 3, 4),), strict=False)
    values = graph_values(program.graph)
    decoder = Decoder(values)
    for node in program.graph.nodes:
        if node.op == "call_function" and holds_tensors(node):
            decoder.rule(node)
    output = next(n for n in reversed(program.graph.nodes) if n.op == "output")
    value = values[output.args[0][0]]
    rule = decoder.rules[value]
    assert type(rule) is kind
    assert rule.axes == tuple(i for i, size in enumerate(value.origin.meta["val"].shape) if size != 1)
