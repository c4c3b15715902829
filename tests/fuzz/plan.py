"""The oracle of the conversions: from a description alone, which layers have the other form."""

from __future__ import annotations

from typing import Any

from tests.fuzz.meanings import each
from tests.fuzz.networks import Net


def plan_conversion(net: Net, to: str, level: str) -> tuple[set[str], set[str]]:
    """Which layers convert, and which are refused, by the meaning of the two forms.

    A linear layer is always a 1×1 convolution. A convolution whose kernel is 1 on every axis is a linear layer at each
    place; groups and padding it can only be as a drop-in (`level="layers"`), for one nn.Linear has neither. A larger
    kernel that is the stride is a linear layer on patches, unless groups, padding or gaps forbid it. A weight that two
    layers hold goes over with both, or with none.
    """
    kinds = {name: net.description.ops[int(name)] for name in net.layers}
    legal, illegal = set(), set()
    for name, op in kinds.items():
        if to == "conv" and op.kind == "linear":
            legal.add(f"layers.{name}")
        elif to == "linear" and op.kind == "conv" and max(each(op.args["kernel"], 1)) == 1:
            bad = level == "native" and (op.args.get("groups", 1) > 1 or _pads(op.args))
            (illegal if bad else legal).add(f"layers.{name}")
        elif to == "linear" and op.kind == "conv" and _side_by_side(net, op.args):
            bad = op.args.get("groups", 1) > 1 or _pads(op.args) or _dilated(net, op.args)
            (illegal if bad else legal).add(f"layers.{name}")
    if level == "native":
        _together(net, legal, illegal)
    return legal, illegal


def _side_by_side(net: Net, args: dict[str, Any]) -> bool:
    axes = args.get("dims", len(net.description.window))
    return each(args["kernel"], axes) == each(args.get("stride", 1), axes)


def _dilated(net: Net, args: dict[str, Any]) -> bool:
    axes = args.get("dims", len(net.description.window))
    steps = zip(each(args["kernel"], axes), each(args.get("dilation", 1), axes), strict=True)
    return any(k > 1 and d > 1 for k, d in steps)


def _pads(args: dict[str, Any]) -> bool:
    padding = args.get("padding", 0)
    return padding not in ("valid", "same") and any(each(padding, 1))


def _together(net: Net, legal: set[str], illegal: set[str]) -> None:
    """Layers that share a weight with one that stays, stay."""
    changed = True
    while changed:
        stays = {
            id(m.weight) for n, m in net.layers.items() if f"layers.{n}" not in legal and hasattr(m, "weight")
        }
        moved = {n for n in legal if id(net.layers[n.removeprefix("layers.")].weight) in stays}
        legal -= moved
        illegal |= moved
        changed = bool(moved)


def plan_graph(net: Net, to: str) -> list[str]:
    """The paths of the products that have the other form, once for each call, whether or not the result is read."""
    paths = []
    for number, op in enumerate(net.description.ops):
        name = f"layers.{number if 'share' in op.args else op.args.get('tied', number)}"
        if to == "conv" and op.kind in ("linear", "matmul"):
            paths.append(name if op.kind == "linear" else f"{name}.value")
        elif to == "linear" and op.kind == "conv" and max(each(op.args["kernel"], 1)) == 1:
            # modes other than zeros pad before the convolution
            paths += [name] if op.args.get("mode", "zeros") != "zeros" or not _pads(op.args) else []
    return sorted(first_name(net, path) for path in paths)


def first_name(net: Net, path: str) -> str:
    """The first layer that holds the weight of the layer at a path: an exported program knows a shared one by any."""
    weights = {f"layers.{name}": id(getattr(layer, "weight", layer)) for name, layer in net.layers.items()}
    return next((p for p, weight in weights.items() if weight == weights.get(path)), path)
