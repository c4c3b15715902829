"""Every number and word of every profile on ONNX models: just inside is taken, just outside is named with the numbers.

Each case is run a second time with the number ignored, as a faulty checker would: then it must fail.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import pytest

from onebyone.onnx.convert import prepared
from onebyone.onnx.targets.convert import convert_for_target
from onebyone.onnx.targets.description import describe
from onebyone.targets import NodeDescription, TargetProfile, find_profile, padding_notes, violations
from tests.targets.boundary_cases import built_in_files
from tests.targets.node_models import model_of
from tests.targets.number_case import Case
from tests.targets.number_cases import all_cases, keys_of

CASES = list(all_cases())


def described(model: ir.Model) -> list[NodeDescription]:
    return [description for description, _, _ in describe(prepared(model))]


def finds(
    case: Case, profile: TargetProfile, inside: list[NodeDescription], outside: list[NodeDescription]
) -> bool:
    """Whether the profile's constraint takes the one model, and names what is wrong with the other."""
    rule = profile.constraints[case.index]
    taken = not [o for o in violations(inside, profile) if o.rule is rule]
    found = [(o.path, o.found, o.allowed) for o in violations(outside, profile) if o.rule is rule]
    return taken and (case.node, case.found, case.allowed) in found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_just_inside_is_taken_and_just_outside_is_named(case: Case) -> None:
    profile = find_profile(case.profile)
    inside, outside = described(case.inside()), described(case.outside())
    assert [str(o) for o in violations(inside, profile)] == []
    assert finds(case, profile, inside, outside), [str(o) for o in violations(outside, profile)]
    constraints = list(profile.constraints)
    constraints[case.index] = replace(constraints[case.index], **case.ignored)
    assert not finds(case, replace(profile, constraints=tuple(constraints)), inside, outside)


def test_every_key_of_every_constraint_has_a_case() -> None:
    tested = {(case.profile, case.index, case.key, case.value) for case in CASES}
    untested = [
        (name, index, entry["kind"], key, value)
        for name, content in sorted(built_in_files().items())
        for index, entry in enumerate(content["constraint"])
        for key, value in sorted(keys_of(entry), key=str)
        if (name, index, key, value) not in tested
    ]
    # See number_cases.IMPOSSIBLE; these are tested on descriptions in test_profiles.
    assert untested == [
        ("amd-dpu", 1, "layer", "minimum", 1),
        ("ethos-u", 3, "size", "exempt", "Shape"),
        ("tidl", 0, "rank", "operators", "Gemm"),
    ]


def test_the_width_that_a_target_pads_to() -> None:
    for name, content in sorted(built_in_files().items()):
        multiple = content["preferred"].get("width_multiple", 1)
        inside, outside = (
            described(model_of("Relu", (1, 8, 4, n))) for n in (2 * multiple, 2 * multiple + 1)
        )
        assert padding_notes(inside, [find_profile(name)]) == ()
        noted = padding_notes(outside, [find_profile(name)])
        ratio = f"{3 * multiple / (2 * multiple + 1):.3g}"
        assert noted == (() if multiple == 1 else (
            f"{name} pads the last axis to a multiple of {multiple}: that of 2 of 2 tensors (the first is x, of "
            f"{2 * multiple + 1}), {ratio} times the elements in total",
        ))  # fmt: skip


@pytest.mark.parametrize(
    "name", [name for name, content in built_in_files().items() if content["preferred"].get("form") == "conv"]
)
def test_the_axis_that_a_target_prefers_for_tokens(name: str) -> None:
    profile = find_profile(name)
    model = model_of("MatMul", (1, 5, 32), outputs=48)
    for axis, shape in {"width": (1, 48, 1, 5), "height": (1, 48, 5, 1), "batch": (5, 48, 1, 1)}.items():
        preferred = replace(profile.preferred, token_axis=axis)  # type: ignore[arg-type]
        made = prepared(convert_for_target(model, replace(profile, preferred=preferred), to="conv").model)
        shapes = [tuple(node.outputs[0].shape or ()) for node in made.graph if node.op_type == "Conv"]
        assert shapes == [shape]
        if axis == profile.preferred.token_axis:
            default = prepared(convert_for_target(model, profile, to="conv").model)
            assert [node.outputs[0].shape for node in default.graph] == [
                node.outputs[0].shape for node in made.graph
            ]
