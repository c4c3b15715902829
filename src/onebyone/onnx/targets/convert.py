"""Convert an ONNX model for a target: rewrite the nodes that violate its constraints, and list those that stay.

Nodes are rewritten in rounds, because a new form may violate another constraint: a product that became a convolution
may have too many channels. A rewriting whose nodes violate the constraint that it should satisfy is refused, so the
rounds end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.passes.common import IdentityEliminationPass

from onebyone.layout.token_axis import TokenAxis
from onebyone.onnx.conversion import OnnxConversion
from onebyone.onnx.convert import (
    WRITERS,
    Only,
    prepared,
    require_supported,
    wanted,
)
from onebyone.onnx.layout.convert import LAW, lay_out, nodes_by_themselves
from onebyone.onnx.layout.counting import layout_operators
from onebyone.onnx.model_rewriting import ModelRewriter, restore_value_infos, sort_where_needed
from onebyone.onnx.static_sizes import fill_shapes
from onebyone.onnx.stored_values import StoredValues
from onebyone.onnx.targets.decompositions import VIEWS_AS_RESHAPES
from onebyone.onnx.targets.description import describe
from onebyone.onnx.targets.fewer_axes import FEWER_AXES, fold_axes
from onebyone.onnx.targets.fixed_numbers import fix_numbers
from onebyone.onnx.targets.moved_factors import move_factors
from onebyone.onnx.targets.neighbouring_nodes import fold_neighbours
from onebyone.onnx.targets.remedies import remedy
from onebyone.onnx.targets.single_nodes import OTHER_AXES, fold_nodes, is_of_single_nodes
from onebyone.onnx.targets.tensor_parts import store_in_parts
from onebyone.onnx_file import bytes_of_weights
from onebyone.records import Change, Refusal
from onebyone.targets import (
    NodeDescription,
    Offender,
    TargetCheck,
    TargetProfile,
    padding_notes,
    violations,
    violations_of,
)
from onebyone.targets.constraint import Constraint
from onebyone.targets.limits import RankLimit, SizeLimit
from onebyone.targets.requirements import FormRequirement, MissingOperator

#: A guard against rewritings that undo each other; two or three rounds are usual.
MOST_ROUNDS = 8


@dataclass(frozen=True, eq=False)
class TargetConversion(OnnxConversion):
    """A model converted for a target.

    Attributes:
        target: the name of the target.
        offenders: what the original violated, each with whether and how it was mended.
        left: what the converted model violates, as `check` lists it; `refused` holds the reasons.
    """

    target: str = ""
    offenders: tuple[Offender, ...] = ()
    left: tuple[Offender, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """The report as plain data for JSON."""
        return super().to_dict() | {
            "target": self.target,
            "offenders": [offender.to_dict() for offender in self.offenders],
            "left": [offender.to_dict() for offender in self.left],
        }

    def headline(self) -> str:
        """One line: what was violated, what still is, and the bytes of the weights before and after."""
        before, after = self.weight_bytes
        line = (
            f"for {self.target}: {len(self.offenders)} violations, {len(self.changes)} rewritings, "
            f"{len(self.left)} violations left, weights {before:,} → {after:,} bytes"
        )
        return "\n".join([line, *(f"warning: {warning}" for warning in self.warnings)])


def convert_for_target(
    model: ir.Model,
    profile: TargetProfile,
    to: str | None = None,
    only: Only = None,
    freeze_initialisers: bool = False,
) -> TargetConversion:
    """Return a copy of a model in which the nodes that violate a target's constraints are rewritten.

    Args:
        model: any model of onnx-ir; it is not changed.
        profile: the target.
        to: "conv" or "linear" to convert every layer to that form first; None rewrites only what violates.
        only: patterns of paths, or a function of a path, of the nodes to rewrite.
        freeze_initialisers: as for `convert_model`.

    Raises:
        BadInput: as for `convert_model`.
    """
    require_supported(model, to)
    copy = prepared(model, freeze_initialisers)
    bytes_before = bytes_of_weights(copy)
    offenders = violations((description for description, _, _ in describe(copy)), profile)
    rewriter = ModelRewriter(copy)
    form = to or _required_form(profile, offenders)
    layout_before = layout_operators(copy)
    named = {value.name for node in copy.graph for value in node.outputs}
    if form is not None:
        violating = None if to is not None else frozenset(o.path for o in offenders if _is_of_form(o))
        stored = _lay_out(rewriter, profile, form, only, violating, layout_before.total())
        rewriter.stored = {name: tensors for name, tensors in stored.items() if name in named}
    if any(o.rule is not None and "Identity" in _missing(o) for o in offenders):
        _remove_identities(rewriter, offenders)
    reasons = _rewrite_in_rounds(rewriter, profile, only)
    sort_where_needed(copy)
    restore_value_infos(copy, model)
    layout_after = layout_operators(copy)
    left = tuple(
        replace(o, mendable=False, how=reasons.get(o.key, "no rewriting is written for it"))
        for o in violations((description for description, _, _ in describe(prepared(copy))), profile)
    )
    return TargetConversion(
        copy,
        tuple(rewriter.changes),
        tuple(Refusal(o.path, o.operator, _sentence(o)) for o in left),
        to=to or profile.name,
        level="graph",
        layers=tuple(rewriter.layers),
        entries=dict(rewriter.weights.entries),
        weight_bytes=(bytes_before, bytes_of_weights(copy)),
        frozen=freeze_initialisers,
        layout_before=layout_before,
        layout_after=layout_after,
        stored=rewriter.stored,
        warnings=_more_layout_operators(layout_before.total(), layout_after.total(), rewriter.changes),
        target=profile.name,
        offenders=_with_outcome(offenders, left, rewriter),
        left=left,
    )


def check_model(model: ir.Model, profiles: tuple[TargetProfile, ...]) -> TargetCheck:
    """What targets would not take of a model, and whether `convert_for_target` mends it: that is tried on a copy."""
    offenders: list[Offender] = []
    for profile in profiles:
        conversion = convert_for_target(model, profile)
        offenders += conversion.offenders
    described = list(describe(prepared(model)))
    count = sum(node is not None for _, node, _ in described)
    notes = padding_notes([description for description, _, _ in described], profiles)
    return TargetCheck(tuple(profile.name for profile in profiles), tuple(offenders), count, notes)


def _rewrite_in_rounds(
    rewriter: ModelRewriter, profile: TargetProfile, only: Only
) -> dict[tuple[str, str], str]:
    """Rewrite until nothing changes. Returns the reason of each violation that stays, by its key."""
    reasons: dict[tuple[str, str], str] = {}
    model = rewriter.model
    most = _most_axes(profile)
    axis_reasons: dict[str, str] = {}
    fix_numbers(rewriter, profile, only)
    move_factors(rewriter, profile, most, only)
    for _ in range(MOST_ROUNDS):
        before = len(rewriter.changes)
        fold_neighbours(rewriter, profile, most, only)
        if most is not None:
            axis_reasons = fold_axes(rewriter, most, only)
        size_reasons = store_in_parts(rewriter, profile, only)
        node_reasons = fold_nodes(rewriter, profile, most, only)
        changed = len(rewriter.changes) > before
        for description, node, opset in list(describe(model)):
            if node is None or node.graph is None:
                found = violations_of(description, profile)
                reasons |= {o.key: _of_input(o, description, profile) for o in found if node is None}
                continue
            if not wanted(rewriter.origin(description.path), only):
                continue
            for offender in violations_of(description, profile):
                assert offender.rule is not None
                write = remedy(offender.rule, description, profile)
                of_run = _reasons_of_runs(offender.rule, axis_reasons, size_reasons, node_reasons)
                if isinstance(write, str):
                    reasons[offender.key] = of_run.get(description.path, write)
                    continue
                before = len(rewriter.changes)
                reason = rewriter.attempt(description.path, node, opset, profile.name, write)
                if len(rewriter.changes) > before:
                    changed = True
                    break
                reasons[offender.key] = of_run.get(
                    description.path, reason or "no rewriting is written for it"
                )
        if not changed:
            break
        sort_where_needed(model)
        fill_shapes(model)
    return reasons


def _reasons_of_runs(
    rule: Constraint,
    of_axes: Mapping[str, str],
    of_sizes: Mapping[str, str],
    of_nodes: Mapping[str, str],
) -> Mapping[str, str]:
    """Why nodes that violate such a limit were not rewritten together, by path."""
    if is_of_single_nodes(rule):
        return of_nodes
    return of_axes if isinstance(rule, RankLimit) else of_sizes if isinstance(rule, SizeLimit) else {}


def _required_form(profile: TargetProfile, offenders: tuple[Offender, ...]) -> str | None:
    """The form that nodes violate: asked for by itself, or convolutions where there is no matrix product."""
    for offender in offenders:
        if isinstance(offender.rule, FormRequirement):
            return offender.rule.form
    has_no_product = any("MatMul" in _missing(o) and o.operator == "MatMul" for o in offenders)
    return "conv" if has_no_product and profile.preferred.form == "conv" else None


def _lay_out(
    rewriter: ModelRewriter,
    profile: TargetProfile,
    form: str,
    only: Only,
    violating: frozenset[str] | None,
    allowed: int,
) -> StoredValues:
    """Convert the layers to one form: those that are not token-wise by themselves, the others with their layout.

    Only those whose path is in `violating` are converted; all where that is None.
    """

    def selected(path: str) -> bool:
        return wanted(path, only) and (violating is None or path in violating)

    for path, node, opset in nodes_by_themselves(rewriter.model, form, selected):
        rewriter.attempt(path, node, opset, form, WRITERS[form])
    tokens = {"width": TokenAxis.LAST, "height": TokenAxis.HEIGHT, "batch": TokenAxis.BATCH}
    axis = tokens[profile.preferred.token_axis]
    return lay_out(rewriter, form, selected, axis, allowed)


def _most_axes(profile: TargetProfile) -> int | None:
    """The number of axes that every tensor may have; None if only some operators are limited."""
    limits = [
        rule.maximum
        for rule in profile.constraints
        if isinstance(rule, RankLimit)
        and rule.count == "all"
        and not rule.operators
        and rule.maximum is not None
    ]
    return min(limits, default=None)


def _of_input(offender: Offender, description: NodeDescription, profile: TargetProfile) -> str:
    assert offender.rule is not None
    reason = remedy(offender.rule, description, profile)
    return reason if isinstance(reason, str) else "the inputs of the model stay as they are"


def _is_of_form(offender: Offender) -> bool:
    """Whether a layer violates the form that its target asks for, or is a product of an operator that it lacks."""
    return isinstance(offender.rule, FormRequirement) or offender.operator in _missing(offender)


def _missing(offender: Offender) -> tuple[str, ...]:
    return offender.rule.operators if isinstance(offender.rule, MissingOperator) else ()


def _more_layout_operators(before: int, after: int, changes: Sequence[Change]) -> tuple[str, ...]:
    """Why the converted model has more layout operators than the original, in one sentence; nothing if it has not."""
    if after <= before:
        return ()
    laws = Counter(change.law for change in changes)
    views = sum(count for law, count in laws.items() if law in VIEWS_AS_RESHAPES)
    reasons = {
        "convolutions in the place of products, of data stored as (N, C, H, W)": laws[LAW["conv"]],
        "Reshapes in the place of operators that insert or remove axes of size 1": views,
        "transposes in several steps of tensors with more axes than it takes": laws[FEWER_AXES],
        "Reshapes around single operators whose axes or batch it limits": laws[OTHER_AXES],
    }
    causes = "; ".join(f"{reason} ({count})" for reason, count in reasons.items() if count)
    return (
        f"{after - before} more layout operators than in the original ({before} → {after}); the target needs {causes}",
    )


def _remove_identities(rewriter: ModelRewriter, offenders: tuple[Offender, ...]) -> None:
    """Remove Identity nodes, except those between an input and an output of the graph."""
    IdentityEliminationPass()(rewriter.model)
    present = {description.path for description, _, _ in describe(rewriter.model)}
    for offender in offenders:
        if offender.operator == "Identity" and offender.path not in present:
            rewriter.changes.append(
                Change(offender.path, "Identity", "identity = its input", "Identity", "removed")
            )


def _with_outcome(
    offenders: tuple[Offender, ...], left: tuple[Offender, ...], rewriter: ModelRewriter
) -> tuple[Offender, ...]:
    """The original's violations, each with whether it is gone, and by what or why not."""
    stayed = {(rewriter.origin(o.path), o.key[1]): o.how for o in left}
    laws: dict[str, list[str]] = {}
    for change in rewriter.changes:
        laws.setdefault(change.path, []).append(change.law)
    found = []
    for offender in offenders:
        key = (offender.path, offender.key[1])
        if key in stayed:
            found.append(replace(offender, mendable=False, how=stayed[key]))
        else:
            how = "; ".join(dict.fromkeys(laws.get(offender.path, ["with the node that it belongs to"])))
            found.append(replace(offender, mendable=True, how=how))
    return tuple(found)


def _sentence(offender: Offender) -> str:
    what = offender.constraint
    if offender.subject not in (offender.constraint, offender.operator):
        what += f" of {offender.subject}"
    return f"{what} is {offender.found}, allowed {offender.allowed}: {offender.how}"
