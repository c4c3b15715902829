"""Choosing the order each value is stored in: the fewest layout operators, then the plainest forms.

Nodes are taken in turn. A state says in which orders each value still needed is at hand, and what that has
cost: one for each permute, and the rules' penalties, which are far smaller. Of states that agree on what is
at hand the cheapest is kept, and of the rest a beam. Candidates for a result are the orders that follow from
its operands' and those that its users, looking backwards, would like; so a permute can be placed before a
split instead of once after each part, or a whole residual stream be moved at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch.fx import Node

from onebyone.pytorch.graph.orders import Order
from onebyone.pytorch.graph.rules import Inputs, Rule, axes_of

WANTED = 6
BEAM = 32


@dataclass(frozen=True)
class LayoutPlan:
    """For each node the order of its result and of its operands; and how many permutes that takes."""

    orders: dict[Node, tuple[Order, Inputs]]
    permutes: int


@dataclass
class _State:
    cost: float
    permutes: int
    at_hand: dict[Node, frozenset[Order]]
    last: Any  # None, or (previous, node, out, inputs): the choices as a linked list


def choose_orders(rules: dict[Node, Rule], constants: set[Node]) -> LayoutPlan:
    """A plan for every node that has a rule; constants are stored in any order for nothing."""
    wishes = _wishes(rules)
    last_use = _last_use(rules)
    states = [_State(0.0, 0, {}, None)]
    for node, rule in rules.items():
        grown: dict[frozenset[tuple[Node, frozenset[Order]]], _State] = {}
        for state in states:
            for new in _choices(state, node, rule, wishes[node], constants):
                for operand in last_use.get(node, ()):
                    new.at_hand.pop(operand, None)
                key = frozenset(new.at_hand.items())
                if key not in grown or new.cost < grown[key].cost:
                    grown[key] = new
        states = sorted(grown.values(), key=lambda s: s.cost)[:BEAM]
    return _unwind(states[0])


def _unwind(state: _State) -> LayoutPlan:
    orders: dict[Node, tuple[Order, Inputs]] = {}
    entry = state.last
    while entry is not None:
        entry, node, out, inputs = entry
        orders[node] = (out, inputs)
    return LayoutPlan(orders, state.permutes)


def _last_use(rules: dict[Node, Rule]) -> dict[Node, list[Node]]:
    """Node → the values nothing after it needs."""
    last: dict[Node, Node] = {}
    for node, rule in rules.items():
        last[node] = node
        for operand in rule.operands:
            last[operand] = node
    ended: dict[Node, list[Node]] = {}
    for value, node in last.items():
        ended.setdefault(node, []).append(value)
    return ended


def _wishes(rules: dict[Node, Rule]) -> dict[Node, list[Order]]:
    """For each value the orders that it, or what comes after it, would like; the nearest wishes first."""
    wishes: dict[Node, list[Order]] = {node: [] for node in rules}
    for node, rule in reversed(rules.items()):
        wished = dict.fromkeys([*rule.wanted(), *wishes[node]])
        own = wishes[node] = [order for order in wished if rule.inputs_for(order)][:WANTED]
        for out in own:
            for inputs in rule.inputs_for(out):
                for operand, order in zip(rule.operands, inputs, strict=True):
                    if operand in wishes and order not in wishes[operand]:
                        wishes[operand].append(order)
    return wishes


def _candidates(state: _State, rule: Rule, wishes: Iterable[Order], constants: set[Node]) -> list[Order]:
    found: dict[Order, None] = {}
    for i, operand in enumerate(rule.operands):
        if operand not in constants or len(rule.operands) == 1:
            for order in state.at_hand.get(operand, ()) or (_natural(operand),):
                found.update(dict.fromkeys(rule.outputs_for(i, order)))
    found.update(dict.fromkeys(wishes))
    return list(found)


def _natural(node: Node) -> Order:
    return axes_of(node)


def _choices(
    state: _State, node: Node, rule: Rule, wishes: Iterable[Order], constants: set[Node]
) -> Iterable[_State]:
    seen = False
    for out in _candidates(state, rule, wishes, constants):
        for inputs in rule.inputs_for(out):
            seen = True
            yield _take(state, node, rule, out, inputs, constants)
    if not seen:
        yield _take(state, node, rule, rule.axes, rule.inputs_for(rule.axes)[0], constants)


def _take(state: _State, node: Node, rule: Rule, out: Order, inputs: Inputs, constants: set[Node]) -> _State:
    at_hand = dict(state.at_hand)
    cost, permutes = state.cost + rule.penalty(out, inputs), state.permutes
    for operand, order in zip(rule.operands, inputs, strict=True):
        if operand in constants:
            continue
        have = at_hand.get(operand) or frozenset({_natural(operand)})
        if order not in have:
            cost += (
                1.0 if isinstance(operand.meta.get("val"), torch.Tensor) else inf
            )  # a list of pieces is not permuted
            permutes += 1
            at_hand[operand] = have | {order}
    if out != rule.axes or rule.axes != axes_of(node):
        at_hand[node] = frozenset({out})
    return _State(cost, permutes, at_hand, (state.last, node, out, inputs))
