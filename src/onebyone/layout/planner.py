"""Choosing the order in which each value is stored: the fewest layout operators, then the preferred forms.

A beam search over the operators in program order. A partial plan knows in which orders each value that is still
needed is available, and what that has cost: 1 for each permute, and the rules' penalties, which are far smaller. Of
partial plans that agree on what is available, the cheapest is kept; of the rest, the `BEAM_WIDTH` cheapest. Candidates
for the order of a result are the orders that follow from those of its operands, and the orders that its users would
prefer, found by a backward pass. So a permute can be placed before a split instead of after each of its pieces, or at
the start of a residual stream instead of in every branch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import inf

from onebyone.layout.orders import Layout, Order, with_order
from onebyone.layout.rules import LayoutRule, OperandOrders
from onebyone.layout.values import GraphValue

MAX_PREFERENCES = 6  # orders that are remembered for each value in the backward pass
BEAM_WIDTH = 32

Rules = Mapping[GraphValue, LayoutRule]


@dataclass(frozen=True)
class LayoutPlan:
    """For each value with a rule, the order of the result and those of the operands.

    `permutes` counts the permutes, and the layout operators that rules write themselves.
    """

    orders: dict[GraphValue, tuple[Order, OperandOrders]]
    permutes: int


@dataclass(frozen=True)
class _Choice:
    """The order chosen for one value, and the choices before it as a linked list."""

    value: GraphValue
    order: Order
    operand_orders: OperandOrders
    before: _Choice | None


@dataclass
class _PartialPlan:
    cost: float
    permutes: int
    available: dict[GraphValue, frozenset[Order]]  # values not listed are available in their original order
    last: _Choice | None


def choose_orders(rules: Rules, constants: Collection[GraphValue]) -> LayoutPlan:
    """A plan for every value that has a rule; `constants` are stored in any order without a layout operator.

    `rules` are in the order of the program. Values without a rule, the inputs, are available in their original order.
    """
    preferences = _preferences(rules)
    last_uses = _last_uses(rules)
    plans = [_PartialPlan(0.0, 0, {}, None)]
    for value, rule in rules.items():
        cheapest: dict[frozenset[tuple[GraphValue, frozenset[Order]]], _PartialPlan] = {}
        for plan in plans:
            for longer in _extensions(plan, rule, preferences[value], constants):
                for ended in last_uses.get(value, ()):
                    longer.available.pop(ended, None)
                key = frozenset(longer.available.items())
                if key not in cheapest or longer.cost < cheapest[key].cost:
                    cheapest[key] = longer
        plans = sorted(cheapest.values(), key=lambda plan: plan.cost)[:BEAM_WIDTH]
    return _complete(plans[0])


def _complete(plan: _PartialPlan) -> LayoutPlan:
    orders: dict[GraphValue, tuple[Order, OperandOrders]] = {}
    choice = plan.last
    while choice is not None:
        orders[choice.value] = (choice.order, choice.operand_orders)
        choice = choice.before
    return LayoutPlan(orders, plan.permutes)


def best_layouts(rules: Rules, plan: LayoutPlan) -> dict[GraphValue, Layout]:
    """For each value, the layout in which the operators after it read it; of several, the first that needs one.

    Operators that follow the layout of what they read pass on what is best for their results. So a value whose operator
    can write any unit dimensions, such as a reshape, is written with those that a convolution needs, once.
    """
    best: dict[GraphValue, Layout] = {}
    for value, rule in reversed(list(rules.items())):
        order, operand_orders = plan.orders[value]
        layout = best.get(value)
        wanted = rule.operand_layouts(
            order, operand_orders, None if layout is None else with_order(layout, order)
        )
        best |= {
            operand: operand_layout
            for operand, operand_layout in zip(rule.operands, wanted, strict=True)
            if operand_layout is not None and operand.shape is not None
        }
    return best


def _last_uses(rules: Rules) -> dict[GraphValue, list[GraphValue]]:
    """For each value, the values that no operator after it needs."""
    last: dict[GraphValue, GraphValue] = {}
    for value, rule in rules.items():
        last[value] = value
        for operand in rule.operands:
            last[operand] = value
    ended: dict[GraphValue, list[GraphValue]] = {}
    for operand, value in last.items():
        ended.setdefault(value, []).append(operand)
    return ended


def _preferences(rules: Rules) -> dict[GraphValue, list[Order]]:
    """For each value, the orders that it or an operator after it prefers; those of the nearest operators first."""
    preferences: dict[GraphValue, list[Order]] = {value: [] for value in rules}
    for value, rule in reversed(list(rules.items())):
        candidates = dict.fromkeys([*rule.preferred_orders(), *preferences[value]])
        possible = [order for order in candidates if rule.operand_orders(order)][:MAX_PREFERENCES]
        preferences[value] = possible
        for order in possible:
            for operand_orders in rule.operand_orders(order):
                for operand, operand_order in zip(rule.operands, operand_orders, strict=True):
                    if operand in preferences and operand_order not in preferences[operand]:
                        preferences[operand].append(operand_order)
    return preferences


def _extensions(
    plan: _PartialPlan, rule: LayoutRule, preferences: Iterable[Order], constants: Collection[GraphValue]
) -> list[_PartialPlan]:
    """The plan with each possible choice for one more operator."""
    longer = [
        _extended(plan, rule, order, operand_orders, constants)
        for order in _candidates(plan, rule, preferences, constants)
        for operand_orders in rule.operand_orders(order)
    ]
    if not longer:
        longer = [_extended(plan, rule, rule.axes, rule.operand_orders(rule.axes)[0], constants)]
    return longer


def _candidates(
    plan: _PartialPlan, rule: LayoutRule, preferences: Iterable[Order], constants: Collection[GraphValue]
) -> list[Order]:
    """Orders of the result that follow from those that its operands are available in, then the preferences."""
    candidates: dict[Order, None] = {}
    for i, operand in enumerate(rule.operands):
        if operand not in constants or len(rule.operands) == 1:
            for order in _available(plan, operand):
                candidates.update(dict.fromkeys(rule.result_orders(i, order)))
    candidates.update(dict.fromkeys(preferences))
    return list(candidates)


def _available(plan: _PartialPlan, value: GraphValue) -> frozenset[Order]:
    return plan.available.get(value) or frozenset({value.axes})


def _extended(
    plan: _PartialPlan,
    rule: LayoutRule,
    order: Order,
    operand_orders: OperandOrders,
    constants: Collection[GraphValue],
) -> _PartialPlan:
    """The plan with one choice more: operands that are not available in their order are permuted."""
    available = dict(plan.available)
    permutes = rule.layout_operators(order, operand_orders)
    cost = plan.cost + rule.penalty(order, operand_orders) + permutes
    permutes += plan.permutes
    for operand, operand_order in zip(rule.operands, operand_orders, strict=True):
        if operand in constants or operand_order in (have := _available(plan, operand)):
            continue
        cost += inf if operand.shape is None else 1.0  # a list of tensors cannot be permuted
        permutes += 1
        available[operand] = have | {operand_order}
    if order != rule.axes or rule.axes != rule.result.axes:
        available[rule.result] = frozenset({order})
    choice = _Choice(rule.result, order, operand_orders, plan.last)
    return _PartialPlan(cost, permutes, available, choice)
