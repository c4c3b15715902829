"""`convert(level="graph")`: exported program in, exported program out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.optim import Optimizer

from onebyone.errors import BadInput
from onebyone.pytorch.files.exporting import export_free, export_program
from onebyone.pytorch.graph.conversion import GraphConversion
from onebyone.pytorch.graph.counting import layout_operators
from onebyone.pytorch.graph.functional import functional_program
from onebyone.pytorch.graph.nodes import graph_values
from onebyone.pytorch.graph.optimizer import carry
from onebyone.pytorch.graph.pairs import pairs_of
from onebyone.pytorch.graph.patches import MatchedPatches, find_patches
from onebyone.pytorch.graph.products import MatchedProduct, find_products
from onebyone.pytorch.graph.rewrite import Rewritten, rewrite
from onebyone.pytorch.graph.weights import StoredWeights
from onebyone.pytorch.lift.exported_graph import require_plain_names
from onebyone.records import Change

Only = str | Sequence[str] | Callable[[str, nn.Module | None], bool]
LAW = {"conv": "linear = pointwise convolution", "linear": "pointwise convolution = linear"}


def convert_graph(
    model: nn.Module | ExportedProgram,
    *,
    to: str = "conv",
    example: Any = None,
    only: Only | None = None,
    optimizer: Optimizer | None = None,
    dynamic_axes: Sequence[int] | None = None,
) -> GraphConversion:
    """Convert every product with a constant weight to a 1×1 convolution, or every 1×1 convolution to a linear layer.

    With `to="linear"`, a convolution whose kernel is its stride becomes a linear layer on patches where this needs no
    more layout operators, as in a vision transformer, whose tokens have their channels last. Elsewhere it is refused.
    Values are stored in the axis order that needs the fewest layout operators: no more than the original has, wherever
    such a plan exists. Parameters keep their names. Weights are stored as (O, I, 1, 1) for `to="conv"` and as (O, I)
    for `to="linear"`, as views of the original's storage where possible, so training one trains the other. Kernels of
    convolutions on patches keep their shape; the program reads them through a view.

    Parameters
    ----------
    model
        An exported program, or a module, which is exported in eval mode. It is not changed.
    to
        "conv" or "linear".
    example
        The input with which a module is exported: a tensor, a tuple of positional arguments, a dict of keyword
        arguments, or a pair of both.
    only
        The layers to convert: a glob on dotted paths, several of them, or a function `(path, module) → bool`, whose
        module is None where `model` is a program.
    optimizer
        An optimizer of the model's parameters. It is updated to hold the new parameters, with its elementwise state.
    dynamic_axes
        Axes of a module's inputs whose size stays free in the program; None keeps the example's sizes.

    Raises
    ------
    BadInput
        An argument cannot be used, or `only` selects nothing.
    Refused
        The optimizer's state depends on the shapes of the parameters.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> c = convert_graph(net, to="conv", example=torch.ones(4, 5, 3))
    >>> print(c)
    to conv (graph): 2 converted, 0 refused, 0 bytes copied, layout operators 0 → 0
    path  operator             before      after
    ----  -------------------  ----------  ----------------------------
    0     aten.linear.default  linear 3→8  1×1 convolution (8, 3, 1, 1)
    2     aten.linear.default  linear 8→2  1×1 convolution (2, 8, 1, 1)
    """
    if to not in LAW:
        raise BadInput(f"to={to!r}: expected 'conv' or 'linear'")
    program = exported(model, example, dynamic_axes)
    original = functional_program(program)
    values = graph_values(original.graph)
    selected = _selection(only, model)
    products, refused = find_products(original, values, to, selected)
    on_patches: list[MatchedPatches] = []
    if to == "linear":
        on_patches, others = find_patches(original, values, selected)
        refused += others
    converted = [match for match in products if match.convert]
    if only is not None and not converted and not on_patches and not refused:
        kind = {
            "conv": "product with a constant weight",
            "linear": "1×1 convolution or convolution on patches",
        }
        raise BadInput(f"only={only!r} selects no {kind[to]}")
    before = layout_operators(program)
    result = Rewritten(program, StoredWeights(), before.total(), {})
    if converted or on_patches:
        result = rewrite(original, values, products, before.total(), [match.rule for match in on_patches])
    kept = [match for match in on_patches if match.rule not in result.on_patches]
    on_patches = [match for match in on_patches if match.rule in result.on_patches]
    changes = [_change(match, to, result.weights, original) for match in converted]
    if not converted and not on_patches:
        result = Rewritten(program, StoredWeights(), before.total(), {})
    conversion = GraphConversion(
        model=result.program,
        changes=(*changes, *(match.change() for match in on_patches)),
        refused=(*refused, *(match.refusal() for match in kept)),
        to=to,
        level="graph",
        layout_before=before,
        layout_after=layout_operators(result.program),
        pairs=pairs_of(converted, on_patches, original, result),
        weights=result.weights,
    )
    if optimizer is not None:
        carry(optimizer, original, conversion.model, result.weights)
    return conversion


def exported(
    model: nn.Module | ExportedProgram, example: Any = None, dynamic_axes: Sequence[int] | None = None
) -> ExportedProgram:
    """The program of a module in eval mode, exported with an example; an exported program is returned unchanged."""
    if isinstance(model, ExportedProgram):
        if dynamic_axes is not None:
            raise BadInput(
                "dynamic_axes: an exported program already fixes which sizes are free; expected None"
            )
        return model
    if not isinstance(model, nn.Module):
        raise BadInput(f"model is a {type(model).__name__}: expected an nn.Module or an exported program")
    if example is None:
        raise BadInput("level='graph': a module is exported with an example input; give example=")
    require_plain_names(model)
    return (
        export_program(model, example) if dynamic_axes is None else export_free(model, example, dynamic_axes)
    )


def _selection(only: Only | None, model: nn.Module | ExportedProgram) -> Callable[[str], bool]:
    if only is None:
        return lambda path: True
    if callable(only):
        modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
        return lambda path: only(path, modules.get(path))
    globs = [only] if isinstance(only, str) else list(only)
    return lambda path: any(fnmatchcase(path, glob) for glob in globs)


def _change(match: MatchedProduct, to: str, weights: StoredWeights, program: ExportedProgram) -> Change:
    product = match.product
    inputs, outputs = product.inputs, product.outputs
    grouped = f", {product.groups} groups" if product.groups > 1 else ""
    strided = f", stride {product.stride}" if any(step != 1 for step in product.stride) else ""
    before, after = f"linear {inputs}→{outputs}", f"1×1 convolution ({outputs}, {inputs}, 1, 1)"
    if to == "linear":
        before = f"1×1 convolution {inputs}→{outputs}{grouped}{strided}"
        after = f"linear ({outputs}, {inputs // product.groups}){grouped}{strided}"
    shape = weights.shapes.get(match.weight_name or "")
    copied = 0
    if shape is not None and shape.copied:
        value = program.state_dict.get(match.weight_name or "")
        copied = value.numel() * value.element_size() if isinstance(value, Tensor) else 0
    return Change(match.path, match.operator, LAW[to], before, after, copied)
