"""Shared by engines that run exported programs: the program, and inputs and outputs as flat lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from onebyone.native.unsupported import UnsupportedError as UnsupportedError
from onebyone.pytorch.files.exporting import quiet, why_not_followed
from onebyone.tuning.call_signature import CallSignature
from onebyone.tuning.exporting import export_on_example, with_batch_of_two


@dataclass(frozen=True, eq=False)
class Exported:
    """An exported program for an engine.

    `names` are the names of its tensor inputs, in order; `outputs` is the number of its tensor outputs, and `rebuild`
    makes the network's output structure from their flat list.
    """

    program: ExportedProgram
    names: tuple[str, ...]
    rebuild: Callable[[Sequence[Tensor]], Any]
    outputs: int


def export(network: nn.Module, signature: CallSignature) -> Exported:
    """Export a network on its example.

    Raises UnsupportedError for outputs that are not tensors, and for networks that torch.export cannot follow.
    """
    if signature.dynamic_batch:
        signature = with_batch_of_two(signature)
    with torch.no_grad():
        try:
            program = export_on_example(network, signature)
        except Exception as error:
            raise UnsupportedError(f"torch.export cannot follow it: {why_not_followed(error)}") from error
        with quiet():
            leaves, structure = pytree.tree_flatten(signature.run(network))
    is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
    others = [type(v).__name__ for v in leaves if not isinstance(v, Tensor | str | bool | None)]
    if others:
        raise UnsupportedError(f"its output contains a {others[0]}; expected tensors only")
    if not any(is_tensor):
        raise UnsupportedError("its output contains no tensor")

    def rebuild(outputs: Sequence[Tensor]) -> Any:
        remaining = iter(outputs)
        values = [next(remaining) if t else leaf for t, leaf in zip(is_tensor, leaves, strict=True)]
        return pytree.tree_unflatten(values, structure)

    inputs = pytree.tree_leaves((signature.args, signature.kwargs))
    names = [
        str(name)
        for leaf, name in zip(inputs, program.graph_signature.user_inputs, strict=True)
        if isinstance(leaf, Tensor)
    ]
    return Exported(program, tuple(names), rebuild, sum(is_tensor))


def flat_inputs(args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors of a call, in order, detached from gradients."""
    return [t.detach() for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
