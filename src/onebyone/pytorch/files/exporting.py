"""Export a network with an example input, or explain in one sentence why that is impossible."""

from __future__ import annotations

import copy
import inspect
import linecache
import logging
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from onebyone.errors import BadInput
from onebyone.records import first_line
from onebyone.results.example_inputs import arguments

_LIBRARIES = (Path(torch.__file__).parent, Path(__file__).parents[1])
# What torch raises if the graph would depend on values, which are not known while it exports.
_DEPENDS_ON_VALUES = frozenset(
    {"GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException"}
)
_FROM_NUMPY = ".numpy() is not supported for tensor subclasses"
_TALKATIVE = (
    "torch.export",
    "torch._export",
    "torch.export.pt2_archive._package",
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
)


def export_program(model: nn.Module, example: Any) -> ExportedProgram:
    """Export a network in eval mode with an example input (see `results.example_inputs`). Its modes are restored.

    Raises
    ------
    BadInput
        if the network does not run on the example, or torch.export cannot trace it.

    >>> program = export_program(nn.Linear(3, 2), {"input": torch.ones(1, 3)})
    >>> [node.name for node in program.graph.nodes]
    ['p_weight', 'p_bias', 'input', 'linear', 'output']
    """
    args, kwargs = arguments(example)
    with evaluating(model), quiet():
        try:
            return torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            raise BadInput(_why_not_exported(model, args, kwargs, error)) from error


def export_free(model: nn.Module, example: Any, axes: Sequence[int]) -> ExportedProgram:
    """As `export_program`, with any size along `axes` of every input tensor that has them.

    Raises
    ------
    BadInput
        as `export_program`, or if an operator of the network needs the example's own size along one of the axes.

    >>> program = export_free(nn.Conv2d(1, 2, 3), torch.ones(1, 1, 8, 8), (0, 2, 3))
    >>> tuple(program.module()(torch.ones(2, 1, 5, 9)).shape)
    (2, 2, 3, 7)
    """
    if any(axis < 0 for axis in axes):
        raise BadInput(f"dynamic_axes={tuple(axes)}: expected axes counted from 0")
    call = arguments(example)
    tensors = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]
    for axis in axes:  # torch.export treats a size of one as a constant, so the export is made with two
        sizes = {tensor.shape[axis] for tensor in tensors if tensor.dim() > axis}
        if not sizes:
            raise BadInput(f"dynamic_axes={tuple(axes)}: no input has an axis {axis}")
        if sizes == {1}:
            call = pytree.tree_map(lambda v, axis=axis: _doubled(v, axis), call)
    free = pytree.tree_map(
        lambda v: {a: Dim.DYNAMIC for a in axes if a < v.dim()} if isinstance(v, Tensor) else None, call
    )
    shapes = dict(inspect.signature(model.forward).bind(*free[0], **free[1]).arguments)
    args, kwargs = call
    with evaluating(model), quiet():
        try:
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            reason = _why_not_exported(model, args, kwargs, error)
            raise BadInput(f"dynamic_axes={tuple(axes)}: with free sizes there, {reason}") from error


def _doubled(value: Any, axis: int) -> Any:
    return torch.cat([value, value], axis) if isinstance(value, Tensor) and value.dim() > axis else value


def export_any_batch(model: nn.Module, example: Any) -> ExportedProgram:
    """As `export_program`, for any batch size if the network's operators allow that.

    The batch is the first axis of every input tensor, if all of them have the same size. The program keeps the example.

    >>> program = export_any_batch(nn.Linear(3, 2), torch.ones(1, 3))
    >>> [tuple(program.module()(torch.ones(n, 3)).shape) for n in (1, 5)]
    [(1, 2), (5, 2)]
    """
    args, kwargs = arguments(example)
    batches = {leaf.shape[:1] for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
    if len(batches) != 1 or not all(batches):
        return export_program(model, example)
    # a batch of two, because torch.export treats a size of one as a special case
    several = pytree.tree_map(lambda v: torch.cat([v, v]) if isinstance(v, Tensor) else v, (args, kwargs))
    free = pytree.tree_map(lambda v: {0: Dim.AUTO} if isinstance(v, Tensor) else None, several)
    try:
        signature = inspect.signature(model.forward)
        shapes = dict(signature.bind(*free[0], **free[1]).arguments)
        with evaluating(model), quiet():
            program = torch.export.export(model, *several, dynamic_shapes=shapes, strict=False)
    except Exception:  # the network may do anything with its batch; the example's own size always works
        return export_program(model, example)
    names = set(program.graph_signature.user_inputs)
    inputs = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    if any(isinstance(v, Tensor) and isinstance(v.shape[0], int) for v in inputs):
        return export_program(model, example)
    program.example_inputs = (args, kwargs)
    return program


def _why_not_exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception
) -> str:
    try:
        with torch.no_grad():
            model(*_copied(args), **_copied(kwargs))
    except Exception as failure:
        return f"example: the network does not run on it: {first_line(failure)}{_location(failure)}"
    return f"model: torch.export cannot follow the network: {why_not_followed(error)}"


def why_not_followed(error: Exception) -> str:
    """What torch.export cannot trace, and where in the network's code."""
    if _FROM_NUMPY in str(error):
        what = "it passes the values of a tensor to NumPy"
    elif depends_on_values(error):
        what = "a condition, a number or a size depends on the values of a tensor"
    else:
        what = first_line(error).rstrip(".")
    return what + _location(error)


def depends_on_values(error: Exception) -> bool:
    """Whether the error says that the graph would depend on the values of tensors."""
    return type(error).__name__ in _DEPENDS_ON_VALUES or _FROM_NUMPY in str(error)


def _location(error: Exception) -> str:
    """The innermost line of the user's code in the traceback; empty if there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.exists() and not any(path.is_relative_to(folder) for folder in _LIBRARIES):
            line = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
            return f" (in {path.name}, line {frame.lineno}: {line[:80]})"
    return ""


def _copied(tree: Any) -> Any:
    return pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else copy.copy(v), tree)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the block with every module in eval mode, and restore each module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:  # one by one, because the modules of exported programs forbid `eval()`
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings, logs and graphs that torch.export prints; failures are raised and reported once."""
    from torch.export import _trace  # imported here, because it imports torch's compiler, which takes seconds

    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    vars(_trace)["print"] = lambda *_, **__: None  # on failure it would print the graph to stderr
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        vars(_trace).pop("print", None)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
