"""For every number and word of a profile: an ONNX model just inside, one just outside, and the profile without it.

Made from the TOML files alone: nothing of the package reads the numbers here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.targets import limit_cases, requirement_cases
from tests.targets.boundary_cases import built_in_files
from tests.targets.number_case import Case, Entry, MakeCase

#: Keys of a constraint that say nothing about a network.
PROVENANCE = frozenset(["kind", "source", "official", "axis", "quantity"])
#: What no ONNX model can have: a kernel of size 0, a Gemm of more than two axes, and a Shape that is not folded.
IMPOSSIBLE = frozenset(
    [
        ("amd-dpu", "kernel", "minimum", "Conv"),
        ("tidl", "rank", "operators", "Gemm"),
        ("ethos-u", "batch", "exempt", "Shape"),
    ]
)


_MAKERS: dict[str, Callable[[MakeCase, Entry], Iterator[Case]]] = {
    "rank": limit_cases.rank_cases,
    "size": limit_cases.size_cases,
    "layer": limit_cases.layer_cases,
    "missing-operator": requirement_cases.missing_operator_cases,
    "form": requirement_cases.form_cases,
    "constant-operand": requirement_cases.constant_operand_cases,
    "explicit-attributes": requirement_cases.explicit_attribute_cases,
    "attribute-values": requirement_cases.attribute_value_cases,
    "static-shapes": requirement_cases.static_shape_cases,
    "element-type": requirement_cases.element_type_cases,
    "bias-vector": requirement_cases.bias_cases,
}


def all_cases() -> Iterator[Case]:
    """The cases of every profile."""
    for profile, content in sorted(built_in_files().items()):
        for index, entry in enumerate(content["constraint"]):
            for case in _MAKERS[entry["kind"]](partial(Case, profile, index), entry):
                name = entry.get("axis", entry.get("quantity", entry["kind"]))
                if (profile, name, case.key, case.operator) not in IMPOSSIBLE:
                    yield case


def keys_of(entry: Entry) -> set[tuple[str, Any]]:
    """Every key of a constraint that a network can violate, with each of its values."""
    return {
        (key, value)
        for key, values in entry.items()
        if key not in PROVENANCE
        for value in (values if isinstance(values, list) else [values])
    }
