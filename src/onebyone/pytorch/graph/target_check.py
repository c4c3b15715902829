"""Check exported programs against targets, and convert them at the level of the graph where a target asks for a form.

At this level the form of layers changes: products to 1×1 convolutions or the reverse. What else a target asks for
(splits, attributes, other operators) is a matter of the file that its compiler reads: `convert` does it on ONNX files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from onebyone.errors import BadInput
from onebyone.pytorch.graph.conversion import GraphConversion
from onebyone.pytorch.graph.convert import Only, convert_graph, exported
from onebyone.pytorch.graph.functional import functional_program
from onebyone.pytorch.graph.target_description import describe_program
from onebyone.records import Refusal
from onebyone.targets import Offender, TargetCheck, TargetProfile, padding_notes, violations
from onebyone.targets.requirements import FormRequirement

ON_ONNX = "not in PyTorch: export the network to ONNX and convert the file for this target"


def check_program(
    network: nn.Module | ExportedProgram, profiles: tuple[TargetProfile, ...], example: Any = None
) -> TargetCheck:
    """What targets would not take of a program, and whether a conversion of the graph mends it (which is tried).

    Raises:
        BadInput: a module without an example.
    """
    if isinstance(network, nn.Module) and example is None:
        raise BadInput(
            "example: is missing; a module is exported with an example input, such as torch.randn(1, 3, 224, 224)"
        )
    program = exported(network, example)
    nodes = list(describe_program(functional_program(program)))
    found: list[Offender] = []
    for profile in profiles:
        offenders = violations(nodes, profile)
        mended: dict[str, str] = {}
        refused: dict[str, str] = {}
        form = _required_form(profile)
        if form is not None and any(isinstance(o.rule, FormRequirement) for o in offenders):
            conversion = convert_graph(program, to=form)
            mended = {change.path: change.law for change in conversion.changes}
            refused = {refusal.path: refusal.reason for refusal in conversion.refused}
        found += [_with_outcome(offender, mended, refused) for offender in offenders]
    notes = padding_notes(nodes, profiles)
    return TargetCheck(tuple(profile.name for profile in profiles), tuple(found), len(nodes), notes)


def convert_program_for_target(
    network: nn.Module | ExportedProgram,
    profile: TargetProfile,
    to: str | None = None,
    only: Only | None = None,
    example: Any = None,
    dynamic_axes: Sequence[int] | None = None,
) -> GraphConversion:
    """Convert a program to the form that a target asks for; `refused` lists what the target still would not take.

    Raises:
        BadInput: the target asks for no form, or `to` is another one.
    """
    form = _required_form(profile) or (None if profile.preferred.form == "any" else profile.preferred.form)
    if form is None:
        raise BadInput(
            f"target={profile.name!r}: asks for no form of layers, and a PyTorch network is converted between forms "
            "only; export it to ONNX and convert the file for this target"
        )
    if to not in (None, form):
        raise BadInput(f"to={to!r}: the target {profile.name} asks for the form {form!r}")
    conversion = convert_graph(network, to=form, example=example, only=only, dynamic_axes=dynamic_axes)
    left = violations(describe_program(functional_program(conversion.model)), profile)
    known = {refusal.path for refusal in conversion.refused}
    refusals = []
    for offender in left:
        if offender.path not in known:
            limit = f"{offender.constraint} is {offender.found}, allowed {offender.allowed}"
            refusals.append(Refusal(offender.path, offender.operator, f"{limit}: {ON_ONNX}"))
    return replace(conversion, refused=(*conversion.refused, *refusals))


def _required_form(profile: TargetProfile) -> str | None:
    return next((rule.form for rule in profile.constraints if isinstance(rule, FormRequirement)), None)


def _with_outcome(offender: Offender, mended: dict[str, str], refused: dict[str, str]) -> Offender:
    if isinstance(offender.rule, FormRequirement):
        path = offender.path.partition("#")[0]
        if path in mended and path not in refused:
            return replace(offender, mendable=True, how=f'level "graph": {mended[path]}')
        return replace(
            offender, mendable=False, how=refused.get(path, "it is not converted at the level of the graph")
        )
    return replace(offender, mendable=False, how=ON_ONNX)
