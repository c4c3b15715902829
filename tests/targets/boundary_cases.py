"""For each constraint of a profile, one node just inside its number and one just outside.

Made from the TOML files alone: nothing of the package reads the numbers here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

from onebyone.targets import LayerNumbers, NodeDescription, TensorDescription

Pair = tuple[NodeDescription, NodeDescription]


def built_in_files() -> dict[str, dict[str, Any]]:
    """The content of every profile file of the package, by its name."""
    folder = resources.files("onebyone.targets") / "profiles"
    return {
        f.name.removesuffix(".toml"): tomllib.loads(f.read_text(encoding="utf-8"))
        for f in folder.iterdir()
        if f.name.endswith(".toml")
    }


def cases() -> Iterator[tuple[str, int, NodeDescription, NodeDescription]]:
    """The profile's name, the constraint's index, a node inside and a node outside."""
    for name, content in sorted(built_in_files().items()):
        for index, constraint in enumerate(content["constraint"]):
            for inside, outside in pairs(constraint):
                yield name, index, inside, outside


def pairs(constraint: dict[str, Any]) -> list[Pair]:
    return _MAKERS[constraint["kind"]](constraint)


def node(
    operator: str,
    sizes: tuple[int | None, ...] = (1, 8, 4, 4),
    layer: LayerNumbers | None = None,
    attributes: dict[str, Any] | None = None,
    element_type: str = "float32",
    more: tuple[TensorDescription, ...] = (),
) -> NodeDescription:
    """A node that reads and writes one tensor of these sizes."""
    read, wrote = (TensorDescription(name, sizes, element_type) for name in ("x", "y"))
    return NodeDescription("n", operator, operator, (read, *more), (wrote,), attributes or {}, layer)


def _operator(constraint: dict[str, Any], default: str) -> str:
    return str(constraint.get("operators", [default])[0])


def _rank(constraint: dict[str, Any]) -> list[Pair]:
    operator = _operator(constraint, "Relu")
    layer = LayerNumbers("conv", 2, 2, (1, 1)) if operator == "Conv" else None
    found = []
    if "maximum" in constraint:
        most = constraint["maximum"]
        outside = (2,) * (most + 1)
        inside = (2,) * most
        if constraint.get("count") == "non-singleton":
            inside = (1, *inside, 1)  # ones do not count
        found.append((node(operator, inside, layer), node(operator, outside, layer)))
    if "minimum" in constraint:
        least = constraint["minimum"]
        found.append((node(operator, (2,) * least, layer), node(operator, (2,) * (least - 1), layer)))
    return found


#: The shape of a tensor whose limited axis has a given size, by the kind of axis.
SHAPES: dict[str, Callable[[int], tuple[int, ...]]] = {
    "batch": lambda n: (n, 8, 4, 4),
    "channels": lambda n: (1, n, 4, 4),
    "height": lambda n: (1, 8, n, 4),
    "width": lambda n: (1, 8, 4, n),
    "every": lambda n: (1, 8, 4, n),
    "leading": lambda n: (n, 8, 4, 4),
    "last-three": lambda n: (1, 8, n, 4),
}


def _size(constraint: dict[str, Any]) -> list[Pair]:
    operator, most = _operator(constraint, "Relu"), constraint["maximum"]
    make = SHAPES[constraint["axis"]]
    found = [(node(operator, make(most)), node(operator, make(most + 1)))]
    if constraint["axis"] == "leading":  # the product of several leading axes
        found.append((node(operator, (2, most // 2, 8, 4, 4)), node(operator, (2, most // 2 + 1, 8, 4, 4))))
    if "minimum" in constraint:
        least = constraint["minimum"]
        found.append((node(operator, make(least)), node(operator, make(least - 1))))
    return found


def _layer(constraint: dict[str, Any]) -> list[Pair]:
    operator, quantity = _operator(constraint, "Conv"), constraint["quantity"]

    def make(n: int) -> NodeDescription:
        numbers: dict[str, Any] = {
            "form": "conv",
            "input_channels": 16,
            "output_channels": 8,
            "kernel": (1, 1),
            "strides": (1, 1),
            "pads": (0, 0, 0, 0),
            "dilations": (1, 1),
        }
        if operator in ("Gemm", "MatMul"):
            numbers |= {"form": "linear", "kernel": (), "strides": (), "pads": (), "dilations": ()}
        if operator == "GlobalAveragePool":
            numbers["form"] = "pool"
        numbers |= {
            "input-channels": {"input_channels": n},
            "output-channels": {"output_channels": n},
            "kernel": {"kernel": (1, n)},
            "kernel-height": {"kernel": (n, 1)},
            "kernel-width": {"kernel": (1, n)},
            "kernel-area": {"kernel": (n, 1)},
            "stride": {"strides": (1, n)},
            "unequal-strides": {"strides": (1, 1 + n)},
            "padding": {"pads": (0, 0, 0, n)},
            "pointwise-padding": {"pads": (0, n, 0, 0)},
            "groups": {"groups": n, "input_channels": 16 * n},
            "weight-passes": {"input_channels": n * constraint.get("channel_block", 1)},
        }[quantity]
        kind = constraint.get("element_types", ["float32"])[0]
        return node(operator, layer=LayerNumbers(**numbers), element_type=kind)

    found = []
    if "maximum" in constraint:
        found.append((make(constraint["maximum"]), make(constraint["maximum"] + 1)))
    if "minimum" in constraint:
        found.append((make(constraint["minimum"]), make(constraint["minimum"] - 1)))
    if "multiple_of" in constraint:
        found.append((make(2 * constraint["multiple_of"]), make(2 * constraint["multiple_of"] + 1)))
    if "prime_factors" in constraint:
        first, second = constraint["prime_factors"]
        found.append((make(first * second), make(7 * first)))
    return found


def _missing(constraint: dict[str, Any]) -> list[Pair]:
    return [(node("Relu"), node(operator)) for operator in constraint["operators"]]


def _form(constraint: dict[str, Any]) -> list[Pair]:
    conv = node("Conv", layer=LayerNumbers("conv", 8, 8, (1, 1), is_linear=True))
    linear = node("MatMul", layer=LayerNumbers("linear", 8, 8, is_linear=True))
    large = node("Conv", layer=LayerNumbers("conv", 8, 8, (3, 3)))
    wanted = (conv, linear) if constraint["form"] == "conv" else (linear, conv)
    return [wanted, (large, wanted[1])]


def _operand(constraint: dict[str, Any]) -> list[Pair]:
    def make(first: bool, sizes: tuple[int, ...] = (4, 4)) -> NodeDescription:
        weight = TensorDescription("w", sizes, "float32", is_constant=True)
        x = TensorDescription("x", (2, 4, 4), "float32")
        return NodeDescription("n", "MatMul", "MatMul", (weight, x) if first else (x, weight), (x,))

    found = []
    if constraint.get("side") == "second":
        found.append((make(False), make(True)))
    if constraint.get("one_matrix"):
        found.append((make(False, (1, 1, 4, 4)), make(False, (1, 2, 4, 4))))
    return found


def _explicit(constraint: dict[str, Any]) -> list[Pair]:
    written = dict.fromkeys(constraint["attributes"], (1, 1))
    found = [
        (
            node("Conv", attributes=written),
            node("Conv", attributes={k: v for k, v in written.items() if k != left}),
        )
        for left in written
    ]
    if "pads" in written:
        found.append(
            (node("Conv", attributes=written), node("Conv", attributes=written | {"auto_pad": "SAME_UPPER"}))
        )
    return found


def _values(constraint: dict[str, Any]) -> list[Pair]:
    name, allowed, default = constraint["attribute"], constraint["allowed"], constraint["default"]
    operator = _operator(constraint, "Gemm")
    found = [
        (node(operator, attributes={name: value}), node(operator, attributes={name: 3})) for value in allowed
    ]
    return [*found, (node(operator), node(operator, attributes={name: default + 1}))]


def _static(constraint: dict[str, Any]) -> list[Pair]:
    return [
        (node("Input", (1, 8)), NodeDescription("n", "Input", "Input", (), node("Relu", (None, 8)).outputs))
    ]


def _types(constraint: dict[str, Any]) -> list[Pair]:
    return [(node("Relu"), node("Relu", element_type=kind)) for kind in constraint["forbidden"]]


def _bias(constraint: dict[str, Any]) -> list[Pair]:
    def make(*sizes: int) -> NodeDescription:
        operands = tuple(TensorDescription(n, s, "float32", True) for n, s in (("w", (8, 6)), ("b", sizes)))
        return node("Gemm", (2, 8), LayerNumbers("linear", 8, 6), more=operands)

    return [(make(6), make(1)), (make(1, 6), make(2, 6))]


_MAKERS = {
    "rank": _rank,
    "size": _size,
    "layer": _layer,
    "missing-operator": _missing,
    "form": _form,
    "constant-operand": _operand,
    "explicit-attributes": _explicit,
    "attribute-values": _values,
    "static-shapes": _static,
    "element-type": _types,
    "bias-vector": _bias,
}
