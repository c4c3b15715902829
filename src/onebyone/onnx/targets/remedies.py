"""Which rewriting removes which violation of a target's constraints."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from math import gcd, prod

import onnx_ir as ir

from onebyone.onnx.constant_values import NotRewritable
from onebyone.onnx.convert import write_as_convolution, write_as_product
from onebyone.onnx.graph_writer import GraphWriter
from onebyone.onnx.model_rewriting import Rewriting, Write
from onebyone.onnx.targets import decompositions, products, splitting, windows
from onebyone.onnx.targets.description import describe_node
from onebyone.onnx.weight_rewriting import WeightRewriter
from onebyone.onnx.window_settings import GLOBAL_POOLS, SLIDING
from onebyone.targets import NodeDescription, TargetProfile
from onebyone.targets.constraint import Constraint
from onebyone.targets.limits import LayerLimit, RankLimit, SizeLimit
from onebyone.targets.requirements import (
    AttributeValues,
    BiasVector,
    ConstantOperand,
    ExplicitAttributes,
    ForbiddenElementTypes,
    FormRequirement,
    MissingOperator,
    StaticShapes,
)

#: Operators that no other operators compute exactly, and why not.
_NO_OTHER_FORM = {
    "MatMul": "it multiplies two activations, and the weight of a convolution is a constant",
    "Erf": "no formula of other operators gives its numbers exactly; the one of Gelu with Tanh is another function",
}
#: Products that `write_as_convolution` and `write_plain_product` read.
_PRODUCTS = frozenset(["MatMul", "Gemm", "Einsum", "com.microsoft.FusedMatMul", "com.microsoft.FusedGemm"])


def remedy(rule: Constraint, description: NodeDescription, profile: TargetProfile) -> Write | str:
    """The rewriting that removes a violation; a text where there is none, with the reason."""
    for kind, choose in _REMEDIES.items():
        if isinstance(rule, kind):
            chosen = choose(rule, description, profile)
            return chosen if isinstance(chosen, str) else partial(_checked, rule, chosen)
    return "no rewriting is written for this constraint"


def _checked(
    rule: Constraint, write: Write, node: ir.Node, writer: GraphWriter, weights: WeightRewriter
) -> Rewriting | str | None:
    """The rewriting, refused where a node that it inserts violates the same constraint, and has no other form."""
    result = write(node, writer, weights)
    if isinstance(result, Rewriting):
        require_allowed(rule, writer.nodes)
    return result


def require_allowed(rule: Constraint, nodes: Iterable[ir.Node]) -> None:
    """Raise NotRewritable if a new node violates the constraint again, and has no other form."""
    for new in nodes:
        description = describe_node(str(new.name), new)
        finding = rule.check(description) if rule.applies(description) else None
        has_other_form = isinstance(rule, MissingOperator) and new.op_type in decompositions.DECOMPOSED
        if finding is not None and not has_other_form:
            what = "" if isinstance(rule, MissingOperator) else f": {rule.title} {finding.found}"
            raise NotRewritable(f"its new form needs {new.op_type}, which violates the same constraint{what}")


def _form(rule: Constraint, description: NodeDescription, profile: TargetProfile) -> Write | str:
    assert isinstance(rule, FormRequirement)
    return write_as_convolution if rule.form == "conv" else write_as_product


def _missing(rule: Constraint, description: NodeDescription, profile: TargetProfile) -> Write | str:
    operator, layer = description.operator, description.layer
    if operator in _PRODUCTS and layer is not None:
        is_conv = profile.preferred.form == "conv" or operator == "MatMul"
        return write_as_convolution if is_conv else products.write_plain_product
    if operator == "Conv" and layer is not None and layer.is_linear:
        return write_as_product
    if operator == "Einsum":
        return products.write_batched_product
    return _NO_OTHER_FORM.get(operator, decompositions.decompose)


def _operand(rule: Constraint, description: NodeDescription, profile: TargetProfile) -> Write | str:
    if profile.preferred.form == "conv" or (description.layer is not None and description.layer.groups > 1):
        return write_as_convolution
    return products.write_plain_product


def _gemm(rule: Constraint, description: NodeDescription, profile: TargetProfile) -> Write | str:
    if description.operator != "Gemm":
        return f"no rewriting changes the attribute of {description.operator}"
    return _operand(rule, description, profile)


def _explicit(rule: Constraint, description: NodeDescription, profile: TargetProfile) -> Write | str:
    if description.operator not in SLIDING:
        return f"no defaults are written out for {description.operator}"
    return windows.write_out_attributes


def _rank(rule: Constraint, description: NodeDescription, profile: TargetProfile) -> Write | str:
    assert isinstance(rule, RankLimit)
    ranks = [tensor.rank for tensor in description.activations if tensor.rank is not None]
    if description.operator in {*SLIDING, *GLOBAL_POOLS} and max(ranks) == 3 and rule.minimum == 4:
        return partial(windows.add_spatial_axis, at=3 if profile.preferred.token_axis == "height" else 2)
    return f"no rewriting changes the rank of {description.operator}"


def _layer_limit(rule: Constraint, description: NodeDescription, profile: TargetProfile) -> Write | str:
    assert isinstance(rule, LayerLimit)
    layer = description.layer
    if layer is None or rule.minimum > min(rule.values(description), default=0) or rule.multiple_of > 1:
        return "no rewriting makes a number larger, or a multiple of another"
    if description.operator == "GlobalAveragePool" and rule.quantity == "kernel-area" and rule.maximum:
        return partial(windows.pool_in_blocks, largest=rule.maximum)
    if description.operator != "Conv":
        return f"no rewriting splits {description.operator}"
    return _convolution(rule, description, profile)


def _convolution(rule: LayerLimit, description: NodeDescription, profile: TargetProfile) -> Write | str:
    layer = description.layer
    assert layer is not None
    match rule.quantity:
        case "input-channels" | "output-channels" | "groups":
            return partial(splitting.split_channels, limits=_limits(profile, description))
        case "weight-passes":
            area = layer.kernel_area or 1
            if rule.maximum is not None and area > rule.maximum:
                return _smaller_kernel(profile, description)
            return partial(splitting.split_channels, limits=_limits(profile, description))
        case "kernel" | "kernel-height" | "kernel-width" | "kernel-area":
            return _smaller_kernel(profile, description)
        case "padding" | "pointwise-padding":
            return windows.move_padding_out
        case "stride" | "unequal-strides":
            return _smaller_strides(profile, description)
    return f"no rewriting changes the {rule.quantity} of a convolution"


def _limits(profile: TargetProfile, description: NodeDescription) -> splitting.ConvolutionLimits:
    """The channels and groups that every constraint of the target leaves to one convolution."""
    layer = description.layer
    assert layer is not None
    inputs: list[int] = []
    outputs: list[int] = []
    groups: list[int] = []
    for rule in profile.constraints:
        if not rule.applies(description) or getattr(rule, "maximum", None) is None:
            continue
        if isinstance(rule, LayerLimit) and rule.maximum is not None:
            if rule.quantity == "weight-passes":
                inputs.append(rule.maximum // (layer.kernel_area or 1) * rule.channel_block)
            for quantity, numbers in (
                ("input-channels", inputs),
                ("output-channels", outputs),
                ("groups", groups),
            ):
                if rule.quantity == quantity:
                    numbers.append(rule.maximum)
        if isinstance(rule, SizeLimit) and rule.axis in ("channels", "every", "last-three"):
            assert rule.maximum is not None
            inputs.append(rule.maximum)
            outputs.append(rule.maximum)
    return splitting.ConvolutionLimits(
        *(min(numbers) if numbers else None for numbers in (inputs, outputs, groups))
    )


def _smaller_kernel(profile: TargetProfile, description: NodeDescription) -> Write | str:
    layer = description.layer
    assert layer is not None
    kernel = [size or 1 for size in layer.kernel]
    area: int | None = None
    for rule in profile.constraints:
        if not isinstance(rule, LayerLimit) or rule.maximum is None or not rule.applies(description):
            continue
        if rule.quantity == "kernel":
            kernel = [min(size, rule.maximum) for size in kernel]
        elif rule.quantity == "kernel-height" and len(kernel) > 1:
            kernel[-2] = min(kernel[-2], rule.maximum)
        elif rule.quantity == "kernel-width":
            kernel[-1] = min(kernel[-1], rule.maximum)
        elif rule.quantity in ("kernel-area", "weight-passes"):
            area = rule.maximum if area is None else min(area, rule.maximum)
    while area is not None and prod(kernel) > area:
        largest = kernel.index(max(kernel))
        kernel[largest] = -(-kernel[largest] // 2)
    return partial(splitting.split_kernel, largest=tuple(kernel))


def _smaller_strides(profile: TargetProfile, description: NodeDescription) -> Write | str:
    """Divisors of the strides that every constraint of the target allows."""
    layer = description.layer
    assert layer is not None
    rules = [
        rule
        for rule in profile.constraints
        if isinstance(rule, LayerLimit)
        and rule.quantity in ("stride", "unequal-strides")
        and rule.applies(description)
    ]
    common = gcd(*layer.strides)
    for candidate in range(common, 0, -1):
        if common % candidate:
            continue
        strides = (candidate,) * len(layer.strides)
        changed = replace(description, layer=replace(layer, strides=strides))
        if all(rule.check(changed) is None for rule in rules):
            return partial(windows.reduce_strides, strides=strides)
    return "no divisor of its strides is allowed"


def _size(rule: Constraint, description: NodeDescription, profile: TargetProfile) -> Write | str:
    """A product of a flattened map is a convolution of the map, whose axes are shorter."""
    layer = description.layer
    if layer is not None and layer.form == "linear" and profile.preferred.form != "linear":
        return write_as_convolution
    return "no rewriting splits its tensors"


def _none(reason: str) -> Callable[[Constraint, NodeDescription, TargetProfile], Write | str]:
    return lambda rule, description, profile: reason


_REMEDIES: dict[type[Constraint], Callable[[Constraint, NodeDescription, TargetProfile], Write | str]] = {
    FormRequirement: _form,
    MissingOperator: _missing,
    ConstantOperand: _operand,
    AttributeValues: _gemm,
    BiasVector: _gemm,
    ExplicitAttributes: _explicit,
    RankLimit: _rank,
    LayerLimit: _layer_limit,
    SizeLimit: _size,
    StaticShapes: _none("the sizes are the caller's choice: export the model with fixed sizes"),
    ForbiddenElementTypes: _none("another element type would round differently"),
}
