"""The cases of requirements that are no limits on a number: operators, forms, operands, attributes, shapes, types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx_ir as ir

from tests.targets.node_models import model_of
from tests.targets.number_case import Case, Entry, MakeCase, listed_operators


def missing_operator_cases(make_case: MakeCase, entry: Entry) -> Iterator[Case]:
    def case(key: str, value: Any, operator: str, ignored: Entry) -> Case:
        return make_case(
            key,
            value,
            operator,
            lambda: model_of("Relu", (1, 8, 4, 8)),
            lambda: model_of(operator, (1, 8, 4, 8)),
            operator,
            "not supported",
            ignored,
        )

    yield from listed_operators(entry, case)


def form_cases(make_case: MakeCase, entry: Entry) -> Iterator[Case]:
    to_conv = entry["form"] == "conv"
    models = [lambda: model_of("Conv", (1, 8, 4, 4)), lambda: model_of("MatMul", (1, 4, 8))]
    inside, outside = models if to_conv else reversed(models)
    found, allowed = ("MatMul", "Conv") if to_conv else ("Conv", "MatMul or Gemm")
    other = {"form": "linear" if to_conv else "conv"}
    yield make_case("form", entry["form"], found, inside, outside, found, allowed, other)


def constant_operand_cases(make_case: MakeCase, entry: Entry) -> Iterator[Case]:
    second = lambda: model_of("MatMul", (1, 4, 8))  # noqa: E731
    first = lambda: model_of("MatMul", (1, 4, 8), first=True)  # noqa: E731
    batched = lambda: model_of("MatMul", (2, 4, 8), matrices=(2,))  # noqa: E731
    single = lambda: model_of("MatMul", (1, 2, 4, 8), matrices=(1, 1))  # noqa: E731
    outside, found, allowed = (
        (first, "first", "second") if "side" in entry else (batched, "2×8×8", "W×V or 1×1×W×V")
    )
    inside = second if "side" in entry else single
    if "side" in entry:
        yield make_case("side", "second", "MatMul", inside, outside, found, allowed, {"side": "either"})
    if "one_matrix" in entry:
        yield make_case(
            "one_matrix",
            True,
            "MatMul",
            single,
            batched,
            "2×8×8",
            "W×V or 1×1×W×V",
            {"one_matrix": False},
        )
    for operator in entry.get("operators", []):
        yield make_case(
            "operators",
            operator,
            operator,
            inside,
            outside,
            found,
            allowed,
            {"operators": ("no operator",)},
        )


def explicit_attribute_cases(make_case: MakeCase, entry: Entry) -> Iterator[Case]:
    names = entry["attributes"]
    inside = lambda: model_of("Conv", (1, 8, 4, 4), kernel=(3, 3))  # noqa: E731
    for name in names:
        others = tuple(other for other in names if other != name)
        yield make_case(
            "attributes",
            name,
            "Conv",
            inside,
            lambda name=name: model_of("Conv", (1, 8, 4, 4), left_out=[name]),
            "left out",
            "written out",
            {"attributes": others},
        )
    if "pads" in names:
        others = tuple(other for other in names if other != "pads")
        yield make_case(
            "attributes",
            "pads",
            "Conv",
            inside,
            lambda: model_of("Conv", (1, 8, 4, 4), auto_pad="SAME_UPPER"),
            "SAME_UPPER",
            "NOTSET, with pads",
            {"attributes": others},
        )
    for operator in entry.get("operators", []):
        yield make_case(
            "operators",
            operator,
            operator,
            inside,
            lambda: model_of("Conv", (1, 8, 4, 4), left_out=names),
            "left out",
            "written out",
            {"operators": ("no operator",)},
        )


def attribute_value_cases(make_case: MakeCase, entry: Entry) -> Iterator[Case]:
    name, (allowed,), default = entry["attribute"], entry["allowed"], entry["default"]

    def make(**attributes: Any) -> Callable[[], ir.Model]:
        return lambda: model_of("Gemm", (8, 8), **attributes)

    wrong = type(default)(allowed + 1)
    inside, outside = make(**{name: allowed}), make(**{name: wrong})
    for key, value, good, ignored in (
        ("attribute", name, inside, {"attribute": "transB"}),
        ("allowed", allowed, inside, {"allowed": (wrong,)}),
        ("default", default, make(), {"default": wrong}),
        ("operators", "Gemm", inside, {"operators": ("no operator",)}),
    ):
        yield make_case(key, value, "Gemm", good, outside, wrong, allowed, ignored)


def static_shape_cases(make_case: MakeCase, entry: Entry) -> Iterator[Case]:
    yield make_case(
        "kind",
        "static-shapes",
        "Input",
        lambda: model_of("Relu", (1, 8)),
        lambda: model_of("Relu", (None, 8)),
        "?×8",
        "fixed sizes",
        {"operators": ("no operator",)},
        node="x",
    )


def element_type_cases(make_case: MakeCase, entry: Entry) -> Iterator[Case]:
    for kind in entry["forbidden"]:
        others = tuple(other for other in entry["forbidden"] if other != kind)
        yield make_case(
            "forbidden",
            kind,
            "Relu",
            lambda: model_of("Relu", (1, 8)),
            lambda kind=kind: model_of("Relu", (1, 8), kind),
            kind,
            "another type",
            {"forbidden": others},
        )


def bias_cases(make_case: MakeCase, entry: Entry) -> Iterator[Case]:
    for good, wrong in (((6,), (1,)), ((1, 6), (2, 6))):
        yield make_case(
            "operators",
            "Gemm",
            "Gemm",
            lambda good=good: model_of("Gemm", (2, 8), outputs=6, bias=good),
            lambda wrong=wrong: model_of("Gemm", (2, 8), outputs=6, bias=wrong),
            "×".join(map(str, wrong)),
            "6 or 1×6",
            {"operators": ("no operator",)},
        )
