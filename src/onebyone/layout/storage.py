"""The layouts in which the constants of a program are stored, so that they need no layout operator at run time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping

from onebyone.layout.orders import Layout, Order, order_of, renamed
from onebyone.layout.products import ProductRule
from onebyone.layout.stored_tensors import RenamedConstant
from onebyone.layout.values import GraphValue


def weight_layouts(
    products: Iterable[ProductRule],
    constants: Collection[GraphValue],
    renamed_constants: Mapping[GraphValue, RenamedConstant],
) -> dict[GraphValue, Layout]:
    """The layouts that converted products need of the constants that are their weights, directly or with axes renamed.

    Constants whose original layout is needed are left out.
    """
    layouts: dict[GraphValue, Layout] = {}
    for rule in products:
        weight = rule.product.weight
        if not rule.convert or weight not in constants:
            continue
        layout = rule.weight_layout(2 if rule.to == "conv" else 0)
        while weight in renamed_constants:
            constant = renamed_constants[weight]
            weight, layout = constant.source, renamed(layout, constant.axes)
        if layout != weight.natural_layout:
            layouts[weight] = layout
    return layouts


def choose_storage(
    constants: Iterable[GraphValue],
    demands: Mapping[GraphValue, Counter[Layout]],
    weights: Collection[GraphValue],
    identity: Callable[[GraphValue], Hashable],
) -> dict[GraphValue, Layout]:
    """The layout to store each constant in, where that is not its original layout.

    `demands` counts the layouts that each constant was used in (`StoredTensors.demands`). The weights of converted
    products, `weights`, take the layout that is used most. Any other constant is stored in another order only if none
    of its uses needs the original one. Constants with the same `identity` are one tensor, and share one layout.
    """
    tensors: dict[Hashable, list[GraphValue]] = {}
    for constant in constants:
        tensors.setdefault(identity(constant), []).append(constant)
    storage: dict[GraphValue, Layout] = {}
    for same_tensor in tensors.values():
        counts: Counter[Layout] = Counter()
        for constant in same_tensor:
            if constant in demands:
                counts.update(demands[constant])
        first = same_tensor[0]
        reordered = all(order_of(layout) != first.axes for layout in counts)
        if counts and (reordered or any(constant in weights for constant in same_tensor)):
            layout = _most_used(counts, None if reordered else first.axes)
            if layout != first.natural_layout:
                storage.update(dict.fromkeys(same_tensor, layout))
    return storage


def _most_used(counts: Counter[Layout], order: Order | None) -> Layout:
    """The layout used most, of those with this order if one is given; of equals the one with most dimensions."""
    candidates = [layout for layout in counts if order is None or order_of(layout) == order]
    return max(candidates, key=lambda layout: (counts[layout], len(layout)))
