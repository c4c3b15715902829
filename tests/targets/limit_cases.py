"""The cases of limits on numbers: ranks, sizes of axes, and the settings of layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import isqrt, prod
from typing import Any

import onnx_ir as ir

from tests.targets.boundary_cases import SHAPES
from tests.targets.node_models import model_of
from tests.targets.number_case import Case, Entry, MakeCase, listed_operators


def rank_cases(make_case: MakeCase, entry: Entry) -> Iterator[Case]:
    singles = entry.get("count") == "non-singleton"

    def make(operator: str, rank: int) -> ir.Model:
        if operator in _SLIDING:
            ones = 1 if singles else 0
            return model_of(operator, (2, 8, *[1] * ones, *[4] * (rank - 2)) if rank > 2 else (2, 8, 4))
        return model_of(operator, (2 if singles else 1, *[1] * singles, *[2] * (rank - 1)))

    def case(key: str, value: Any, operator: str, ignored: Entry) -> Case:
        limit, step, allowed = (
            (entry["maximum"], 1, entry["maximum"])
            if "maximum" in entry
            else (entry["minimum"], -1, f"≥ {entry['minimum']}")
        )
        return make_case(
            key,
            value,
            operator,
            lambda: make(operator, limit),
            lambda: make(operator, limit + step),
            limit + step,
            allowed,
            ignored,
        )

    first = entry.get("operators", ["Relu"])[0]
    if "maximum" in entry:
        yield case("maximum", entry["maximum"], first, {"maximum": None})
    if "minimum" in entry:
        yield case("minimum", entry["minimum"], first, {"minimum": 0})
    if singles:
        yield case("count", "non-singleton", first, {"count": "all"})
    yield from listed_operators(entry, case)


_SLIDING = ("Conv", "ConvTranspose", "AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "LpPool")


def size_cases(make_case: MakeCase, entry: Entry) -> Iterator[Case]:
    shape = SHAPES[entry["axis"]]

    def make(operator: str, size: int) -> ir.Model:
        return model_of(operator, shape(size)[: {"Gemm": 2, "Unsqueeze": 3}.get(operator, 4)])

    def case(key: str, value: Any, operator: str, ignored: Entry, outside: int | None = None) -> Case:
        limit = entry["maximum"] if outside is None else entry["minimum"]
        wrong = entry["maximum"] + 1 if outside is None else outside
        allowed = entry["maximum"] if outside is None else f"≥ {entry['minimum']}"
        return make_case(
            key,
            value,
            operator,
            lambda: make(operator, limit),
            lambda: make(operator, wrong),
            wrong,
            allowed,
            ignored,
        )

    first = entry.get("operators", ["Relu"])[0]
    yield case("maximum", entry["maximum"], first, {"maximum": None})
    if "minimum" in entry:
        yield case("minimum", entry["minimum"], first, {"minimum": 0}, entry["minimum"] - 1)
    yield from listed_operators(entry, case)
    for operator in entry.get("exempt", []):
        others = tuple(name for name in entry["exempt"] if name != operator)
        yield make_case(
            "exempt",
            operator,
            operator,
            lambda operator=operator: make(operator, entry["maximum"] + 1),
            lambda: make("Relu", entry["maximum"] + 1),
            entry["maximum"] + 1,
            entry["maximum"],
            {"exempt": others},
        )


def rectangle(area: int) -> tuple[int, int]:
    """The two factors of an area that are closest to each other, the smaller one first."""
    height = next(n for n in range(isqrt(area), 0, -1) if area % n == 0)
    return height, area // height


def layer_model(
    operator: str, quantity: str, n: int, block: int = 1, element_type: str = "float32"
) -> ir.Model:
    """A layer whose quantity is n, and whose other numbers are small."""
    if operator == "GlobalAveragePool":
        return model_of(operator, (1, 8, *rectangle(n)))
    if operator in ("Gemm", "MatMul"):
        channels, outputs = (n, 8) if quantity == "input-channels" else (16, n)
        return model_of(operator, (2, channels), outputs=outputs)
    height, width = rectangle(n) if quantity == "kernel-area" else (n, n)
    sizes, settings = {
        "input-channels": ((1, n, 4, 4), {}),
        "output-channels": ((1, 16, 4, 4), {"outputs": n}),
        "kernel": ((1, 16, 4, n + 1), {"kernel": (1, n)}),
        "kernel-height": ((1, 16, n + 1, 4), {"kernel": (n, 1)}),
        "kernel-width": ((1, 16, 4, n + 1), {"kernel": (1, n)}),
        "kernel-area": ((1, 1, height, width), {"kernel": (height, width), "outputs": 1}),
        "stride": ((1, 16, 4, 4 * n), {"strides": (1, n)}),
        "unequal-strides": ((1, 16, 4, 4), {"strides": (1, 1 + n)}),
        "padding": ((1, 16, 4, 4), {"kernel": (1, 3), "pads": (0, 0, 0, n)}),
        "pointwise-padding": ((1, 16, 4, 4), {"pads": (0, n, 0, 0)}),
        "groups": ((1, 16 * n, 4, 4), {"group": n, "outputs": 8 * n}),
        "weight-passes": ((1, n * block, 4, 4), {}),
    }[quantity]
    return model_of("Conv", sizes, element_type, **settings)


def layer_cases(make_case: MakeCase, entry: Entry) -> Iterator[Case]:
    block = entry.get("channel_block", 1)
    limits = {
        "maximum": (
            entry.get("maximum"),
            entry.get("maximum", 0) + 1,
            entry.get("maximum"),
            {"maximum": None},
        ),
        "minimum": (
            entry.get("minimum"),
            entry.get("minimum", 1) - 1,
            f"≥ {entry.get('minimum')}",
            {"minimum": 0},
        ),
        "multiple_of": (
            2 * entry.get("multiple_of", 1),
            2 * entry.get("multiple_of", 1) + 1,
            f"a multiple of {entry.get('multiple_of')}",
            {"multiple_of": 1},
        ),
    }
    factors = tuple(entry.get("prime_factors", ()))
    if factors:
        allowed = f"products of {' and '.join(map(str, factors))}"
        limits["prime_factors"] = prod(factors), 7, allowed, {"prime_factors": ()}
    given = next(key for key in limits if key in entry)

    def case(
        key: str, value: Any, operator: str, ignored: Entry, by: str = given, element_type: str | None = None
    ) -> Case:
        inside, outside, allowed, _ = limits[by]
        kind = element_type or entry.get("element_types", ["float32"])[0]

        def make(n: int) -> ir.Model:
            return layer_model(operator, entry["quantity"], n, block, kind)

        return make_case(
            key,
            value,
            operator,
            lambda: make(inside),
            lambda: make(outside),
            outside,
            allowed,
            ignored,
        )

    first = entry.get("operators", ["Conv"])[0]
    for key in ("maximum", "minimum", "multiple_of"):
        if key in entry:
            yield case(key, entry[key], first, limits[key][3], by=key)
    for factor in factors:
        others = tuple(f for f in factors if f != factor)
        yield case("prime_factors", factor, first, {"prime_factors": others}, by="prime_factors")
    if "channel_block" in entry:
        yield case("channel_block", block, first, {"channel_block": 1})
    if entry.get("depthwise") is False:
        depthwise = lambda: model_of("Conv", (1, 16, 4, 4), group=16, outputs=16)  # noqa: E731
        yield replace(case("depthwise", False, first, {"depthwise": True}), inside=depthwise)
    for kind in entry.get("element_types", []):
        others = tuple(k for k in entry["element_types"] if k != kind)
        yield case("element_types", kind, first, {"element_types": others}, element_type=kind)
    yield from listed_operators(entry, case)
