"""Convolutions on adjacent patches in exported programs: which there are, and what is reported of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch.export import ExportedProgram
from torch.fx import Node

from onebyone.laws import patches
from onebyone.layout.patches import PatchRule
from onebyone.layout.values import GraphValue
from onebyone.pytorch.graph.nodes import argument, has_unknown_size, operator_name
from onebyone.pytorch.graph.product_matching import CONVOLUTIONS, ProductMatcher, dtype_reason
from onebyone.pytorch.graph.products import LayerNames
from onebyone.records import Change, Refusal

KEPT = "as a linear layer on patches it would need more layout operators than as a convolution"


@dataclass(frozen=True)
class MatchedPatches:
    """A convolution on patches, and the layer that it belongs to."""

    path: str
    operator: str  # such as aten.conv2d.default
    rule: PatchRule
    weight_name: str | None
    bias_name: str | None

    def change(self) -> Change:
        """What is reported where the program computes a linear layer; its weight is a view of the kernel."""
        outputs, inputs = self.rule.weight.size(0), self.rule.weight.size(1)
        size = "×".join(map(str, self.rule.kernel))
        features = prod((self.rule.x.size(self.rule.channel), *self.rule.kernel))
        before = f"{size} convolution {inputs}→{outputs}, stride {size}"
        after = f"linear ({outputs}, {features}) on patches"
        return Change(self.path, self.operator, patches.NAME, before, after, 0)

    def refusal(self) -> Refusal:
        """What is reported where the program keeps the convolution."""
        return Refusal(self.path, self.operator, KEPT)


def find_patches(
    program: ExportedProgram, values: Mapping[Node, GraphValue], selected: Callable[[str], bool]
) -> tuple[list[MatchedPatches], list[Refusal]]:
    """Every convolution whose kernel is its stride and has a constant weight; those that are no linear layer, with why.

    `values` are those of the program's graph; `selected` says by path which layers are to be converted.
    """
    matcher, names = ProductMatcher.of(program, values), LayerNames(program)
    matched: list[MatchedPatches] = []
    refused: list[Refusal] = []
    for node in program.graph.nodes:
        rule = _read(node, matcher)
        if rule is None or not selected(path := names.layer(node, matcher.weight_of(node))):
            continue
        if isinstance(rule, str):
            refused.append(Refusal(path, str(node.target), rule))
            continue
        weight, bias = names.parameter(rule.weight), names.parameter(rule.bias)
        matched.append(MatchedPatches(path, str(node.target), rule, weight, bias))
    return matched, refused


def _read(node: Node, matcher: ProductMatcher) -> PatchRule | str | None:
    """The rule of a convolution on patches; why it is not a linear layer; None for all other nodes."""
    name = operator_name(node)
    if name not in CONVOLUTIONS:
        return None
    x, weight = node.args[:2]
    if not isinstance(x, Node) or not isinstance(weight, Node) or weight not in matcher.constant:
        return None
    kernel = tuple(weight.meta["val"].shape[2:])
    settings = _settings(node, len(kernel))
    if all(k == 1 for k in kernel) or settings.pop("stride") != kernel:
        return None
    if name == "convolution" and node.args[6]:
        return "a transposed convolution"
    reason = patches.why_not_patches(kernel, kernel, **settings) or dtype_reason(node)
    result, source = matcher.values[node], matcher.values[x]
    if reason is not None:
        return reason
    if has_unknown_size(x) or 0 in (*(source.shape or ()), *(result.shape or ())):
        return "a size of its input is 0, or depends on the values of other tensors"
    bias = argument(node, 2, "bias")
    parameters = (matcher.values[weight], *([matcher.values[bias]] if isinstance(bias, Node) else []))
    return PatchRule(
        result,
        (source, *parameters),
        source,
        parameters[0],
        parameters[1] if len(parameters) > 1 else None,
        kernel,
        weight_copies=not weight.meta["val"].is_contiguous(),
    )


def _settings(node: Node, axes: int) -> dict[str, Any]:
    """Stride, padding, dilation and groups of a convolution; one number for each axis."""
    general = operator_name(node) == "convolution"

    def each(value: Any) -> tuple[int, ...]:
        sizes = (value,) if isinstance(value, int) else tuple(value)
        return sizes * axes if len(sizes) == 1 else sizes

    padding = argument(node, 4, "padding", 0)
    return {
        "stride": each(argument(node, 3, "stride", 1)),
        # a padding given by name is "valid", because "same" is not defined for strides above 1
        "padding": () if isinstance(padding, str) else each(padding),
        "dilation": each(argument(node, 5, "dilation", 1)),
        "groups": int(argument(node, 8 if general else 6, "groups", 1)),
    }
