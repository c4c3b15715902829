"""The registry of rules: what each operator means for values of any size.

A rule is a function of the walk and the node; it gives the lifted value of the node's result, or raises
`Cannot` with the
reason. Users register rules for operators of their own (`torch.library` custom operators too) in the same way:

>>> import torch
>>> from onebyone.pytorch.lift.rules import elementwise
>>> _ = elementwise(torch.ops.aten.erf.default)  # acts on each element by itself
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import fx

from onebyone.pytorch.lift.lifter import Cannot, Walk

Rule = Callable[[Walk, fx.Node], Any]

_RULES: dict[Any, Rule] = {}


def register(*operators: Any) -> Callable[[Rule], Rule]:
    """Register a rule for operators: overloads (`torch.ops.aten.relu.default`) or packets, for all their overloads.

    A later registration replaces an earlier one.
    """

    def keep(rule: Rule) -> Rule:
        for operator in operators:
            for overload in _overloads(operator):
                _RULES[overload] = rule
        return rule

    return keep


def refusing(reason: str, *operators: Any) -> None:
    """Register a reason for which operators are always refused."""

    def rule(_walk: Walk, _node: fx.Node) -> Any:
        raise Cannot(reason)

    register(*operators)(rule)


def elementwise(*operators: Any) -> None:
    """Register operators that act on each element by itself, with no constants but numbers."""
    from onebyone.pytorch.lift.rules_pointwise import each_element  # the rules import the registry

    register(*operators)(each_element)


def rule_for(operator: Any) -> Rule | None:
    """The rule for an operator, or None. What PyTorch itself marks as element-wise needs no rule of its own."""
    _load()
    if operator not in _RULES and torch.Tag.pointwise in getattr(operator, "tags", ()):
        elementwise(operator)
    return _RULES.get(operator)


def _overloads(operator: Any) -> list[Any]:
    if isinstance(operator, torch._ops.OpOverloadPacket):
        return [getattr(operator, name) for name in operator.overloads()]  # type: ignore[no-untyped-call]
    return [operator]


_FILES = (
    "across", "context", "contract", "filled", "linear", "maps", "pointwise", "reduce", "resize", "select", "shape",
)  # fmt: skip


def _load() -> None:
    """Import the built-in rules, once."""
    for name in _FILES:
        import_module(f"onebyone.pytorch.lift.rules_{name}")
