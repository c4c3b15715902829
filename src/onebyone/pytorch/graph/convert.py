"""`convert(level="graph")`: exported program in, exported program out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.optim import Optimizer

from onebyone.errors import BadInput
from onebyone.pytorch.files.exporting import export_program
from onebyone.pytorch.graph.conversion import GraphConversion
from onebyone.pytorch.graph.counting import layout_operators
from onebyone.pytorch.graph.functional import functional_program
from onebyone.pytorch.graph.optimizer import carry
from onebyone.pytorch.graph.pairs import pairs_of
from onebyone.pytorch.graph.rewrite import MatchedProduct, Rewritten, find_products, rewrite
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
) -> GraphConversion:
    """Every product with a constant weight as a 1×1 convolution (`to="conv"`), or every 1×1 convolution as a
    linear map.

    `model` is an exported program, or a module that is exported in eval mode with `example` (its input, a tuple
    of positional arguments, a dict of keyword arguments, or a pair of both). It is left as it is. Values are
    stored in the axis order that needs the fewest layout operators, and never more of them than the original
    had where that can be had. Parameters keep their names; weights are stored as (O, I, 1, 1), as views of the
    original's storage, so training one trains the other. `only` chooses layers: a glob on dotted paths, several
    of them, or a function (path, module) → bool (module None where a program was given). `optimizer` is handed
    over to the new parameters, with its elementwise state.

    Raises:
        BadInput: an argument that cannot be used, among them an `only` that chooses nothing.
        Refused: the optimizer's state depends on the parameters' shape.

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
    program = exported(model, example)
    original = functional_program(program)
    found, refused = find_products(original, to, _selection(only, model))
    converted = [f for f in found if f.convert]
    if only is not None and not converted and not refused:
        raise BadInput(
            f"only={only!r} chooses no {'product with a constant weight' if to == 'conv' else '1×1 convolution'}"
        )
    before = layout_operators(program)
    result = Rewritten(program, StoredWeights(), before.total(), {})
    if converted:
        result = rewrite(original, found, before.total())
    conversion = GraphConversion(
        model=result.program,
        changes=tuple(_change(f, to, result.weights, original) for f in converted),
        refused=tuple(refused),
        to=to,
        level="graph",
        layout_before=before,
        layout_after=layout_operators(result.program),
        pairs=pairs_of(converted, original, result),
        weights=result.weights,
    )
    if optimizer is not None:
        carry(optimizer, original, conversion.model, result.weights)
    return conversion


def exported(model: nn.Module | ExportedProgram, example: Any = None) -> ExportedProgram:
    """The program of a module in eval mode, exported with an example; a program is given back as it is."""
    if isinstance(model, ExportedProgram):
        return model
    if not isinstance(model, nn.Module):
        raise BadInput(f"model is a {type(model).__name__}: expected an nn.Module or an exported program")
    if example is None:
        raise BadInput("level='graph' on a module needs an example: convert(model, level='graph', example=x)")
    require_plain_names(model)
    return export_program(model, example)


def _selection(only: Only | None, model: nn.Module | ExportedProgram) -> Callable[[str], bool]:
    if only is None:
        return lambda path: True
    if callable(only):
        modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
        return lambda path: only(path, modules.get(path))
    globs = [only] if isinstance(only, str) else list(only)
    return lambda path: any(fnmatchcase(path, glob) for glob in globs)


def _change(found: MatchedProduct, to: str, weights: StoredWeights, program: ExportedProgram) -> Change:
    inputs, outputs = found.product.channels
    grouped = f", {found.product.groups} groups" if found.product.groups > 1 else ""
    strided = f", stride {found.product.stride}" if any(s != 1 for s in found.product.stride) else ""
    before, after = f"linear {inputs}→{outputs}", f"1×1 convolution ({outputs}, {inputs}, 1, 1)"
    if to == "linear":
        before = f"1×1 convolution {inputs}→{outputs}{grouped}{strided}"
        after = f"linear ({outputs}, {inputs // found.product.groups}){grouped}{strided}"
    shape = weights.shapes.get(found.weight_name or "")
    copied = 0
    if shape is not None and shape.copied:
        value = program.state_dict.get(found.weight_name or "")
        copied = value.numel() * value.element_size() if isinstance(value, Tensor) else 0
    return Change(found.path, found.product.kind, LAW[to], before, after, copied)
